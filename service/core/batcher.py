"""The row batcher: requests become rows, rows become batches, batches run on idle workers.

Work-conserving: an idle worker starts at once, and what arrives meanwhile forms the next batch.
What is queued is split over the idle workers, so a lone request for 4 rows on two idle workers runs
as 2 + 2; and no batch is larger than a worker's share of all rows in flight, or one worker would
take what everybody waits for, and leave the others nothing.

A request larger than a batch is bulk work. Small requests go first, but for a quarter of the rows:
so neither waits for all of the other. Graphs take turns, a batch each.

`share` and `RowQueue` decide, and know neither clocks nor threads nor models; `Batcher` acts.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.errors import DeadlineExceeded, InferenceFailed, QueueFull, ShuttingDown
from service.metrics import Metrics
from service.runtime.session import Session
from service.tracing import OFF, Tracing, WorkTrace

Arrays = Mapping[str, NDArray[Any]]
Outputs = dict[str, NDArray[Any]]

Release = Literal["full", "drained", "shared"]
"""Why a batch is no larger: the maximum, all that was queued, or a worker's share of it."""

_BULK_SHARE = 4  # one row in so many is kept for bulk work while small requests wait too

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LoadedGraph:
    """A graph that is ready to run; rows for the same one can share a batch."""

    model: str
    version: str
    name: str
    session: Session


@dataclass(eq=False)
class Job:
    """Rows waiting for one graph, all from one request."""

    inputs: Arrays
    rows: int
    deadline: float  # on the batcher's clock, seconds
    future: asyncio.Future[Outputs]
    submitted: float
    trace: WorkTrace = field(default_factory=WorkTrace)
    taken: int = 0  # rows handed to workers
    started: bool = False  # whether a worker has had any of them
    finished: int = 0  # rows whose outputs are there
    outputs: Outputs = field(default_factory=dict)

    @property
    def remaining(self) -> int:
        """Rows not yet handed to a worker."""
        return self.rows - self.taken


class Slice(NamedTuple):
    """Rows start .. stop - 1 of a job."""

    job: Job
    start: int
    stop: int


def share(queued: int, running: int, *, idle: int, workers: int) -> int:
    """Return how many of the `queued` rows of a graph an idle worker takes.

    They are split over the idle workers, and no batch holds more than one worker's share of all
    rows in flight: those queued, and those `running` on the other workers.
    """
    return min(math.ceil(queued / idle), math.ceil((queued + running) / workers))


class RowQueue:
    """Jobs of one graph in the order in which they get their next rows. Decides, never acts.

    Small jobs are served one after the other. Bulk jobs, of more rows than a batch may have, take
    turns; a quarter of the rows is theirs while small ones wait too.
    """

    def __init__(self, maximum_batch_rows: int) -> None:
        self.rows = 0
        """Rows waiting."""
        self.seconds_per_row = 0.0
        """What a row took a worker lately."""
        self._maximum_batch_rows = maximum_batch_rows
        self._small: deque[Job] = deque()
        self._bulk: deque[Job] = deque()
        self._bulk_rows = 0  # waiting
        self._owed = 0  # to bulk jobs, in fractions of a row: so many make one

    def add(self, job: Job) -> None:
        """Queue a job."""
        (self._bulk if self._is_bulk(job) else self._small).append(job)
        self._count(job, job.remaining)

    def forget(self, job: Job) -> None:
        """Drop the rows of a job that nobody waits for any more; `take` passes over it."""
        self._count(job, -job.remaining)
        job.taken = job.rows

    def take(self, rows: int, now: float) -> list[Slice]:
        """Take the next batch: so many rows, at most the maximum.

        Jobs whose deadline is not after `now` get none; the batch may be smaller for it, or empty.
        """
        room = min(rows, self._maximum_batch_rows)
        batch = self._fill(self._small, room - self._kept_for_bulk(room), now)
        room -= sum(part.stop - part.start for part in batch)
        return batch + self._fill(self._bulk, room, now)

    def _is_bulk(self, job: Job) -> bool:
        return job.rows > self._maximum_batch_rows

    def _count(self, job: Job, rows: int) -> None:
        self.rows += rows
        if self._is_bulk(job):
            self._bulk_rows += rows

    def _kept_for_bulk(self, room: int) -> int:
        """Return how many rows of a batch are kept for bulk jobs, where both kinds wait."""
        if not 0 < self._bulk_rows < self.rows:
            self._owed = 0
            return 0
        self._owed += room
        kept, self._owed = divmod(self._owed, _BULK_SHARE)
        return min(kept, self._bulk_rows)

    def _fill(self, jobs: deque[Job], room: int, now: float) -> list[Slice]:
        """Take rows of jobs in turn; of a small one that is begun, the rest comes next."""
        batch: list[Slice] = []
        while room and jobs:
            job = jobs.popleft()
            if job.deadline <= now:
                self.forget(job)
            count = min(room, job.remaining)
            if count:
                batch.append(Slice(job, job.taken, job.taken + count))
                job.taken += count
                self._count(job, -count)
                room -= count
            if job.remaining:
                jobs.append(job) if self._is_bulk(job) else jobs.appendleft(job)
        return batch


