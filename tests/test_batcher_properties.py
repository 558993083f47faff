"""What holds for the batcher whatever happens, under a clock that the test moves."""

import asyncio
import itertools
import math
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from service.core.batcher import Batcher, LoadedGraph
from service.core.row_queue import Job, RowQueue, Slice, share
from service.errors import (
    DeadlineExceeded,
    InferenceFailed,
    QueueFull,
    ShuttingDown,
)
from service.metrics import Metrics

# The decisions


def job_of(rows: int, deadline: float = math.inf) -> Job:
    return Job({}, rows, deadline, asyncio.Future(loop=LOOP), 0.0)


LOOP = asyncio.new_event_loop()
LOOP.close()  # futures must belong to one


def count(batch: list[Slice]) -> int:
    return sum(part.stop - part.start for part in batch)


@given(
    queued=st.integers(1, 300),
    running=st.integers(0, 300),
    workers=st.integers(1, 8),
    data=st.data(),
)
def test_idle_workers_share_what_is_queued(
    queued: int, running: int, workers: int, data: st.DataObject
) -> None:
    idle = data.draw(st.integers(1, workers))
    taken = share(queued, running, idle=idle, workers=workers)
    assert 1 <= taken <= queued
    assert taken <= math.ceil((queued + running) / workers), "others get their share of what runs"
    if not running:
        assert taken == math.ceil(queued / max(idle, workers))


@given(
    queued=st.integers(1, 300),
    running=st.integers(0, 300),
    workers=st.integers(1, 8),
    turns=st.integers(2, 4),
    data=st.data(),
)
def test_a_large_share_is_taken_in_turns(
    queued: int, running: int, workers: int, turns: int, data: st.DataObject
) -> None:
    idle = data.draw(st.integers(1, workers))
    whole = share(queued, running, idle=idle, workers=workers)
    taken = share(queued, running, idle=idle, workers=workers, turns=turns)
    assert min(whole, 4) <= taken <= whole
    assert taken <= max(4, math.ceil((queued + running) / (workers * turns)))


def test_a_lone_request_is_split_and_a_busy_worker_is_left_its_share() -> None:
    assert share(4, 0, idle=2, workers=2) == 2
    assert share(28, 4, idle=1, workers=2) == 16
    assert share(28, 4, idle=1, workers=2, turns=2) == 8


@given(
    arrivals=st.lists(st.lists(st.integers(1, 30), max_size=3), min_size=1, max_size=12),
    rooms=st.lists(st.integers(1, 24), min_size=1, max_size=12),
    maximum=st.integers(1, 16),
)
def test_every_row_is_taken_once_and_no_batch_is_too_large(
    arrivals: list[list[int]], rooms: list[int], maximum: int
) -> None:
    queue, jobs, taken = RowQueue(maximum), [], {}
    for turn in itertools.count():
        for size in arrivals[turn] if turn < len(arrivals) else ():
            jobs.append(job_of(size))
            queue.add(jobs[-1])
        if not queue.rows and turn >= len(arrivals):
            break
        waiting, room = queue.rows, rooms[turn % len(rooms)]
        batch = queue.take(room, 0.0)
        assert count(batch) == min(room, maximum, waiting), "as many as asked for, no more"
        assert queue.rows == waiting - count(batch)
        for job, start, stop in batch:
            taken.setdefault(id(job), []).extend(range(start, stop))
    assert [taken[id(job)] for job in jobs] == [list(range(job.rows)) for job in jobs]


@given(
    ahead=st.lists(st.integers(1, 8), max_size=6),
    rows=st.integers(1, 8),
    bulk=st.lists(st.integers(9, 500), max_size=6),
)
def test_a_small_request_does_not_wait_for_bulk_work(
    ahead: list[int], rows: int, bulk: list[int]
) -> None:
    queue, maximum = RowQueue(8), 8
    for size in bulk + ahead:
        queue.add(job_of(size))
    newcomer = job_of(rows)
    queue.add(newcomer)
    batches = 0
    while newcomer.remaining:
        queue.take(maximum, 0.0)
        batches += 1
    assert batches <= math.ceil((sum(ahead) + rows) / (maximum * 3 / 4)), "however much is bulk"


