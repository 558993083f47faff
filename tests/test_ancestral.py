"""Models that draw pixel after pixel inside one graph: densities, samplers, and the service."""

import importlib
from collections.abc import AsyncIterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnxruntime import InferenceSession
from prometheus_client import CollectorRegistry

from export import export_artifact
from model_zoo.autoregressive.binary_pixels import BinaryPixels
from model_zoo.autoregressive.draw import COLDEST
from service.core import noise
from service.core.engine import Answer, Engine
from service.core.requests import (
    CompleteRequest,
    GenerationResult,
    LikelihoodRequest,
    SampleRequest,
    StreamRequest,
)
from service.errors import BinarisationRequired, ControlNotOffered, InvalidRequest, OutOfRange
from service.metrics import Metrics
from service.server import build_engine
from service.settings import Settings

HEIGHT, WIDTH = 3, 3
PIXELS = HEIGHT * WIDTH
EVERY_IMAGE = np.array(list(product((0, 1), repeat=PIXELS)), np.float32)
DRAWS = 100_000

TINY: dict[str, dict[str, Any]] = {
    "fvbn.FullyVisibleBeliefNetwork": {},
    "made.MADE": {"hidden_units": 48},
    "nade.NADE": {"hidden_units": 6},
}
NAMES = [name.split(".")[0] for name in TINY]


def build(name: str, height: int = HEIGHT, width: int = WIDTH) -> BinaryPixels:
    """A model whose pixels depend on each other, far from uniform."""
    path, kind = next(key for key in TINY if key.startswith(f"{name}.")).split(".")
    family = getattr(importlib.import_module(f"model_zoo.autoregressive.{path}"), kind)
    torch.manual_seed(4)
    model = family((1, height, width), **TINY[f"{path}.{kind}"]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.7 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ancestral")
    for name in NAMES:
        model = build(name)
        export_artifact(
            folder,
            name=name,
            version="1",
            card=model.card(),
            graphs=model.graphs(),
            licence="Apache-2.0",
        )
    return folder


@pytest.fixture
async def engine(repository: Path) -> AsyncIterator[Engine]:
    chosen = Settings(model_repository=repository, default_models=tuple(NAMES), workers=2)
    engine = build_engine(chosen, Metrics(CollectorRegistry()))
    await engine.load_default_models()
    assert engine.ready
    yield engine
    await engine.drain()


async def run(engine: Engine, model: str, operation: str, request: Any) -> Any:
    return (await engine.run(operation, request, model=model)).result


async def sample(engine: Engine, model: str, **fields: Any) -> GenerationResult:
    return await run(engine, model, "sample", SampleRequest(**fields))


def uniforms(seed: int, count: int) -> np.ndarray:
    items = np.arange(count, dtype=np.uint64)
    return noise.to_float32(noise.uniform(np.full(count, seed, np.uint64), "pixels", items, PIXELS))


# Densities


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(3, 3), (2, 5), (1, 1), (1, 2), (11, 1)])
@torch.no_grad()
def test_probabilities_of_all_images_sum_to_one(name: str, shape: tuple[int, int]) -> None:
    model = build(name, *shape)
    images = torch.tensor(list(product((0.0, 1.0), repeat=model.pixels)))
    total = model.log_probabilities(images).double().sum(dim=1).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_pixel_depends_on_those_before_it_and_on_no_others(name: str) -> None:
    model = build(name)
    images = torch.from_numpy(EVERY_IMAGE)
    logits = model.logits(images)
    for pixel in range(PIXELS):
        other = images.clone()
        other[:, pixel] = 1 - other[:, pixel]
        changed = (model.logits(other) != logits).any(dim=0)
        assert not changed[: pixel + 1].any()
        assert changed[pixel + 1 :].all()


@torch.no_grad()
def test_the_masks_of_made_share_one_matrix_between_them() -> None:
    model = build("made")
    weight, output_weight = model.masked_weights()
    assert torch.equal(weight + output_weight, model.weight)
    assert model.degrees.min() == 1 and model.degrees.max() == PIXELS - 1


@pytest.mark.parametrize("size", [1, 2, 5, 8])
@torch.no_grad()
def test_the_folded_triangle_of_a_belief_network_has_every_weight_once(size: int) -> None:
    model = build("fvbn", 1, size)
    model.folded.copy_(torch.arange(1.0, model.folded.numel() + 1).view_as(model.folded))
    weight = model.weight()
    below = torch.ones(size, size).tril(diagonal=-1) > 0
    assert weight.shape == (size, size) and (weight[~below] == 0).all()
    assert len(weight[below].unique()) == size * (size - 1) // 2