class Batcher:
    """Runs rows through sessions on a fixed set of worker threads.

    Everything but `Session.run` happens on the event loop, so there are no locks.
    """

    def __init__(
        self,
        *,
        workers: int,
        maximum_batch_rows: int,
        maximum_queued_rows: int,
        metrics: Metrics,
        tracing: Tracing = OFF,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="worker")
        self._idle = workers
        self._workers = workers
        self._maximum_batch_rows = maximum_batch_rows
        self._maximum_queued_rows = maximum_queued_rows
        self._metrics = metrics
        self._tracing = tracing
        self._clock = clock
        self._queues: dict[LoadedGraph, RowQueue] = {}
        self._turns: dict[LoadedGraph, RowQueue] = {}  # those with rows; who is served goes last
        self._running_rows = 0
        self._jobs: set[Job] = set()
        self._batches: set[asyncio.Task[None]] = set()
        self._closing = False

    async def run(self, graph: LoadedGraph, inputs: Arrays, deadline: float) -> Outputs:
        """Return the outputs for all rows of `inputs`, whose arrays share their first axis.

        `deadline` is in seconds on the batcher's clock. Raises QueueFull, DeadlineExceeded,
        ShuttingDown or InferenceFailed. When the caller is cancelled, rows that are not yet
        running are dropped.
        """
        rows = len(next(iter(inputs.values())))
        self._check_room(rows, deadline)
        future: asyncio.Future[Outputs] = asyncio.get_running_loop().create_future()
        trace = self._tracing.work("compute", graph.model, graph.name, rows)
        job = Job(inputs, rows, deadline, future, self._clock(), trace)
        queue = self._queues.setdefault(graph, RowQueue(self._maximum_batch_rows))
        queue.add(job)
        self._turns.setdefault(graph, queue)
        self._jobs.add(job)
        self._metrics.queued_requests.labels(graph.model, graph.name).inc()
        future.add_done_callback(lambda _: self._leave(graph, queue, job))
        self._dispatch()
        try:
            async with asyncio.timeout(deadline - self._clock()):
                return await future
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the result was there") from None

    def forget(self, graph: LoadedGraph) -> None:
        """Drop what is known of a graph that no rows will come for any more."""
        self._queues.pop(graph, None)

    def abort(self) -> None:
        """Fail whatever is waiting or running with ShuttingDown."""
        self._closing = True
        for job in list(self._jobs):
            if not job.future.done():
                job.future.set_exception(ShuttingDown("the server stopped before it was done"))

    async def close(self) -> None:
        """Refuse new work, finish what was accepted, and stop the workers."""
        self._closing = True
        while self._jobs:
            await asyncio.wait([job.future for job in self._jobs])
        while self._batches:  # nobody may wait for their rows, but their threads still run
            await asyncio.wait(self._batches)
        self._pool.shutdown()

    def _check_room(self, rows: int, deadline: float) -> None:
        """Raise QueueFull, DeadlineExceeded or ShuttingDown where `rows` would be refused now.

        Requests for more than one batch may fill three quarters of the queue: the rest is kept
        for small ones, so that bulk work does not lock them out. What would wait for longer than
        its deadline allows is refused now, while the client can still ask elsewhere: it would take
        the place of others and be dropped.
        """
        if self._closing:
            raise ShuttingDown("the server is shutting down; send the request to another replica")
        if deadline <= self._clock():
            raise DeadlineExceeded("the deadline had passed before there was anything to run")
        queued, wait = self._queued_rows(), self._wait_seconds()
        bulk = rows > self._maximum_batch_rows
        bound = self._maximum_queued_rows * 3 // 4 if bulk else self._maximum_queued_rows
        # A request that is larger than the bound on its own runs when the queue is empty.
        if queued and queued + rows > bound:
            raise _queue_full(f"{queued} rows are queued and the limit is {bound}", wait)
        if self._clock() + wait > deadline:
            reason = f"{queued} rows are queued, for longer than the deadline of the request allows"
            raise _queue_full(reason, wait)

    def _leave(self, graph: LoadedGraph, queue: RowQueue, job: Job) -> None:
        """Forget a job that is answered, failed or cancelled."""
        self._jobs.discard(job)
        queue.forget(job)
        self._count_started(graph, job)
        job.trace.end()
        self._metrics.queued_rows.set(self._queued_rows())

    def _dispatch(self) -> None:
        """Hand batches to idle workers until there are none left of either."""
        while self._idle and self._turns:
            graph = next(iter(self._turns))
            queue = self._turns.pop(graph)
            room = share(queue.rows, self._running_rows, idle=self._idle, workers=self._workers)
            batch = queue.take(room, self._clock())
            if queue.rows:
                self._turns[graph] = queue
            if batch:
                self._start(graph, batch, drained=not queue.rows)
        self._metrics.queued_rows.set(self._queued_rows())

    def _queued_rows(self) -> int:
        return sum(queue.rows for queue in self._turns.values())

    def _wait_seconds(self) -> float:
        """Return how long the rows that are queued keep all workers busy."""
        queues = self._turns.values()
        return sum(queue.rows * queue.seconds_per_row for queue in queues) / self._workers

    def _start(self, graph: LoadedGraph, batch: list[Slice], drained: bool) -> None:
        rows = sum(part.stop - part.start for part in batch)
        self._idle -= 1
        self._running_rows += rows
        full = rows == self._maximum_batch_rows
        reason: Release = "full" if full else "drained" if drained else "shared"
        self._metrics.batches.labels(graph.model, graph.name, reason).inc()
        self._metrics.batch_rows.labels(graph.model, graph.name).observe(rows)
        task = asyncio.get_running_loop().create_task(self._run_batch(graph, batch, rows, reason))
        self._batches.add(task)  # the loop itself keeps only a weak reference
        task.add_done_callback(self._batches.discard)

    def _count_started(self, graph: LoadedGraph, job: Job) -> None:
        """Take note that a job waits no more: a worker has it, or it left before."""
        if not job.started:
            job.started = True
            self._metrics.queued_requests.labels(graph.model, graph.name).dec()

    async def _run_batch(
        self, graph: LoadedGraph, batch: list[Slice], rows: int, reason: Release
    ) -> None:
        started = self._clock()
        members = [part.job.trace for part in batch]
        trace = self._tracing.batch(graph.model, graph.name, rows, reason, members)
        for part in batch:
            self._count_started(graph, part.job)
            self._metrics.queue_seconds.labels(graph.model).observe(started - part.job.submitted)
        try:
            loop = asyncio.get_running_loop()
            results = await loop.run_in_executor(
                self._pool, trace.run, compute, graph.session, batch
            )
            seconds = self._clock() - started
            self._metrics.compute_seconds.labels(graph.model, graph.name).observe(seconds)
            self._metrics.request_compute_seconds.labels(graph.model).inc(seconds * len(batch))
            if queue := self._queues.get(graph):  # none, where its last rows were given up
                queue.seconds_per_row += 0.2 * (seconds / rows - queue.seconds_per_row)
            for part, result in zip(batch, results, strict=True):
                deliver(part, result)
        except Exception:  # there is no thread to be had, say: nobody may wait for it in vain
            log.exception("a batch was lost")
            for part in batch:
                deliver(part, _failure())
        finally:
            trace.end()
            # Whatever happened, the worker is free again: a worker lost is lost for good.
            self._idle += 1
            self._running_rows -= rows
            self._dispatch()


