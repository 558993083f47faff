"""Time to the first row of one stream over REST, against the time of the whole image."""

import json
import time
from http.client import HTTPConnection

from benchmarks.processes import ServerFailed
from benchmarks.raster_models import BUNDLED
from benchmarks.server import Server, running_server

STREAMS = 40
_WARM_UP = 5


def measure_streams() -> list[tuple[float, float]]:
    """Return the seconds to the first row and to the result of streams, one at a time."""
    with running_server() as server:
        return [time_stream(server, seed) for seed in range(_WARM_UP + STREAMS)][_WARM_UP:]


def time_stream(server: Server, seed: int) -> tuple[float, float]:
    """Ask for one image, and time its first row and its result. Raises ServerFailed."""
    connection = HTTPConnection("127.0.0.1", server.http_port, timeout=30)
    body = json.dumps({"model": BUNDLED, "count": 1, "seed": seed})
    connection.connect()
    started = time.perf_counter()
    connection.request("POST", "/sample/stream", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    times = []
    for name in (b"rows", b"result"):
        while (line := answer.readline()) and line != b"event: " + name + b"\n":
            pass
        if not answer.readline().startswith(b"data: "):
            raise ServerFailed(f"/sample/stream answered {answer.status} without its {name!r}")
        times.append(time.perf_counter() - started)
    connection.close()
    return times[0], times[1]
