"""What deploy/ holds is sound: rules that promtool tests, dashboards as generated, shared names."""

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from service.metrics import Metrics
from service.settings import Settings
from tests.live import ROOT

DEPLOY = ROOT / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
DASHBOARDS = DEPLOY / "grafana" / "dashboards"

needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="promtool comes with Debian's package prometheus"
)

needs_compose = pytest.mark.skipif(
    not shutil.which("docker-compose"), reason="docker-compose comes with Debian's package of it"
)


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def rules(name: str) -> list[dict[str, Any]]:
    return [rule for group in read(PROMETHEUS / name)["groups"] for rule in group["rules"]]


def queries() -> list[str]:
    """Return every query of a dashboard or a rule."""
    panels = [
        target["expr"]
        for path in DASHBOARDS.glob("*.json")
        for panel in json.loads(path.read_text())["panels"]
        for target in panel.get("targets", [])
    ]
    asked = [rule["expr"] for name in ("recording", "alarm") for rule in rules(f"{name}_rules.yml")]
    assert len(panels) > 30 and len(asked) > 10
    return panels + asked


def promtool(*arguments: str) -> None:
    done = subprocess.run(
        ["promtool", *arguments], cwd=PROMETHEUS, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_can_read_its_configuration() -> None:
    promtool("check", "config", "prometheus.yml")


@needs_promtool
def test_alarms_are_raised_where_they_should_be_and_end() -> None:
    promtool("test", "rules", "alarm_rules_test.yml")


def test_each_alarm_has_a_test_in_which_it_is_raised_and_one_in_which_it_is_not() -> None:
    tested = [
        (test["alertname"], bool(test["exp_alerts"]))
        for group in read(PROMETHEUS / "alarm_rules_test.yml")["tests"]
        for test in group["alert_rule_test"]
    ]
    alarms = {rule["alert"] for rule in rules("alarm_rules.yml")}
    assert set(tested) == {(name, raised) for name in alarms for raised in (True, False)}


def test_each_alarm_is_explained() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    assert set(re.findall(r"\| `(Genserve\w+)` \|", page)) == {
        rule["alert"] for rule in rules("alarm_rules.yml")
    }


def test_the_dashboards_are_those_that_are_generated(tmp_path: Path) -> None:
    path = DEPLOY / "grafana" / "generate.py"
    spec = importlib.util.spec_from_file_location("generate", path)
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    generate.write(tmp_path)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_text() for path in DASHBOARDS.iterdir()}, (
        "run make dashboards"
    )


def test_every_query_asks_for_metrics_that_there_are() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    known = {rule["record"] for rule in rules("recording_rules.yml")}
    for family in registry.collect():
        endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
        known |= {family.name + ending for ending in endings.get(family.type, [""])}
    for query in queries():
        asked = set(re.findall(r"[\w:]*genserve_\w+(?::\w+)?", query))
        assert asked <= known, asked - known
        assert "vector(" not in query, "a panel that is never empty hides what is missing"


@needs_compose
def test_compose_can_read_its_file() -> None:
    done = subprocess.run(
        ["docker-compose", "--file", "compose.yaml", "config", "--quiet"],
        cwd=DEPLOY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_compose_gives_the_server_the_time_to_drain() -> None:
    period = read(DEPLOY / "compose.yaml")["services"]["genserve"]["stop_grace_period"]
    assert float(period.removesuffix("s")) > Settings().drain_seconds


def test_compose_starts_what_the_other_files_are_about() -> None:
    services = read(DEPLOY / "compose.yaml")["services"]
    (scrape,) = read(PROMETHEUS / "prometheus.yml")["scrape_configs"]
    port = services["genserve"]["environment"]["GENSERVE_HTTP_PORT"]
    assert scrape["static_configs"] == [{"targets": [f"genserve:{port}"]}]
    (source,) = read(DEPLOY / "grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = read(DEPLOY / "grafana/provisioning/dashboards/genserve.yaml")["providers"]
    mounts = dict(
        mount.split(":")[:2] for name in services for mount in services[name].get("volumes", [])
    )
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    assert all((DEPLOY / mount).exists() for mount in mounts if mount.startswith("."))
    uids = re.findall(r'"uid": "(\w+)"', "".join(map(Path.read_text, DASHBOARDS.iterdir())))
    assert set(uids) == {source["uid"]}
    (memory,) = [rule for rule in rules("alarm_rules.yml") if rule["alert"] == "GenserveMemory"]
    assert services["genserve"]["mem_limit"] == "4g" and "0.8 * 4 * 2 ^ 30" in memory["expr"]
