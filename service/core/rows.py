"""The row scheduler: images painted row by row, many requests sharing every step.

A raster model draws one row of pixels a call, from caches that the row above left behind (van den
Oord et al. 2016; Ramachandran et al. 2017, arXiv:1704.06001). Nothing in a call depends on where an
image stands, so images at different rows share it: an image joins a lane between two rows, with
caches of zeros, and leaves it when its last row is done or nobody waits for it any more.

No request waits for another's image to end. Slots go to whoever has fewest, and a request without
any takes one from the request that has most: that image is parked with its caches, to go on later.
A quarter of a lane's slots is out of reach of any single request, so that most newcomers need not
even park an image.

`share_slots` and `give_way` decide, in pure code; `RowScheduler` acts on them.
"""

import asyncio
import contextlib
import heapq
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from service.core.batcher import LoadedGraph
from service.core.manifest import Graph, Port
from service.errors import DeadlineExceeded, InferenceFailed, QueueFull, ShuttingDown
from service.metrics import Metrics

Array = NDArray[Any]

Departure = Literal["finished", "cancelled", "deadline", "failed"]
"""Why an image leaves its slot."""

_PIXELS = ("noise", "forced")  # roles of ports that get another row at every step

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Canvas:
    """What to paint: arrays for N images of H rows of W pixels, known before the first row."""

    uniforms: NDArray[np.float32]  # [N, H, W], strictly inside (0, 1)
    forced: NDArray[np.int64]  # [N, H, W], a known pixel's level of the model, -1 where it is free
    class_weights: NDArray[np.float32] | None  # [N, K]
    controls: dict[str, Array]  # by name of the port, [N]
    level_step: int = 1  # of an image, for one of the model: 255 where it draws black and white

    def __len__(self) -> int:
        return len(self.uniforms)


@dataclass(eq=False)
class PaintJob:
    """One request: its canvas, and what has been painted so far.

    `changed` is set with every new row, and when the future ends; `follow` clears it.
    """

    canvas: Canvas
    deadline: float  # on the scheduler's clock, seconds
    future: asyncio.Future[None]
    submitted: float
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    joined: int = 0  # images that have got a slot; the next one to join
    held: int = 0  # slots
    parked: list["Slot"] = field(default_factory=list)  # begun, and without a slot for now
    finished: int = 0

    def __post_init__(self) -> None:
        count, height, width = self.canvas.uniforms.shape
        self.levels = np.zeros((count, height, width), np.uint8)
        self.log_probability = np.zeros((count, height, width), np.float32)  # nats, temperature 1
        self.rows_done = np.zeros(count, np.int64)

    @property
    def waiting(self) -> int:
        """Images without a slot."""
        return 0 if self.future.done() else len(self.canvas) - self.joined + len(self.parked)


@dataclass(eq=False)
class Slot:
    """An image in a lane; its next row is `job.rows_done[image]`."""

    job: PaintJob
    image: int
    caches: dict[str, Array] | None = None  # by port, of an image that was parked


def share_slots(waiting: Sequence[tuple[int, int]], room: int) -> list[int]:
    """Return how many images of each waiting job get one of `room` slots now.

    `waiting` holds, for each job in the order of their turns, its images without a slot and those
    with one. Each slot goes to the job that has fewest; of equals, to the first.
    """
    joining = [0] * len(waiting)
    queue = [(held, index) for index, (images, held) in enumerate(waiting) if images]
    heapq.heapify(queue)
    while room and queue:
        held, index = queue[0]
        joining[index] += 1
        room -= 1
        if joining[index] < waiting[index][0]:
            heapq.heapreplace(queue, (held + 1, index))
        else:
            heapq.heappop(queue)
    return joining


def give_way(held: Sequence[int], wanted: int) -> list[int]:
    """Return how many of its slots each job of a full lane gives to `wanted` jobs without any.

    Each slot comes from the job that holds most in the lane, and every job keeps one.
    """
    given = [0] * len(held)
    queue = [(-slots, index) for index, slots in enumerate(held)]
    heapq.heapify(queue)
    while wanted and queue and queue[0][0] < -1:
        slots, index = queue[0]
        given[index] += 1
        wanted -= 1
        heapq.heapreplace(queue, (slots + 1, index))
    return given


