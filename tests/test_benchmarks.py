"""The parts of the benchmarks that figures depend on: estimates, arrivals, clients, opponents."""

import asyncio
import base64
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.arrivals import (
    MIX,
    SMALL,
    Arrival,
    Served,
    draw_backlog,
    draw_images,
    draw_lone,
    draw_poisson,
    first_rows,
    last_rows,
    serve,
)
from benchmarks.batching import Run, added_row_calls
from benchmarks.exports import ARTIFACTS
from benchmarks.floor import SETTINGS, Floor, Setting
from benchmarks.intervals import estimate, percentile
from benchmarks.load import Load
from benchmarks.open_loop import WARM_UP_SECONDS, Offer, Outcome, draw_dues
from benchmarks.open_loop import run as offer
from benchmarks.overload import Stage, targets
from benchmarks.pages import Target, target_table
from benchmarks.plain import VARIANTS
from benchmarks.side_by_side import Case, best_plain, compare, over_plain
from benchmarks.static_batching import StaticBatcher
from service.core.batcher import LoadedGraph
from service.core.painting.rows import RowScheduler
from service.metrics import Metrics
from tests.test_rows import HEIGHT, PORTS, Weaver, canvas, solo, soon

MEAN_IMAGES = sum(images * share for images, share in MIX.items())
rounds = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9)


@given(rounds)
def test_an_interval_holds_its_median_and_lies_within_the_rounds(values: list[float]) -> None:
    found = estimate(values)
    assert found.value == np.median(values)
    assert min(values) <= found.low <= found.value <= found.high <= max(values)


def test_an_interval_covers_the_true_median_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    draws = [estimate(generator.normal(size=25).tolist()) for _ in range(200)]
    covered = sum(found.low <= 0.0 <= found.high for found in draws)
    assert 0.88 <= covered / len(draws) <= 0.99


@given(rounds, st.floats(0.01, 1.0))
def test_a_percentile_is_the_smallest_value_that_enough_do_not_exceed(
    values: list[float], share: float
) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values)
    assert sum(value < found for value in values) < share * len(values)


def test_requests_ask_for_the_images_of_the_mix() -> None:
    assert sum(MIX.values()) == pytest.approx(1.0)
    assert (min(MIX), max(MIX)) == (1, 64)
    drawn = list(islice(draw_images(np.random.default_rng(1)), 20_000))
    for images, share in MIX.items():
        assert drawn.count(images) / len(drawn) == pytest.approx(share, abs=0.015)


def test_poisson_arrivals_offer_the_load_at_random() -> None:
    arrivals = draw_poisson(images_per_second=100.0, seconds=2000.0, seed=1)
    assert arrivals == draw_poisson(images_per_second=100.0, seconds=2000.0, seed=1)
    assert arrivals != draw_poisson(images_per_second=100.0, seconds=2000.0, seed=2)
    dues = np.array([arrival.due for arrival in arrivals])
    gaps = np.diff(dues)
    assert (gaps >= 0).all() and dues[-1] < 2000.0
    assert sum(arrival.images for arrival in arrivals) / 2000.0 == pytest.approx(100.0, rel=0.05)
    assert gaps.mean() == pytest.approx(MEAN_IMAGES / 100.0, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05), "as of an exponential"


def test_lone_requests_are_small_and_far_apart() -> None:
    arrivals = draw_lone(requests=50, gap=0.1, seed=1)
    assert len(arrivals) == 50
    assert all(arrival.images <= SMALL for arrival in arrivals)
    assert np.diff([arrival.due for arrival in arrivals]).min() >= 0.1


@given(st.integers(1, 300), st.integers(0, 5))
def test_a_backlog_holds_exactly_so_many_images_from_the_start(images: int, seed: int) -> None:
    backlog = draw_backlog(images, seed)
    assert sum(arrival.images for arrival in backlog) == images
    assert all(arrival.due == 0.0 and arrival.images > 0 for arrival in backlog)


