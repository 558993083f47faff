"""Likelihoods without a class, of a model that needs one, against the sum in closed form.

Pixels are normal about the mean of their class: p(x) = sum of p(y) N(x; mean_y, s^2 I). The noisy
model estimates p(x|y) by the weight p(x|y) exp(a n - a^2 / 2), n normal, whose mean is p(x|y).
"""

from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Normal

from export import Card, Graph, Port, export_artifact
from service.core.engine import Engine
from service.core.requests import ConditionRequest, LikelihoodRequest, LikelihoodResult
from service.core.scoring.estimators import (
    log_mean_weight,
    marginalise,
    marginalise_map,
    mean_log_weight,
)
from service.errors import OutOfRange
from service.rpc.pb import generation_service_pb2 as pb
from service.rpc.pb.generation_service_pb2_grpc import GenerationServiceStub
from service.settings import Settings
from tests.calibrated import calibrate
from tests.test_transports_agree import levels_of

SIDE = 4
PIXELS = SIDE * SIDE
PRIOR = (0.5, 0.3, 0.2)
DEVIATION = 0.7
SPREAD = 0.4  # a, of log weights
EXACT, NOISY, UNCONDITIONAL = "exact-classes", "noisy-classes", "unconditional-likelihood"
_MEANS = 0.3 * torch.randn(len(PRIOR), PIXELS, generator=torch.Generator().manual_seed(0))


