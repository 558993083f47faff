"""`make bench TARGET=overload`: what becomes of requests when far too many come.

It writes benchmarks/results/overload.md in under three minutes, and refuses to run beside other
load.
"""

import base64
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from benchmarks import machine, pages
from benchmarks.exports import ROOT
from benchmarks.generators import MEDIUM, SMALL, Generator, export_generators
from benchmarks.intervals import percentile
from benchmarks.load import NPY, describe_clients, load_grpc, load_rest
from benchmarks.open_loop import Offer, Outcome
from benchmarks.pages import Target, table
from benchmarks.processes import ServerFailed
from benchmarks.sample import IMAGES, grpc_request, rest_request
from benchmarks.server import Server, running_server

QUEUED_ROWS, DEADLINE_MS = 512, 2000
"""What bounds the time in the queue, and the bound that is promised: the deadline of requests."""

CAPACITY_CONNECTIONS, CAPACITY_SECONDS = 32, 8
TIMES, SECONDS = 10, 30
CURVE, CURVE_SECONDS = (0.5, 1, 2, 5, 10), 6
HEALTH_MS = 50.0


@dataclass(frozen=True)
class Stage:
    """One offer, and what was seen."""

    transport: str
    times: float  # of the capacity
    capacity: float  # requests/s, closed loop
    outcome: Outcome
    health: dict[str, list[float]]  # ms

    @property
    def goodput(self) -> float:
        """Accepted requests as a share of the capacity."""
        return self.outcome.accepted_per_second / self.capacity

    @property
    def offered(self) -> float:
        """Requests/s that were due."""
        return self.times * self.capacity

    @property
    def slowest_health_ms(self) -> float:
        """The longest that anyone waited for a health answer."""
        return max(max(seen) for seen in self.health.values())


def measure() -> None:
    """Run everything and write it down. Raises OtherLoad, writing nothing, if others joined."""
    work = machine.OtherWork()
    clients = describe_clients()
    names = ",".join(generator.name for generator in (SMALL, MEDIUM))
    with running_server(
        model_repository=export_generators(),
        default_models=names,
        maximum_queued_rows=QUEUED_ROWS,
        default_timeout_ms=DEADLINE_MS,
    ) as server:
        medium = [
            offer(server, transport, MEDIUM, TIMES, capacity_of(server, transport, MEDIUM), SECONDS)
            for transport in ("rest", "grpc")
        ]
        capacity = capacity_of(server, "rest", SMALL)
        curve = [offer(server, "rest", SMALL, times, capacity, CURVE_SECONDS) for times in CURVE]
        memory = server.memory_mebibytes
    parts = [
        f"# Overload\n\n{pages.head('overload')}",
        _explain(clients),
        f"## Targets, medium\n\n{pages.target_table(targets(medium))}",
        f"## {TIMES} times its capacity for {SECONDS} s, medium: {MEDIUM.size}\n",
        stage_table(medium),
        health_table(medium),
        f"## The collapse curve, small: {SMALL.size}\n\nREST, {CURVE_SECONDS} s each.\n",
        stage_table(curve),
        f"The server holds {memory:.0f} MiB (PSS) in the end.\n",
        f"Other processes: {machine.refuse_other_work(work):.2f} cores meanwhile.\n",
    ]
    pages.write("overload", "\n".join(parts))


def capacity_of(server: Server, transport: str, generator: Generator) -> float:
    """Return requests/s of a closed loop."""
    if transport == "rest":
        request = rest_request(generator, NPY)
        load = load_rest(server, server.http_port, request, CAPACITY_CONNECTIONS, CAPACITY_SECONDS)
    else:
        call = grpc_request(generator)
        load = load_grpc(server, server.grpc_port, call, CAPACITY_CONNECTIONS, CAPACITY_SECONDS)
    return load.requests_per_second


def offer(
    server: Server,
    transport: str,
    generator: Generator,
    times: float,
    capacity: float,
    seconds: float,
) -> Stage:
    """Offer so many times the capacity, and ask for health meanwhile. Raises ServerFailed."""
    made = _offer(server, transport, generator, times * capacity, seconds)
    probe = _start("health_probe", server.http_port, server.grpc_port, seconds)
    client = _start("open_loop")
    outcome = Outcome(**_finish(client, json.dumps(asdict(made)), seconds))
    return Stage(transport, times, capacity, outcome, _finish(probe, "", seconds))


