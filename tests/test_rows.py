"""The row scheduler's promises, over a small raster model in numpy and without sleeps."""

import asyncio
import random
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from service.core.batcher import LoadedGraph
from service.core.manifest_parts import Graph, Port
from service.core.painting.lanes import Canvas, PaintJob
from service.core.painting.rows import RowScheduler, give_way, share_slots
from service.errors import DeadlineExceeded, InferenceFailed, QueueFull, ShuttingDown
from service.metrics import Metrics

HEIGHT, WIDTH, LEVELS = 5, 4, 7
POISON = 2.0  # a uniform that makes every run fail that it is part of


def port(name: str, role: str, *shape: object, **more: str) -> Port:
    return Port(name=name, role=role, dtype="float32", shape=shape, **more)


PORTS = Graph(
    file="row_step.onnx",
    inputs=(
        port("above", "cache", WIDTH, "batch", 1),
        port("temperature", "control", "batch"),
        port("forced", "forced", WIDTH, "batch"),
        port("uniform", "noise", WIDTH, "batch", distribution="uniform", purpose="pixels"),
    ),
    outputs=(
        port("levels", "levels", WIDTH, "batch"),
        port("log_probability", "log_likelihood_map", WIDTH, "batch"),
        port("next_above", "cache", WIDTH, "batch", 1),
    ),
)


