"""Clients that know nothing of genserve, in processes of their own."""

import base64
import fcntl
import json
import subprocess
import sys
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.core.manifest import read_manifest
from service.core.preprocess import to_images
from service.keys import create_key
from service.rpc.pb import inference_service_pb2 as pb
from tests.live import ROOT, LiveServer

TRITONCLIENT = "tritonclient[http,grpc]==2.73.0"
CLIENTS = Path(__file__).parent / "clients"
ARTIFACTS = ROOT / "artifacts"
LATENTS = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with LiveServer(ARTIFACTS, default_models="mnist-vae,mnist-pixelcnn") as started:
        started.wait_until_ready(60)
        yield started


def installed(name: str, *requirements: str) -> Path:
    """The Python of an environment with these packages, which is made once and kept."""
    folder = ROOT / f".venv-{name}"
    done = folder / "requirements.txt"
    with (ROOT / f".venv-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests may run side by side
        if not done.exists() or done.read_text().split() != list(requirements):
            venv.create(folder, clear=True, with_pip=True)
            pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
            subprocess.run([*pip, *requirements], check=True)
            done.write_text("\n".join(requirements))
    return folder / "bin" / "python"


def run_client(python: Path | str, name: str, *arguments: str) -> Any:
    command = [str(python), str(CLIENTS / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def ask(server: LiveServer, operation: str, **body: object) -> np.ndarray:
    """Images of a typed operation, as levels."""
    request = urllib.request.Request(
        f"{server.url}/{operation}",
        json.dumps({**body, "image_format": "array"}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return np.array(json.load(answer)["images"], np.uint8)


def check_decoded(server: LiveServer, decoded: dict[str, Any]) -> None:
    """Every way gave the same values, and they are the images of the operation."""
    images = ask(server, "decode", model="mnist-vae", latents=LATENTS.tolist())
    manifest = read_manifest(ARTIFACTS / "mnist-vae" / "1")
    assert len(decoded) == 3
    for how, values in decoded.items():
        shown = to_images(manifest, np.array(values, np.float32), "levels")
        np.testing.assert_array_equal(shown, images, err_msg=how)
        assert values == next(iter(decoded.values())), how


@pytest.fixture(scope="module")
def triton(server: LiveServer) -> dict[str, Any]:
    python = installed("tritonclient", TRITONCLIENT)
    addresses = f"127.0.0.1:{server.http_port}", f"127.0.0.1:{server.grpc_port}"
    return run_client(python, "tritonclient_calls.py", *addresses, json.dumps(LATENTS.tolist()))


@pytest.mark.slow
def test_tritonclient_loads_and_unloads(tmp_path: Path) -> None:
    key, line = create_key("test")
    (tmp_path / "keys").write_text(line)
    python = installed("tritonclient", TRITONCLIENT)
    settings = {"default_models": "mnist-vae", "api_key_hashes": str(tmp_path / "keys")}
    with LiveServer(ARTIFACTS, **settings) as started:
        started.wait_until_ready(60)
        addresses = f"127.0.0.1:{started.http_port}", f"127.0.0.1:{started.grpc_port}"
        found = run_client(python, "tritonclient_repository.py", *addresses, key)
    for transport in ("http", "grpc"):
        shown = found[transport]
        assert shown["ready"] == [True, False, True, False, True]
        assert "come and go together" in shown["refused"]["unload of a graph"]
        assert "config" in shown["refused"]["config"]
        assert "API keys only" in shown["refused"]["no key"]


@pytest.mark.slow  # installs packages, once
def test_tritonclient_gets_the_tensors_of_the_operations(
    server: LiveServer, triton: dict[str, Any]
) -> None:
    check_decoded(server, triton["decoded"])
    described = triton["described"]
    assert described["up"] == [True] * 8 and described["servers"] == ["genserve"] * 2
    assert described["inputs"] == [[-1, 32]] * 2 and described["decoupled"] == [True, True]
    assert described["statistics"] == ["mnist-vae.decode"] * 2
    over_http, over_grpc = described["index"]
    assert over_http == over_grpc and "mnist-realnvp.log_likelihood" in over_http


@pytest.mark.slow
def test_tritonclients_stream_receives_the_rows_of_pixelcnn(
    server: LiveServer, triton: dict[str, Any]
) -> None:
    images = ask(server, "sample", model="mnist-pixelcnn", seed=7, count=2, class_label=3)
    streamed = triton["streamed"]
    for painted in (streamed["rows"], streamed["images"], triton["sampled"]):
        np.testing.assert_array_equal(np.array(painted, np.uint8), images)
    assert "nothing" in streamed["error"]


@pytest.mark.slow
def test_tritonclient_reads_why_it_is_refused(triton: dict[str, Any]) -> None:
    refused = triton["refused"]
    assert len(refused) == 7
    for how, (status, message) in refused.items():
        assert status.startswith("4") or "INVALID_ARGUMENT" in status or "NOT_FOUND" in status, how
        assert "exception occurred in the client" not in message, how


@pytest.mark.slow
def test_every_field_is_as_tritonclient_has_it(triton: dict[str, Any]) -> None:
    def visit(message: Any) -> Iterator[tuple[str, list[Any]]]:
        for field in message.fields:
            name = f"{message.full_name}.{field.name}"
            yield name, [field.number, field.type, field.is_repeated]
        for nested in message.nested_types:
            yield from visit(nested)

    messages = pb.DESCRIPTOR.message_types_by_name.values()
    own = dict(entry for message in messages for entry in visit(message))
    assert own and own == {name: triton["fields"].get(name) for name in own}


@pytest.mark.slow
def test_kserves_clients_get_the_tensors_of_the_operations(server: LiveServer) -> None:
    python = installed("kserve", "kserve==0.21.0")
    addresses = f"127.0.0.1:{server.http_port}", f"127.0.0.1:{server.grpc_port}"
    found = run_client(python, "kserve_calls.py", *addresses, json.dumps(LATENTS.tolist()))
    assert found["up"] == [True] * 6
    check_decoded(server, found["decoded"])
    assert "latent is missing" in found["refused"]


def test_a_client_that_knows_only_reflection_samples(server: LiveServer) -> None:
    address = f"127.0.0.1:{server.grpc_port}"
    found = run_client(sys.executable, "reflection_calls.py", address, "mnist-vae")
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= set(found["services"])
    images = found["answer"]["images"]
    levels = np.frombuffer(base64.b64decode(images["levels"]), np.uint8)
    expected = ask(server, "sample", model="mnist-vae", seed=7, count=2)
    np.testing.assert_array_equal(levels.reshape(expected.shape), expected)
