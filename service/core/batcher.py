"""The row batcher: requests become rows, rows become batches, batches run on idle workers.

Work-conserving: an idle worker starts at once, and what arrives meanwhile forms the next batch.
What is queued is split over the idle workers, so a lone request for 4 rows on two idle workers runs
as 2 + 2; and no batch is larger than a worker's share of all rows in flight, or one worker would
take what everybody waits for, and leave the others nothing. On a CPU, where a batch takes as long
as its rows, a worker takes a quarter of its share at a time: it finds the rest waiting, instead of
nothing while everybody is being answered.

A request larger than a batch is bulk work. Small requests go first, but for a quarter of the rows:
so neither waits for all of the other. Graphs take turns, a batch each.

`service.core.row_queue` decides; `Batcher` acts.
"""

import asyncio
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from threading import Lock, Thread, get_native_id
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from service.core.requests import as_array
from service.core.row_queue import Inputs, Job, Outputs, RowQueue, Slice, share
from service.errors import DeadlineExceeded, InferenceFailed, QueueFull, ShuttingDown
from service.metrics import Metrics
from service.runtime.session import Session
from service.tracing import OFF, BatchTrace, Tracing

Release = Literal["full", "drained", "shared"]
"""Why a batch is no larger: the maximum, all that was queued, or a worker's share of it."""

_NICENESS = 10
_CROWDED_SECONDS = 1.0  # since the last refusal
_LATENESS = 1.25  # times what is foreseen: a core that refuses many has less left for the models

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LoadedGraph:
    """A graph that is ready to run; rows for the same one can share a batch."""

    model: str
    version: str
    name: str
    session: Session

    @property
    def labels(self) -> tuple[str, str, str]:
        """What its runs are counted by."""
        return self.model, self.version, self.name


@dataclass(frozen=True, eq=False)
class Batch:
    """Slices that run together, on one worker."""

    graph: LoadedGraph
    parts: list[Slice]
    rows: int
    started: float  # on the batcher's clock, seconds
    trace: BatchTrace