# Samplers


def statistic(counts: np.ndarray, probability: np.ndarray) -> float:
    """Pearson's chi-square over images, in deviations from its mean; rare ones count as one."""
    order = np.argsort(probability)
    counts, expected = counts[order], DRAWS * probability[order]
    rare = int(np.searchsorted(expected.cumsum(), 25)) + 1
    counts = np.concatenate([[counts[:rare].sum()], counts[rare:]])
    expected = np.concatenate([[expected[:rare].sum()], expected[rare:]])
    freedom = len(counts) - 1
    value = ((counts - expected) ** 2 / expected).sum()
    return float((value - freedom) / np.sqrt(2 * freedom))


@pytest.mark.parametrize("name", NAMES)
def test_what_the_graph_draws_is_distributed_as_the_model_says(name: str, repository: Path) -> None:
    with torch.no_grad():
        logs = build(name).log_probabilities(torch.from_numpy(EVERY_IMAGE)).double()
    probability = logs.sum(dim=1).exp().numpy()
    session = InferenceSession(repository / name / "1" / "draw.onnx")
    feed = {
        "temperature": np.ones(DRAWS, np.float32),
        "forced": np.full((DRAWS, PIXELS), -1, np.int64),
        "uniform": uniforms(seed=8, count=DRAWS),
    }
    levels, log_probability = session.run(["levels", "log_probability"], feed)
    images = levels @ (1 << np.arange(PIXELS)[::-1])  # their place in EVERY_IMAGE
    counts = np.bincount(images, minlength=len(EVERY_IMAGE))
    assert statistic(counts, probability) < 4
    np.testing.assert_allclose(log_probability, logs.numpy()[images], atol=1e-4)

    # A distribution at a distance of 2 % would be told from it.
    likely = np.cumsum(np.sort(probability)[::-1])
    first = probability >= np.sort(probability)[::-1][np.searchsorted(likely, 0.5)]
    moved = np.where(first, -probability / probability[first].sum(), 0)
    moved += np.where(first, 0, probability / probability[~first].sum())
    assert statistic(counts, probability + 0.02 * moved) > 4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("controls", [{}, {"temperature": 0.5}, {"temperature": 2.0}])
async def test_every_pixel_is_the_one_that_a_full_pass_draws(
    name: str, controls: dict[str, float], engine: Engine
) -> None:
    drawn = await sample(engine, name, count=64, seed=7, **controls)
    assert set(np.unique(drawn.images)) == {0, 255}
    x = drawn.images.reshape(64, PIXELS) // 255
    with torch.no_grad():
        logits = build(name).logits(torch.from_numpy(x).float()).double().numpy()
    off = 1 / (1 + np.exp(logits / controls.get("temperature", 1.0)))
    numbers = uniforms(seed=7, count=64)
    near = np.abs(numbers - off) < 1e-5
    assert (near | ((numbers >= off) == x)).all() and near.mean() < 0.01


# The service


