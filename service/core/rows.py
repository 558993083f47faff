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
from typing import get_args

from service.core.batcher import LoadedGraph
from service.core.lanes import (
    Canvas,
    Departure,
    Lane,
    PaintJob,
    Slot,
    departure,
    keep_row,
    next_slot,
)
from service.core.manifest import Graph
from service.errors import DeadlineExceeded, InferenceFailed, QueueFull, ShuttingDown
from service.metrics import Metrics

log = logging.getLogger(__name__)


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
        self._count_unfinished(graph, [departure(slot, self._clock()) for slot in job.parked])

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
                slots += [next_slot(job) for _ in range(share)]
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
            keep_row(slot, levels[:, index], log_probability[:, index])
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


def _deadline_exceeded() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed before the last row was painted")


def _fail(job: PaintJob) -> None:
    if not job.future.done():
        job.future.set_exception(
            InferenceFailed("running the model failed; the server's log says why")
        )
