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
import itertools
import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from service.core.batcher import LoadedGraph, yield_to_event_loop
from service.core.manifest_parts import Graph
from service.core.painting.lanes import (
    Canvas,
    Departure,
    Lane,
    PaintedRows,
    PaintJob,
    Slot,
    departure,
    keep_rows,
    next_slot,
)
from service.errors import DeadlineExceeded, InferenceFailed, QueueFull, ShuttingDown
from service.metrics import Metrics
from service.tracing import OFF, Tracing

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

    A worker drives a lane by itself: it turns the lane over, paints a row, and tells the event loop
    what came of it, which it never waits for. Everything below the lock is guarded by it, and so
    are the slots of lanes and what `PaintJob` names; it is held for microseconds, while no row is
    painted. Futures are answered on the event loop alone.
    """

    def __init__(
        self,
        *,
        workers: int,
        slots: int,
        bulk_limit: int,
        maximum_waiting_images: int,
        metrics: Metrics,
        tracing: Tracing = OFF,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the numbers of workers, of a lane's slots, and of those that one job may have."""
        self._pool = ThreadPoolExecutor(
            workers, thread_name_prefix="painter", initializer=yield_to_event_loop
        )
        self._workers = workers
        self._slots = slots
        self._bulk_limit = bulk_limit
        self._maximum_waiting_images = maximum_waiting_images
        self._metrics = metrics
        self._tracing = tracing
        self._clock = clock
        self._closing = False
        self._lock = threading.Lock()
        # The jobs with images without a slot, in the order of their turns; the values mean nothing.
        self._waiting: dict[LoadedGraph, dict[PaintJob, None]] = {}
        self._lanes: dict[LoadedGraph, list[Lane]] = {}
        self._leaving: set[LoadedGraph] = set()  # to be forgotten when their lanes stand still
        self._jobs: dict[PaintJob, LoadedGraph] = {}
        self._next_deadline = math.inf  # none of the jobs has an earlier one
        self._ready: deque[Lane] = deque()  # lanes that run, and wait for a worker's next row
        self._idle_workers = workers

    def submit(self, graph: LoadedGraph, ports: Graph, canvas: Canvas, deadline: float) -> PaintJob:
        """Queue a canvas and return its job, whose future ends with its last row.

        `deadline` is in seconds on the scheduler's clock. Raises QueueFull, DeadlineExceeded or
        ShuttingDown. Cancelling the future frees the slots before the next row.
        """
        with self._lock:
            self._check_room(len(canvas), deadline)
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            trace = self._tracing.work("paint", graph.model, graph.name, len(canvas))
            job = PaintJob(canvas, deadline, future, self._clock(), trace)
            if graph not in self._lanes:
                self._open(graph, ports)
            self._jobs[job] = graph
            self._next_deadline = min(self._next_deadline, deadline)
            self._waiting[graph][job] = None
            self._metrics.waiting_images.labels(graph.model, graph.name).inc(len(canvas))
            self._metrics.queued_requests.labels(*graph.labels).inc()
            self._wake(graph, len(canvas))
        future.add_done_callback(lambda _: self._end(graph, job))
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

    def forget(self, graph: LoadedGraph) -> None:
        """Drop the lanes of a graph that no job will come for, so that its memory can be freed.

        Where its last requests were given up, their images leave before the next row: until then
        the lanes stay.
        """
        with self._lock:
            if graph in self._lanes:
                self._leaving.add(graph)
                self._close_lanes(graph)

    def abort(self) -> None:
        """Fail whatever is waiting or being painted with ShuttingDown."""
        self._closing = True
        with self._lock:
            jobs = list(self._jobs)
        for job in jobs:
            _answer(job, ShuttingDown("the server stopped before it was painted"))

    async def close(self) -> None:
        """Refuse new work, paint what was accepted, and stop the workers."""
        self._closing = True
        while self._jobs:
            await asyncio.wait([job.future for job in self._jobs])
        await asyncio.to_thread(self._pool.shutdown)  # rows that nobody waits for may be under way

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
        job.changed.set()  # whoever streams it must not wait for ever
        job.trace.end()
        if not job.future.cancelled():
            job.future.exception()  # looked at: asyncio would log it where everybody has left
        with self._lock:
            self._jobs.pop(job, None)
            self._waiting[graph].pop(job, None)
            slotless = len(job.canvas) - job.joined + len(job.parked)
            reasons = [departure(slot, self._clock()) for slot in job.parked]
        self._metrics.waiting_images.labels(graph.model, graph.name).dec(slotless)
        if not job.joined:
            self._metrics.queued_requests.labels(*graph.labels).dec()
        self._count_unfinished(graph, reasons)

    def _open(self, graph: LoadedGraph, ports: Graph) -> None:
        """Make the lanes of a graph."""
        self._waiting[graph] = {}
        self._lanes[graph] = [Lane(graph, ports) for _ in range(self._workers)]
        slots = self._metrics.slots.labels(graph.model, graph.name)
        slots.inc(self._workers * self._slots)

    def _close_lanes(self, graph: LoadedGraph) -> None:
        if graph in self._leaving and not any(lane.running for lane in self._lanes[graph]):
            self._leaving.remove(graph)
            del self._lanes[graph], self._waiting[graph]
            labels = graph.model, graph.name
            self._metrics.slots.labels(*labels).dec(self._workers * self._slots)

    def _wake(self, graph: LoadedGraph, images: int) -> None:
        """Start lanes that stand still; more of them than images would find nothing to paint."""
        still = [lane for lane in self._lanes[graph] if not lane.running][:images]
        for lane in still:
            lane.running = True
            self._ready.append(lane)
        for _ in range(min(len(still), self._idle_workers)):
            self._idle_workers -= 1
            # Of a worker that ended by an error, which none should, the error is logged.
            self._pool.submit(self._work).add_done_callback(lambda ended: ended.result())

    def _work(self) -> None:
        """Paint rows of lanes that are ready, in turns, until there is none; a worker's life."""
        lane = self._next_lane()
        while lane is not None:
            try:
                self._paint_row(lane)
            except Exception:
                with self._lock:
                    self._give_up(lane)
            lane = self._next_lane(lane)

    def _next_lane(self, painted: Lane | None = None) -> Lane | None:
        """Return the lane to paint a row of next, turned over; the last one goes to the back."""
        with self._lock:
            if painted is not None:
                self._ready.append(painted)
            while self._ready:
                lane = self._ready.popleft()
                if self._turn_over(lane.graph, lane):
                    return lane
                lane.running = False
                lane.clear()
                self._close_lanes(lane.graph)
            self._idle_workers += 1
            return None

    def _turn_over(self, graph: LoadedGraph, lane: Lane) -> bool:
        """Between two rows: let images leave and join; return whether any are there."""
        try:
            self._move(graph, lane)
        except Exception:
            self._give_up(lane)
        return bool(lane.slots)

    def _give_up(self, lane: Lane) -> None:
        """After a mistake of ours: keep the worker, and leave nobody of the graph waiting."""
        log.exception("a lane was lost")
        for job, graph in self._jobs.items():
            if graph is lane.graph:
                self._fail(job, _failure())
        self._count_departures(lane.graph, ["failed"] * lane.empty())

    def _move(self, graph: LoadedGraph, lane: Lane) -> None:
        now = self._clock()
        self._expire(now)
        self._count_departures(graph, lane.leave(now))
        if self._waiting[graph]:
            self._park(graph, lane)
            slots = self._joining(graph, lane)
            self._count_joining(graph, slots)
            lane.join(slots)

    def _expire(self, now: float) -> None:
        """Fail jobs whose deadline has passed, also where nobody waits for them just now."""
        if now < self._next_deadline:
            return
        for job in self._jobs:
            if job.deadline <= now:
                self._fail(job, _deadline_exceeded())
        self._next_deadline = min(
            (job.deadline for job in self._jobs if job.deadline > now), default=math.inf
        )

    def _fail(self, job: PaintJob, error: Exception) -> None:
        """End a job now, and let the event loop answer it."""
        if not job.ended:
            job.failure = error
            job.future.get_loop().call_soon_threadsafe(_answer, job, error)

    def _candidates(self, graph: LoadedGraph, slots: int) -> list[PaintJob]:
        """Return the jobs that wait, in the order of their turns, as far as `slots` can reach.

        Behind so many jobs without any slot nobody gets one, and the queue may be long.
        """
        found, slotless = [], 0
        for job in self._waiting[graph]:
            if slotless == slots:
                break
            if job.waiting:
                found.append(job)
                slotless += not job.held
        return found

    def _park(self, graph: LoadedGraph, lane: Lane) -> None:
        """Make room in a full lane for jobs that have no slot anywhere."""
        spare = len(lane.slots) - len({slot.job for slot in lane.slots})
        if len(lane.slots) < self._slots or not spare:
            return
        slotless = (job for job in self._waiting[graph] if not job.held and job.waiting)
        wanted = sum(1 for _ in itertools.islice(slotless, spare))
        if not wanted:
            return
        held = Counter(slot.job for slot in lane.slots)
        given = give_way(list(held.values()), wanted)
        for job, images in zip(held, given, strict=True):
            if images:
                lane.park(job, images)
                self._waiting[graph][job] = None
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
        jobs, slots = self._candidates(graph, room), []
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
        images = sum(len(other.slots) for other in self._lanes[graph])
        for job in self._waiting[graph]:
            if images >= self._slots * self._workers:
                break  # a full share, however many there are
            images += job.waiting
        share = min(self._slots, math.ceil(images / self._workers))
        return max(0, share - len(lane.slots))

    def _paint_row(self, lane: Lane) -> None:
        """Paint a row; where the model fails, of each job alone, so that only the guilty fail."""
        started, failing = self._clock(), list[PaintJob]()
        try:
            painted = [lane.step()]
        except BaseException:  # whatever a runtime raises, SystemExit too, must not end the worker
            painted, failing = lane.step_apart()
        seconds = self._clock() - started
        with self._lock:
            for job in failing:
                self._fail(job, _failure())
        for rows in painted:
            loop = rows.slots[0].job.future.get_loop()
            share = seconds / len(painted)
            loop.call_soon_threadsafe(self._keep_rows, lane.graph, rows, share)

    def _keep_rows(self, graph: LoadedGraph, painted: PaintedRows, seconds: float) -> None:
        """Take what a step painted, on the event loop."""
        self._metrics.compute_seconds.labels(*graph.labels).observe(seconds)
        requests = len({slot.job for slot in painted.slots})
        self._metrics.request_compute_seconds.labels(*graph.labels).inc(seconds * requests)
        self._metrics.rows.labels(graph.model, graph.version).inc(len(painted.slots))
        keep_rows(painted)
        for slot, row in zip(painted.slots, painted.rows, strict=True):
            if row == 0 and slot.image == 0:
                first = self._clock() - slot.job.submitted
                self._metrics.first_row_seconds.labels(graph.model).observe(first)

    # Gauges go up and down by what changed: versions of one model share them.

    def _count_joining(self, graph: LoadedGraph, slots: list[Slot]) -> None:
        if not slots:
            return
        labels = graph.model, graph.name
        self._metrics.waiting_images.labels(*labels).dec(len(slots))
        self._metrics.busy_slots.labels(*labels).inc(len(slots))
        new = [slot for slot in slots if not slot.row]  # the others were counted when they began
        self._metrics.joined_images.labels(*labels).inc(len(new))
        self._metrics.queued_requests.labels(*graph.labels).dec(sum(not slot.image for slot in new))
        now = self._clock()
        for slot in new:
            slot.job.trace.begin()
            self._metrics.queue_seconds.labels(*graph.labels).observe(now - slot.job.submitted)

    def _count_parked(self, graph: LoadedGraph, images: int) -> None:
        labels = graph.model, graph.name
        self._metrics.waiting_images.labels(*labels).inc(images)
        self._metrics.busy_slots.labels(*labels).dec(images)

    def _count_departures(self, graph: LoadedGraph, reasons: list[Departure]) -> None:
        if reasons:
            self._metrics.busy_slots.labels(graph.model, graph.name).dec(len(reasons))
        self._count_unfinished(graph, reasons)

    def _count_unfinished(self, graph: LoadedGraph, reasons: Sequence[Departure | None]) -> None:
        for reason in reasons:
            if reason not in (None, "finished"):
                self._metrics.unfinished_images.labels(graph.model, graph.name, reason).inc()


def _deadline_exceeded() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed before the last row was painted")


def _failure() -> InferenceFailed:
    return InferenceFailed("running the model failed; the server's log says why")


def _answer(job: PaintJob, error: Exception) -> None:
    """Fail whoever waits for a job, on the event loop."""
    if not job.future.done():
        job.future.set_exception(error)