class Weaver:
    """A raster model: a pixel follows from those above and to the left, and from its noise."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()
        self.broken = False
        self.closes_after = 0  # so many rows, the gate
        self.watch: Callable[[], object] = lambda: None  # called while the lane stands still

    async def until(self, rows: int) -> None:
        """Wait for the start of so many rows in all."""
        async with asyncio.timeout(30.0):
            while len(self.batches) < rows:
                await asyncio.sleep(0)

    def run(self, inputs):
        self.watch()
        above, uniform = inputs["above"][:, :, 0], inputs["uniform"]
        self.batches.append(uniform.shape[1])
        self.started.set()
        if not self.gate.wait(30.0):
            raise RuntimeError("nobody opened the gate")
        if self.closes_after == len(self.batches):
            self.gate.clear()
        if self.broken:
            raise RuntimeError("the loom is broken")
        if (uniform >= POISON).any():
            raise SystemExit("what would end a thread")
        left, levels = np.zeros(uniform.shape[1]), []
        for column in range(WIDTH):
            drawn = np.floor(above[column] * 3 + left * 5 + uniform[column] * LEVELS) % LEVELS
            forced = inputs["forced"][column]
            left = np.where(forced >= 0, forced, drawn)
            levels.append(left)
        row = np.stack(levels).astype(np.float32)
        return {
            "levels": row,
            "log_probability": -row / LEVELS * inputs["temperature"],
            "next_above": row[:, :, None],
        }


def canvas(count: int, seed: int) -> Canvas:
    generator = np.random.default_rng(seed)
    forced = generator.integers(-8, LEVELS, (count, HEIGHT, WIDTH))
    return Canvas(
        uniforms=generator.random((count, HEIGHT, WIDTH), np.float32),
        forced=np.maximum(forced, -1),
        class_weights=None,
        controls={"temperature": np.linspace(0.5, 1.5, count)},
    )


def solo(painted: Canvas) -> tuple[np.ndarray, np.ndarray]:
    """Paint each image alone, row by row, by the model itself."""
    model, levels, likelihood = Weaver(), [], []
    for image in range(len(painted)):
        above = np.zeros((WIDTH, 1, 1), np.float32)
        rows = []
        for row in range(HEIGHT):
            inputs = {
                "above": above,
                "temperature": painted.controls["temperature"][[image]].astype(np.float32),
                "forced": painted.forced[image, row][:, None].astype(np.float32),
                "uniform": painted.uniforms[image, row][:, None],
            }
            outputs = model.run(inputs)
            above = outputs["next_above"]
            rows.append((outputs["levels"][:, 0], outputs["log_probability"][:, 0]))
        levels.append([row for row, _ in rows])
        likelihood.append([row for _, row in rows])
    return np.array(levels), np.array(likelihood)


def soon() -> float:
    return time.monotonic() + 30.0


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def model() -> Weaver:
    return Weaver()


@pytest.fixture
def graph(model: Weaver) -> LoadedGraph:
    return LoadedGraph("toy", "1", "row_step", model)


@pytest.fixture
async def make(metrics: Metrics, model: Weaver) -> AsyncIterator[Callable[..., RowScheduler]]:
    made: list[RowScheduler] = []

    def make_scheduler(
        workers: int = 1,
        slots: int = 4,
        bulk: int = 4,
        waiting: int = 100,
        clock: Callable[[], float] = time.monotonic,
    ):
        made.append(
            RowScheduler(
                workers=workers,
                slots=slots,
                bulk_limit=bulk,
                maximum_waiting_images=waiting,
                metrics=metrics,
                clock=clock,
            )
        )
        return made[-1]

    yield make_scheduler
    model.gate.set()
    for scheduler in made:
        await scheduler.close()


async def hold(scheduler: RowScheduler, graph: LoadedGraph, model: Weaver, count: int) -> PaintJob:
    """Start a job and stop the model in its first row."""
    model.gate.clear()
    job = scheduler.submit(graph, PORTS, canvas(count, 99), soon())
    await asyncio.to_thread(model.started.wait)
    return job


async def test_an_image_is_painted_to_its_last_row(make, graph, model) -> None:
    scheduler, wanted = make(), canvas(1, 0)
    job = scheduler.submit(graph, PORTS, wanted, soon())
    await scheduler.finish(job)
    levels, likelihood = solo(wanted)
    assert np.array_equal(job.levels, levels)
    assert np.array_equal(job.log_probability, likelihood)
    assert model.batches == [1] * HEIGHT, "a lone image pays for no empty slot"


async def test_images_that_join_and_leave_at_random_are_those_of_a_solo_run(make, graph) -> None:
    scheduler = make(workers=2, waiting=10_000)
    generator = np.random.default_rng(5)
    jobs: list[tuple[Canvas, PaintJob]] = []
    for seed in range(200):
        wanted = canvas(int(generator.integers(1, 5)), seed)
        jobs.append((wanted, scheduler.submit(graph, PORTS, wanted, soon())))
        for _ in range(int(generator.integers(0, 6))):
            await asyncio.sleep(0)
        if generator.random() < 0.3:
            jobs.pop(int(generator.integers(len(jobs))))[1].future.cancel()
    for wanted, job in jobs:
        await scheduler.finish(job)
        levels, likelihood = solo(wanted)
        assert np.array_equal(job.levels, levels)
        assert np.array_equal(job.log_probability, likelihood)


async def test_a_newcomer_joins_between_two_rows(make, graph, model) -> None:
    scheduler = make()
    first = await hold(scheduler, graph, model, 1)
    second = scheduler.submit(graph, PORTS, canvas(1, 1), soon())
    model.gate.set()
    await scheduler.finish(first)
    await scheduler.finish(second)
    assert model.batches == [1, 2, 2, 2, 2, 1]


async def test_bulk_work_gives_way_to_a_newcomer_and_uses_every_slot_without_one(
    make, graph, model
) -> None:
    scheduler, wanted = make(slots=4), canvas(20, 99)
    bulk = await hold(scheduler, graph, model, 20)
    small = scheduler.submit(graph, PORTS, canvas(1, 1), soon())
    model.closes_after = 2
    model.gate.set()
    await small.changed.wait()
    assert model.batches[:2] == [4, 4], "every slot was taken"
    assert small.rows_done.tolist() == [1]
    assert bulk.rows_done.tolist() == [2, 2, 2, 1] + [0] * 16, "the last image was parked"
    model.gate.set()
    await scheduler.finish(small)
    await scheduler.finish(bulk)
    levels, likelihood = solo(wanted)
    assert np.array_equal(bulk.levels, levels), "parked images went on where they stood"
    assert np.array_equal(bulk.log_probability, likelihood)
    assert sum(model.batches) == 21 * HEIGHT, "no row was painted twice"


async def test_one_request_leaves_slots_of_every_worker_to_others(make, graph, model) -> None:
    scheduler = make(workers=2, slots=4, bulk=3)
    await hold(scheduler, graph, model, 20)
    await model.until(2)
    small = scheduler.submit(graph, PORTS, canvas(2, 1), soon())
    model.gate.set()
    await scheduler.finish(small)
    assert model.batches[:2] == [3, 3]
    assert max(model.batches) == 4


async def test_requests_with_one_slot_each_wait_for_one_to_get_free(make, graph, model) -> None:
    scheduler = make(slots=2)
    jobs = [await hold(scheduler, graph, model, 1)]
    jobs += [scheduler.submit(graph, PORTS, canvas(1, seed), soon()) for seed in range(3)]
    model.gate.set()
    for job in jobs:
        await scheduler.finish(job)
    assert [job.rows_done.tolist() for job in jobs] == [[HEIGHT]] * 4
    assert model.batches[1:HEIGHT] == [2] * (HEIGHT - 1)


async def test_older_requests_do_not_take_every_slot_that_frees(make, graph, model) -> None:
    scheduler = make(slots=2)
    first = await hold(scheduler, graph, model, 20)
    second = scheduler.submit(graph, PORTS, canvas(20, 1), soon())  # a row later: never together
    newcomer = scheduler.submit(graph, PORTS, canvas(1, 2), soon())
    joined: list[int] = []
    model.watch = lambda: (
        joined or not newcomer.joined or joined.extend([first.joined, second.joined])
    )
    model.gate.set()
    await scheduler.finish(newcomer)
    assert max(joined) <= 3, "each had one turn before the newcomer's"
    first.future.cancel()
    second.future.cancel()


@settings(deadline=None, max_examples=40)
@given(
    gaps=st.lists(st.integers(0, 12), min_size=1, max_size=6),
    slots=st.integers(1, 4),
)
def test_nobody_starves(gaps: list[int], slots: int) -> None:
    asyncio.run(check_that_a_newcomer_joins(gaps, slots))


async def check_that_a_newcomer_joins(gaps: list[int], slots: int) -> None:
    """After large requests that began at any rows, a small one joins after a turn of each."""
    model = Weaver()
    graph = LoadedGraph("toy", "1", "row_step", model)
    metrics = Metrics(CollectorRegistry())
    scheduler = RowScheduler(
        workers=1, slots=slots, bulk_limit=slots, maximum_waiting_images=1000, metrics=metrics
    )
    older = []
    model.gate.clear()
    for seed, gap in enumerate(gaps):
        older.append(scheduler.submit(graph, PORTS, canvas(30, seed), soon()))
        await model.until(1)
        if gap:
            model.closes_after = len(model.batches) + gap - 1
            model.gate.set()
            await model.until(model.closes_after + 1)
    before = [job.joined for job in older]
    newcomer = scheduler.submit(graph, PORTS, canvas(1, 99), soon())
    joined: list[int] = []
    model.watch = lambda: joined or not newcomer.joined or joined.extend(j.joined for j in older)
    model.gate.set()
    await scheduler.finish(newcomer)
    for job in older:
        job.future.cancel()
    await scheduler.close()
    turns = [now - then for now, then in zip(joined, before, strict=True)]
    assert max(turns) <= 1 + slots, "one before the newcomer, and what joined together with it"


async def test_one_request_is_shared_over_all_workers(make, graph, model) -> None:
    scheduler = make(workers=2)
    await scheduler.finish(scheduler.submit(graph, PORTS, canvas(4, 1), soon()))
    assert model.batches == [2] * 2 * HEIGHT


async def test_graphs_take_turns_on_a_worker(make, graph, model) -> None:
    scheduler, other = make(), LoadedGraph("toy", "1", "row_step_filtered", Weaver())
    large = await hold(scheduler, graph, model, 20)
    small = scheduler.submit(other, PORTS, canvas(1, 1), soon())
    rows_of_large: list[int] = []
    other.session.watch = lambda: rows_of_large.append(len(model.batches))
    model.gate.set()
    await scheduler.finish(small)
    await scheduler.finish(large)
    assert rows_of_large == [1, 2, 3, 4, 5], "one for each row of the small one"


async def test_cancelling_frees_the_slot_before_the_next_row(make, graph, model) -> None:
    scheduler = make(slots=1)
    leaver = await hold(scheduler, graph, model, 1)
    stayer = scheduler.submit(graph, PORTS, canvas(1, 1), soon())
    leaver.future.cancel()
    model.gate.set()
    await scheduler.finish(stayer)
    assert len(model.batches) == 1 + HEIGHT


async def test_a_deadline_ends_the_painting(make, graph, model) -> None:
    scheduler = make()
    await hold(scheduler, graph, model, 1)
    late = scheduler.submit(graph, PORTS, canvas(1, 1), time.monotonic() + 0.01)
    with pytest.raises(DeadlineExceeded):
        await scheduler.finish(late)
    with pytest.raises(DeadlineExceeded):
        scheduler.submit(graph, PORTS, canvas(1, 1), time.monotonic() - 1.0)


async def test_a_deadline_frees_the_slots_before_the_next_row_though_nobody_waits(
    make, graph, model
) -> None:
    """As where a client has stopped reading its stream."""
    clock = Clock()
    scheduler = make(slots=1, clock=clock)
    late = scheduler.submit(graph, PORTS, canvas(20, 1), 10.0)
    model.gate.clear()
    await asyncio.to_thread(model.started.wait)
    other = scheduler.submit(graph, PORTS, canvas(1, 2), 1000.0)
    clock.now = 10.0
    model.gate.set()
    await scheduler.finish(other)
    assert late.joined == 1, "what waits is not begun any more"
    with pytest.raises(DeadlineExceeded):
        await scheduler.finish(late)


async def test_a_full_queue_refuses_until_there_is_room(make, graph, model) -> None:
    scheduler = make(slots=1, waiting=2)
    await hold(scheduler, graph, model, 1)
    for seed in (1, 2):
        last = scheduler.submit(graph, PORTS, canvas(1, seed), soon())
    with pytest.raises(QueueFull):
        scheduler.submit(graph, PORTS, canvas(1, 3), soon())
    last.future.cancel()
    scheduler.submit(graph, PORTS, canvas(1, 3), soon())


async def test_a_failing_model_fails_its_jobs_and_later_ones_run(make, graph, model) -> None:
    scheduler = make()
    model.broken = True
    with pytest.raises(InferenceFailed):
        await scheduler.finish(scheduler.submit(graph, PORTS, canvas(2, 1), soon()))
    model.broken = False
    wanted = canvas(2, 1)
    job = scheduler.submit(graph, PORTS, wanted, soon())
    await scheduler.finish(job)
    assert np.array_equal(job.levels, solo(wanted)[0])


def poisoned(count: int, seed: int, row: int) -> Canvas:
    wanted = canvas(count, seed)
    wanted.uniforms[-1, row] = POISON
    return wanted


async def check_that_others_are_painted(
    scheduler: RowScheduler, graph: LoadedGraph, model: Weaver, guilty: Canvas
) -> None:
    """Around a canvas that fails: one that is under way, one that joins with it, one after it."""
    others = [canvas(2, 1), canvas(1, 2), canvas(2, 3)]
    model.gate.clear()
    jobs = [scheduler.submit(graph, PORTS, others[0], soon())]
    await asyncio.to_thread(model.started.wait)
    failing = scheduler.submit(graph, PORTS, guilty, soon())
    jobs += [scheduler.submit(graph, PORTS, wanted, soon()) for wanted in others[1:]]
    model.gate.set()
    with pytest.raises(InferenceFailed):
        await scheduler.finish(failing)
    for wanted, job in zip(others, jobs, strict=True):
        await scheduler.finish(job)
        levels, likelihood = solo(wanted)
        assert np.array_equal(job.levels, levels)
        assert np.array_equal(job.log_probability, likelihood)


@pytest.mark.parametrize("row", range(HEIGHT))
@pytest.mark.parametrize("slots", [2, 4, 9], ids=lambda slots: f"{slots} slots")
async def test_only_the_guilty_fail(make, graph, model, slots: int, row: int) -> None:
    """Few slots, so that images are parked too."""
    scheduler = make(slots=slots)
    await check_that_others_are_painted(scheduler, graph, model, poisoned(3, 9, row))


async def test_a_canvas_that_does_not_fit_fails_alone(make, graph, model) -> None:
    wanted = canvas(2, 9)
    del wanted.controls["temperature"]
    await check_that_others_are_painted(make(slots=9), graph, model, wanted)


@pytest.mark.parametrize("name", ["levels", "log_probability", "next_above"])
async def test_outputs_of_wrong_shapes_fail_at_once(make, name: str) -> None:
    class Short(Weaver):
        def run(self, inputs):
            outputs = super().run(inputs)
            outputs[name] = outputs[name][:, 1:]
            return outputs

    scheduler, graph = make(), LoadedGraph("toy", "1", "row_step", Short())
    with pytest.raises(InferenceFailed):
        await scheduler.finish(scheduler.submit(graph, PORTS, canvas(2, 1), soon()))


async def test_a_model_that_fails_now_and_then_loses_nothing(make, model) -> None:
    class Hiccup(Weaver):
        wide = 0

        def run(self, inputs):
            wide = inputs["uniform"].shape[1] == 3
            self.wide += wide
            if wide and self.wide % 2:  # every other run of three images, so of two requests
                raise RuntimeError("once")
            return super().run(inputs)

    scheduler, graph = make(slots=3), LoadedGraph("toy", "1", "row_step", Hiccup())
    wanted = [canvas(count, seed) for seed, count in enumerate((2, 1, 2))]
    jobs = [scheduler.submit(graph, PORTS, each, soon()) for each in wanted]
    for each, job in zip(wanted, jobs, strict=True):
        await scheduler.finish(job)
        assert np.array_equal(job.levels, solo(each)[0])


@pytest.mark.parametrize("calls", range(1, 12))
async def test_a_worker_outlives_a_mistake_of_the_scheduler_itself(
    make, graph, model, calls: int
) -> None:
    """A clock that fails once, wherever it is asked on a worker's thread."""
    main, left = threading.get_ident(), calls

    def clock() -> float:
        nonlocal left
        if threading.get_ident() != main:
            left -= 1
            if left == 0:
                raise RuntimeError("no time")
        return time.monotonic()

    scheduler, wanted = make(clock=clock), canvas(3, 1)
    jobs = [scheduler.submit(graph, PORTS, wanted, soon()) for _ in range(2)]
    ends = await asyncio.gather(*map(scheduler.finish, jobs), return_exceptions=True)
    assert left <= 0 and any(isinstance(end, InferenceFailed) for end in ends), ends
    again = scheduler.submit(graph, PORTS, wanted, soon())
    await scheduler.finish(again)
    assert np.array_equal(again.levels, solo(wanted)[0])


