"""A PixelCNN over binary images, through the whole house: its two levels are black and white."""

from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import torch

from export import export_artifact
from model_zoo.autoregressive.gated_pixelcnn import GatedPixelCNN
from model_zoo.family import Batch
from service.core.engine import Answer, Engine
from service.core.requests import (
    CompleteRequest,
    ConditionRequest,
    LikelihoodRequest,
    SampleRequest,
)
from service.errors import BinarisationRequired, OutOfRange
from service.rpc.pb import generation_service_pb2 as pb
from service.rpc.pb.generation_service_pb2_grpc import GenerationServiceStub
from service.settings import Settings

MODEL = "tiny-binary"
HEIGHT, WIDTH, CLASSES = 5, 7, 2
STEPS = 60


@pytest.fixture(scope="module")
def family() -> GatedPixelCNN:
    """A model that has learned stripes: class 0 is of rows, class 1 of columns."""
    torch.manual_seed(0)
    model = GatedPixelCNN(
        (1, HEIGHT, WIDTH), classes=CLASSES, layers=2, channels=5, head_width=8, levels=2
    )
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-2)
    for _ in range(STEPS):
        optimiser.zero_grad()
        model.objectives()["pixelcnn"].loss(stripes(32, generator), generator).backward()
        optimiser.step()
    return model.eval()


def stripes(count: int, generator: torch.Generator) -> Batch:
    """Grey stripes, one pixel wide, which the model binarises by their grey value."""
    labels = torch.randint(CLASSES, (count,), generator=generator)
    down, right = torch.arange(HEIGHT)[:, None], torch.arange(WIDTH)[None]
    where = torch.where(labels[:, None, None] == 0, down, right) % 2
    return Batch((20.0 + 200.0 * where)[:, None], labels)


