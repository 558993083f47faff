"""Painting row by row is exact: the distribution, the likelihood and the noise are the model's."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from export import export_artifact
from model_zoo.autoregressive.gated_pixelcnn import GatedPixelCNN
from model_zoo.recipe import load_trained
from service.core.engine import Engine
from service.core.requests import (
    CompleteRequest,
    ConditionRequest,
    GenerationResult,
    LikelihoodRequest,
    SampleRequest,
)
from service.metrics import Metrics
from service.server import build_engine
from service.settings import Settings
from tests.replay import replay

ARTIFACTS = Path(__file__).parent.parent / "artifacts"
MODEL = "mnist-pixelcnn"
ROWS = 28


@asynccontextmanager
async def serving(repository: Path, model: str, workers: int = 2) -> AsyncIterator[Engine]:
    chosen = Settings(model_repository=repository, default_models=(model,), workers=workers)
    engine = build_engine(chosen, Metrics(CollectorRegistry()))
    await engine.load_default_models()
    assert engine.ready
    yield engine
    await engine.drain()


@pytest.fixture
async def bundled() -> AsyncIterator[Engine]:
    async with serving(ARTIFACTS, MODEL) as engine:
        yield engine


@pytest.fixture(scope="module")
def family() -> GatedPixelCNN:
    trained = load_trained(MODEL)
    assert isinstance(trained, GatedPixelCNN)
    return trained


async def sample(engine: Engine, **fields: Any) -> GenerationResult:
    result = (await engine.run("sample", SampleRequest(**fields))).result
    assert isinstance(result, GenerationResult)
    return result


def of_class(label: int) -> ConditionRequest:
    return ConditionRequest(classes=[label])


# Any configuration


@settings(deadline=None, max_examples=6)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    layers=st.integers(2, 4),
    channels=st.sampled_from([1, 3, 5, 8]),
    levels=st.sampled_from([2, 3, 4, 17, 256]),
    level_features=st.integers(1, 4),
    reach=st.integers(1, 4),
    weights_seed=st.integers(0, 2**31),
)
def test_a_model_of_any_shape_is_painted_as_its_full_pass_would(
    height: int, width: int, levels: int, weights_seed: int, **shape: int
) -> None:
    torch.manual_seed(weights_seed)
    model = GatedPixelCNN(
        (1, height, width), classes=3, head_width=6, levels=levels, **shape
    ).eval()
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter *= 4  # fresh heads are nearly uniform and would prove little
    asyncio.run(_check_painting(model, levels))


async def _check_painting(model: GatedPixelCNN, levels: int) -> None:
    """Export the model, load it, and compare what the service paints with full passes."""
    with TemporaryDirectory() as folder:
        export_artifact(
            Path(folder),
            name="any-pixelcnn",
            version="1",
            card=model.card(),
            graphs=model.graphs(),
            licence="Apache-2.0",
        )
        async with serving(Path(folder), "any-pixelcnn") as engine:
            for controls in ({}, {"temperature": 0.6}, {"top_k": 2, "top_p": 0.8}):
                drawn = await sample(engine, count=6, seed=5, condition=of_class(1), **controls)
                painted = drawn.images[..., 0] // (255 if levels == 2 else 1)
                replayed = replay(model, painted, drawn.class_weights, seed=5, **controls)
                assert (replayed.agrees | replayed.near_tie).all()
                request = LikelihoodRequest(images=drawn.images, condition=of_class(1))
                scored = (await engine.run("likelihood", request)).result.log_likelihood
                np.testing.assert_allclose(drawn.log_likelihood, scored, rtol=0, atol=1e-3)


# The bundled model


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "of a class": {"condition": of_class(3)},
    "of a mixture": {"condition": ConditionRequest(class_weights=np.full(10, 0.1))},
    "cold": {"condition": of_class(8), "temperature": 0.8},
    "hot": {"temperature": 1.3},
    "top_k": {"condition": of_class(5), "top_k": 20},
    "top_p": {"top_p": 0.95, "temperature": 0.9},
}


@pytest.mark.parametrize("name", SETTINGS)
async def test_every_pixel_is_the_one_that_a_full_pass_draws(
    name: str, bundled: Engine, family: GatedPixelCNN
) -> None:
    fields = SETTINGS[name]
    controls = {key: value for key, value in fields.items() if key != "condition"}
    drawn = await sample(bundled, count=12, seed=77, **fields)
    replayed = replay(family, drawn.images[..., 0], drawn.class_weights, seed=77, **controls)
    near_ties = int(replayed.near_tie.sum())
    mismatches = int((~replayed.agrees & ~replayed.near_tie).sum())
    print(
        f"{name}: {replayed.agrees.size} pixels, {near_ties} near-ties, "
        f"{int((~replayed.agrees).sum())} differ"
    )
    assert mismatches == 0
    assert near_ties < 0.05 * replayed.agrees.size, "or nothing is proved"


@pytest.mark.parametrize("name", SETTINGS)
async def test_the_likelihood_of_a_sample_is_the_one_that_came_with_it(
    name: str, bundled: Engine
) -> None:
    """At temperature 1 and unfiltered, whatever the image was drawn with."""
    fields = SETTINGS[name]
    drawn = await sample(bundled, count=16, seed=3, **fields)
    condition = fields.get("condition", ConditionRequest())
    request = LikelihoodRequest(images=drawn.images, condition=condition)
    scored = (await bundled.run("likelihood", request)).result.log_likelihood
    print(name, np.abs(drawn.log_likelihood - scored).max())
    np.testing.assert_allclose(drawn.log_likelihood, scored, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["plain", "of a class", "top_p"])
async def test_any_number_of_first_rows_of_a_sample_is_completed_to_it(
    name: str, bundled: Engine
) -> None:
    fields = {**SETTINGS[name], "seed": 21}
    drawn = await sample(bundled, **fields)
    (image,) = drawn.images
    requests = [
        CompleteRequest(
            image=np.where(np.arange(ROWS)[:, None, None] < rows, image, 0),
            prefix_rows=rows,
            **fields,
        )
        for rows in range(ROWS + 1)
    ]
    answers = await asyncio.gather(*(bundled.run("complete", each) for each in requests))
    for answer in answers:
        assert np.array_equal(answer.result.images, [image])
        assert np.array_equal(answer.result.log_likelihood, drawn.log_likelihood)