async def test_closing_paints_what_was_accepted(make, graph, model) -> None:
    scheduler = make(slots=1)
    first = await hold(scheduler, graph, model, 1)
    second = scheduler.submit(graph, PORTS, canvas(1, 1), soon())
    closing = asyncio.create_task(scheduler.close())
    await asyncio.sleep(0)
    with pytest.raises(ShuttingDown):
        scheduler.submit(graph, PORTS, canvas(1, 2), soon())
    model.gate.set()
    await scheduler.finish(first)
    await scheduler.finish(second)
    await closing


async def test_aborting_answers_whoever_waits(make, graph, model) -> None:
    scheduler = make(slots=1)
    jobs = [await hold(scheduler, graph, model, 1)]
    jobs.append(scheduler.submit(graph, PORTS, canvas(1, 1), soon()))
    scheduler.abort()
    for job in jobs:
        with pytest.raises(ShuttingDown):
            await scheduler.finish(job)


class Moody(Weaver):
    """Fails now and then."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._chance = random.Random(seed)

    def run(self, inputs):
        if self._chance.random() < 0.02:
            raise RuntimeError("the loom is broken")
        return super().run(inputs)


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads take turns a thousand times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("seed", range(4))
async def test_nothing_is_lost_where_threads_meet(
    make, metrics: Metrics, hasty_threads, seed: int
) -> None:
    """Requests for three graphs join, leave, run late and fail at random, over more workers."""
    chance = random.Random(seed)
    graphs = [LoadedGraph("toy", "1", f"row_step_{name}", Weaver()) for name in "ab"]
    graphs.append(LoadedGraph("toy", "1", "row_step_moody", Moody(seed)))
    scheduler = make(workers=4, slots=4, bulk=3, waiting=10_000)
    finished: list[int] = []

    async def visit(number: int) -> None:
        wanted, graph = canvas(chance.randint(1, 9), number), chance.choice(graphs)
        await asyncio.sleep(chance.random() * 0.2)
        seconds = chance.choice([30.0, 30.0, 0.01])
        leaves = chance.random() < 0.3
        try:
            job = scheduler.submit(graph, PORTS, wanted, time.monotonic() + seconds)
            async with asyncio.timeout(chance.random() * 0.05 if leaves else 30.0):
                await scheduler.finish(job)
        except (TimeoutError, DeadlineExceeded, InferenceFailed) as error:
            assert leaves or seconds < 1.0 or isinstance(error, InferenceFailed)
            return
        finished.append(number)
        levels, likelihood = solo(wanted)
        assert np.array_equal(job.levels, levels)
        assert np.array_equal(job.log_probability, likelihood)

    def painting(name: str, graph: LoadedGraph) -> float | None:
        labels = {"model": graph.model, "graph": graph.name}
        return metrics.registry.get_sample_value(f"genserve_{name}", labels)

    await asyncio.gather(*(visit(number) for number in range(150)))
    assert 50 < len(finished) < 150, "most finish, some don't"
    async with asyncio.timeout(30.0):
        while any(painting("busy_slots", graph) for graph in graphs):
            await asyncio.sleep(0.001)
    assert [painting("waiting_images", graph) for graph in graphs] == [0, 0, 0]
    for graph in graphs[:2]:
        begun = len(graph.session.batches)
        graph.session.gate.clear()
        last = scheduler.submit(graph, PORTS, canvas(20, 1), soon())
        await graph.session.until(begun + 4)
        assert graph.session.batches[begun:] == [3, 3, 3, 3], "every slot and worker is free"
        graph.session.gate.set()
        await scheduler.finish(last)


@given(
    waiting=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 16)), max_size=8),
    room=st.integers(0, 16),
)
def test_slots_go_to_those_who_have_fewest(waiting: list[tuple[int, int]], room: int) -> None:
    shares = share_slots(waiting, room)
    assert sum(shares) == min(room, sum(images for images, _ in waiting)), "no slot stays empty"
    have = [held + share for share, (_, held) in zip(shares, waiting, strict=True)]
    for share, (images, _) in zip(shares, waiting, strict=True):
        assert 0 <= share <= images
    hungry = [
        slots
        for slots, share, (images, _) in zip(have, shares, waiting, strict=True)
        if share < images
    ]
    served = [slots for slots, share in zip(have, shares, strict=True) if share]
    if hungry and served:
        assert max(served) - min(hungry) <= 1


@given(held=st.lists(st.integers(1, 16), max_size=8), wanted=st.integers(0, 16))
def test_those_who_have_most_give_way(held: list[int], wanted: int) -> None:
    given_away = give_way(held, wanted)
    keep = [slots - given for slots, given in zip(held, given_away, strict=True)]
    assert sum(given_away) == min(wanted, sum(held) - len(held))
    assert all(slots >= 1 for slots in keep), "each keeps a slot"
    gave = [slots for slots, given in zip(keep, given_away, strict=True) if given]
    if gave:
        assert max(keep) - min(gave) <= 1
