"""The whole server as a process: readiness, restarts, draining, and refusals to start."""

import json
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import TOYS
from tests.live import ROOT, LiveServer, wait_for_log

DEFAULTS = ",".join(TOYS)


def sample(server: LiveServer, **body: object) -> bytes:
    request = urllib.request.Request(
        f"{server.url}/sample",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "Accept": "application/x-npy"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read()


def test_one_seed_is_one_image_beside_neighbours_and_after_a_restart(repository: Path) -> None:
    with LiveServer(repository, default_models=DEFAULTS, workers="2") as server:
        server.wait_until_ready()
        alone = sample(server, seed=5, count=2)
        bodies = [{"count": 1 + k % 4, **({} if k % 2 else {"seed": k})} for k in range(31)]
        with ThreadPoolExecutor(32) as pool:
            futures = [pool.submit(sample, server, **body) for body in bodies]
            beside = pool.submit(sample, server, seed=5, count=2).result()
            assert all(future.result() for future in futures)
        assert server.stop() == 0
    with LiveServer(repository, default_models=DEFAULTS, workers="1") as server:
        server.wait_until_ready()
        assert sample(server, seed=5, count=2) == beside == alone


def test_readiness_follows_the_default_set(repository: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(repository, tmp_path / "repository")
    spoilt = copy / "toy-vae" / "1" / "decode.onnx"
    content = bytearray(spoilt.read_bytes())
    content[100] ^= 1
    spoilt.write_bytes(content)
    with LiveServer(copy, default_models=DEFAULTS) as server:
        wait_for_log(server, "not ready")
        status, body = server.get("/readyz")
        assert status == 503
        assert json.loads(body)["models"]["toy-vae"] == "refused"
        assert server.get("/healthz")[0] == 200
        refused = json.loads(server.get("/models/toy-vae")[1])
        assert "decode.onnx" in refused["reason"]
        assert sample(server, model="toy-gan", seed=1), "the others serve"


def reconstruct(server: LiveServer, images: object) -> bytes:
    """Two graph calls one after the other: what is accepted must get to its second."""
    request = urllib.request.Request(
        f"{server.url}/reconstruct",
        json.dumps({"model": "toy-flow", "images": images}).encode(),
        {"Content-Type": "application/json", "Accept": "application/x-npy"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read()


def test_sigterm_answers_what_was_accepted_and_exits_0(repository: Path) -> None:
    images = np.zeros((256, 4, 4, 1), int).tolist()
    with LiveServer(repository, default_models=DEFAULTS, workers="1") as server:
        server.wait_until_ready()
        with ThreadPoolExecutor(8) as pool:
            futures = [pool.submit(reconstruct, server, images) for _ in range(24)]
            futures[0].result()  # the others are under way once one is answered
            assert server.stop() == 0
        outcomes = [future.exception() for future in futures]
        assert outcomes.count(None) >= 1
        for outcome in outcomes:
            # Who comes too late meets a closed port or a 503; nobody is cut off in the middle.
            late = isinstance(outcome, urllib.error.HTTPError) and outcome.code == 503
            closed = isinstance(outcome, urllib.error.URLError | ConnectionError)
            assert outcome is None or late or closed, outcome
        messages = [entry["message"] for entry in server.log]
        assert messages.index("draining") < messages.index("stopped")
        assert not [entry for entry in server.log if entry["level"] == "error"]


def test_a_client_mistake_is_no_error_in_the_log(repository: Path) -> None:
    with LiveServer(repository, default_models=DEFAULTS) as server:
        server.wait_until_ready()
        with pytest.raises(urllib.error.HTTPError, match="422"):
            sample(server, count=0)
        assert server.stop() == 0
        assert not [entry for entry in server.log if entry["level"] in ("error", "not JSON")]
        requests = [entry for entry in server.log if "request_id" in entry]
        assert any(entry.get("status") == 422 for entry in requests)


def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service", "serve", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_taken_port_is_one_sentence(repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        common = ("--model-repository", str(repository), "--default-models", DEFAULTS)
        for flag, other in (("--http-port", "--grpc-port"), ("--grpc-port", "--http-port")):
            done = serve(*common, flag, port, other, "0")
            assert done.returncode == 1
            assert "Address already in use" in done.stderr
            assert len(done.stderr.strip().splitlines()) == 1
            assert flag.strip("-").replace("-", "_").upper() in done.stderr


def test_a_server_writes_nothing_and_its_runtime_reports_nothing(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime would keep an id of the machine, to report by."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with LiveServer(repository, default_models="toy-gan") as server:
        server.wait_until_ready()
        assert server.stop() == 0
    assert list(tmp_path.iterdir()) == []
    assert all(entry["level"] != "not JSON" for entry in server.log)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model-repository", "nowhere"), "GENSERVE_MODEL_REPOSITORY"),
        (("--model-repository", __file__), "GENSERVE_MODEL_REPOSITORY"),
        (("--default-models", "nobody"), "GENSERVE_DEFAULT_MODELS"),
        (("--http-port", "many"), "--http-port is 'many'"),
        (("--workers", "0"), "--workers"),
        (("--drain-seconds", "inf"), "--drain-seconds"),
        (("--maximum-body-bytes", "9999999999"), "--maximum-body-bytes"),
        (("--host", "nowhere.invalid"), "GENSERVE_HOST"),
    ],
)
def test_wrong_settings_are_one_sentence(arguments: tuple[str, ...], message: str) -> None:
    done = serve(*arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