class Lane:
    """Images that share every step of one graph, with all that the graph asks about them."""

    def __init__(self, graph: LoadedGraph, ports: Graph) -> None:
        self.slots: list[Slot] = []
        self.running = False
        self._session = graph.session
        self._ports = ports
        # By port: caches and choices as the graph takes them, pixels [B, H, W]. Laid out when an
        # image joins, since every row would pay for it again.
        self._arrays: dict[str, Array] = {}

    def leave(self, now: float) -> list[Departure]:
        """Drop slots that are painted, failed, cancelled or late; return why each one left."""
        reasons = [_departure(slot, now) for slot in self.slots]
        self._keep([index for index, reason in enumerate(reasons) if reason is None])
        return [reason for reason in reasons if reason is not None]

    def park(self, job: PaintJob, images: int) -> None:
        """Put aside the images of a job that joined last; they can join again and go on."""
        indices = [index for index, slot in enumerate(self.slots) if slot.job is job][-images:]
        for index in indices:
            self.slots[index].caches = {
                port.name: self._arrays[port.name].take(index, port.batch_axis)
                for port in self._ports.inputs
                if port.role == "cache"
            }
            job.parked.append(self.slots[index])
        self._keep([index for index in range(len(self.slots)) if index not in indices])

    def clear(self) -> None:
        """Drop every slot."""
        self._keep([])

    def _keep(self, indices: list[int]) -> None:
        if len(indices) == len(self.slots):
            return
        for slot in self.slots:
            slot.job.held -= 1
        self.slots = [self.slots[index] for index in indices]
        for slot in self.slots:
            slot.job.held += 1
        for port in self._ports.inputs:
            self._arrays[port.name] = self._arrays[port.name].take(indices, _slot_axis(port))

    def join(self, slots: Sequence[Slot]) -> None:
        """Add images: new ones at their first row, parked ones where they stood."""
        if not slots:
            return
        for port in self._ports.inputs:
            axis = _slot_axis(port)
            joining = np.stack([_brought(slot, port) for slot in slots], axis).astype(port.dtype)
            if self.slots:
                joining = np.concatenate([self._arrays[port.name], joining], axis)
            self._arrays[port.name] = joining
        self.slots.extend(slots)
        for slot in slots:
            slot.job.held += 1
            slot.caches = None

    def step(self) -> tuple[Array, Array]:
        """Paint one row of every slot; return levels and log-probabilities, [W, B].

        Runs on a worker's thread. The lane must not change meanwhile.
        """
        outputs = self._session.run(self._inputs())
        for port in self._ports.inputs:
            if port.role == "cache":
                self._arrays[port.name] = outputs[f"next_{port.name}"]
        levels = self._ports.output("levels")
        likelihood = self._ports.output("log_likelihood_map")
        assert levels and likelihood, "the manifest was checked for both"
        return outputs[levels.name], outputs[likelihood.name]

    def _inputs(self) -> dict[str, Array]:
        inputs = dict(self._arrays)
        slots = np.arange(len(self.slots))
        rows = [slot.job.rows_done[slot.image] for slot in self.slots]
        for port in self._ports.inputs:
            if port.role in _PIXELS:
                inputs[port.name] = np.moveaxis(inputs[port.name][slots, rows], 0, port.batch_axis)
        return inputs