def _offer(
    server: Server, transport: str, generator: Generator, rate: float, seconds: float
) -> Offer:
    if transport == "grpc":
        call = grpc_request(generator)
        content = base64.b64encode(call.message).decode()
        return Offer(
            transport, server.grpc_port, rate, seconds, method=call.method, content=content
        )
    request = rest_request(generator, NPY)
    head = (
        f"POST {request.path} HTTP/1.1\r\nHost: 127.0.0.1:{server.http_port}\r\n"
        f"Accept: {request.accept}\r\nContent-Type: {request.content_type}\r\n"
    )
    content = base64.b64encode(request.body).decode()
    return Offer(transport, server.http_port, rate, seconds, head=head, content=content)


def _start(module: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(process: subprocess.Popen[str], content: str, seconds: float) -> dict:
    try:
        answer, errors = process.communicate(content, timeout=seconds + 60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise ServerFailed("a client did not come to its end") from None
    if process.returncode:
        raise ServerFailed(f"a client failed: {errors[-1000:]}")
    return json.loads(answer)


def targets(stages: Sequence[Stage]) -> list[Target]:
    """Return what was measured beside what it is to be."""
    return [target for stage in stages for target in _targets(stage)]


def _targets(stage: Stage) -> list[Target]:
    name, outcome = _NAMES[stage.transport], stage.outcome
    wrong = sum(count for status, count in outcome.statuses.items() if status not in _EXPECTED)
    return [
        Target(f"{name}, goodput as a share of capacity", stage.goodput, 0.9),
        Target(f"{name}, answers that are neither {_ANSWERS[stage.transport]}", wrong, 0, False, 0),
        Target(f"{name}, refusals without a retry hint", outcome.without_retry_hint, 0, False, 0),
        Target(f"{name}, p99 of accepted, ms", outcome.p99_ms, DEADLINE_MS, False, 0),
        Target(f"{name}, slowest health answer, ms", stage.slowest_health_ms, HEALTH_MS, False, 0),
    ]


_NAMES = {"rest": "REST", "grpc": "gRPC"}
_ANSWERS = {"rest": "200 nor 429", "grpc": "OK nor RESOURCE_EXHAUSTED"}
_EXPECTED = {"200", "429", "OK", "RESOURCE_EXHAUSTED"}


def stage_table(stages: Sequence[Stage]) -> str:
    """Return every offer and what became of it."""
    header = ["", "times capacity", "offered, requests/s", "accepted, requests/s", "goodput"]
    header += ["p50 / p99 of accepted, ms", "answers", "slowest health, ms", "client cores"]
    return table(header, map(_stage_row, stages))


def _stage_row(stage: Stage) -> list[str]:
    outcome = stage.outcome
    answers = [f"{status}: {count}" for status, count in sorted(outcome.statuses.items())]
    if outcome.unsent:
        answers.append(f"not sent: {outcome.unsent}")
    return [
        _NAMES[stage.transport],
        f"{stage.times:g}",
        f"{stage.offered:.0f}",
        f"{outcome.accepted_per_second:.0f}",
        f"{stage.goodput:.2f}",
        f"{outcome.p50_ms:.0f} / {outcome.p99_ms:.0f}",
        ", ".join(answers),
        f"{stage.slowest_health_ms:.0f}",
        f"{outcome.client_cores:.2f}",
    ]


def health_table(stages: Sequence[Stage]) -> str:
    """Return how long health answers took."""
    rows = [
        [
            f"{name}, load over {_NAMES[stage.transport]}",
            str(len(seen)),
            f"{statistics.median(seen):.1f}",
            f"{percentile(seen, 0.99):.1f}",
            f"{max(seen):.1f}",
        ]
        for stage in stages
        for name, seen in stage.health.items()
    ]
    return table(["health under load", "asked", "p50, ms", "p99, ms", "slowest, ms"], rows)


def _explain(clients: str) -> str:
    return f"""Capacity is requests/s of a closed loop with {CAPACITY_CONNECTIONS} in flight for \
{CAPACITY_SECONDS} s, just before
({clients}). Then requests come at random (Poisson), whether or not earlier ones are answered, from
an open-loop client in a process of its own (`benchmarks/open_loop.py`), {IMAGES} images each.
Times count from when a request was due; goodput is of answers that came after the first second.

The server has default settings but two: `GENSERVE_MAXIMUM_QUEUED_ROWS={QUEUED_ROWS}`, and \
`GENSERVE_DEFAULT_TIMEOUT_MS={DEADLINE_MS}`,
which is the bound for accepted requests. *Slowest health* is of `/healthz`, `/readyz` and gRPC
health checks, some twenty a second in turns from a third process. What the clients compute is
missing to the server: all share {machine.core_count()} cores.
"""