@pytest.mark.parametrize("name", NAMES)
async def test_the_likelihood_of_a_sample_is_the_one_that_came_with_it(
    name: str, engine: Engine
) -> None:
    drawn = await sample(engine, name, count=40, seed=1, temperature=1.5)
    request = LikelihoodRequest(images=drawn.images, parts=("log_likelihood", "log_likelihood_map"))
    scored = await run(engine, name, "likelihood", request)
    assert (scored.kind, scored.quantity) == ("exact", "probability")
    np.testing.assert_allclose(scored.log_likelihood, drawn.log_likelihood, atol=1e-4)
    assert scored.log_likelihood_map.shape == (40, HEIGHT, WIDTH)
    totals = scored.log_likelihood_map.sum(axis=(1, 2))
    np.testing.assert_allclose(totals, scored.log_likelihood, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
async def test_a_sample_is_the_same_however_many_are_drawn(name: str, engine: Engine) -> None:
    many = await sample(engine, name, count=53, seed=3)
    few = await sample(engine, name, count=3, seed=3)
    assert np.array_equal(many.images[:3], few.images)
    assert np.array_equal(many.log_likelihood[:3], few.log_likelihood)


@pytest.mark.parametrize("name", NAMES)
async def test_known_pixels_are_kept_and_weigh_where_they_come_late(
    name: str, engine: Engine
) -> None:
    generator = np.random.default_rng(0)
    image = 255 * generator.integers(0, 2, (HEIGHT, WIDTH, 1))
    known = generator.random((HEIGHT, WIDTH)) < 0.5
    known[0, 0], known[-1, -1] = False, True
    request = CompleteRequest(image=image, known=known, count=30, seed=2)
    answer = await run(engine, name, "complete", request)
    assert (answer.images[:, known] == image[known]).all()
    assert len(np.unique(answer.images, axis=0)) > 1
    scored = await run(
        engine,
        name,
        "likelihood",
        LikelihoodRequest(images=answer.images, parts=("log_likelihood_map",)),
    )
    weights = scored.log_likelihood_map[:, known].sum(axis=1)  # the first pixel is unknown
    assert answer.late_known_pixels == known.sum()
    np.testing.assert_allclose(answer.log_weight, weights, atol=1e-4)

    request = CompleteRequest(image=image, known=known, count=3, candidates=30, seed=2)
    best = await run(engine, name, "complete", request)
    assert best.candidate == np.argsort(-answer.log_weight, kind="stable")[:3].tolist()
    assert np.array_equal(best.images, answer.images[best.candidate])


@pytest.mark.parametrize("name", NAMES)
async def test_the_first_rows_of_a_sample_are_completed_to_it(name: str, engine: Engine) -> None:
    drawn = await sample(engine, name, seed=6)
    for rows in range(HEIGHT + 1):
        request = CompleteRequest(image=drawn.images[0], prefix_rows=rows, seed=6)
        answer = await run(engine, name, "complete", request)
        assert np.array_equal(answer.images, drawn.images)
        assert not answer.log_weight.any()


@pytest.mark.parametrize("name", NAMES)
async def test_greedy_takes_the_more_probable_level_of_each_pixel(
    name: str, engine: Engine
) -> None:
    greedy = await sample(engine, name, count=3, greedy=1.0)
    assert (greedy.images == greedy.images[0]).all()
    x = torch.from_numpy(greedy.images.reshape(3, PIXELS) // 255).float()
    with torch.no_grad():
        assert torch.equal((build(name).logits(x) > 0).float(), x)


def test_the_coldest_draw_is_greedy_without_a_number_that_is_not_finite() -> None:
    model = build("fvbn")
    with torch.no_grad():
        model.folded.zero_()
        model.bias.copy_(torch.tensor([100.0, -100.0, 0.0] * 3))
        draw = next(graph for graph in model.graphs() if graph.name == "draw").module
        free = torch.full((1, PIXELS), -1)
        temperature = torch.tensor([COLDEST / 2])
        levels, log_probability = draw(temperature, free, torch.zeros(1, PIXELS))
    assert levels.tolist() == [[1, 0, 0] * 3]
    assert log_probability.isfinite().all()


async def test_a_stream_answers_at_its_end(engine: Engine) -> None:
    request = SampleRequest(count=2, seed=3)
    steps = [step async for step in engine.stream("sample", request, stream=StreamRequest())]
    (answer,) = steps
    assert isinstance(answer, Answer) and answer.result.images.shape == (2, HEIGHT, WIDTH, 1)


@pytest.mark.parametrize(
    ("operation", "request_", "error"),
    [
        ("sample", SampleRequest(top_k=1), ControlNotOffered),
        ("sample", SampleRequest(top_p=0.5), ControlNotOffered),
        ("sample", SampleRequest(truncation=1.0), ControlNotOffered),
        ("sample", SampleRequest(temperature=0.0), OutOfRange),
        ("sample", SampleRequest(greedy=1.0, temperature=1.0), InvalidRequest),
        (
            "complete",
            CompleteRequest(image=np.full((HEIGHT, WIDTH, 1), 99), prefix_rows=1),
            BinarisationRequired,
        ),
        (
            "likelihood",
            LikelihoodRequest(images=np.full((1, HEIGHT, WIDTH, 1), 99)),
            BinarisationRequired,
        ),
    ],
)
async def test_what_a_model_does_not_have_is_refused(
    operation: str, request_: Any, error: type[Exception], engine: Engine
) -> None:
    with pytest.raises(error) as raised:
        await run(engine, "nade", operation, request_)
    assert raised.type is error