class Batcher:
    """Runs rows through sessions on a fixed set of worker threads.

    A worker that is done takes its next batch itself, without a turn of the event loop in between;
    so what waits belongs to a lock. All else, and every future, belongs to the event loop.
    """

    def __init__(
        self,
        *,
        workers: int,
        maximum_batch_rows: int,
        maximum_queued_rows: int,
        metrics: Metrics,
        turns: int = 1,
        tracing: Tracing = OFF,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the workers; each takes its share of the rows in flight in so many `turns`."""
        self._workers = workers
        self._turns_of_share = turns
        self._maximum_batch_rows = maximum_batch_rows
        self._maximum_queued_rows = maximum_queued_rows
        self._metrics = metrics
        self._tracing = tracing
        self._clock = clock
        self._lock = Lock()
        # What the lock is for, with the jobs and queues in it:
        self._queues: dict[LoadedGraph, RowQueue] = {}
        self._turns: dict[LoadedGraph, RowQueue] = {}  # those with rows; who is served goes last
        self._idle = workers
        self._running_rows = 0
        self._refused = -math.inf  # when the last request was, on the clock
        # What the event loop has:
        self._jobs: set[Job] = set()
        self._busy = 0  # workers, until the last results of theirs are delivered
        self._undrawn: dict[LoadedGraph, list[Job]] = {}  # queued in this turn of the loop
        self._rest: asyncio.Future[None] | None = None  # for `close`, when none is busy
        self._closing = False
        metrics.queued_rows.set_function(self._count_queued_rows)
        self._released: SimpleQueue[Batch | None] = SimpleQueue()  # to idle workers; None: stop
        # Daemons, so that a run that never ends does not keep the process from ending.
        self._threads = [
            Thread(target=self._work, args=[core], name="worker", daemon=True)
            for core in _cores(workers)
        ]
        for thread in self._threads:
            thread.start()

    async def run(self, graph: LoadedGraph, inputs: Inputs, deadline: float) -> Outputs:
        """Return the outputs for all rows of `inputs`, whose arrays share their first axis.

        `deadline` is in seconds on the batcher's clock. Raises QueueFull, DeadlineExceeded,
        ShuttingDown or InferenceFailed. When the caller is cancelled, rows that are not yet
        running are dropped.
        """
        rows = len(next(iter(inputs.values())))
        loop, now = asyncio.get_running_loop(), self._clock()
        future: asyncio.Future[Outputs] = loop.create_future()
        trace = self._tracing.work("compute", graph.model, graph.name, rows)
        job = Job(inputs, rows, deadline, future, now, trace)
        with self._lock:
            self._check_room([graph], rows, deadline, now)
            queue = self._queues.setdefault(graph, RowQueue(self._maximum_batch_rows))
            queue.add(job)
            self._turns.setdefault(graph, queue)
            self._metrics.queued_requests.labels(*graph.labels).inc()
            released = list(self._take_for_idle())
        if len(released) > 1:  # they share this job, and what is deferred would be made for each
            job.inputs = {name: as_array(rows) for name, rows in inputs.items()}
        elif not released:
            self._draw_soon(graph, job)
        self._jobs.add(job)
        future.add_done_callback(partial(self._leave, graph, queue, job))
        self._release(released)
        expiring = loop.call_later(deadline - now, _expire, future)
        try:
            return await future
        finally:
            expiring.cancel()

    @property
    def crowded(self) -> bool:
        """Whether a request was refused lately, so that the next one may be, too."""
        return self._clock() - self._refused < _CROWDED_SECONDS

    def check_room(self, graphs: Collection[LoadedGraph], rows: int, deadline: float) -> None:
        """Raise what `run` would, now, for so many rows of whichever of the graphs is fastest."""
        with self._lock:
            self._check_room(graphs, rows, deadline, self._clock())

    def forget(self, graph: LoadedGraph) -> None:
        """Drop what is known of a graph that no rows will come for any more."""
        with self._lock:
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
        if self._busy:  # nobody may wait for their rows, but they still run
            self._rest = asyncio.get_running_loop().create_future()
            await self._rest
        for _ in self._threads:
            self._released.put(None)
        for thread in self._threads:
            thread.join()

    def _check_room(
        self, graphs: Collection[LoadedGraph], rows: int, deadline: float, now: float
    ) -> None:
        """Raise QueueFull, DeadlineExceeded or ShuttingDown where `rows` would be refused now.

        Requests for more than one batch may fill three quarters of the queue: the rest is kept
        for small ones, so that bulk work does not lock them out. What would be done after its
        deadline is refused now, while the client can still ask elsewhere: it would take the place
        of others and be dropped.
        """
        if self._closing:
            raise ShuttingDown("the server is shutting down; send the request to another replica")
        if deadline <= now:
            raise DeadlineExceeded("the deadline had passed before there was anything to run")
        queued = self._queued_rows()
        if not queued:  # a request that is larger than the bound on its own runs, too
            return
        wait = self._wait_seconds()
        bulk = rows > self._maximum_batch_rows
        bound = self._maximum_queued_rows * 3 // 4 if bulk else self._maximum_queued_rows
        if queued + rows > bound:
            self._refused = now
            raise _queue_full(f"{queued} rows are queued and the limit is {bound}", wait)
        seconds = wait + self._run_seconds(graphs, queued + rows, rows)
        if now + _LATENESS * seconds > deadline:
            self._refused = now
            reason = f"{queued} rows are queued, for longer than the deadline of the request allows"
            raise _queue_full(reason, wait)

    def _draw_soon(self, graph: LoadedGraph, job: Job) -> None:
        """Have a job's deferred rows drawn, unless they are so many that all would wait for it."""
        deferred = any(not isinstance(rows, np.ndarray) for rows in job.inputs.values())
        if not deferred or job.rows > self._maximum_batch_rows:
            return
        if not self._undrawn:
            job.future.get_loop().call_soon(self._draw)
        self._undrawn.setdefault(graph, []).append(job)

    def _draw(self) -> None:
        """Draw at once what the jobs of this turn of the event loop deferred, of those that wait.

        A worker would take ten times as long: in each call on a large array, numpy lets other
        threads run Python, and the worker would wait for the event loop again and again. Where one
        draws the same meanwhile, it draws the same numbers.
        """
        undrawn, self._undrawn = self._undrawn, {}
        for jobs in undrawn.values():
            waiting = [job for job in jobs if not (job.started or job.future.done())]
            if waiting:
                _draw(waiting)

    def _leave(
        self, graph: LoadedGraph, queue: RowQueue, job: Job, _: asyncio.Future[Outputs]
    ) -> None:
        """Forget a job that is answered, failed or cancelled."""
        self._jobs.discard(job)
        with self._lock:
            queue.forget(job)
            self._count_started(graph, job)
        job.trace.end()

    def _count_queued_rows(self) -> int:
        with self._lock:
            return self._queued_rows()

    def _queued_rows(self) -> int:
        return sum(queue.rows for queue in self._turns.values())

    def _wait_seconds(self) -> float:
        """Return how long the rows that are queued keep all workers busy."""
        queues = self._turns.values()
        return sum(queue.rows * queue.seconds_per_row for queue in queues) / self._workers

    def _run_seconds(self, graphs: Collection[LoadedGraph], queued: int, rows: int) -> float:
        """Return how long the last `rows` of those queued take from their turn on.

        A worker is still at a batch, half way on average, and theirs is not done before the rows
        of others that share it.
        """
        known = [self._queues[graph].seconds_per_row for graph in graphs if graph in self._queues]
        if len(known) < len(graphs):
            return 0.0
        in_flight = queued + self._running_rows
        batch = share(in_flight, 0, idle=1, workers=self._workers, turns=self._turns_of_share)
        batch = max(min(batch, self._maximum_batch_rows), math.ceil(rows / self._workers))
        return 1.5 * batch * min(known, default=0.0)

    def _take_for_idle(self) -> Iterator[Batch]:
        """Take batches for idle workers until there are none left of either."""
        while self._idle and (batch := self._take()):
            self._idle -= 1
            yield batch

    def _take(self) -> Batch | None:
        """Take the next batch for a worker that is idle, of the graph whose turn it is."""
        while self._turns:
            graph = next(iter(self._turns))
            queue = self._turns.pop(graph)
            room = share(
                queue.rows,
                self._running_rows,
                idle=self._idle,
                workers=self._workers,
                turns=self._turns_of_share,
            )
            now = self._clock()
            parts = queue.take(room, now)
            if queue.rows:
                self._turns[graph] = queue
            if parts:
                return self._begin(graph, parts, now, drained=not queue.rows)
        return None

    def _begin(self, graph: LoadedGraph, parts: list[Slice], now: float, drained: bool) -> Batch:
        """Count a batch that was taken."""
        rows = sum(part.stop - part.start for part in parts)
        self._running_rows += rows
        full = rows == self._maximum_batch_rows
        reason: Release = "full" if full else "drained" if drained else "shared"
        self._metrics.batches.labels(graph.model, graph.name, reason).inc()
        self._metrics.batch_rows.labels(*graph.labels).observe(rows)
        queue_seconds = self._metrics.queue_seconds.labels(*graph.labels)
        for part in parts:
            self._count_started(graph, part.job)
            queue_seconds.observe(now - part.job.submitted)
        members = [part.job.trace for part in parts]
        trace = self._tracing.batch(graph.model, graph.name, rows, reason, members)
        return Batch(graph, parts, rows, now, trace)

    def _count_started(self, graph: LoadedGraph, job: Job) -> None:
        """Take note that a job waits no more: a worker has it, or it left before."""
        if not job.started:
            job.started = True
            self._metrics.queued_requests.labels(*graph.labels).dec()

    def _release(self, batches: list[Batch]) -> None:
        self._busy += len(batches)
        for batch in batches:
            self._released.put(batch)

    def _work(self, core: int | None) -> None:
        """Run batches until told to stop. On a worker, and on one core where it has one."""
        yield_to_event_loop()
        if core is not None:
            os.sched_setaffinity(get_native_id(), {core})
        while (batch := self._released.get()) is not None:
            while batch is not None:
                batch = self._run(batch)

    def _run(self, batch: Batch) -> Batch | None:
        """Run a batch, hand over its results, and return the next one where there is work."""
        try:
            results = batch.trace.run(compute, batch.graph.session, batch.parts)
        except Exception:  # nobody may wait for it in vain, and no worker may be lost
            log.exception("a batch was lost")
            results = [_failure() for _ in batch.parts]
        ended = self._clock()
        with self._lock:
            self._running_rows -= batch.rows
            if queue := self._queues.get(batch.graph):  # none, where the graph was forgotten
                queue.learn(ended - batch.started, batch.rows)
            self._idle += 1
            following = self._take()
            self._idle -= following is not None
        loop = batch.parts[0].job.future.get_loop()
        loop.call_soon_threadsafe(self._deliver, batch, results, ended, following)
        return following

    def _deliver(
        self,
        batch: Batch,
        results: list[Outputs | InferenceFailed],
        ended: float,
        following: Batch | None,
    ) -> None:
        """Answer those of a batch; on the event loop."""
        seconds = ended - batch.started
        labels = batch.graph.labels
        self._metrics.compute_seconds.labels(*labels).observe(seconds)
        self._metrics.request_compute_seconds.labels(*labels).inc(seconds * len(batch.parts))
        for part, result in zip(batch.parts, results, strict=True):
            deliver(part, result)
        batch.trace.end()
        self._busy -= following is None
        if not self._busy and self._rest and not self._rest.done():
            self._rest.set_result(None)


def yield_to_event_loop() -> None:
    """Let the event loop go before this thread, where both want the same core.

    It takes little, and everybody waits for it: also who asks whether the server is alive, and who
    is to be refused because all workers are busy.
    """
    if sys.platform == "linux":  # elsewhere, it is the whole process that gives way
        os.nice(_NICENESS)


def _cores(workers: int) -> Sequence[int | None]:
    """Return the core for each worker: where there is one each, two never share one.

    The system would have them share one now and then, with the event loop on the other.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return cores if len(cores) == workers else [None] * workers


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


def _expire(future: asyncio.Future[Outputs]) -> None:
    if not future.done():
        reason = "the deadline passed before the result was there"
        future.set_exception(DeadlineExceeded(reason))


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


def _draw(jobs: Sequence[Job]) -> None:
    """Turn the deferred rows of jobs for one graph into arrays."""
    joined, start = _join([Slice(job, 0, job.rows) for job in jobs]), 0
    for job in jobs:
        stop = start + job.rows
        job.inputs = {name: rows[start:stop] for name, rows in joined.items()}
        start = stop


def _join(batch: list[Slice]) -> dict[str, NDArray[Any]]:
    return {
        name: _joined([part.job.inputs[name][part.start : part.stop] for part in batch])
        for name in batch[0].job.inputs
    }


def _joined(parts: list[Any]) -> NDArray[Any]:
    """Return rows of one input, arrays or deferred, as one array."""
    first, *others = parts
    if not others:
        return as_array(first)
    if any(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate([as_array(part) for part in parts])
    joined: NDArray[Any] = first.join(others)
    return joined


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
