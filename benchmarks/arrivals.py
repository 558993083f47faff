"""Requests that arrive at random, and what a painter makes of them.

A thread of its own hands each request to the event loop when it is due, as a socket would: whether
the painter keeps up changes nothing about when the next one comes.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.intervals import percentile
from benchmarks.raster_models import RasterModel
from service.core.painting.lanes import Canvas, PaintJob

MIX = {1: 0.50, 2: 0.15, 4: 0.15, 8: 0.10, 16: 0.06, 64: 0.04}
"""Images of a request, and how many of the requests ask for so many."""

SMALL = 4
"""Images of a small request at most."""

Submit = Callable[[Canvas], PaintJob]


@dataclass(frozen=True)
class Arrival:
    """A request: when it is due, in seconds from the start, and for how many images it asks."""

    due: float
    images: int


@dataclass(frozen=True)
class Served:
    """A request that was served; both times count from when the event loop was told of it."""

    images: int
    first_row: float  # seconds, until the first row of its first image could be streamed
    last_row: float  # seconds, until all was painted


def draw_images(generator: np.random.Generator) -> Iterator[int]:
    """Yield the images of one request after another, by `MIX`."""
    sizes, shares = list(MIX), list(MIX.values())
    while True:
        yield from generator.choice(sizes, 1000, p=shares).tolist()


def draw_poisson(images_per_second: float, seconds: float, seed: int) -> list[Arrival]:
    """Return arrivals at random, independent of each other, that offer so many images a second."""
    generator = np.random.default_rng(seed)
    mean_images = sum(images * share for images, share in MIX.items())
    mean_gap = mean_images / images_per_second
    arrivals, due = [], generator.exponential(mean_gap)
    for images in draw_images(generator):
        if due >= seconds:
            return arrivals
        arrivals.append(Arrival(due, images))
        due += generator.exponential(mean_gap)
    raise AssertionError("there is always another request")


def draw_lone(requests: int, gap: float, seed: int) -> list[Arrival]:
    """Return small requests by `MIX`, each long after the one before, at gaps of 1 to 2 `gap`."""
    generator = np.random.default_rng(seed)
    small = (images for images in draw_images(generator) if images <= SMALL)
    dues = np.cumsum(generator.uniform(gap, 2 * gap, requests))
    return [Arrival(due, next(small)) for due in dues.tolist()]


def draw_backlog(images: int, seed: int) -> list[Arrival]:
    """Return requests by `MIX`, all due at once, that ask for exactly so many images."""
    sizes, backlog = draw_images(np.random.default_rng(seed)), []
    while images:
        backlog.append(Arrival(0.0, min(images, next(sizes))))
        images -= backlog[-1].images
    return backlog


async def serve(
    submit: Submit, model: RasterModel, arrivals: Sequence[Arrival]
) -> tuple[list[Served], float]:
    """Submit every arrival when it is due; return what became of each, and the seconds in all."""
    loop = asyncio.get_running_loop()
    requests: list[asyncio.Task[Served]] = []
    told_all = asyncio.Event()
    # Drawn before the first is due: a server has this work too, but here it would be in the way.
    canvases = [model.draw_canvas(arrival.images, seed) for seed, arrival in enumerate(arrivals)]

    def accept(canvas: Canvas, told: float) -> None:
        requests.append(loop.create_task(_watch(submit(canvas), told)))

    def tell() -> None:
        started = time.perf_counter()
        for arrival, canvas in zip(arrivals, canvases, strict=True):
            time.sleep(max(0.0, started + arrival.due - time.perf_counter()))
            loop.call_soon_threadsafe(accept, canvas, time.perf_counter())
        loop.call_soon_threadsafe(told_all.set)

    started = time.perf_counter()
    threading.Thread(target=tell, daemon=True).start()
    await told_all.wait()
    served = await asyncio.gather(*requests)
    return list(served), time.perf_counter() - started


async def _watch(job: PaintJob, told: float) -> Served:
    await job.changed.wait()
    first = time.perf_counter() - told
    await job.future
    return Served(len(job.canvas), first, time.perf_counter() - told)


def first_rows(served: Sequence[Served], share: float, small: bool = False) -> float:
    """Return a percentile of the seconds to the first row, of all requests or the small ones."""
    return percentile(
        [each.first_row for each in served if not small or each.images <= SMALL], share
    )


def last_rows(served: Sequence[Served], share: float, small: bool = False) -> float:
    """Return a percentile of the seconds to the last row, of all requests or the small ones."""
    return percentile(
        [each.last_row for each in served if not small or each.images <= SMALL], share
    )
