"""Requests of every kind, joining and leaving at random rows: each image is that of a solo run."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from service.core.engine import Answer, Engine
from service.core.painting.streaming import Rows
from service.core.requests import (
    CompleteRequest,
    ConditionRequest,
    GenerationResult,
    SampleRequest,
)
from service.metrics import Metrics
from service.server import build_engine
from service.settings import Settings

ARTIFACTS = Path(__file__).parent.parent / "artifacts"
MODEL = "mnist-pixelcnn"
SIDE, CLASSES, LEVELS = 28, 10, 256
AT_ONCE = 24  # requests in flight: as one ends at some row, the next one joins at that of others


@dataclass(frozen=True)
class Arrival:
    """A request, and after how many tellings of rows its client leaves, if it does."""

    request: SampleRequest
    leaves_after: int | None

    @property
    def operation(self) -> str:
        return "complete" if isinstance(self.request, CompleteRequest) else "sample"


def arrivals(count: int, seed: int) -> list[Arrival]:
    generator = np.random.default_rng(seed)
    return [
        Arrival(
            random_request(generator),
            int(generator.integers(1, SIDE)) if generator.random() < 0.25 else None,
        )
        for _ in range(count)
    ]


def random_request(generator: np.random.Generator) -> SampleRequest:
    """Any count, class, temperature, filter, seed, and for every third some forced pixels."""
    fields = {
        "count": int(generator.integers(1, 9)),
        "seed": int(generator.integers(2**53)),
        "condition": random_condition(generator),
        "temperature": (None, 0.7, 1.0, 1.4)[generator.integers(4)],
        "top_k": (None, None, 3, 40)[generator.integers(4)],
        "top_p": (None, None, None, 0.9)[generator.integers(4)],
    }
    if generator.random() < 2 / 3:
        return SampleRequest(**fields)
    image = generator.integers(0, LEVELS, (SIDE, SIDE, 1), np.uint8)
    if generator.random() < 0.5:
        rows = int(generator.integers(SIDE + 1))
        return CompleteRequest(image=image, prefix_rows=rows, **fields)
    known = generator.random((SIDE, SIDE)) < generator.random()
    return CompleteRequest(image=image, known=known, **fields)


def random_condition(generator: np.random.Generator) -> ConditionRequest:
    kind = generator.integers(3)
    if kind == 0:
        return ConditionRequest()
    if kind == 1:
        return ConditionRequest(classes=[int(generator.integers(CLASSES))])
    weights = generator.dirichlet(np.ones(CLASSES)).astype(np.float32)
    return ConditionRequest(class_weights=weights)


@pytest.fixture(params=[1, 2], ids=["1 worker", "2 workers"])
async def engine(request: pytest.FixtureRequest, metrics: Metrics) -> AsyncIterator[Engine]:
    chosen = Settings(model_repository=ARTIFACTS, default_models=(MODEL,), workers=request.param)
    built = build_engine(chosen, metrics)
    await built.load_default_models()
    assert built.ready
    yield built
    await built.drain()


async def receive(engine: Engine, arrival: Arrival) -> GenerationResult | None:
    """Stream a request; return its result, whose rows were those told, or None if it left."""
    shape = arrival.request.count, SIDE, SIDE
    told, rows_told, tellings = np.zeros(shape, np.uint8), np.zeros(shape[0], int), 0
    events = engine.stream(arrival.operation, arrival.request)
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Answer):
                assert isinstance(event.result, GenerationResult)
                assert np.array_equal(told[..., None], event.result.images)
                return event.result
            assert isinstance(event, Rows)
            assert event.first_row == rows_told[event.image], "no row is left out or told twice"
            rows_told[event.image] += len(event.levels)
            told[event.image, event.first_row : rows_told[event.image]] = event.levels
            tellings += 1
            if tellings == arrival.leaves_after:
                return None
    raise AssertionError("a stream ends with its answer")


async def check(engine: Engine, metrics: Metrics, count: int) -> None:
    turn = asyncio.Semaphore(AT_ONCE)

    async def arrive(arrival: Arrival) -> GenerationResult | None:
        async with turn:
            return await receive(engine, arrival)

    wanted = arrivals(count, seed=count)
    results = await asyncio.gather(*(arrive(each) for each in wanted))
    finished = 0
    for arrival, mixed in zip(wanted, results, strict=True):
        if mixed is None:
            continue
        alone = (await engine.run(arrival.operation, arrival.request)).result
        assert np.array_equal(mixed.images, alone.images)
        assert np.array_equal(mixed.log_likelihood, alone.log_likelihood)
        finished += 1
    assert count / 2 < finished < count, "some leave, most stay"
    left = metrics.registry.get_sample_value(
        "genserve_unfinished_images_total",
        {"model": MODEL, "graph": "row_step", "reason": "cancelled"},
    )
    assert left, "some left with their images half painted"


async def test_each_image_is_that_of_a_solo_run(engine: Engine, metrics: Metrics) -> None:
    await check(engine, metrics, 40)


@pytest.mark.slow
async def test_each_of_very_many_images_is_that_of_a_solo_run(
    engine: Engine, metrics: Metrics
) -> None:
    await check(engine, metrics, 300)
