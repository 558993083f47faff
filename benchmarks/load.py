"""Loads a server from a process of its own: by `wrk` where it is installed, else by client.py."""

import json
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.requests import ACCEPT, rest_body
from benchmarks.server import ROOT, Server, ServerFailed

SECONDS = 2
"""Of load in one go; wrk takes whole seconds."""

_WRK = shutil.which("wrk")
_SCRIPT = Path(__file__).with_name("wrk.lua")


@dataclass(frozen=True)
class Load:
    """What a client saw."""

    requests_per_second: float
    p50_ms: float
    p99_ms: float
    client_cores: float  # taken from the cores that the server has


def describe_clients() -> str:
    """Say which clients are used."""
    rest = "wrk, one thread" if _WRK else "benchmarks/client.py (wrk is not installed)"
    return f"REST by {rest}; gRPC by benchmarks/client.py"


def load_rest(server: Server, connections: int, count: int) -> Load:
    """Ask for `count` images a request over keep-alive connections, one request on each."""
    if not _WRK:
        return _run_client("rest", server.http_port, connections, count)
    url = f"http://127.0.0.1:{server.http_port}/sample"
    options = [f"--connections={connections}", "--threads=1", f"--duration={SECONDS}s"]
    return _run(
        [_WRK, *options, f"--script={_SCRIPT}", url, "--", rest_body(count).decode(), ACCEPT]
    )


def load_grpc(server: Server, calls: int, count: int) -> Load:
    """Ask for `count` images a call, that many calls at a time on one channel."""
    return _run_client("grpc", server.grpc_port, calls, count)


def _run_client(transport: str, port: int, in_flight: int, count: int) -> Load:
    numbers = map(str, (port, in_flight, count, SECONDS))
    return _run([sys.executable, "-m", "benchmarks.client", transport, *numbers])


def _run(command: list[str]) -> Load:
    before = _children_seconds()
    seen = json.loads(_output(command).splitlines()[-1])
    processor = _children_seconds() - before
    if seen["errors"]:
        raise ServerFailed(f"{seen['errors']} of {seen['requests']} requests failed")
    return Load(
        requests_per_second=seen["requests"] / seen["seconds"],
        p50_ms=seen["p50_ms"],
        p99_ms=seen["p99_ms"],
        # Our own client leaves out what it took to start.
        client_cores=seen.get("processor_seconds", processor) / seen["seconds"],
    )


def _output(command: list[str]) -> str:
    try:
        ran = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=SECONDS + 20
        )
    except subprocess.TimeoutExpired:
        raise ServerFailed("the server left a client waiting for its answers") from None
    except subprocess.CalledProcessError as error:
        raise ServerFailed(f"the client failed: {error.stderr[-1000:]}") from error
    return ran.stdout


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