def test_added_row_calls_are_of_small_requests_at_p95() -> None:
    loaded = [Served(1, 0.010 + index / 1000, 1.0) for index in range(100)]
    idle = [Served(1, 0.001, 1.0)] * 20
    bulk = [Served(64, 9.0, 9.0)] * 50
    measured = added_row_calls(Run(loaded + bulk, 1.0, 0.02), Run(idle, 1.0, 0.5))
    assert measured == pytest.approx((0.104 - 0.001) / 0.02)
    assert first_rows(loaded + bulk, 0.95) == 9.0
    assert last_rows(loaded + bulk, 0.5, small=True) == 1.0


class Model:
    """As much of a raster model as `serve` asks for: canvases to paint."""

    def draw_canvas(self, images: int, seed: int):
        return canvas(images, seed)


@pytest.fixture
def graph() -> LoadedGraph:
    return LoadedGraph("toy", "1", "row_step", Weaver())


@pytest.fixture(params=["static", "scheduler"])
def make_painter(request: pytest.FixtureRequest, metrics: Metrics) -> Callable[[], object]:
    if request.param == "static":
        return lambda: StaticBatcher(workers=2, maximum_batch=4)
    return lambda: RowScheduler(
        workers=2, slots=4, bulk_limit=3, maximum_waiting_images=1000, metrics=metrics
    )


async def test_both_painters_serve_each_arrival_with_its_own_images(make_painter, graph) -> None:
    painter, jobs = make_painter(), []
    arrivals = [Arrival(index / 500, images) for index, images in enumerate([1, 9, 2, 1, 5, 3])]

    def submit(wanted):
        jobs.append((wanted, painter.submit(graph, PORTS, wanted, soon())))
        return jobs[-1][1]

    started = time.perf_counter()
    served, elapsed = await serve(submit, Model(), arrivals)
    assert elapsed <= time.perf_counter() - started
    await painter.close()
    assert [each.images for each in served] == [arrival.images for arrival in arrivals]
    assert all(0 < each.first_row <= each.last_row <= elapsed for each in served)
    for wanted, job in jobs:
        levels, likelihood = solo(wanted)
        assert np.array_equal(job.levels, levels)
        assert np.array_equal(job.log_probability, likelihood)


async def test_the_static_batcher_fills_batches_in_order_of_arrival(graph) -> None:
    batcher, model = StaticBatcher(workers=1, maximum_batch=4), graph.session
    model.gate.clear()
    jobs = [batcher.submit(graph, PORTS, canvas(count, 1), soon()) for count in (1, 3, 3)]
    model.gate.set()
    for job in jobs:
        await job.future
    assert model.batches == [1] * HEIGHT + [4] * HEIGHT + [2] * HEIGHT
    await batcher.close()


async def test_a_failing_model_fails_the_jobs_of_its_static_batch(graph) -> None:
    batcher = StaticBatcher(workers=1, maximum_batch=4)
    graph.session.broken = True
    with pytest.raises(RuntimeError, match="loom"):
        await batcher.submit(graph, PORTS, canvas(2, 1), soon()).future
    graph.session.broken = False
    await batcher.submit(graph, PORTS, canvas(2, 1), soon()).future
    await batcher.close()


def test_an_open_loop_draws_its_rate_at_random() -> None:
    dues = np.array(list(draw_dues(requests_per_second=200.0, seconds=100.0)))
    gaps = np.diff(dues)
    assert (gaps > 0).all() and dues[-1] < 100.0
    assert len(dues) / 100.0 == pytest.approx(200.0, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05), "as of an exponential"


ACCEPTED = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
REFUSED = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
RUDE = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n"