class RowScheduler:
    """Paints canvases in lanes, one lane a worker for each graph.

    Everything but `Lane.step` happens on the event loop, so there are no locks.
    """

    def __init__(
        self,
        *,
        workers: int,
        slots: int,
        bulk_limit: int,
        maximum_waiting_images: int,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the numbers of workers, of a lane's slots, and of those that one job may have."""
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="painter")
        self._workers = workers
        self._slots = slots
        self._bulk_limit = bulk_limit
        self._maximum_waiting_images = maximum_waiting_images
        self._metrics = metrics
        self._clock = clock
        # The jobs with images without a slot, in the order of their turns; the values mean nothing.
        self._waiting: dict[LoadedGraph, dict[PaintJob, None]] = {}
        self._lanes: dict[LoadedGraph, list[Lane]] = {}
        self._jobs: set[PaintJob] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    def submit(self, graph: LoadedGraph, ports: Graph, canvas: Canvas, deadline: float) -> PaintJob:
        """Queue a canvas and return its job, whose future ends with its last row.

        `deadline` is in seconds on the scheduler's clock. Raises QueueFull, DeadlineExceeded or
        ShuttingDown. Cancelling the future frees the slots before the next row.
        """
        self._check_room(len(canvas), deadline)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        job = PaintJob(canvas, deadline, future, self._clock())
        if graph not in self._lanes:
            self._open(graph, ports)
        self._jobs.add(job)
        future.add_done_callback(lambda _: self._end(graph, job))
        self._waiting[graph][job] = None
        self._metrics.waiting_images.labels(graph.model, graph.name).inc(len(canvas))
        for lane in self._lanes[graph]:
            if not lane.running:
                self._start(graph, lane)
        return job

    async def finish(self, job: PaintJob) -> None:
        """Wait for the last row; raises DeadlineExceeded, ShuttingDown or InferenceFailed."""
        async with self._until_deadline(job):
            await job.future

    async def follow(self, job: PaintJob) -> AsyncGenerator[None, None]:
        """Yield whenever there are new rows, until the last; raises DeadlineExceeded.

        Nothing queues up: who asks late finds more rows at once. A job that fails ends it; `finish`
        says why.
        """
        while job.changed.is_set() or not job.future.done():
            async with self._until_deadline(job):
                await job.changed.wait()
            job.changed.clear()
            yield

    def abort(self) -> None:
        """Fail whatever is waiting or being painted with ShuttingDown."""
        self._closing = True
        for job in list(self._jobs):
            if not job.future.done():
                job.future.set_exception(ShuttingDown("the server stopped before it was painted"))

    async def close(self) -> None:
        """Refuse new work, paint what was accepted, and stop the workers."""
        self._closing = True
        while self._tasks:
            await asyncio.wait(self._tasks)
        self._pool.shutdown()

    @contextlib.asynccontextmanager
    async def _until_deadline(self, job: PaintJob) -> AsyncGenerator[None, None]:
        try:
            async with asyncio.timeout(job.deadline - self._clock()):
                yield
        except TimeoutError:
            raise _deadline_exceeded() from None

    def _check_room(self, images: int, deadline: float) -> None:
        if self._closing:
            raise ShuttingDown("the server is shutting down; send the request to another replica")
        if deadline <= self._clock():
            raise DeadlineExceeded("the deadline had passed before there was anything to paint")
        waiting = sum(job.waiting for job in self._jobs)
        if waiting and waiting + images > self._maximum_waiting_images:
            raise QueueFull(
                f"{waiting} images wait to be painted and the limit is "
                f"{self._maximum_waiting_images}; try again in a second",
                retry_after_seconds=1.0,
            )

    def _end(self, graph: LoadedGraph, job: PaintJob) -> None:
        self._jobs.discard(job)
        self._waiting[graph].pop(job, None)
        job.changed.set()  # whoever streams it must not wait for ever
        if not job.future.cancelled():
            job.future.exception()  # looked at: asyncio would log it where everybody has left
        slotless = len(job.canvas) - job.joined + len(job.parked)
        self._metrics.waiting_images.labels(graph.model, graph.name).dec(slotless)
        self._count_unfinished(graph, [_departure(slot, self._clock()) for slot in job.parked])

    def _open(self, graph: LoadedGraph, ports: Graph) -> None:
        """Make the lanes of a graph, with its metrics at zero."""
        self._waiting[graph] = {}
        self._lanes[graph] = [Lane(graph, ports) for _ in range(self._workers)]
        labels = graph.model, graph.name
        self._metrics.slots.labels(*labels).inc(self._workers * self._slots)
        self._metrics.busy_slots.labels(*labels)
        self._metrics.joined_images.labels(*labels)
        self._metrics.rows.labels(graph.model)
        self._metrics.first_row_seconds.labels(graph.model)
        for reason in get_args(Departure):
            if reason != "finished":
                self._metrics.unfinished_images.labels(*labels, reason)

    def _start(self, graph: LoadedGraph, lane: Lane) -> None:
        lane.running = True
        task = asyncio.get_running_loop().create_task(self._paint(graph, lane))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _paint(self, graph: LoadedGraph, lane: Lane) -> None:
        """Paint rows in a lane until nothing is left to paint."""
        try:
            while self._turn_over(graph, lane):
                await self._paint_row(graph, lane)
        finally:
            lane.running = False
            self._metrics.busy_slots.labels(graph.model, graph.name).dec(len(lane.slots))
            lane.clear()

    def _turn_over(self, graph: LoadedGraph, lane: Lane) -> bool:
        """Between two rows: let images leave and join; return whether any are there."""
        now = self._clock()
        self._expire(now)
        self._count_departures(graph, lane.leave(now))
        if self._waiting[graph]:
            self._park(graph, lane)
            slots = self._joining(graph, lane)
            self._count_joining(graph, slots)
            lane.join(slots)
        return bool(lane.slots)

    def _expire(self, now: float) -> None:
        """Fail jobs whose deadline has passed, also where nobody waits for them just now."""
        for job in self._jobs:
            if job.deadline <= now and not job.future.done():
                job.future.set_exception(_deadline_exceeded())

    def _park(self, graph: LoadedGraph, lane: Lane) -> None:
        """Make room in a full lane for jobs that have no slot anywhere."""
        waiting = self._waiting[graph]
        held = Counter(slot.job for slot in lane.slots)
        if len(lane.slots) < self._slots or len(held) == len(lane.slots):
            return
        wanted = sum(job.waiting > 0 and not job.held for job in waiting)
        given = give_way(list(held.values()), wanted)
        for job, images in zip(held, given, strict=True):
            if images:
                lane.park(job, images)
                waiting[job] = None
        self._count_parked(graph, sum(given))

    def _joining(self, graph: LoadedGraph, lane: Lane) -> list[Slot]:
        """Return the images that join a lane now.

        Jobs that get a slot go behind those that get none. Else an old one with many images would
        take every slot that frees.
        """
        room, waiting = self._room(graph, lane), self._waiting[graph]
        if not room:
            return []
        here = Counter(slot.job for slot in lane.slots)
        jobs, slots = list(waiting), []
        allowed = [min(job.waiting, self._bulk_limit - here[job]) for job in jobs]
        shares = share_slots(
            [(images, job.held) for images, job in zip(allowed, jobs, strict=True)], room
        )
        for job, share in zip(jobs, shares, strict=True):
            if share:
                slots += [_next_slot(job) for _ in range(share)]
                del waiting[job]
                if job.waiting:
                    waiting[job] = None
        return slots

    def _room(self, graph: LoadedGraph, lane: Lane) -> int:
        """Return the lane's share of all images, waiting or painted, less what it holds."""
        if len(lane.slots) == self._slots:
            return 0
        images = sum(job.waiting for job in self._waiting[graph])
        images += sum(len(other.slots) for other in self._lanes[graph])
        share = min(self._slots, math.ceil(images / self._workers))
        return max(0, share - len(lane.slots))

    async def _paint_row(self, graph: LoadedGraph, lane: Lane) -> None:
        started = self._clock()
        try:
            loop = asyncio.get_running_loop()
            levels, log_probability = await loop.run_in_executor(self._pool, lane.step)
        except Exception:  # whatever a runtime raises must not end the lane
            log.exception("painting a row failed")
            for slot in lane.slots:
                _fail(slot.job)
            return
        seconds = self._clock() - started
        self._metrics.compute_seconds.labels(graph.model, graph.name).observe(seconds)
        self._metrics.rows.labels(graph.model).inc(len(lane.slots))
        for index, slot in enumerate(lane.slots):
            _keep_row(slot, levels[:, index], log_probability[:, index])
            if slot.job.rows_done[slot.image] == 1 and slot.image == 0:
                first = self._clock() - slot.job.submitted
                self._metrics.first_row_seconds.labels(graph.model).observe(first)

    # Gauges go up and down by what changed: versions of one model share them.

    def _count_joining(self, graph: LoadedGraph, slots: list[Slot]) -> None:
        labels = graph.model, graph.name
        self._metrics.waiting_images.labels(*labels).dec(len(slots))
        self._metrics.busy_slots.labels(*labels).inc(len(slots))
        begun = sum(slot.caches is not None for slot in slots)  # and counted when they began
        self._metrics.joined_images.labels(*labels).inc(len(slots) - begun)

    def _count_parked(self, graph: LoadedGraph, images: int) -> None:
        labels = graph.model, graph.name
        self._metrics.waiting_images.labels(*labels).inc(images)
        self._metrics.busy_slots.labels(*labels).dec(images)

    def _count_departures(self, graph: LoadedGraph, reasons: list[Departure]) -> None:
        self._metrics.busy_slots.labels(graph.model, graph.name).dec(len(reasons))
        self._count_unfinished(graph, reasons)

    def _count_unfinished(self, graph: LoadedGraph, reasons: Sequence[Departure | None]) -> None:
        for reason in reasons:
            if reason not in (None, "finished"):
                self._metrics.unfinished_images.labels(graph.model, graph.name, reason).inc()