@pytest.fixture(scope="module")
def repository(family: GatedPixelCNN, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("binary")
    card, graphs = family.card(), family.graphs()
    export_artifact(folder, name=MODEL, version="1", card=card, graphs=graphs, licence="Apache-2.0")
    return folder


@pytest.fixture
def settings(repository: Path) -> Settings:
    return Settings(model_repository=repository, default_models=(MODEL,), workers=2)


async def sample(engine: Engine, **fields: Any):
    return (await engine.run("sample", SampleRequest(**fields))).result


async def complete(engine: Engine, image: np.ndarray, **fields: Any):
    return (await engine.run("complete", CompleteRequest(image=image, **fields))).result


async def log_likelihood(engine: Engine, images: np.ndarray, **fields: Any) -> np.ndarray:
    request = LikelihoodRequest(images=images, **fields)
    return (await engine.run("likelihood", request)).result.log_likelihood


def of_torch(family: GatedPixelCNN, images: np.ndarray, weights: np.ndarray) -> np.ndarray:
    levels = torch.from_numpy(images[:, :, :, 0] // 255).long()
    with torch.no_grad():
        return family.log_probability(levels, torch.from_numpy(weights)).numpy()


CONDITIONS = {
    "no class": ConditionRequest(),
    "a class": ConditionRequest(classes=[1]),
    "a mixture": ConditionRequest(class_weights=np.array([0.25, 0.75])),
}


@pytest.mark.parametrize("condition", CONDITIONS.values(), ids=CONDITIONS)
@pytest.mark.parametrize("controls", [{}, {"temperature": 0.7}, {"top_p": 0.9}, {"top_k": 2}])
async def test_samples_are_black_and_white_and_have_the_likelihood_they_came_with(
    engine: Engine, family: GatedPixelCNN, condition: ConditionRequest, controls: dict[str, float]
) -> None:
    drawn = await sample(engine, count=20, seed=3, condition=condition, **controls)
    assert drawn.images.shape == (20, HEIGHT, WIDTH, 1)
    assert set(np.unique(drawn.images)) == {0, 255}
    scored = await log_likelihood(engine, drawn.images, condition=condition)
    exact = of_torch(family, drawn.images, drawn.class_weights)
    np.testing.assert_allclose(drawn.log_likelihood, scored, rtol=0, atol=1e-3)
    np.testing.assert_allclose(drawn.log_likelihood, exact, rtol=0, atol=1e-3)


async def test_it_draws_what_it_was_trained_on(engine: Engine) -> None:
    drawn = await sample(engine, count=40, seed=0, condition=ConditionRequest(classes=[0]))
    means = drawn.images.mean(axis=(0, 2, 3))
    assert (means[1::2] > 150).all() and (means[::2] < 80).all(), means


async def test_the_unit_scale_is_zero_and_one(engine: Engine) -> None:
    levels = (await sample(engine, count=3, seed=3)).images
    unit = (await sample(engine, count=3, seed=3, scale="unit")).images
    assert np.array_equal(unit * 255, levels)


async def test_greedy_and_top_k_of_one_are_the_same_image(engine: Engine) -> None:
    greedy = await sample(engine, greedy=True, seed=1)
    assert np.array_equal(greedy.images, (await sample(engine, top_k=1, seed=2)).images)
    with pytest.raises(OutOfRange, match="allowed is 1"):
        await sample(engine, top_k=3)


async def test_streamed_rows_are_those_of_the_result(engine: Engine) -> None:
    request = SampleRequest(count=4, seed=8)
    *rows, answer = [event async for event in engine.stream("sample", request)]
    assert isinstance(answer, Answer)
    images = np.zeros((4, HEIGHT, WIDTH), np.uint8)
    for part in rows:
        images[part.image, part.first_row : part.first_row + len(part.levels)] = part.levels
    assert np.array_equal(images[..., None], answer.result.images)


# Completion


@pytest.mark.parametrize("rows", range(HEIGHT + 1))
async def test_the_first_rows_of_a_sample_are_completed_to_it(engine: Engine, rows: int) -> None:
    drawn = await sample(engine, seed=4)
    (image,) = drawn.images
    begun = np.where(np.arange(HEIGHT)[:, None, None] < rows, image, 255 - image)
    whole = await complete(engine, begun, prefix_rows=rows, seed=4)
    assert np.array_equal(whole.images, [image])
    assert whole.log_likelihood == pytest.approx(drawn.log_likelihood, abs=1e-3)


async def test_known_pixels_stay_as_they_are(engine: Engine, family: GatedPixelCNN) -> None:
    generator = np.random.default_rng(0)
    image = 255 * generator.integers(0, 2, (HEIGHT, WIDTH, 1), np.uint8)
    known = generator.random((HEIGHT, WIDTH)) < 0.4
    whole = await complete(engine, image, known=known, count=6, seed=1)
    assert (whole.images[:, known] == image[known]).all()
    assert set(np.unique(whole.images)) == {0, 255}
    exact = of_torch(family, whole.images, whole.class_weights)
    np.testing.assert_allclose(whole.log_likelihood, exact, rtol=0, atol=1e-3)


async def test_grey_is_refused_where_it_is_known_and_not_read_elsewhere(
    client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    image = np.full((HEIGHT, WIDTH, 1), 128, np.uint8)
    image[0] = 255
    body = {"model": MODEL, "image": image.tolist(), "image_format": "array", "seed": 1}
    picture = pb.Images(count=1, height=HEIGHT, width=WIDTH, channels=1, levels=image.tobytes())
    answer = await client.post("/complete", json={**body, "prefix_rows": 1})
    assert answer.status_code == 200, answer.text
    assert np.unique(answer.json()["images"]).tolist() == [0, 255]
    refused = await client.post("/complete", json={**body, "prefix_rows": 2})
    assert refused.status_code == 422
    assert refused.json()["reason"] == BinarisationRequired.reason
    assert "make them 0 or 255" in refused.json()["detail"]
    with pytest.raises(grpc.aio.AioRpcError, match="make them 0 or 255") as failed:
        await stub.Complete(pb.CompleteRequest(model=MODEL, image=picture, prefix_rows=2))
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT


# Likelihood


async def test_grey_images_are_scored_by_the_rule_that_is_asked_for(
    engine: Engine, family: GatedPixelCNN
) -> None:
    generator = np.random.default_rng(0)
    grey = generator.integers(0, 256, (6, HEIGHT, WIDTH, 1), np.uint8)
    none = np.zeros((6, CLASSES), np.float32)
    with pytest.raises(BinarisationRequired):
        await log_likelihood(engine, grey)
    threshold = np.where(grey >= 128, 255, 0)
    scored = await log_likelihood(engine, grey, binarisation="threshold")
    np.testing.assert_allclose(scored, of_torch(family, threshold, none), rtol=0, atol=1e-3)
    assert np.array_equal(scored, await log_likelihood(engine, threshold))
    drawn = [await log_likelihood(engine, grey, binarisation="stochastic", seed=s) for s in (0, 1)]
    assert not np.array_equal(*drawn), "another seed draws other pixels"
    certain = await log_likelihood(engine, threshold, binarisation="stochastic", seed=1)
    assert np.array_equal(certain, scored), "black and white are drawn as they are"


async def test_probabilities_of_all_continuations_sum_to_one(engine: Engine) -> None:
    """Of the last four pixels, given the others: levels that are drawn are those scored."""
    (image,) = (await sample(engine, seed=6)).images
    tails = 255 * (np.arange(16)[:, None] >> np.arange(4) & 1)
    images = np.repeat(image[None], 16, axis=0)
    images[:, -1, -4:, 0] = tails
    scores = await log_likelihood(engine, images)
    known = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) < HEIGHT * WIDTH - 4
    drawn = await complete(engine, image, known=known, count=256, seed=2)
    found = (drawn.images[:, -1, -4:, 0] // 255) @ (1 << np.arange(4))
    share = np.bincount(found, minlength=16) / 256
    posterior = np.exp(scores - np.logaddexp.reduce(scores))
    assert np.abs(share - posterior).max() < 5 * np.sqrt(0.25 / 256)
