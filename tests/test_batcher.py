"""The row batcher's promises. Sessions are gated, so nothing sleeps."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest

from service.core import latents
from service.core.batcher import Batcher, LoadedGraph
from service.errors import DeadlineExceeded, InferenceFailed, QueueFull, ShuttingDown
from service.metrics import Metrics
from tests.fakes import GatedSession


class Doubling:
    """Returns twice its input; a row that holds NaN makes the whole run fail."""

    def run(self, inputs):
        if np.isnan(inputs["x"]).any():
            raise ValueError("NaN")
        return {"y": 2.0 * inputs["x"]}


def rows(count: int, first: float = 0.0) -> dict[str, np.ndarray]:
    return {"x": np.arange(first, first + count)}


def soon() -> float:
    return time.monotonic() + 30.0


@pytest.fixture
def session() -> GatedSession:
    return GatedSession(Doubling())


@pytest.fixture
def graph(session: GatedSession) -> LoadedGraph:
    return LoadedGraph("toy", "1", "decode", session)


@pytest.fixture
async def make(metrics: Metrics, session: GatedSession) -> AsyncIterator[Callable[..., Batcher]]:
    """Make batchers; at the end the gate opens and they close."""
    made: list[Batcher] = []

    def make_batcher(workers: int = 1, maximum_batch_rows: int = 8, bound: int = 100) -> Batcher:
        made.append(
            Batcher(
                workers=workers,
                maximum_batch_rows=maximum_batch_rows,
                maximum_queued_rows=bound,
                metrics=metrics,
            )
        )
        return made[-1]

    yield make_batcher
    session.gate.set()
    for batcher in made:
        await batcher.close()


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(20):
        await asyncio.sleep(0)


async def occupy(batcher: Batcher, graph: LoadedGraph, session: GatedSession) -> asyncio.Task:
    """Keep the only worker busy with one row until the gate opens."""
    task = asyncio.create_task(batcher.run(graph, rows(1, -1.0), soon()))
    await asyncio.to_thread(session.started.wait)
    return task


async def test_a_lone_request_starts_at_once_and_is_split_over_idle_workers(
    make, graph, session
) -> None:
    batcher = make(workers=2)
    task = asyncio.create_task(batcher.run(graph, rows(4), soon()))
    await settle()
    session.gate.set()
    assert (await task)["y"].tolist() == [0.0, 2.0, 4.0, 6.0]
    assert session.batches == [2, 2]


async def test_requests_that_arrive_meanwhile_form_the_next_batch(make, graph, session) -> None:
    batcher = make()
    first = await occupy(batcher, graph, session)
    others = [asyncio.create_task(batcher.run(graph, rows(2, 10.0 * k), soon())) for k in range(3)]
    await settle()
    session.gate.set()
    answers = [(await task)["y"].tolist() for task in others]
    await first
    assert answers == [[0.0, 2.0], [20.0, 22.0], [40.0, 42.0]]
    assert session.batches == [1, 6]


async def test_latents_that_are_there_and_those_still_to_be_drawn_share_a_batch(
    make, session
) -> None:
    batcher, graph = make(), LoadedGraph("toy", "1", "decode", session)
    first = await occupy(batcher, graph, session)
    given = np.ones((2, 3), np.float32)
    drawn = latents.draw(seed=1, count=2, size=3)
    inputs = {"x": drawn}, {"x": given}
    tasks = [asyncio.create_task(batcher.run(graph, rows, soon())) for rows in inputs]
    await settle()
    session.gate.set()
    answers = [(await task)["y"] for task in tasks]
    await first
    assert np.array_equal(answers[0], 2.0 * drawn.join([]))
    assert np.array_equal(answers[1], 2.0 * given)
    assert session.batches == [1, 4]


class Deferred:
    """Rows that take note of how many join to become an array."""

    def __init__(self, values: list[float], joins: list[int]) -> None:
        self.values, self.joins = values, joins

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, part: slice) -> "Deferred":
        return Deferred(self.values[part], self.joins)

    def join(self, others: list["Deferred"]) -> np.ndarray:
        self.joins.append(1 + len(others))
        return np.array(sum((other.values for other in others), self.values))


async def test_what_requests_of_one_turn_defer_is_drawn_at_once_before_a_worker_comes(
    make, graph, session
) -> None:
    batcher, joins = make(maximum_batch_rows=4), []
    first = await occupy(batcher, graph, session)
    deferred = [Deferred([k, k + 0.5], joins) for k in (1.0, 2.0, 3.0)]
    tasks = [asyncio.create_task(batcher.run(graph, {"x": rows}, soon())) for rows in deferred]
    await settle()
    tasks[1].cancel()
    large = Deferred([1.0] * 5, joins)  # more than a batch: nobody is to wait for so many
    tasks.append(asyncio.create_task(batcher.run(graph, {"x": large}, soon())))
    await settle()
    assert joins == [3]
    session.gate.set()
    answers = [(await task)["y"].tolist() for task in (tasks[0], tasks[2])]
    assert answers == [[2.0, 3.0], [6.0, 7.0]]
    assert (await tasks[3])["y"].tolist() == [2.0] * 5
    await first


async def test_a_large_request_is_split_and_does_not_starve_a_small_one(
    make, graph, session
) -> None:
    batcher = make(maximum_batch_rows=4)
    first = await occupy(batcher, graph, session)
    finished: list[str] = []

    async def run(name: str, count: int) -> list[float]:
        outputs = await batcher.run(graph, rows(count), soon())
        finished.append(name)
        return outputs["y"].tolist()

    bulk = asyncio.create_task(run("bulk", 20))
    await settle()
    small = asyncio.create_task(run("small", 1))
    await settle()
    session.gate.set()
    assert await bulk == [2.0 * k for k in range(20)]
    assert await small == [0.0]
    await first
    assert finished == ["small", "bulk"]
    assert max(session.batches) == 4


async def test_a_cancelled_request_does_not_harm_its_batch_mates(make, graph, session) -> None:
    batcher = make()
    first = await occupy(batcher, graph, session)
    leaver = asyncio.create_task(batcher.run(graph, rows(2), soon()))
    stayer = asyncio.create_task(batcher.run(graph, rows(2, 5.0), soon()))
    await settle()
    leaver.cancel()
    await settle()
    session.gate.set()
    assert (await stayer)["y"].tolist() == [10.0, 12.0]
    await first
    assert session.batches == [1, 2], "the cancelled rows must never reach the model"


async def test_a_caller_may_leave_while_its_batch_runs(make, graph, session) -> None:
    batcher = make()
    first = await occupy(batcher, graph, session)
    first.cancel()
    await settle()
    session.gate.set()
    assert (await batcher.run(graph, rows(1, 3.0), soon()))["y"].tolist() == [6.0]


async def test_only_the_guilty_request_fails(make, graph, session) -> None:
    batcher = make()
    first = await occupy(batcher, graph, session)
    bad = asyncio.create_task(batcher.run(graph, {"x": np.array([np.nan])}, soon()))
    good = asyncio.create_task(batcher.run(graph, rows(2), soon()))
    await settle()
    session.gate.set()
    with pytest.raises(InferenceFailed):
        await bad
    assert (await good)["y"].tolist() == [0.0, 2.0]
    await first


async def test_an_expired_request_never_reaches_the_model(make, graph, session) -> None:
    batcher = make()
    with pytest.raises(DeadlineExceeded):
        await batcher.run(graph, rows(1), time.monotonic() - 1.0)
    assert session.batches == []


async def test_a_deadline_ends_the_wait_in_the_queue(make, graph, session) -> None:
    batcher = make()
    first = await occupy(batcher, graph, session)
    with pytest.raises(DeadlineExceeded):
        await batcher.run(graph, rows(1), time.monotonic() + 0.01)
    session.gate.set()
    await first
    assert session.batches == [1]


async def test_a_full_queue_refuses_and_says_when_to_try_again(make, graph, session) -> None:
    batcher = make(bound=4)
    first = await occupy(batcher, graph, session)
    waiting = asyncio.create_task(batcher.run(graph, rows(4), soon()))
    await settle()
    with pytest.raises(QueueFull) as refusal:
        await batcher.run(graph, rows(1), soon())
    assert refusal.value.details["retry_after_seconds"] > 0
    session.gate.set()
    assert len((await waiting)["y"]) == 4
    await first


async def test_what_would_be_done_after_its_deadline_is_refused_at_the_door(
    metrics: Metrics,
) -> None:
    now = 0.0

    class Slow(Doubling):
        def run(self, inputs):
            nonlocal now
            now += len(inputs["x"])  # a second a row
            return super().run(inputs)

    session = GatedSession(Slow())
    graph = LoadedGraph("toy", "1", "decode", session)
    batcher = Batcher(
        workers=1,
        maximum_batch_rows=8,
        maximum_queued_rows=100,
        metrics=metrics,
        clock=lambda: now,
    )
    session.gate.set()
    for _ in range(20):  # it learns what a row takes
        await batcher.run(graph, rows(1), now + 30.0)
    session.gate.clear()
    session.started.clear()
    first = asyncio.create_task(batcher.run(graph, rows(1), now + 30.0))
    await asyncio.to_thread(session.started.wait)
    waiting = asyncio.create_task(batcher.run(graph, rows(4), now + 30.0))
    await settle()
    with pytest.raises(QueueFull, match="longer than the deadline") as refusal:
        await batcher.run(graph, rows(1), now + 2.0)
    assert refusal.value.details["retry_after_seconds"] == pytest.approx(4.0, abs=0.2)
    with pytest.raises(QueueFull, match="longer than the deadline"):
        await batcher.run(graph, rows(1), now + 5.0)  # it would begin in time, and end too late
    assert batcher.crowded
    now += 1.0
    assert not batcher.crowded, "nobody was refused lately"
    patient = asyncio.create_task(batcher.run(graph, rows(1), now + 30.0))
    session.gate.set()
    assert [len((await task)["y"]) for task in (first, waiting, patient)] == [1, 4, 1]
    await batcher.close()


async def test_a_request_above_the_bound_runs_when_the_queue_is_empty(make, graph, session) -> None:
    session.gate.set()
    assert len((await make(bound=4).run(graph, rows(50), soon()))["y"]) == 50


async def test_closing_finishes_what_was_accepted_and_refuses_the_rest(
    make, graph, session
) -> None:
    batcher = make()
    first = await occupy(batcher, graph, session)
    queued = asyncio.create_task(batcher.run(graph, rows(3), soon()))
    await settle()
    closing = asyncio.create_task(batcher.close())
    await settle()
    with pytest.raises(ShuttingDown):
        await batcher.run(graph, rows(1), soon())
    session.gate.set()
    assert len((await queued)["y"]) == 3
    await first
    await closing


async def test_graphs_never_share_a_batch(make, session) -> None:
    batcher = make()
    one, other = (LoadedGraph("toy", "1", name, session) for name in ("encode", "decode"))
    first = await occupy(batcher, one, session)
    tasks = [asyncio.create_task(batcher.run(graph, rows(2), soon())) for graph in (one, other)]
    await settle()
    session.gate.set()
    await asyncio.gather(first, *tasks)
    assert session.batches == [1, 2, 2]


async def test_a_worker_survives_a_graph_that_answers_nonsense(make, metrics) -> None:
    class Nonsense:
        def run(self, inputs):
            return {"y": np.float32(1.0)}  # no rows at all

    batcher = make(workers=1)
    broken = LoadedGraph("toy", "1", "broken", Nonsense())
    for _ in range(3):
        with pytest.raises(InferenceFailed):
            await batcher.run(broken, rows(2), soon())
    sound = LoadedGraph("toy", "1", "decode", Doubling())
    assert len((await batcher.run(sound, rows(2), soon()))["y"]) == 2


class Fatal(BaseException):
    """No Exception, as SystemExit is none."""


class Deadly(Doubling):
    """What it raises would end a thread; rows that are not finite bring it about."""

    def run(self, inputs):
        if not np.isfinite(inputs["x"]).all():
            raise Fatal
        return super().run(inputs)


async def test_a_worker_outlives_whatever_a_run_raises(make) -> None:
    batcher, graph = make(workers=1), LoadedGraph("toy", "1", "decode", Deadly())
    for _ in range(3):
        bad = batcher.run(graph, {"x": np.array([np.inf])}, soon())
        good = batcher.run(graph, rows(2), soon())
        outcomes = await asyncio.gather(bad, good, return_exceptions=True)
        assert isinstance(outcomes[0], InferenceFailed)
        assert outcomes[1]["y"].tolist() == [0.0, 2.0]


async def test_outputs_that_change_their_shape_fail_only_their_request(make) -> None:
    class Fickle(Doubling):
        def run(self, inputs):
            doubled = super().run(inputs)["y"]
            return {"y": np.stack([doubled] * 2, axis=1) if inputs["x"].max() == 7.0 else doubled}

    batcher, graph = make(maximum_batch_rows=4), LoadedGraph("toy", "1", "decode", Fickle())
    fickle, steady = (batcher.run(graph, rows(8, first), soon()) for first in (0.0, 10.0))
    outcomes = await asyncio.gather(fickle, steady, return_exceptions=True)
    assert isinstance(outcomes[0], InferenceFailed)
    assert outcomes[1]["y"].tolist() == [2.0 * k for k in range(10, 18)]


async def test_a_failed_run_is_not_repeated_for_who_has_left(make) -> None:
    loop, ran = asyncio.get_running_loop(), []

    async def leave() -> None:
        leaver.cancel()
        await settle()

    class Noting(Doubling):
        def run(self, inputs):
            if len(inputs["x"]) == 3:
                asyncio.run_coroutine_threadsafe(leave(), loop).result(30.0)
            outputs = super().run(inputs)
            ran.extend(inputs["x"].tolist())
            return outputs

    session = GatedSession(Noting())
    batcher, graph = make(workers=1), LoadedGraph("toy", "1", "decode", session)
    first = await occupy(batcher, graph, session)
    guilty, leaver, stayer = (
        asyncio.create_task(batcher.run(graph, {"x": np.array([value])}, soon()))
        for value in (np.nan, 1.0, 2.0)
    )
    await settle()
    session.gate.set()
    assert (await stayer)["y"].tolist() == [4.0]
    with pytest.raises(InferenceFailed):
        await guilty
    await first
    assert ran == [-1.0, 2.0]


async def test_the_reason_of_every_batch_is_counted(make, metrics, graph, session) -> None:
    metrics.expect_batches("toy", "1", "decode")

    def batches() -> dict[str, float | None]:
        return {
            reason: metrics.registry.get_sample_value(
                "genserve_batches_total", {"model": "toy", "graph": "decode", "reason": reason}
            )
            for reason in ("full", "drained", "shared")
        }

    batcher = make(workers=2, maximum_batch_rows=8)
    session.gate.set()
    await batcher.run(graph, rows(1), soon())
    assert batches() == {"full": 0, "drained": 1, "shared": 0}
    await batcher.run(graph, rows(4), soon())
    assert batches() == {"full": 0, "drained": 2, "shared": 1}
    await batcher.run(graph, rows(16), soon())
    assert batches() == {"full": 2, "drained": 2, "shared": 1}


async def test_bulk_work_leaves_room_for_small_requests(make, graph, session) -> None:
    batcher = make(maximum_batch_rows=8, bound=100)
    first = await occupy(batcher, graph, session)
    bulk = [asyncio.create_task(batcher.run(graph, rows(25), soon())) for _ in range(3)]
    await settle()
    with pytest.raises(QueueFull, match="75"):
        await batcher.run(graph, rows(25), soon())
    small = asyncio.create_task(batcher.run(graph, rows(8), soon()))
    await settle()
    session.gate.set()
    assert len((await small)["y"]) == 8
    await asyncio.gather(first, *bulk)


async def test_cancelled_rows_make_room_at_once(make, graph, session) -> None:
    batcher = make(bound=4)
    first = await occupy(batcher, graph, session)
    leaver = asyncio.create_task(batcher.run(graph, rows(4), soon()))
    await settle()
    leaver.cancel()
    await settle()
    stayer = asyncio.create_task(batcher.run(graph, rows(4), soon()))
    await settle()
    session.gate.set()
    assert len((await stayer)["y"]) == 4
    await first


async def test_aborting_answers_whoever_still_waits(make, graph, session) -> None:
    batcher = make()
    first = await occupy(batcher, graph, session)
    queued = asyncio.create_task(batcher.run(graph, rows(3), soon()))
    await settle()
    batcher.abort()
    for task in (first, queued):
        with pytest.raises(ShuttingDown):
            await task
