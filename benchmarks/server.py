"""The server that is measured: `genserve serve` in a process of its own, on free ports."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

from benchmarks.machine import memory_mebibytes, processor_seconds, resident_mebibytes
from benchmarks.processes import running


@dataclass(frozen=True)
class Server:
    """A server that is ready."""

    pid: int
    http_port: int
    grpc_port: int
    start_seconds: float  # from its command to 200 on /readyz
    log: Path

    @property
    def memory_mebibytes(self) -> float:
        """Its share of memory now (PSS)."""
        return memory_mebibytes(self.pid)

    @property
    def resident_mebibytes(self) -> float:
        """Its resident memory now (RSS)."""
        return resident_mebibytes(self.pid)

    def read_errors(self) -> list[str]:
        """Return the lines of its log that say that something is wrong."""
        with self.log.open(encoding="utf-8") as lines:
            return [line for line in lines if json.loads(line)["level"] != "info"]

    @property
    def processor_seconds(self) -> float:
        """What it has computed since its start."""
        return processor_seconds(self.pid)


@contextmanager
def running_server(**settings: object) -> Iterator[Server]:
    """Start a server, wait until it is ready, and stop it at the end. Raises ServerFailed.

    `settings` go by their names, such as `maximum_queued_rows`; all others are the defaults.
    """
    started = time.monotonic()
    command = [sys.executable, "-m", "service", "serve"]
    environment = {f"GENSERVE_{name.upper()}": str(value) for name, value in settings.items()}
    environment |= {"GENSERVE_HTTP_PORT": "0", "GENSERVE_GRPC_PORT": "0"}
    with running(command, environment) as process:
        http_port, grpc_port = process.wait_for(lambda: _read_ports(process.log))
        process.wait_for(lambda: answers(http_port, "/readyz"))
        seconds = time.monotonic() - started
        yield Server(process.process.pid, http_port, grpc_port, seconds, process.log)


def answers(port: int, path: str) -> bool:
    """Return whether a GET is answered with 200 now."""
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:  # it does not answer yet
        return False
    finally:
        connection.close()


def _read_ports(log: Path) -> tuple[int, int] | None:
    for line in log.read_text().splitlines(keepends=True):
        # The last line may be half written.
        record = json.loads(line) if line.endswith("}\n") else {}
        if record.get("message") == "listening":
            return record["http_port"], record["grpc_port"]
    return None