async def test_an_open_loop_counts_what_became_of_each_request() -> None:
    answers = [ACCEPTED, ACCEPTED, REFUSED, RUDE, None]  # in turns; None hangs up
    received, connections = [], 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        with suppress(asyncio.IncompleteReadError):  # the client has left
            while await reader.readuntil(b"{}"):
                received.append(given := answers[len(received) % len(answers)])
                if given is None:
                    break
                half = len(given) // 2
                writer.write(given[:half])
                await asyncio.sleep(0.001)
                writer.write(given[half:])
        writer.close()
        await writer.wait_closed()
        connections -= 1

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        content = base64.b64encode(b"{}").decode()
        head = "POST / HTTP/1.1\r\n"
        seconds = WARM_UP_SECONDS + 0.5
        outcome = await offer(Offer("rest", port, 200.0, seconds, head=head, content=content))
        while connections:
            await asyncio.sleep(0.001)
    assert outcome.unsent == 0
    assert outcome.due == len(received) == sum(outcome.statuses.values())
    assert outcome.statuses == {
        "200": received.count(ACCEPTED),
        "429": received.count(REFUSED) + received.count(RUDE),
        "disconnected": received.count(None),
    }
    assert outcome.without_retry_hint == received.count(RUDE)
    assert 0 < outcome.accepted_per_second < 200.0
    assert 0 < outcome.p50_ms <= outcome.p99_ms


def test_a_target_is_judged_as_measured_and_not_as_rounded() -> None:
    assert not Target("share", 0.8599, 0.86).reached
    assert Target("share", 0.86, 0.86).reached
    assert not Target("ms", 1.0001, 1.0, at_least=False).reached
    table = target_table([Target("share", 0.8599, 0.86), Target("ms", 0.5, 1.0, at_least=False)])
    assert "| share | 0.86 | at least 0.86 | **no** |" in table
    assert "| ms | 0.50 | at most 1 | yes |" in table


def stage(**statuses: int) -> Stage:
    outcome = Outcome(due=100, statuses=statuses, accepted_per_second=95.0, p99_ms=10.0)
    return Stage("rest", 10, 100.0, outcome, {"GET /healthz": [1.0, 49.0], "gRPC Check": [2.0]})


def test_overload_allows_no_other_answers() -> None:
    assert all(target.reached for target in targets([stage(**{"200": 10, "429": 90})]))
    for status in ("504", "503", "500", "disconnected", "unanswered"):
        (missed,) = (
            target for target in targets([stage(**{"200": 9, status: 1})]) if not target.reached
        )
        assert missed.measured == 1


def test_the_floor_is_the_fastest_setting_of_the_real_graph() -> None:
    floor = Floor(ARTIFACTS / "mnist-dcgan" / "1", "decode")
    best, rates = floor.find_best(passes=1, seconds=0.01)
    assert set(rates) == set(SETTINGS)
    assert rates[best] == max(rates.values()) > [0.0]


class Drifting:
    """A floor that is faster each time."""

    def __init__(self) -> None:
        self.rate = 0.0

    def find_best(self, passes: int, seconds: float):
        return SETTINGS[0], {setting: [1.0] for setting in SETTINGS}

    def rows_per_second(self, setting: Setting, seconds: float) -> float:
        self.rate += 100.0
        return self.rate


def test_a_share_is_of_the_floors_before_and_after_the_load() -> None:
    one, default, workers = "REST", VARIANTS[0].name, VARIANTS[2].name
    speeds = {one: 30.0, default: 10.0, workers: 20.0}
    cases = [
        Case(name, 32, lambda speed=speed: Load(speed, 1.0, 2.0, 1.0, 0.1))
        for name, speed in speeds.items()
    ]
    comparison = compare(Drifting(), cases, images=4, rounds=2)
    assert comparison.case(one, 32).shares == [4 * 30.0 / 150.0, 4 * 30.0 / 550.0]
    assert comparison.case(default, 32).shares == [4 * 10.0 / 250.0, 4 * 10.0 / 650.0]
    assert best_plain(comparison.cases, 32).name == workers
    ratios = [30.0 / 150.0 * 350.0 / 20.0, 30.0 / 550.0 * 750.0 / 20.0]
    assert over_plain(comparison.case(one, 32), cases) == pytest.approx(np.median(ratios))
