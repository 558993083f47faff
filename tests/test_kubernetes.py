"""deploy/kubernetes is what Kubernetes reads, and fits the server: ports, paths, settings, time."""

import copy
import json
import os
import re
import shutil
import subprocess
from typing import Any

import httpx
import kubernetes_validate
import pytest
import yaml

from service.api.guard import PROBES
from service.settings import Settings, read_settings, variable
from tests.live import ROOT
from tests.test_packaging import PROJECT, stage

FOLDER = ROOT / "deploy" / "kubernetes"
OLDEST = "1.30.0"  # the first that lets a hook sleep without asking for it
LAST_ANSWERS_SECONDS = 2  # that the server may take after its drain, to close what is left

needs_kubectl = pytest.mark.skipif(
    not shutil.which("kubectl"), reason="kubectl comes with Debian's package kubernetes-client"
)


def resources() -> dict[str, dict[str, Any]]:
    """Return what is applied, by kind."""
    found = yaml.safe_load_all((FOLDER / "genserve.yaml").read_text())
    return {resource["kind"]: resource for resource in found}


def on_gpus() -> dict[str, Any]:
    """Return the Deployment with the patch for GPUs, as Kubernetes merges them."""
    patch = json.dumps(yaml.safe_load((FOLDER / "gpu.yaml").read_text()))
    command = ["kubectl", "patch", "--local", "--filename=-", "--output=json", "--patch", patch]
    done = subprocess.run(
        command,
        input=json.dumps(resources()["Deployment"]),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    merged: dict[str, Any] = json.loads(done.stdout)
    return merged


def container(deployment: dict[str, Any]) -> dict[str, Any]:
    (only,) = deployment["spec"]["template"]["spec"]["containers"]
    return only


@pytest.fixture
def pod() -> dict[str, Any]:
    """The specification of a pod."""
    return resources()["Deployment"]["spec"]["template"]["spec"]


VERSIONS = kubernetes_validate.utils.all_versions()  # oldest first, as "1.30.0"
VERSIONS = VERSIONS[VERSIONS.index(OLDEST) :]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["Deployment", "Service", "PodDisruptionBudget"])
def test_kubernetes_can_read_it(kind: str, version: str) -> None:
    kubernetes_validate.validate(resources()[kind], version, strict=True)
    mistaken = copy.deepcopy(resources()[kind])
    mistaken["spec"]["selectr"] = mistaken["spec"].pop("selector")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(mistaken, version, strict=True)


@needs_kubectl
def test_the_patch_for_gpus_asks_for_one_and_changes_nothing_else() -> None:
    plain, patched = resources()["Deployment"], on_gpus()
    kubernetes_validate.validate(patched, VERSIONS[-1], strict=True)
    assert container(patched)["resources"]["limits"].pop("nvidia.com/gpu") == 1
    assert container(patched)["image"] == container(plain)["image"] + "-gpu"
    container(patched)["image"] = container(plain)["image"]
    patched["spec"]["template"]["spec"].pop("tolerations")
    patched["spec"]["strategy"] = plain["spec"]["strategy"]
    assert patched == plain
    assert "ENV GENSERVE_PROVIDER=cuda" in stage("gpu")


def test_selectors_select_the_pods() -> None:
    found = resources()
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert found["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert found["Service"]["spec"]["selector"] == labels


def test_ports_are_those_of_the_server(pod: dict[str, Any]) -> None:
    defaults = Settings()
    expected = {"http": defaults.http_port, "grpc": defaults.grpc_port}
    ports = {port["name"]: port["containerPort"] for port in pod["containers"][0]["ports"]}
    assert ports == expected
    service = resources()["Service"]["spec"]["ports"]
    assert {port["targetPort"]: port["port"] for port in service} == expected
    assert f"EXPOSE {expected['http']} {expected['grpc']}" in stage("base")


async def test_probes_ask_what_the_server_answers_without_a_key(
    pod: dict[str, Any], client: httpx.AsyncClient
) -> None:
    probes = {kind: pod["containers"][0][f"{kind}Probe"] for kind in ("startup", "readiness")}
    probes["liveness"] = pod["containers"][0]["livenessProbe"]
    paths = {kind: probe["httpGet"]["path"] for kind, probe in probes.items()}
    # A model that does not load, or a drain, is no reason to kill the process.
    assert paths == {"startup": "/healthz", "readiness": "/readyz", "liveness": "/healthz"}
    for path in paths.values():
        assert path in PROBES and (await client.get(path)).status_code == 200
    assert all(probe["httpGet"]["port"] == "http" for probe in probes.values())


def test_variables_are_settings(pod: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    given = {entry["name"]: entry for entry in pod["containers"][0]["env"]}
    commented = re.findall(r"# - name: (\w+)", (FOLDER / "genserve.yaml").read_text())
    assert {*given, *commented} <= {variable(name) for name in Settings.model_fields}
    limits = pod["containers"][0]["resources"]["limits"]
    for name, entry in given.items():
        source = entry.get("valueFrom", {}).get("resourceFieldRef", {})
        value = limits[source["resource"].removeprefix("limits.")] if source else entry["value"]
        monkeypatch.setenv(name, value)
    settings = read_settings({})
    assert settings.workers == int(limits["cpu"])
    mounted = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounted == {os.fspath(settings.repository_cache)}
    assert pod["enableServiceLinks"] is False, "variables of Services may be called like settings"


def test_a_pod_has_the_time_to_drain(pod: dict[str, Any]) -> None:
    """The grace period begins before preStop, which ends before SIGTERM begins the drain."""
    (action,) = pod["containers"][0]["lifecycle"]["preStop"].values()
    needed = action["seconds"] + Settings().drain_seconds + LAST_ANSWERS_SECONDS
    assert 0 < needed <= pod["terminationGracePeriodSeconds"]
    assert "GENSERVE_DRAIN_SECONDS" not in json.dumps(pod), "the default is what fits"


def test_a_pod_may_do_nothing_that_it_need_not(pod: dict[str, Any]) -> None:
    security = pod["securityContext"] | pod["containers"][0]["securityContext"]
    assert security["runAsNonRoot"] and f"--uid {security['runAsUser']} " in stage("base")
    assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False


def test_the_image_is_of_this_version(pod: dict[str, Any]) -> None:
    assert pod["containers"][0]["image"] == f"genserve:{PROJECT['version']}"


def test_memory_is_what_the_alarm_is_about(pod: dict[str, Any]) -> None:
    rules = (ROOT / "deploy" / "prometheus" / "alarm_rules.yml").read_text()
    assert pod["containers"][0]["resources"]["limits"]["memory"] == "4Gi"
    assert "0.8 * 4 * 2 ^ 30" in rules
