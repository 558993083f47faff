"""The opponent of the row scheduler: batches of images that start together and end together.

Work-conserving: an idle worker takes images that wait, in order of arrival, at most a batch and no
more than its share where others are idle too, and paints all their rows before it takes the next.
It streams as the scheduler does. What it does not do is let an image join a batch that has begun.
"""

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.core.batcher import LoadedGraph
from service.core.manifest_parts import Graph, Port
from service.core.painting.lanes import Canvas, PaintJob

Array = NDArray[Any]


class Part(NamedTuple):
    """Images start .. stop - 1 of a job."""

    job: PaintJob
    start: int
    stop: int


class StaticBatcher:
    """Paints canvases in static batches, one batch at a time on each worker.

    A batch runs on its worker's thread from the first row to the last, and its inputs are laid out
    once: rows are only told to the event loop, which they never wait for.
    """

    def __init__(self, *, workers: int, maximum_batch: int) -> None:
        self._pool = ThreadPoolExecutor(workers)
        self._idle_workers = workers
        self._maximum_batch = maximum_batch
        self._waiting: deque[PaintJob] = deque()

    def submit(self, graph: LoadedGraph, ports: Graph, canvas: Canvas, deadline: float) -> PaintJob:
        """Queue a canvas and return its job. One batcher paints for one graph."""
        loop = asyncio.get_running_loop()
        job = PaintJob(canvas, deadline, loop.create_future(), loop.time())
        self._waiting.append(job)
        self._start(graph, ports)
        return job

    async def close(self) -> None:
        """Stop the workers, once all that was submitted is painted."""
        self._pool.shutdown()

    def _start(self, graph: LoadedGraph, ports: Graph) -> None:
        while self._idle_workers and self._waiting:
            waiting = sum(job.waiting for job in self._waiting)
            room = min(self._maximum_batch, math.ceil(waiting / self._idle_workers))
            self._idle_workers -= 1
            batch = _take(self._waiting, room)
            self._pool.submit(self._paint, asyncio.get_running_loop(), graph, ports, batch)

    def _paint(
        self, loop: asyncio.AbstractEventLoop, graph: LoadedGraph, ports: Graph, batch: list[Part]
    ) -> None:
        """Paint every row of a batch, on a worker's thread."""
        try:
            for row, outputs in enumerate(_run_rows(graph, ports, batch)):
                loop.call_soon_threadsafe(_keep_row, batch, row, *outputs)
        except Exception as error:
            loop.call_soon_threadsafe(_fail, batch, error)
        loop.call_soon_threadsafe(self._end, graph, ports)

    def _end(self, graph: LoadedGraph, ports: Graph) -> None:
        self._idle_workers += 1
        self._start(graph, ports)


def _take(waiting: deque[PaintJob], room: int) -> list[Part]:
    """Take so many images off the queue, in order of arrival."""
    batch = []
    while room and waiting:
        job = waiting[0]
        count = min(room, job.waiting)
        batch.append(Part(job, job.joined, job.joined + count))
        job.joined += count
        room -= count
        if not job.waiting:
            waiting.popleft()
    return batch


def _run_rows(graph: LoadedGraph, ports: Graph, batch: Sequence[Part]):
    """Yield levels and log-probabilities, [W, B], row by row."""
    size = sum(part.stop - part.start for part in batch)
    inputs = {port.name: _lay_out(port, batch, size) for port in ports.inputs}
    by_row = [port.name for port in ports.inputs if port.role in ("noise", "forced")]
    caches = [port.name for port in ports.inputs if port.role == "cache"]
    levels, likelihood = ports.output("levels"), ports.output("log_likelihood_map")
    height = batch[0].job.levels.shape[1]
    for row in range(height):
        outputs = graph.session.run(inputs | {name: inputs[name][row] for name in by_row})
        inputs |= {name: outputs[f"next_{name}"] for name in caches}
        yield outputs[levels.name], outputs[likelihood.name]


def _lay_out(port: Port, batch: Sequence[Part], size: int) -> Array:
    """Return what a port gets for a batch: for all rows at once, [H, ...], where they differ."""
    if port.role == "cache":
        shape = (*port.row_shape[: port.batch_axis], size, *port.row_shape[port.batch_axis :])
        return np.zeros(shape, port.dtype)
    parts = [_part_of(job.canvas, port)[start:stop] for job, start, stop in batch]
    images = np.concatenate(parts).astype(port.dtype)
    if port.role in ("condition", "control"):
        return images
    return np.ascontiguousarray(np.moveaxis(images, 0, 1 + port.batch_axis))  # [N, H, W] first


def _part_of(canvas: Canvas, port: Port) -> Array:
    if port.role == "condition":
        return canvas.class_weights
    if port.role == "control":
        return canvas.controls[port.name]
    return canvas.uniforms if port.role == "noise" else canvas.forced


def _keep_row(batch: Sequence[Part], row: int, levels: Array, log_probability: Array) -> None:
    """Write a row of every image, [W, B], into the jobs, and answer those that it completes."""
    first = 0
    for job, start, stop in batch:
        last = first + stop - start
        job.levels[start:stop, row] = levels[:, first:last].T
        job.log_probability[start:stop, row] = log_probability[:, first:last].T
        job.rows_done[start:stop] = row + 1
        job.changed.set()
        first = last
        if row + 1 == job.levels.shape[1]:
            job.finished += stop - start
            if job.finished == len(job.canvas):
                job.future.set_result(None)


def _fail(batch: Sequence[Part], error: Exception) -> None:
    for part in batch:
        if not part.job.future.done():
            part.job.future.set_exception(error)
