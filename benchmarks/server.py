"""A real server: `genserve serve` in a process of its own, with default settings, on free ports."""

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np

from benchmarks.machine import memory_mebibytes
from benchmarks.requests import ACCEPT, rest_body

ROOT = Path(__file__).resolve().parents[1]

_START_SECONDS = 30.0
_STOP_SECONDS = 10.0
_LOOK_SECONDS = 0.01  # between two looks at a server that is starting

T = TypeVar("T")


class ServerFailed(Exception):
    """The server did not start, or answered wrongly; the message says what was seen."""


@dataclass(frozen=True)
class Server:
    """A server that is ready."""

    pid: int
    http_port: int
    grpc_port: int
    start_seconds: float  # from its command to 200 on /readyz

    @property
    def memory_mebibytes(self) -> float:
        """What it holds now."""
        return memory_mebibytes(self.pid)

    def check_answer(self, count: int) -> None:
        """Ask once and look at the answer, so that nothing wrong is timed. Raises ServerFailed."""
        images = np.load(io.BytesIO(_post_sample(self.http_port, count)))
        if images.shape != (count, 28, 28, 1) or images.dtype != np.uint8:
            raise ServerFailed(f"/sample answered {images.dtype} {images.shape} for {count} images")


@contextmanager
def running_server() -> Iterator[Server]:
    """Start a server, wait until it is ready, and stop it at the end. Raises ServerFailed."""
    with TemporaryDirectory() as folder:
        log = Path(folder, "log")
        started = time.monotonic()
        process = _start(log)
        try:
            http_port, grpc_port = _wait_for(lambda: _read_ports(log), process, log)
            _wait_for(lambda: _is_ready(http_port), process, log)
            yield Server(process.pid, http_port, grpc_port, time.monotonic() - started)
        finally:
            _stop(process)


def _post_sample(port: int, count: int) -> bytes:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {"Accept": ACCEPT, "Content-Type": "application/json"}
    try:
        connection.request("POST", "/sample", rest_body(count), headers)
        answer = connection.getresponse()
        content = answer.read()
    finally:
        connection.close()
    if answer.status != 200:
        raise ServerFailed(f"/sample answered {answer.status}: {content[:500]!r}")
    return content


def _start(log: Path) -> subprocess.Popen[bytes]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("GENSERVE_")
    }
    command = [sys.executable, "-m", "service", "serve", "--http-port", "0", "--grpc-port", "0"]
    with log.open("wb") as errors:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=errors)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_for(look: Callable[[], T | None], process: subprocess.Popen[bytes], log: Path) -> T:
    """Return the first true value that `look` returns while the server lives."""
    stop = time.monotonic() + _START_SECONDS
    while time.monotonic() < stop and process.poll() is None:
        if seen := look():
            return seen
        time.sleep(_LOOK_SECONDS)
    # Our own looks are in the log too, as accesses.
    lines = [line for line in log.read_text().splitlines() if "genserve.access" not in line]
    tail = "\n".join(lines[-5:])
    raise ServerFailed(
        f"the server ended, or was not ready within {_START_SECONDS:.0f} s; its log ends\n{tail}"
    )


def _read_ports(log: Path) -> tuple[int, int] | None:
    for line in log.read_text().splitlines(keepends=True):
        # The last line may be half written.
        record = json.loads(line) if line.endswith("}\n") else {}
        if record.get("message") == "listening":
            return record["http_port"], record["grpc_port"]
    return None


def _is_ready(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:  # it does not answer yet
        return False
    finally:
        connection.close()