@given(
    sizes=st.lists(st.integers(1, 8), min_size=1, max_size=8),
    rooms=st.lists(st.integers(1, 8), min_size=40, max_size=40),
)
def test_small_requests_leave_a_quarter_to_bulk_work(sizes: list[int], rooms: list[int]) -> None:
    """A flood: there are always small requests for more rows than a batch has."""
    queue, flood = RowQueue(8), itertools.cycle(sizes)
    bulk, small_rows, all_rows = job_of(10_000), 0, 0
    queue.add(bulk)
    for room in rooms:
        while queue.rows - bulk.remaining < room:
            queue.add(job_of(next(flood)))
        batch = queue.take(room, 0.0)
        all_rows += room
        small_rows += count([part for part in batch if part.job is not bulk])
        assert bulk.taken == all_rows // 4
        assert small_rows == all_rows - bulk.taken


@given(
    jobs=st.lists(st.tuples(st.integers(1, 20), st.sampled_from([1.0, 2.0, 3.0])), max_size=8),
    room=st.integers(1, 8),
)
def test_what_is_past_its_deadline_is_not_taken(jobs: list[tuple[int, float]], room: int) -> None:
    queue = RowQueue(8)
    for rows, deadline in jobs:
        queue.add(job_of(rows, deadline))
    batches = [queue.take(room, 2.0) for _ in range(200)]
    assert all(part.job.deadline > 2.0 for batch in batches for part in batch)
    assert sum(map(count, batches)) == sum(rows for rows, deadline in jobs if deadline > 2.0)


@given(sizes=st.lists(st.integers(9, 60), min_size=2, max_size=6))
def test_bulk_requests_take_turns(sizes: list[int]) -> None:
    queue, jobs = RowQueue(8), [job_of(size) for size in sizes]
    for job in jobs:
        queue.add(job)
    while all(job.remaining >= 8 for job in jobs):
        queue.take(8, 0.0)
        turns = [job.taken for job in jobs]
        assert max(turns) - min(turns) <= 8


@given(sizes=st.lists(st.integers(1, 8), min_size=1, max_size=8), room=st.integers(1, 8))
def test_small_requests_are_served_in_the_order_of_their_arrival(
    sizes: list[int], room: int
) -> None:
    queue, jobs = RowQueue(8), [job_of(size) for size in sizes]
    for job in jobs:
        queue.add(job)
    served = []
    while queue.rows:
        served += [part.job for part in queue.take(room, 0.0)]
    assert [job for job, _ in itertools.groupby(served)] == jobs


@given(
    usual=st.floats(1e-4, 1.0),
    batches=st.lists(st.integers(1, 64), min_size=10, max_size=30),
    odd=st.floats(0.5, 2.0),
)
def test_what_a_row_takes_is_learned_at_once_and_not_changed_by_one_odd_batch(
    usual: float, batches: list[int], odd: float
) -> None:
    queue = RowQueue(64)
    assert queue.seconds_per_row == 0.0
    for rows in batches:
        queue.learn(usual * rows, rows)
        assert queue.seconds_per_row == pytest.approx(usual)
    seen = sum(batches)
    queue.learn(odd * usual, 1)
    assert abs(queue.seconds_per_row - usual) <= usual / min(seen, 256) * 1.01
    for _ in range(20):
        queue.learn(3 * usual * 64, 64)
    assert queue.seconds_per_row == pytest.approx(3 * usual, rel=0.03), "it follows a change"


# The batcher

FOR_EVER = 1000.0  # seconds; no queue is that long
BOUND = 40


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose time, which is the batcher's too, passes when the test says so."""

    now = 0.0

    def time(self) -> float:
        return self.now


@dataclass(eq=False)
class Visit:
    """A request whose rows are numbers that no other request has."""

    rows: np.ndarray
    deadline: float
    poisoned: bool
    task: asyncio.Task | None = None
    cancelled: bool = False


