"""Runs the plain FastAPI app of plain_fastapi.py in the ways that its users try.

`python -m benchmarks.plain PORT WORKERS` runs it as the command `uvicorn` does.
"""

import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from uvicorn.supervisors import Multiprocess

from benchmarks.machine import core_count, memory_mebibytes, processor_seconds
from benchmarks.processes import running
from benchmarks.server import answers


@dataclass(frozen=True)
class Variant:
    """How the app is run."""

    name: str
    threads: int  # of a session; 0 for the runtime's default, all cores
    workers: int  # processes


VARIANTS = (
    Variant("plain FastAPI, ONNX Runtime's defaults", 0, 1),
    Variant("plain FastAPI, a one-thread session", 1, 1),
    Variant(f"plain FastAPI, {core_count()} workers", 1, core_count()),
)


@dataclass(frozen=True)
class Plain:
    """The app, ready."""

    variant: Variant
    pid: int
    http_port: int

    @property
    def memory_mebibytes(self) -> float:
        """Its share of memory now (PSS)."""
        return memory_mebibytes(self.pid)

    @property
    def processor_seconds(self) -> float:
        """What it has computed since its start."""
        return processor_seconds(self.pid)


@contextmanager
def running_plain(variant: Variant, artifacts: Sequence[Path]) -> Iterator[Plain]:
    """Start the app, wait until it is ready, and stop it at the end. Raises ServerFailed."""
    port = _free_port()
    command = [sys.executable, "-m", "benchmarks.plain", str(port), str(variant.workers)]
    environment = {
        "PLAIN_ARTIFACTS": ":".join(map(str, artifacts)),
        "PLAIN_THREADS": str(variant.threads),
    }
    with running(command, environment) as process:
        # Only the worker that answers is known to be ready: the others are as far as that.
        process.wait_for(lambda: answers(port, "/docs"))
        yield Plain(variant, process.process.pid, port)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _serve(port: int, workers: int) -> None:
    """Serve until SIGTERM.

    Kinder than the command, which leaves Nagle's algorithm on where there are several workers:
    every answer would wait 40 ms for the client's delayed acknowledgement.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    config = uvicorn.Config("benchmarks.plain_fastapi:app", workers=workers, access_log=False)
    if workers == 1:
        uvicorn.Server(config).run([listener])
    else:
        Multiprocess(config, [listener]).run()


if __name__ == "__main__":
    _serve(*map(int, sys.argv[1:]))