def compute(session: Session, batch: list[Slice]) -> list[Outputs | InferenceFailed]:
    """Run a batch and return one result for each slice.

    When the run fails, every slice that somebody still waits for runs again alone, so that only
    the guilty fail.
    """
    try:
        return _split(session.run(_join(batch)), batch)
    except BaseException:  # whatever a runtime raises, SystemExit too, must not end the worker
        if len(batch) > 1:
            return [_compute_alone(session, part) for part in batch]
        log.exception("running a graph failed")
        return [_failure()]


def _compute_alone(session: Session, part: Slice) -> Outputs | InferenceFailed:
    if part.job.future.done():
        return _failure()
    return compute(session, [part])[0]


def _queue_full(reason: str, wait: float) -> QueueFull:
    wait = max(0.1, wait)
    return QueueFull(f"{reason}; try again in {wait:.1f} s", retry_after_seconds=round(wait, 1))


def _failure() -> InferenceFailed:
    return InferenceFailed("running the model failed; the server's log says why")


def deliver(part: Slice, result: Outputs | InferenceFailed) -> None:
    """Give a slice's result to its job, and answer the job when it was the last."""
    job = part.job
    if job.future.done():
        return
    if isinstance(result, InferenceFailed):
        job.future.set_exception(result)
        return
    try:
        _keep(part, result)
    except (KeyError, ValueError):
        log.exception("a graph's outputs are of other shapes from run to run")
        job.future.set_exception(_failure())
        return
    if job.finished == job.rows:
        job.future.set_result(job.outputs)


