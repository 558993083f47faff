"""What painting costs in full forward passes: of the naive sampler, and of the row scheduler.

The floor is one forward pass of the whole batch. The naive sampler runs one for every pixel. Both
samplers draw from the same uniforms, so that they should paint the same images.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from benchmarks.intervals import Estimate, estimate
from benchmarks.raster_models import RasterModel
from service.core.painting.lanes import Canvas
from service.core.painting.rows import RowScheduler
from service.metrics import Metrics

BATCHES = (1, 4, 16, 64)
SLOTS = 16
"""Images that a worker paints at once, by the service's default; more take turns."""

ROUNDS = 7
NAIVE_SECONDS = 20.0
"""The naive sampler runs in full where that takes less."""

_REPEAT_SECONDS = 0.1  # in one go, of what takes less than that
_NAIVE_PIXELS = 3  # a round, where it does not run in full

Levels = NDArray[np.uint8]


@dataclass
class Case:
    """One model at one batch: seconds of each round."""

    model: RasterModel
    batch: int
    forward: list[float] = field(default_factory=list)
    row_step: list[float] = field(default_factory=list)
    row_step_filtered: list[float] = field(default_factory=list)
    naive: list[float] = field(default_factory=list)
    naive_in_full: bool = False
    different_pixels: int | None = None  # of naive and scheduler, where naive ran in full

    def multiple(self, seconds: str) -> Estimate:
        """Return one of the samplers in forward passes of the same round."""
        return estimate(
            [one / floor for one, floor in zip(getattr(self, seconds), self.forward, strict=True)]
        )

    def speed_up(self) -> Estimate:
        """Return how often the scheduler paints a batch while the naive sampler does once."""
        return estimate([one / row for one, row in zip(self.naive, self.row_step, strict=True)])


def measure_multiples(models: Sequence[RasterModel]) -> list[Case]:
    """Measure every model at every batch; within a round, floor and samplers take turns."""
    cases = [Case(model, batch) for model in models for batch in BATCHES]
    for case in cases:
        _compare_in_full(case)
    for number in range(ROUNDS):
        for case in cases:
            asyncio.run(_measure_round(case, number))
    return cases


def _compare_in_full(case: Case) -> None:
    """Run the naive sampler to the end where it is quick enough, and compare the images."""
    canvas = case.model.draw_canvas(case.batch, seed=0)
    pixels = math.prod(canvas.uniforms.shape[1:])
    _, each = paint_naively(case.model, canvas, range(_NAIVE_PIXELS))
    case.naive_in_full = pixels * each < NAIVE_SECONDS
    if not case.naive_in_full:
        return
    levels, each = paint_naively(case.model, canvas, range(pixels))
    case.naive = [pixels * each] * ROUNDS
    painted = asyncio.run(_paint_once(case.model, canvas))
    case.different_pixels = int((levels != painted).sum())


async def _measure_round(case: Case, number: int) -> None:
    model, images = case.model, case.batch
    canvas = model.draw_canvas(images, seed=number)
    filtered = model.draw_canvas(images, seed=number, filtered=True)
    scheduler = make_scheduler(
        workers=1, bulk_limit=SLOTS
    )  # a batch is one job: let it fill a lane
    case.forward.append(_time_forward(model, images))
    case.row_step.append(await _time_painting(scheduler, model, "row_step", canvas))
    case.row_step_filtered.append(
        await _time_painting(scheduler, model, "row_step_filtered", filtered)
    )
    if not case.naive_in_full:
        pixels = math.prod(canvas.uniforms.shape[1:])
        spread = range(0, pixels, pixels // _NAIVE_PIXELS)
        case.naive.append(pixels * paint_naively(model, canvas, spread)[1])
    await scheduler.close()


def make_scheduler(workers: int, bulk_limit: int = SLOTS * 3 // 4) -> RowScheduler:
    """Return the service's row scheduler with its default number of slots."""
    return RowScheduler(
        workers=workers,
        slots=SLOTS,
        bulk_limit=bulk_limit,
        maximum_waiting_images=1024,
        metrics=Metrics(CollectorRegistry()),
    )


def paint_naively(
    model: RasterModel, canvas: Canvas, pixels: Sequence[int]
) -> tuple[Levels, float]:
    """Draw pixels by a full forward pass each; return the images and the seconds a pixel."""
    count, height, width = canvas.uniforms.shape
    data = np.zeros((count, 1, height, width), np.float32)
    started = time.perf_counter()
    for pixel in pixels:
        row, column = divmod(pixel, width)
        inputs = {"data": data, "class_weights": canvas.class_weights}
        logits = model.forward.run(inputs)["logits"][:, :, row, column]
        data[:, 0, row, column] = _draw(logits, canvas.uniforms[:, row, column])
    seconds = time.perf_counter() - started
    return data[:, 0].astype(np.uint8), seconds / len(pixels)


def _draw(logits: NDArray[np.float32], uniforms: NDArray[np.float32]) -> NDArray[np.int64]:
    """Invert the cumulative distribution of [N, levels] at uniforms [N], as the row step does."""
    cumulative = np.exp(logits - logits.max(axis=1, keepdims=True)).cumsum(axis=1)
    return (cumulative <= uniforms[:, None] * cumulative[:, -1:]).sum(axis=1)


def _time_forward(model: RasterModel, images: int) -> float:
    canvas = model.draw_canvas(images, seed=0)
    data = np.zeros((images, 1, *canvas.uniforms.shape[1:]), np.float32)
    inputs = {"data": data, "class_weights": canvas.class_weights}
    return _median_seconds(lambda: model.forward.run(inputs))


def _median_seconds(run: Callable[[], object]) -> float:
    seconds: list[float] = []
    while sum(seconds) < _REPEAT_SECONDS:
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


async def _time_painting(
    scheduler: RowScheduler, model: RasterModel, graph: str, canvas: Canvas
) -> float:
    seconds: list[float] = []
    while sum(seconds) < _REPEAT_SECONDS:
        started = time.perf_counter()
        await _paint(scheduler, model, graph, canvas)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


async def _paint_once(model: RasterModel, canvas: Canvas) -> Levels:
    scheduler = make_scheduler(workers=1)
    levels = await _paint(scheduler, model, "row_step", canvas)
    await scheduler.close()
    return levels


async def _paint(scheduler: RowScheduler, model: RasterModel, graph: str, canvas: Canvas) -> Levels:
    ports = model.manifest.graphs[graph]
    job = scheduler.submit(model.graphs[graph], ports, canvas, time.monotonic() + 600)
    await scheduler.finish(job)
    return job.levels
