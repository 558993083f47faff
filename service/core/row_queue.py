"""Which rows run next: how many a worker takes, and whose. Decides, never acts.

Nothing here knows clocks, threads or models.
"""

import asyncio
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from numpy.typing import NDArray

from service.core.requests import DeferredRows
from service.tracing import WorkTrace

Inputs = Mapping[str, NDArray[Any] | DeferredRows]
Outputs = dict[str, NDArray[Any]]

_SMALL_ROWS = 4  # so few are not worth another run
_REMEMBERED_ROWS = 256  # what is known weighs as much as so many new ones, once they were seen
_BULK_SHARE = 4  # one row in so many is kept for bulk work while small requests wait too


@dataclass(eq=False)
class Job:
    """Rows waiting for one graph, all from one request."""

    inputs: Inputs
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


def share(queued: int, running: int, *, idle: int, workers: int, turns: int = 1) -> int:
    """Return how many of the `queued` rows of a graph an idle worker takes.

    They are split over the idle workers, and no batch holds more than one worker's share of all
    rows in flight: those queued, and those `running` on the other workers. A share that is not
    small is taken in so many `turns`: what is left waits, for whoever is done next to go on with.
    """
    in_flight = queued + running
    turn = max(_SMALL_ROWS, math.ceil(in_flight / (workers * turns)))
    return min(math.ceil(queued / idle), math.ceil(in_flight / workers), turn)


class RowQueue:
    """Jobs of one graph in the order in which they get their next rows.

    Small jobs are served one after the other. Bulk jobs, of more rows than a batch may have, take
    turns; a quarter of the rows is theirs while small ones wait too.
    """

    def __init__(self, maximum_batch_rows: int) -> None:
        self.rows = 0
        """Rows waiting."""
        self.seconds_per_row = 0.0
        """What a row took a worker lately."""
        self._seen_rows = 0  # up to those remembered
        self._maximum_batch_rows = maximum_batch_rows
        self._small: deque[Job] = deque()
        self._bulk: deque[Job] = deque()
        self._bulk_rows = 0  # waiting
        self._owed = 0  # to bulk jobs, in fractions of a row: so many make one

    def learn(self, seconds: float, rows: int) -> None:
        """Take note of how long so many rows took a worker: the more they are, the more it says.

        No single batch says much: a queue that was let grow for one that was quick stays too long.
        """
        weight = rows / (rows + self._seen_rows)
        self.seconds_per_row += weight * (seconds / rows - self.seconds_per_row)
        self._seen_rows = min(self._seen_rows + rows, _REMEMBERED_ROWS)

    def add(self, job: Job) -> None:
        """Queue a job."""
        (self._bulk if self._is_bulk(job) else self._small).append(job)
        self._count(job, job.remaining)

    def forget(self, job: Job) -> None:
        """Drop the rows of a job that nobody waits for any more; `take` passes over it."""
        self._count(job, -job.remaining)
        job.taken = job.rows
        if not self.rows:  # nobody may come to take any, and the jobs hold their inputs
            self._small.clear()
            self._bulk.clear()

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
