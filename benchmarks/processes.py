"""Processes that are measured: started, watched until they are ready, and stopped."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from benchmarks.exports import ROOT

_START_SECONDS = 30.0
_STOP_SECONDS = 10.0
_LOOK_SECONDS = 0.01  # between two looks at a process that is starting

T = TypeVar("T")


class ServerFailed(Exception):
    """A server did not start, or answered wrongly; the message says what was seen."""


@dataclass(frozen=True)
class Running:
    """A process that runs, and the file that its standard error goes to."""

    process: subprocess.Popen[bytes]
    log: Path

    def wait_for(self, look: Callable[[], T | None]) -> T:
        """Return the first true value that `look` returns; raises ServerFailed if none comes."""
        stop = time.monotonic() + _START_SECONDS
        while time.monotonic() < stop and self.process.poll() is None:
            if seen := look():
                return seen
            time.sleep(_LOOK_SECONDS)
        # Our own looks are in the log too, as accesses.
        lines = [line for line in self.log.read_text().splitlines() if "access" not in line]
        tail = "\n".join(lines[-5:])
        raise ServerFailed(
            f"a server ended, or was not ready within {_START_SECONDS:.0f} s; its log ends\n{tail}"
        )


@contextmanager
def running(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[Running]:
    """Start a command in the checkout, and stop it at the end.

    It gets our environment without any settings of the service, and `environment` on top.
    """
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith("GENSERVE_")
    }
    with TemporaryDirectory() as folder:
        log = Path(folder, "log")
        with log.open("wb") as errors:
            process = subprocess.Popen(
                command, cwd=ROOT, env={**inherited, **environment}, stderr=errors
            )
        try:
            yield Running(process, log)
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