def _next_slot(job: PaintJob) -> Slot:
    """Return the next image of a job that waits for a slot; those that have begun go first."""
    if job.parked:
        return job.parked.pop(0)
    job.joined += 1
    return Slot(job, job.joined - 1)


def _departure(slot: Slot, now: float) -> Departure | None:
    """Return why an image leaves its slot now, or None where it stays."""
    job = slot.job
    if job.rows_done[slot.image] == _height(job):
        return "finished"
    if job.deadline <= now:  # first, for it also fails the job, or its request is cancelled
        return "deadline"
    if job.future.cancelled():
        return "cancelled"
    return "failed" if job.future.done() else None


def _deadline_exceeded() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed before the last row was painted")


def _height(job: PaintJob) -> int:
    return job.levels.shape[1]


def _keep_row(slot: Slot, levels: Array, log_probability: Array) -> None:
    """Write a row [W] into the job, as images show it, and answer the job when it was its last."""
    job, image = slot.job, slot.image
    row = job.rows_done[image]
    job.levels[image, row] = levels * job.canvas.level_step
    job.log_probability[image, row] = log_probability
    job.rows_done[image] = row + 1
    job.changed.set()
    if row + 1 == _height(job):
        job.finished += 1
        if job.finished == len(job.canvas) and not job.future.done():
            job.future.set_result(None)


def _fail(job: PaintJob) -> None:
    if not job.future.done():
        job.future.set_exception(
            InferenceFailed("running the model failed; the server's log says why")
        )


def _slot_axis(port: Port) -> int:
    """Return the axis of a lane's array that its slots are on."""
    return 0 if port.role in _PIXELS else port.batch_axis


def _brought(slot: Slot, port: Port) -> Array:
    """Return what an image brings along for a port: zeros are what lies above its first row."""
    canvas, image = slot.job.canvas, slot.image
    if port.role == "cache":
        return np.zeros(port.row_shape, np.float32) if not slot.caches else slot.caches[port.name]
    if port.role == "condition":
        assert canvas.class_weights is not None, "the manifest describes the condition"
        return np.asarray(canvas.class_weights[image])
    if port.role == "control":
        return np.asarray(canvas.controls[port.name][image])
    return np.asarray((canvas.uniforms if port.role == "noise" else canvas.forced)[image])
