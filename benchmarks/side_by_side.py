"""Servers against the floor, side by side: within a round, each load lies between two floors.

So a machine that drifts, drifts for both.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from benchmarks.floor import BATCHES, MODES, Floor, Setting
from benchmarks.load import GrpcRequest, Load, RestRequest, load_grpc, load_rest
from benchmarks.machine import core_count
from benchmarks.pages import table
from benchmarks.plain import VARIANTS, Plain
from benchmarks.server import Server

FLOOR_SECONDS = 0.3
SHARE, OVER_PLAIN = "share of the floor", "over plain FastAPI at its best"

_FLOOR_PASSES = 3


@dataclass
class Case:
    """One load on one server, and what each round saw."""

    name: str
    in_flight: int
    load: Callable[[], Load]
    loads: list[Load] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)  # of the floors beside it

    @property
    def share(self) -> float:
        """The median share of the floor."""
        return statistics.median(self.shares)

    def median(self, figure: Callable[[Load], float]) -> float:
        """Return the median of a figure over the rounds."""
        return statistics.median(map(figure, self.loads))


@dataclass
class Comparison:
    """The floor and the cases, measured."""

    best: Setting
    floors: dict[Setting, list[float]]  # rows/s, of all settings
    cases: list[Case]
    images: int  # in a request

    def case(self, name: str, in_flight: int) -> Case:
        """Return one case."""
        return next(case for case in self.cases if (case.name, case.in_flight) == (name, in_flight))


def rest_case(
    name: str, server: Server | Plain, request: RestRequest, connections: int, seconds: int
) -> Case:
    """Return a load over REST, to be measured."""
    load = partial(load_rest, server, server.http_port, request, connections, seconds)
    return Case(name, connections, load)


def grpc_case(name: str, server: Server, request: GrpcRequest, calls: int, seconds: int) -> Case:
    """Return a load over gRPC, to be measured."""
    return Case(name, calls, partial(load_grpc, server, server.grpc_port, request, calls, seconds))


def compare(floor: Floor, cases: Sequence[Case], images: int, rounds: int) -> Comparison:
    """Find the best floor, then measure every case in every round."""
    best, floors = floor.find_best(_FLOOR_PASSES, FLOOR_SECONDS)
    for _ in range(rounds):
        after = floor.rows_per_second(best, FLOOR_SECONDS)
        for case in cases:
            before, load = after, case.load()
            after = floor.rows_per_second(best, FLOOR_SECONDS)
            case.loads.append(load)
            case.shares.append(load.requests_per_second * images / statistics.mean((before, after)))
    return Comparison(best, floors, list(cases), images)


def floor_table(comparison: Comparison) -> str:
    """Return images/s of bare ONNX Runtime, the best in bold."""
    rows = []
    for mode in MODES:
        rates = {batch: _floor(comparison, Setting(mode, batch)) for batch in BATCHES}
        rows.append([mode.name, *rates.values()])
    return table(["bare ONNX Runtime, images/s", *(f"batch {batch}" for batch in BATCHES)], rows)


def _floor(comparison: Comparison, setting: Setting) -> str:
    rate = f"{statistics.median(comparison.floors[setting]):.0f}"
    return f"**{rate}**" if setting == comparison.best else rate


def case_table(comparison: Comparison) -> str:
    """Return every case against the floor."""
    header = ["", "in flight", "images/s", "share of the floor", "p50 / p99 ms", "p99 / p50"]
    header += ["server cores", "client cores"]
    return table(header, (_case_row(case, comparison.images) for case in comparison.cases))


def _case_row(case: Case, images: int) -> list[str]:
    return [
        case.name,
        str(case.in_flight),
        f"{images * case.median(lambda load: load.requests_per_second):.0f}",
        f"{case.share:.2f} ({min(case.shares):.2f} to {max(case.shares):.2f})",
        f"{case.median(lambda load: load.p50_ms):.1f} / "
        f"{case.median(lambda load: load.p99_ms):.1f}",
        f"{tail(case):.2f}",
        f"{case.median(lambda load: load.server_cores):.2f}",
        f"{case.median(lambda load: load.client_cores):.2f}",
    ]


def tail(case: Case) -> float:
    """Return how long the slowest hundredth waits, in medians."""
    return case.median(lambda load: load.p99_ms / load.p50_ms)


def best_plain(cases: Iterable[Case], in_flight: int) -> Case:
    """Return the case of plain FastAPI at its best, with so many requests in flight."""
    names = {variant.name for variant in VARIANTS}
    plain = [case for case in cases if case.name in names and case.in_flight == in_flight]
    return max(plain, key=lambda case: case.share)


def over_plain(case: Case, cases: Iterable[Case]) -> float:
    """Return how many times the images/s of plain FastAPI at its best a case has."""
    plain = best_plain(cases, case.in_flight)
    pairs = zip(case.shares, plain.shares, strict=True)
    return statistics.median(mine / other for mine, other in pairs)


def explain(clients: str, rounds: int) -> str:
    """Say how the figures were measured."""
    return f"""Clients: {clients}.

Medians of {rounds} rounds, in brackets their range. Within a round each load lies between two runs
of the best floor, and its share is of their mean. *server cores* and *client cores* say what each
computed; the client's are taken from the same {core_count()} cores. Plain FastAPI is
`benchmarks/plain_fastapi.py`, run in {len(VARIANTS)} ways.
"""
