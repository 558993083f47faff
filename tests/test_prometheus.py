"""Prometheus itself scrapes a server under load: every query of deploy/ is alive, and alarms rise.

The models are the bundled ones, the load is mixed, and the faults are real.
"""

import base64
import itertools
import json
import math
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml

from service.images import levels_to_png
from tests.live import ROOT, LiveServer
from tests.test_deploy import DASHBOARDS, PROMETHEUS, rules

IDLE_SECONDS, CALM_SECONDS, BUSY_SECONDS = 2.0, 8.0, 24.0
STILL = {"Models", "Time to load"}
"""Panels of what does not move under load."""

FAULTS = {"GenserveQueueFull", "GenserveAnomalousShare"}
"""Alarms that the busy load provokes, and the calm one does not."""

pytestmark = pytest.mark.skipif(
    not shutil.which("prometheus"), reason="Debian's package prometheus is not installed"
)


class Prometheus:
    """A Prometheus that scrapes one server each second, by the rules of deploy/."""

    def __init__(self, folder: Path, target: int) -> None:
        self.url = f"http://127.0.0.1:{_free_port()}"
        _configure(folder, target)
        options = [
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={self.url.removeprefix('http://')}",
        ]
        with (folder / "prometheus.log").open("w") as log:
            self.process = subprocess.Popen(["prometheus", *options], stderr=log)

    def get(self, path: str, **parameters: object) -> Any:
        """Return the data of an answer of the API."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]

    def firing(self) -> set[str]:
        """Return the names of the alarms that are raised."""
        alerts = self.get("alerts")["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def wait_until_scraping(self) -> None:
        """Return once the server was scraped, so that what follows is seen from its beginning."""
        deadline = time.monotonic() + 60
        while not any(value == "1" for _, value in self._now("up")):
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def _now(self, query: str) -> list[tuple[float, str]]:
        return [found["value"] for found in self.get("query", query=query)["result"]]

    def series(self, query: str, start: float) -> list[list[float]]:
        """Return the finite values since `start`, second by second, of each series of a query."""
        found = self.get("query_range", query=query, start=start, end=time.time(), step=1)
        every = [[float(value) for _, value in series["values"]] for series in found["result"]]
        return [[value for value in values if math.isfinite(value)] for values in every]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _configure(folder: Path, target: int) -> None:
    """Write the configuration of deploy/, quicker: no interval and no patience beyond a second."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{target}"]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    for name in config["rule_files"]:
        content = yaml.safe_load((PROMETHEUS / name).read_text())
        for rule in content["groups"][0]["rules"]:
            rule.pop("for", None)
        (folder / name).write_text(yaml.safe_dump(content))


@contextmanager
def scraping(folder: Path, target: int) -> Iterator[Prometheus]:
    prometheus = Prometheus(folder, target)
    try:
        yield prometheus
    finally:
        prometheus.process.terminate()
        prometheus.process.wait(30)


class Load(NamedTuple):
    """One kind of request, sent again and again, and how many are under way at once."""

    path: str
    body: dict[str, Any]
    clients: int = 1


def likelihood(images: list[str]) -> Load:
    return Load("/likelihood", {"model": "mnist-pixelcnn", "images": images})


def digits(server: LiveServer) -> list[str]:
    """Return images that are normal to mnist-pixelcnn, since it painted them."""
    body = {"model": "mnist-pixelcnn", "count": 16, "seed": 1}
    return json.loads(post(server, Load("/sample", body)))["images"]


def noise() -> list[str]:
    """Return images that are nothing like digits."""
    levels = np.random.default_rng(0).integers(0, 256, (16, 28, 28, 1), dtype=np.uint8)
    return [base64.b64encode(levels_to_png(image, 256)).decode() for image in levels]


CALM = (
    Load("/sample", {"model": "mnist-dcgan", "count": 2}),
    Load("/sample", {"model": "mnist-pixelcnn", "count": 1}),
)
BUSY = (
    *CALM,
    Load("/sample", {"model": "mnist-vae", "count": 64}, clients=2),
    Load("/sample", {"model": "mnist-realnvp", "count": 100}, clients=4),  # more than fit
    Load("/sample", {"model": "mnist-pixelcnn", "count": 12}, clients=2),
    Load("/sample", {"model": "mnist-pixelcnn", "count": 4, "timeout_ms": 100}),  # too late
    Load("/sample/stream", {"model": "mnist-pixelcnn", "count": 1}),
    Load("/sample", {"model": "mnist-vae-2d"}),  # refused
    Load("/sample", {"model": "checkerboard-ffjord"}),  # vectors
    Load("/sample", {"count": 0}),  # wrong
    likelihood(noise()),
)


def post(server: LiveServer, load: Load) -> bytes:
    """Return the answer to one request."""
    content, headers = json.dumps(load.body).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(server.url + load.path, content, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


def send(server: LiveServer, load: Load, until: threading.Event) -> None:
    """Send requests one after the other; refusals are part of it."""
    while not until.is_set():
        try:
            post(server, load)
        except urllib.error.HTTPError as error:
            with error:
                error.read()
            until.wait(0.1)


def sustain(server: LiveServer, loads: tuple[Load, ...], seconds: float) -> None:
    """Put a load on a server for some time."""
    clients = list(itertools.chain(*([load] * load.clients for load in loads)))
    until = threading.Event()
    with ThreadPoolExecutor(len(clients)) as pool:
        sending = [pool.submit(send, server, load, until) for load in clients]
        until.wait(seconds)
        until.set()
    for future in sending:
        future.result()


def broken_repository(folder: Path) -> Path:
    """Return the bundled models, one of them with a byte too many."""
    repository = shutil.copytree(ROOT / "artifacts", folder / "models")
    graph = next((repository / "mnist-vae-2d" / "1").glob("*.onnx"))
    graph.write_bytes(graph.read_bytes() + b"\0")
    return repository


def wait_until_loaded(server: LiveServer) -> None:
    deadline = time.monotonic() + 60
    while {"available", "loading"} & set(json.loads(server.get("/readyz")[1])["models"].values()):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def asked() -> list[tuple[str, str]]:
    """Return every query of deploy/ after what asks it; the windows fit a scrape each second."""
    found = [(rule["record"], rule["record"]) for rule in rules("recording_rules.yml")]
    for path in sorted(DASHBOARDS.glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                query = target["expr"].replace("$__rate_interval", "5s").replace("$model", ".*")
                assert "$" not in query
                found.append((panel["title"], query))
    return found


def test_every_query_is_alive_under_load_and_faults_raise_their_alarms(tmp_path: Path) -> None:
    settings = {"maximum_queued_rows": "256", "row_slots": "4"}
    repository = broken_repository(tmp_path)
    with (
        LiveServer(repository, **settings) as server,
        scraping(tmp_path, server.http_port) as prometheus,
    ):
        wait_until_loaded(server)
        prometheus.wait_until_scraping()
        start = time.time()
        time.sleep(IDLE_SECONDS)
        sustain(server, (*CALM, likelihood(digits(server))), CALM_SECONDS)
        calm = prometheus.firing()
        sustain(server, BUSY, BUSY_SECONDS)
        busy = prometheus.firing()
        dead, still = [], []
        for place, query in asked():
            series = prometheus.series(query, start)
            if not any(any(values) for values in series):
                dead.append((place, query))
            elif place not in STILL and all(len(set(values)) < 2 for values in series):
                still.append((place, query))
    assert (dead, still) == ([], [])
    assert "GenserveModelRefused" in calm, "from the start"
    assert not FAULTS & calm
    assert FAULTS | {"GenserveModelRefused"} <= busy
