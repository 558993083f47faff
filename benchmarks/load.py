"""Closed-loop load from a process of its own: wrk for REST, grpc_client.py for gRPC.

Each connection has one request in flight and sends the next once it has its answer.
"""

import json
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from benchmarks.exports import ROOT
from benchmarks.processes import ServerFailed

NPY, JSON = "application/x-npy", "application/json"

_SCRIPT = Path(__file__).with_name("wrk.lua")


class Loaded(Protocol):
    """A server under load."""

    @property
    def processor_seconds(self) -> float:
        """What it has computed since its start."""
        ...


@dataclass(frozen=True)
class RestRequest:
    """A POST, the same each time."""

    path: str
    body: bytes
    accept: str
    content_type: str = JSON


@dataclass(frozen=True)
class GrpcRequest:
    """A call of the generation service, the same each time."""

    method: str
    message: bytes


@dataclass(frozen=True)
class Load:
    """What a client saw, and what it took."""

    requests_per_second: float
    p50_ms: float
    p99_ms: float
    server_cores: float
    client_cores: float  # taken from the cores that the server has


def describe_clients() -> str:
    """Say which clients are used; raises ServerFailed where one is missing."""
    _wrk()
    return "REST by wrk with one thread, gRPC by benchmarks/grpc_client.py"


def post(port: int, request: RestRequest) -> bytes:
    """Ask once and return the body of the answer. Raises ServerFailed."""
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {"Accept": request.accept, "Content-Type": request.content_type}
    try:
        connection.request("POST", request.path, request.body, headers)
        answer = connection.getresponse()
        content = answer.read()
    finally:
        connection.close()
    if answer.status != 200:
        raise ServerFailed(f"{request.path} answered {answer.status}: {content[:500]!r}")
    return content


def load_rest(
    server: Loaded, port: int, request: RestRequest, connections: int, seconds: int
) -> Load:
    """Send one request on each keep-alive connection; wrk takes whole seconds."""
    options = [f"--connections={connections}", "--threads=1", f"--duration={seconds}s"]
    options += ["--timeout=20s", f"--script={_SCRIPT}"]
    with TemporaryDirectory() as folder:
        body = Path(folder, "body")
        body.write_bytes(request.body)
        url = f"http://127.0.0.1:{port}{request.path}"
        script = ["--", str(body), request.accept, request.content_type]
        return _load(server, [_wrk(), *options, url, *script], b"", seconds)


def load_grpc(server: Loaded, port: int, request: GrpcRequest, calls: int, seconds: int) -> Load:
    """Keep that many calls in flight on one channel."""
    command = [sys.executable, "-m", "benchmarks.grpc_client"]
    command += [str(port), request.method, str(calls), str(seconds)]
    return _load(server, command, request.message, seconds)


def _wrk() -> str:
    path = shutil.which("wrk")
    if path is None:
        raise ServerFailed("wrk is missing, which loads the server; apt install wrk")
    return path


def _load(server: Loaded, command: list[str], content: bytes, seconds: int) -> Load:
    client, served = _children_seconds(), server.processor_seconds
    seen = json.loads(_output(command, content, seconds).splitlines()[-1])
    client, served = _children_seconds() - client, server.processor_seconds - served
    if seen["errors"] or not seen["requests"]:
        raise ServerFailed(f"{seen['errors']} requests failed, {seen['requests']} did not")
    return Load(
        requests_per_second=seen["requests"] / seen["seconds"],
        p50_ms=seen["p50_ms"],
        p99_ms=seen["p99_ms"],
        server_cores=served / seen["all_seconds"],
        # Our own client leaves out what it took to start.
        client_cores=seen.get("processor_seconds", client) / seen["all_seconds"],
    )


def _output(command: list[str], content: bytes, seconds: int) -> bytes:
    try:
        ran = subprocess.run(
            command, cwd=ROOT, input=content, capture_output=True, check=True, timeout=seconds + 30
        )
    except subprocess.TimeoutExpired:
        raise ServerFailed("the server left a client waiting for its answers") from None
    except subprocess.CalledProcessError as error:
        raise ServerFailed(f"the client failed: {error.stderr[-1000:].decode()}") from error
    return ran.stdout


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
