"""The row scheduler against static batching: the same arrivals, one painter after the other."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Protocol

from benchmarks.arrivals import (
    Arrival,
    Served,
    draw_backlog,
    draw_lone,
    draw_poisson,
    first_rows,
    serve,
)
from benchmarks.machine import core_count
from benchmarks.multiples import SLOTS, make_scheduler
from benchmarks.raster_models import RasterModel
from benchmarks.static_batching import StaticBatcher
from service.core.batcher import LoadedGraph
from service.core.manifest_parts import Graph
from service.core.painting.lanes import Canvas, PaintJob
from service.runtime.session import Session

ROUNDS = 5
SECONDS = 10.0
"""Of arrivals in one go."""

BACKLOG = 1000
"""Images, of which the scheduler lets 1024 wait."""

_LONE_REQUESTS = 60
_LONE_GAP = 0.05  # seconds, longer than a small request alone takes


class Painter(Protocol):
    """What both have in common."""

    def submit(self, graph: LoadedGraph, ports: Graph, canvas: Canvas, deadline: float) -> PaintJob:
        """Queue a canvas."""
        ...

    async def close(self) -> None:
        """Stop the workers."""
        ...


class TimedSession:
    """A session that keeps how long each run took."""

    def __init__(self, session: Session) -> None:
        self.seconds: list[float] = []
        self._session = session

    def run(self, inputs):
        """Run the graph."""
        started = time.perf_counter()
        outputs = self._session.run(inputs)
        self.seconds.append(time.perf_counter() - started)
        return outputs


@dataclass(frozen=True)
class Run:
    """What one painter made of one round's arrivals."""

    served: list[Served]
    elapsed: float  # seconds, from the first that was due to the last row
    row_call: (
        float  # seconds, the median run of the row step's graph, however many images shared it
    )

    @property
    def images_per_second(self) -> float:
        """Images painted over the time that it took."""
        return sum(each.images for each in self.served) / self.elapsed


@dataclass
class Comparison:
    """Runs of the same arrivals by both painters, a pair each round."""

    scheduler: list[Run] = field(default_factory=list)
    static: list[Run] = field(default_factory=list)


def make_painter(name: str) -> Painter:
    """Return `scheduler` or `static`, with a worker a core."""
    if name == "static":
        return StaticBatcher(workers=core_count(), maximum_batch=SLOTS)
    return make_scheduler(core_count())


def run(name: str, model: RasterModel, arrivals: Sequence[Arrival]) -> Run:
    """Let a new painter serve arrivals."""
    return asyncio.run(_run(name, model, arrivals))


async def _run(name: str, model: RasterModel, arrivals: Sequence[Arrival]) -> Run:
    painter, ports = make_painter(name), model.manifest.graphs["row_step"]
    session = TimedSession(model.graphs["row_step"].session)
    graph = replace(model.graphs["row_step"], session=session)
    deadline = time.monotonic() + 600
    served, elapsed = await serve(
        lambda canvas: painter.submit(graph, ports, canvas, deadline), model, arrivals
    )
    await painter.close()
    return Run(served, elapsed, median(session.seconds))


def compare(model: RasterModel, draw: Callable[[int], Sequence[Arrival]]) -> Comparison:
    """Let both serve what `draw` returns for each round; who goes first alternates."""
    comparison = Comparison()
    for number in range(ROUNDS):
        arrivals = draw(number)
        names = ["scheduler", "static"]
        for name in names if number % 2 else reversed(names):
            getattr(comparison, name).append(run(name, model, arrivals))
    return comparison


def compare_saturated(model: RasterModel) -> Comparison:
    """Compare them on a backlog that is there from the start."""
    return compare(model, lambda number: draw_backlog(BACKLOG, number))


def compare_loaded(model: RasterModel, images_per_second: float) -> Comparison:
    """Compare them on Poisson arrivals."""
    return compare(model, lambda number: draw_poisson(images_per_second, SECONDS, number))


def serve_lone(model: RasterModel) -> list[Run]:
    """Let the scheduler serve small requests one at a time, a run each round."""
    return [
        run("scheduler", model, draw_lone(_LONE_REQUESTS, _LONE_GAP, number))
        for number in range(ROUNDS)
    ]


def added_row_calls(loaded: Run, lone: Run) -> float:
    """Return what load adds to the p95 time to a small request's first row, in row calls."""
    added = first_rows(loaded.served, 0.95, small=True) - first_rows(lone.served, 0.95, small=True)
    return added / loaded.row_call