def _keep(part: Slice, result: Outputs) -> None:
    """Add a slice's rows to its job's; raises KeyError or ValueError where they do not fit."""
    job = part.job
    job.finished += part.stop - part.start
    if part.stop - part.start == job.rows:
        job.outputs = result
        return
    if not job.outputs:
        job.outputs = {
            name: np.empty((job.rows, *rows.shape[1:]), rows.dtype) for name, rows in result.items()
        }
    for name, kept in job.outputs.items():
        kept[part.start : part.stop] = result[name]


def _join(batch: list[Slice]) -> Arrays:
    if len(batch) == 1:
        job, start, stop = batch[0]
        return {name: rows[start:stop] for name, rows in job.inputs.items()}
    return {
        name: np.concatenate([part.job.inputs[name][part.start : part.stop] for part in batch])
        for name in batch[0].job.inputs
    }


def _split(outputs: Outputs, batch: list[Slice]) -> list[Outputs | InferenceFailed]:
    """Cut outputs into one part for each slice; raises ValueError where rows are missing."""
    stops = np.cumsum([part.stop - part.start for part in batch]).tolist()
    for name, rows in outputs.items():
        if rows.shape[:1] != (stops[-1],):
            raise ValueError(f"output {name} has shape {rows.shape} for {stops[-1]} rows")
    starts = [0, *stops[:-1]]
    return [
        {name: rows[start:stop] for name, rows in outputs.items()}
        for start, stop in zip(starts, stops, strict=True)
    ]