class Turnstile:
    """Doubles rows, a run at a time as the test lets them through; poisoned rows fail a run."""

    def __init__(self) -> None:
        self.open = False
        self.waiting: list[threading.Event] = []
        self.seen: list[np.ndarray] = []  # rows of every run, also of those that failed
        self.done: Counter[float] = Counter()

    def run(self, inputs):
        rows = inputs["x"]
        self.seen.append(rows)
        if (rows < 0).any():
            raise ValueError("poison")
        if not self.open:
            passes = threading.Event()
            self.waiting.append(passes)
            assert passes.wait(30.0)
        self.done.update(rows.tolist())
        return {"y": 2.0 * rows}

    def let_through(self, index: int) -> None:
        self.waiting.pop(index % len(self.waiting)).set()

    def let_all_through(self) -> None:
        self.open = True
        while self.waiting:
            self.let_through(0)


@dataclass
class Scene:
    """A batcher with two graphs, and all who ever asked it for something."""

    workers: int
    maximum: int
    turns: int
    metrics: Metrics = field(default_factory=lambda: Metrics(CollectorRegistry()))
    session: Turnstile = field(default_factory=Turnstile)
    visits: list[Visit] = field(default_factory=list)
    bulk: int = 0  # rows of the largest request

    def __post_init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.graphs = [LoadedGraph("toy", "1", name, self.session) for name in ("a", "b")]
        self.numbers = itertools.count(1.0)
        self.batcher = Batcher(
            workers=self.workers,
            maximum_batch_rows=self.maximum,
            maximum_queued_rows=BOUND,
            metrics=self.metrics,
            turns=self.turns,
            clock=self.loop.time,
        )

    async def arrive(self, graph: int, rows: int, seconds: float, poisoned: bool) -> None:
        numbers = np.array(list(itertools.islice(self.numbers, rows)))
        if poisoned:
            numbers[-1] *= -1
        visit = Visit(numbers, self.loop.now + seconds, poisoned)
        queued, looked = self.total("queued_rows"), self.is_refused(graph, visit)
        run = self.batcher.run(self.graphs[graph], {"x": numbers}, visit.deadline)
        visit.task = asyncio.create_task(run)
        self.visits.append(visit)
        await self.settle()
        refused = visit.task.done() and isinstance(visit.task.exception(), QueueFull)
        assert refused == looked, "whoever looks before sees what becomes of it"
        if refused:
            bound = BOUND * 3 // 4 if rows > self.maximum else BOUND
            hopeless = "deadline" in str(visit.task.exception()) and seconds < FOR_EVER
            assert hopeless or (queued and queued + rows > bound), "there was room"
        else:
            self.bulk = max(self.bulk, rows)

    def is_refused(self, graph: int, visit: "Visit") -> bool:
        try:
            self.batcher.check_room([self.graphs[graph]], len(visit.rows), visit.deadline)
        except QueueFull:
            return True
        return False

    async def leave(self, index: int) -> None:
        if self.visits:
            visit = self.visits[index % len(self.visits)]
            visit.cancelled = visit.task.cancel() or visit.cancelled
            await self.settle()

    async def let_through(self, index: int) -> None:
        if self.session.waiting:
            self.session.let_through(index)
            await self.settle()

    async def wait(self, seconds: float) -> None:
        self.loop.now += seconds
        await self.settle()

    async def settle(self) -> None:
        """Wait until nothing happens any more before somebody acts."""
        for _ in range(10):
            await asyncio.sleep(0)
        while self.total("batches") - self.total("compute_seconds") != len(self.session.waiting):
            # A loop that only spins takes the interpreter's lock again before a worker wakes.
            time.sleep(0.0002)
            await asyncio.sleep(0)

    def total(self, name: str) -> float:
        """Return the sum of a metric over its labels; of a histogram, how often it was observed."""
        wanted = {f"genserve_{name}{suffix}" for suffix in ("", "_total", "_count")}
        return sum(
            sample.value
            for family in getattr(self.metrics, name).collect()  # alone: it is asked at every step
            for sample in family.samples
            if sample.name in wanted
        )

    def check_between(self) -> None:
        running, queued = len(self.session.waiting), self.total("queued_rows")
        assert queued <= max(BOUND, self.bulk)
        assert running == self.workers or not queued, "nothing waits beside an idle worker"
        assert all(len(rows) <= self.maximum for rows in self.session.seen)

    def gone(self) -> set[float]:
        """The rows that nobody waits for any more."""
        done = (visit for visit in self.visits if visit.task.done())
        return {number for visit in done for number in visit.rows.tolist()}

    def check_outcome(self, visit: Visit, aborted: bool) -> None:
        task = visit.task
        assert task.done(), "nobody waits for ever"
        if task.cancelled():
            assert visit.cancelled
            return
        error = task.exception()
        if error is None:
            assert not visit.poisoned
            assert np.array_equal(task.result()["y"], 2.0 * visit.rows), "its own rows, in order"
        elif isinstance(error, DeadlineExceeded):
            assert visit.deadline <= self.loop.now
        elif isinstance(error, InferenceFailed):
            assert visit.poisoned, "only the guilty fail"
        elif isinstance(error, ShuttingDown):
            assert aborted
        else:
            assert isinstance(error, QueueFull), error