class Density(nn.Module):
    """The log-density of values given weights of one class, its map, and how far its mean is."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("means", _MEANS)

    def forward(self, data: Tensor, class_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        distance = data.flatten(1) - class_weights @ self.means
        pixels = -0.5 * (distance / DEVIATION) ** 2 - np.log(DEVIATION * np.sqrt(2 * np.pi))
        norm = distance.square().sum(1)
        return pixels.sum(1), pixels.reshape(-1, SIDE, SIDE), norm


class Weight(nn.Module):
    """A log weight of one draw."""

    def __init__(self) -> None:
        super().__init__()
        self.density = Density()

    def forward(self, data: Tensor, class_weights: Tensor, noise: Tensor) -> Tensor:
        return self.density(data, class_weights)[0] + SPREAD * noise[:, 0] - SPREAD**2 / 2


class Alone(nn.Module):
    """A density that asks for no class."""

    def forward(self, data: Tensor) -> Tensor:
        return -0.5 * data.flatten(1).square().sum(1)


def card(**meaning: object) -> Card:
    return Card(
        family="classes of normal pixels",
        event={
            "kind": "image", "shape": [SIDE, SIDE, 1], "levels": 256, "base_measure": "lebesgue"
        },
        preprocess={"range": [-2.0, 2.0]},
        condition={"kinds": ["class"], "names": ["a", "b", "c"], "prior": PRIOR},
        operations={
            "likelihood": {
                "quantity": "density", "base_measure": "lebesgue", "conditioning": "none", **meaning
            }
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    data = Port("data", "data", (1, SIDE, SIDE))
    weights = Port("class_weights", "condition", (len(PRIOR),))
    noise = Port("noise", "noise", (1,), "float32", "normal", "posterior")
    score = Port("log_likelihood", "log_likelihood", ())
    pixels = Port("pixels", "log_likelihood_map", (SIDE, SIDE))
    norm = Port("latent_norm", "statistic", ())
    bound = {
        "kind": "lower_bound", "estimator": "elbo", "draws": 4, "importance_estimator": "iwae",
    }  # fmt: skip
    exact = {"kind": "exact", "estimator": "exact"}
    for name, meaning, graph in (
        (EXACT, exact, Graph("log_likelihood", Density(), (data, weights), (score, pixels, norm))),
        (NOISY, bound, Graph("log_likelihood", Weight(), (data, weights, noise), (score,))),
        (UNCONDITIONAL, exact, Graph("log_likelihood", Alone(), (data,), (score,))),
    ):
        export_artifact(
            folder, name=name, version="1", card=card(**meaning), graphs=[graph], licence="MIT"
        )
    calibrate(folder / EXACT / "1", LikelihoodRequest(images=images(400, seed=1)))
    return folder


@pytest.fixture
def settings(repository: Path) -> Settings:
    names = EXACT, NOISY, UNCONDITIONAL
    return Settings(model_repository=repository, default_models=names, maximum_count=1000)


def images(count: int, seed: int = 0) -> np.ndarray:
    """Levels around those of the classes, so that several of them are likely."""
    values = np.random.default_rng(seed).normal(0.0, 0.4, (count, SIDE, SIDE, 1))
    return np.rint(255 * (values + 2.0) / 4.0).clip(0, 255).astype(np.uint8)


def log_joint(levels: np.ndarray, pixels: int = PIXELS) -> np.ndarray:
    """log p(y) p(x|y) of the first pixels in raster order, [N, K]."""
    values = torch.from_numpy(levels.reshape(-1, 1, PIXELS)[:, :, :pixels] / 255.0 * 4.0 - 2.0)
    logs = Normal(_MEANS.double()[:, :pixels], DEVIATION).log_prob(values).sum(2)
    return (logs + torch.tensor(PRIOR).double().log()).numpy()


def log_density(levels: np.ndarray, pixels: int = PIXELS) -> np.ndarray:
    """log p(x) in closed form, nats, [N]."""
    return np.logaddexp.reduce(log_joint(levels, pixels), axis=1)


def expected_norm(levels: np.ndarray) -> np.ndarray:
    """The mean over p(y|x) of how far the mean of the class is, [N]."""
    posterior = np.exp(log_joint(levels) - log_density(levels)[:, None])
    values = levels.reshape(-1, 1, PIXELS) / 255.0 * 4.0 - 2.0
    return (posterior * ((values - _MEANS.numpy()) ** 2).sum(2)).sum(1)


async def score(
    engine: Engine, levels: np.ndarray, model: str = EXACT, **wanted: object
) -> LikelihoodResult:
    request = LikelihoodRequest(images=levels, **wanted)
    result = (await engine.run("likelihood", request, model=model)).result
    assert isinstance(result, LikelihoodResult)
    return result


async def test_without_a_class_it_is_the_sum_over_classes(engine: Engine) -> None:
    levels = images(40)
    result = await score(engine, levels)
    np.testing.assert_allclose(result.log_likelihood, log_density(levels), rtol=1e-5)
    assert (result.conditioning, result.kind) == ("marginal", "exact")
    backwards = await score(engine, levels[::-1])
    expected = pytest.approx(result.log_likelihood[::-1], rel=1e-6)
    assert backwards.log_likelihood == expected, "an image's place changes nothing"
    other = await score(engine, levels, seed=5)
    np.testing.assert_array_equal(other.log_likelihood, result.log_likelihood)  # nothing is drawn


async def test_with_a_class_it_is_that_of_the_class(engine: Engine) -> None:
    levels = images(3)
    result = await score(engine, levels, condition=ConditionRequest(classes=[2, 0, 1]))
    of_class = (log_joint(levels) - np.log(PRIOR))[[0, 1, 2], [2, 0, 1]]
    np.testing.assert_allclose(result.log_likelihood, of_class, rtol=1e-5)
    assert result.conditioning == "given"


async def test_a_likelihood_that_asks_for_no_class_sums_over_none(engine: Engine) -> None:
    result = await score(engine, images(3), UNCONDITIONAL)
    values = images(3).reshape(3, -1) / 255.0 * 4.0 - 2.0
    np.testing.assert_allclose(result.log_likelihood, -0.5 * (values**2).sum(1), rtol=1e-5)
    assert result.conditioning == "none"


async def test_the_map_tells_each_pixel_given_those_before_it(engine: Engine) -> None:
    levels = images(5)
    result = await score(engine, levels, parts=["log_likelihood", "log_likelihood_map"])
    until = np.stack([log_density(levels, pixels) for pixels in range(1, PIXELS + 1)], axis=1)
    expected = np.diff(until, axis=1, prepend=0.0).reshape(-1, SIDE, SIDE)
    np.testing.assert_allclose(result.log_likelihood_map, expected, atol=1e-4)
    sums = result.log_likelihood_map.sum((1, 2))
    np.testing.assert_allclose(sums, result.log_likelihood, rtol=1e-6)


@pytest.mark.parametrize("samples", [None, 50])
async def test_of_bounds_it_is_a_bound_with_its_error(engine: Engine, samples: int | None) -> None:
    levels = images(20)
    seeds = range(40)
    results = [await score(engine, levels, NOISY, samples=samples, seed=seed) for seed in seeds]
    errors = np.stack([result.log_likelihood - log_density(levels) for result in results])
    stated = np.stack([result.standard_error for result in results])
    gap = 0.0 if samples else -(SPREAD**2) / 2  # of a mean of log weights, known exactly
    draws = samples or 4
    assert abs(errors.mean() - gap) < 4 * SPREAD / np.sqrt(draws * errors.size) + 0.01
    assert np.sqrt((stated**2).mean()) == pytest.approx(SPREAD / np.sqrt(draws), rel=0.2)
    assert errors.std() == pytest.approx(SPREAD / np.sqrt(draws), rel=0.2)
    meaning = results[0].conditioning, results[0].kind, results[0].draws
    assert meaning == ("marginal", "lower_bound", draws)


async def test_rows_are_images_times_samples_times_classes(engine: Engine) -> None:
    with pytest.raises(OutOfRange, match="times 3 classes, of which none is given"):
        await score(engine, images(10), NOISY, samples=300)
    given = ConditionRequest(classes=[0])
    assert (await score(engine, images(10), NOISY, samples=300, condition=given)).draws == 300


async def test_p_values_are_of_the_same_conditioning(engine: Engine) -> None:
    levels = images(20, seed=2)
    result = await score(engine, levels)
    assert result.anomaly is not None and result.anomaly.p_value.min() > 0
    given = await score(engine, levels, condition=ConditionRequest(classes=[0]))
    assert given.anomaly is None, "the calibration is of a sum over classes"
    median = np.median(expected_norm(images(400, seed=1)[:200]))
    scores = np.abs(expected_norm(levels) - median)
    np.testing.assert_allclose(result.anomaly.scores["latent_norm"], scores, atol=1e-4)


async def test_both_transports_say_so(
    client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    levels = images(2)
    body = {"model": EXACT, "images": levels.tolist()}
    rows = (await client.post("/likelihood", json=body)).json()["results"]
    answer = await stub.Likelihood(pb.LikelihoodRequest(model=EXACT, images=levels_of(levels)))
    assert [row["conditioning"] for row in rows] == ["marginal"] * 2
    assert answer.conditioning == pb.CONDITIONING_MARGINAL
    assert [row["log_likelihood"] for row in rows] == list(answer.log_likelihood)


# The sums themselves

LOGS = st.floats(-50, 50) | st.just(-np.inf)


@given(st.lists(st.lists(LOGS, min_size=4, max_size=4), min_size=3, max_size=3), st.booleans())
def test_a_sum_over_classes_is_what_it_says(logs: list[list[float]], importance: bool) -> None:
    weights = np.array(logs)  # [K, k]
    found = marginalise(weights[None], PRIOR, importance)
    with np.errstate(divide="ignore"):
        of_class = np.log(np.exp(weights).mean(1)) if importance else weights.mean(1)
        joint = of_class + np.log(PRIOR)
    expected = np.logaddexp.reduce(joint)
    np.testing.assert_allclose(found.log_likelihood, [expected], rtol=1e-9, atol=1e-9)
    assert found.posterior.sum() == pytest.approx(1.0)
    if np.isfinite(expected):
        np.testing.assert_allclose(found.posterior[0], np.exp(joint - expected), atol=1e-9)


@given(st.lists(st.floats(-50, 50), min_size=4, max_size=4), st.booleans())
def test_classes_that_are_alike_change_nothing(logs: list[float], importance: bool) -> None:
    weights = np.array([logs])  # [1, k]
    found = marginalise(np.repeat(weights[:, None], 3, axis=1), PRIOR, importance)
    score, error = (log_mean_weight if importance else mean_log_weight)(weights)
    np.testing.assert_allclose(found.log_likelihood, score, atol=1e-9)
    np.testing.assert_allclose(found.standard_error, error, atol=1e-9)


def test_a_map_of_one_class_is_its_own() -> None:
    maps = np.random.default_rng(0).normal(size=(2, 1, SIDE, SIDE))
    np.testing.assert_allclose(marginalise_map(maps, [1.0]), maps[:, 0], atol=1e-12)
