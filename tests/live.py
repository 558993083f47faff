"""A real server in a process of its own, on free ports."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parent.parent


class LiveServer:
    """`genserve serve` over a repository; ports are read from its log, which is kept."""

    def __init__(self, repository: Path, **settings: str) -> None:
        environment = {
            **os.environ,
            "GENSERVE_MODEL_REPOSITORY": str(repository),
            "GENSERVE_HTTP_PORT": "0",
            "GENSERVE_GRPC_PORT": "0",
            **{f"GENSERVE_{name.upper()}": value for name, value in settings.items()},
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "service", "serve"],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[dict[str, Any]] = []
        listening = self._read_until("listening")
        self.http_port, self.grpc_port = listening["http_port"], listening["grpc_port"]
        # Someone has to empty the pipe, or the server would block on its own log.
        self._reader = threading.Thread(target=self._read_until, args=(None,), daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()

    @property
    def url(self) -> str:
        """The base URL of the REST API."""
        return f"http://127.0.0.1:{self.http_port}"

    def get(self, path: str) -> tuple[int, str]:
        """Return status and body of a GET."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def wait_until_ready(self, seconds: float = 30.0) -> None:
        """Poll readiness, as an orchestrator does."""
        deadline = time.monotonic() + seconds
        while self.get("/readyz")[0] != 200:
            assert time.monotonic() < deadline, f"not ready: {self.log[-3:]}"
            time.sleep(0.05)

    def stop(self, seconds: float = 30.0) -> int:
        """Send SIGTERM and return the exit status; the log is complete afterwards."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait(seconds)

    def wait(self, seconds: float = 30.0) -> int:
        """Return the exit status once the server ends; the log is complete afterwards."""
        status = self.process.wait(seconds)
        self._reader.join()
        return status

    def _read_until(self, message: str | None) -> dict[str, Any]:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                entry = json.loads(line)
            except ValueError:
                entry = {"message": line.rstrip(), "level": "not JSON"}
            self.log.append(entry)
            if message is not None and entry["message"] == message:
                return entry
        assert message is None, f"the server ended before '{message}': {self.log}"
        return {}


def wait_for_log(server: LiveServer, message: str) -> None:
    """Wait until the server has logged a message."""
    ticker = threading.Event()
    for _ in range(600):
        if any(entry["message"] == message for entry in server.log):
            return
        ticker.wait(0.05)
    raise AssertionError(f"'{message}' was never logged: {server.log}")
