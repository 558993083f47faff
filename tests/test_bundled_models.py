"""The bundled models, through the engine, are as good and as reproducible as they claim."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from model_zoo.data import data_directory, load_splits
from model_zoo.recipe import WEIGHTS, load_trained, recipe_names
from service.core.engine import Answer, Engine
from service.core.manifest import read_manifest
from service.core.requests import (
    ConditionRequest,
    LikelihoodRequest,
    ReconstructRequest,
    SampleRequest,
)
from service.metrics import Metrics
from service.server import build_engine
from service.settings import Settings

ARTIFACTS = Path(__file__).parent.parent / "artifacts"
MODELS = sorted(path.name for path in ARTIFACTS.iterdir() if path.is_dir())
SAMPLERS = [name for name in MODELS if "sample" in read_manifest(ARTIFACTS / name / "1").operations]


@pytest.fixture
async def engine(metrics: Metrics) -> AsyncIterator[Engine]:
    built = build_engine(Settings(model_repository=ARTIFACTS, workers=2), metrics)
    await built.load_default_models()
    assert built.ready
    yield built
    await built.drain()


@pytest.fixture(scope="module")
def test_images() -> np.ndarray:
    """Two hundred images of the test split, uint8 [N, 28, 28, 1]."""
    return real_images("test")[:200]


def real_images(split: str) -> np.ndarray:
    """Return the images of a split, uint8 [N, 28, 28, 1]; skip where there are none."""
    if not (data_directory() / "mnist").is_dir():
        pytest.skip("set GENSERVE_DATA_DIR to a folder that holds mnist/")
    return load_splits("mnist")[split].images.reshape(-1, 28, 28, 1).numpy().astype(np.uint8)


def figures(model: str) -> dict[str, dict[str, object]]:
    manifest = json.loads((ARTIFACTS / model / "1" / "manifest.json").read_text())
    return {figure["name"]: figure for figure in manifest["quality"]}


@pytest.mark.parametrize("model", MODELS)
def test_the_weights_of_a_bundled_model_lie_once(model: str) -> None:
    """The artifact holds the state that torch reads, and next to nothing besides."""
    with safe_open(ARTIFACTS / model / "1" / "weights.safetensors", framework="np") as file:
        sizes = {name: file.get_tensor(name).nbytes for name in file.keys()}  # noqa: SIM118
    held = set(load_trained(model).state_dict())
    if f"{model}-background" in recipe_names():
        background = load_trained(f"{model}-background").state_dict()
        held |= {f"background/{name}" for name in background}
    besides = sizes.keys() - held
    assert held <= sizes.keys()
    # What is folded of a small model is not less: masked kernels in mnist-binary-pixelcnn.
    allowed = max(0.01 * sum(sizes.values()), 96 * 1024)
    assert sum(sizes[name] for name in besides) < allowed, besides
    assert not (WEIGHTS / f"{model}.safetensors").exists(), f"run make export MODEL={model}"


def test_the_figures_are_what_they_should_be_at_least() -> None:
    assert figures("mnist-realnvp")["bits_per_dim"]["value"] <= 1.40
    assert figures("mnist-vae")["elbo"]["value"] >= -97.0
    assert figures("mnist-dcgan")["recognised_as_asked"]["value"] >= 0.97
    assert figures("mnist-dcgan")["within_class_distance"]["value"] >= 0.8


@pytest.mark.parametrize("model", SAMPLERS)
async def test_one_seed_is_one_image_alone_and_in_a_mixed_batch(engine: Engine, model: str) -> None:
    """Bit for bit, before rounding: convolutions and products must not depend on the batch."""
    images = engine.models.find(model).manifest.event.kind == "image"
    scale = "unit" if images else "levels"  # vectors are not rounded
    wanted = SampleRequest(count=2, seed=42, scale=scale)
    alone = made(await engine.run("sample", wanted, model=model))
    neighbours = [
        SampleRequest(count=1 + index % 3, seed=None if index % 2 else index, scale=scale)
        for index in range(31)
    ]
    requests = [*neighbours[:15], wanted, *neighbours[15:]]
    answers = await asyncio.gather(*(engine.run("sample", each, model=model) for each in requests))
    assert np.array_equal(made(answers[15]), alone)
    many = await engine.run("sample", SampleRequest(count=33, seed=42, scale=scale), model=model)
    assert np.array_equal(made(many)[:2], alone)


def made(answer: Answer) -> np.ndarray:
    """Return the images or vectors of an answer."""
    return answer.result.part(answer.result.made)


async def test_digits_are_recognised_as_the_class_that_was_asked_for(engine: Engine) -> None:
    labels = np.repeat(np.arange(10), 20)
    condition = ConditionRequest(classes=labels.tolist())
    request = SampleRequest(count=200, seed=0, condition=condition)
    images = (await engine.run("sample", request, model="mnist-dcgan")).result.images
    levels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        seen = load_trained("mnist-classifier")(levels).argmax(dim=1).numpy()
    assert (seen == labels).mean() >= 0.94  # 0.97, less 2.5 standard errors of 200 images


@pytest.mark.parametrize(
    ("model", "figure", "rule"),
    [("mnist-realnvp", "bits_per_dim", None), ("mnist-vae", "elbo", "stochastic")],
)
async def test_the_service_scores_real_images_as_the_manifest_says(
    engine: Engine, test_images: np.ndarray, model: str, figure: str, rule: str | None
) -> None:
    request = LikelihoodRequest(images=test_images, binarisation=rule)
    result = (await engine.run("likelihood", request, model=model)).result
    scores = result.bits_per_dim if figure == "bits_per_dim" else result.log_likelihood
    error = scores.std(ddof=1) / np.sqrt(len(scores))
    assert abs(scores.mean() - figures(model)[figure]["value"]) < 4 * error


async def test_latents_of_the_prior_explain_real_digits_worse_than_those_of_the_posterior(
    engine: Engine, test_images: np.ndarray
) -> None:
    """The reason for an encoder: from as many draws, plain Monte Carlo misses what matters."""
    digits = LikelihoodRequest(images=test_images[:20], binarisation="stochastic", samples=64)
    plain = replace(digits, estimator="monte_carlo")
    bound = await engine.run("likelihood", digits, model="mnist-vae")
    far_below = await engine.run("likelihood", plain, model="mnist-vae")
    assert np.all(far_below.result.log_likelihood < bound.result.log_likelihood - 10)


@pytest.mark.parametrize(("model", "rule"), [("mnist-vae", "threshold"), ("mnist-realnvp", None)])
async def test_digits_that_nothing_was_calibrated_on_are_rarely_called_anomalous(
    engine: Engine, model: str, rule: str | None
) -> None:
    """Six and four scores at three rates: thirty tests, each of which fails with p = 0.00135.

    By Bonferroni's inequality, valid p-values fail any of them with a probability of at most 0.04.
    """
    digits = real_images("select")[:1000]
    parts = [
        LikelihoodRequest(images=digits[start : start + 250], binarisation=rule, parts=["scores"])
        for start in range(0, 1000, 250)
    ]
    answers = [(await engine.run("likelihood", part, model=model)).result for part in parts]
    assert all(answer.anomaly.count == 5000 for answer in answers)
    for name in answers[0].anomaly.p_values:
        p = np.concatenate([answer.anomaly.p_values[name] for answer in answers])
        for rate in (0.01, 0.05, 0.1):
            slack = 3 * np.sqrt(rate * (1 - rate) * (1 / 5000 + 1 / 1000))
            assert np.mean(p <= rate) <= rate + slack, (name, rate)


async def test_the_flow_restores_real_images_exactly(
    engine: Engine, test_images: np.ndarray
) -> None:
    request = ReconstructRequest(images=test_images)
    restored = (await engine.run("reconstruct", request, model="mnist-realnvp")).result.images
    assert np.array_equal(restored, test_images)


async def test_the_flow_inverts_itself_to_a_ten_thousandth(
    engine: Engine, test_images: np.ndarray
) -> None:
    request = ReconstructRequest(images=test_images / 255, scale="unit")
    restored = (await engine.run("reconstruct", request, model="mnist-realnvp")).result.images
    assert np.abs(restored - test_images / 255).max() < 1e-4