ARRIVAL = st.tuples(
    st.just("arrive"),
    st.integers(0, 1),
    st.one_of(st.integers(1, 4), st.integers(1, 60)),
    st.sampled_from([1.0, 3.0, FOR_EVER, FOR_EVER, FOR_EVER]),
    st.sampled_from([False, False, False, True]),
)
STEPS = st.lists(
    st.one_of(
        ARRIVAL,
        ARRIVAL,
        st.tuples(st.just("let_through"), st.integers(0, 7)),
        st.tuples(st.just("let_through"), st.integers(0, 7)),
        st.tuples(st.just("leave"), st.integers(0, 100)),
        st.tuples(st.just("wait"), st.sampled_from([0.5, 1.0, 2.0])),
    ),
    min_size=8,
    max_size=40,
)
Ending = Literal["close", "abort"]


async def play(steps: list[tuple], workers: int, maximum: int, turns: int, ending: Ending) -> None:
    scene = Scene(workers, maximum, turns)
    try:
        for name, *arguments in steps:
            gone, seen = scene.gone(), len(scene.session.seen)
            await getattr(scene, name)(*arguments)
            late = {number for rows in scene.session.seen[seen:] for number in rows.tolist()}
            assert not late & gone, "what nobody waits for is not computed"
            scene.check_between()
        await end(scene, ending)
    finally:
        scene.session.let_all_through()


async def end(scene: Scene, ending: Ending) -> None:
    if ending == "abort":
        scene.batcher.abort()
        for _ in range(10):
            await asyncio.sleep(0)
        assert all(visit.task.done() for visit in scene.visits), "even while runs go on"
    closing = asyncio.create_task(scene.batcher.close())
    await asyncio.sleep(0)
    with pytest.raises(ShuttingDown):
        await scene.batcher.run(scene.graphs[0], {"x": np.ones(1)}, math.inf)
    scene.session.let_all_through()
    await closing
    await asyncio.gather(*(visit.task for visit in scene.visits), return_exceptions=True)
    for visit in scene.visits:
        scene.check_outcome(visit, aborted=ending == "abort")
    assert not scene.session.done or max(scene.session.done.values()) == 1, "no row runs twice"
    assert scene.total("queued_rows") == 0


def run(steps: list[tuple], workers: int, maximum: int, turns: int, ending: Ending) -> None:
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(play(steps, workers, maximum, turns, ending))


SCENES = {
    "steps": STEPS,
    "workers": st.integers(1, 3),
    "maximum": st.integers(1, 9),
    "turns": st.integers(1, 2),
    "ending": st.sampled_from(["close", "abort"]),
}


@settings(deadline=None, max_examples=150)
@given(**SCENES)
def test_no_request_is_lost_answered_twice_or_with_another_s_rows(
    steps: list[tuple], workers: int, maximum: int, turns: int, ending: Ending
) -> None:
    run(steps, workers, maximum, turns, ending)


@pytest.mark.slow
@settings(deadline=None, max_examples=3000)
@given(**SCENES)
def test_no_request_of_very_many_is_lost(
    steps: list[tuple], workers: int, maximum: int, turns: int, ending: Ending
) -> None:
    run(steps, workers, maximum, turns, ending)
