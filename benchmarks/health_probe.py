"""Asks for health as an orchestrator does, but more often, from a process of its own.

python -m benchmarks.health_probe HTTP_PORT GRPC_PORT SECONDS

Each question over REST has a connection of its own; gRPC keeps its channel. Prints one JSON object:
the milliseconds of every answer, by what was asked. An answer that is not well counts as infinite.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.server import answers

_PAUSE_SECONDS = 0.05


def probe(questions: dict[str, Callable[[], bool]], seconds: float) -> dict[str, list[float]]:
    """Ask one after the other, for that long."""
    seen: dict[str, list[float]] = {name: [] for name in questions}
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop:
        for name, ask in questions.items():
            time.sleep(_PAUSE_SECONDS)
            started = time.perf_counter()
            well = ask()
            seen[name].append(1000 * (time.perf_counter() - started) if well else float("inf"))
    return seen


def main(http_port: int, grpc_port: int, seconds: float) -> None:
    """Probe a server of ours and print what was seen."""
    with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)

        def is_serving() -> bool:
            answer = health.Check(health_pb2.HealthCheckRequest(), timeout=10)
            return answer.status == health_pb2.HealthCheckResponse.SERVING

        is_serving()  # the channel is there before the first question counts
        questions = {
            "GET /healthz": partial(answers, http_port, "/healthz"),
            "GET /readyz": partial(answers, http_port, "/readyz"),
            "gRPC Check": is_serving,
        }
        print(json.dumps(probe(questions, seconds)))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
