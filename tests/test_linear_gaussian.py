"""Likelihood estimates against a model whose log p(x) and posterior are known in closed form.

A linear-Gaussian VAE: z ~ N(0, I), x | z ~ N(W z + b, s^2 I), so x ~ N(b, W W^T + s^2 I) and the
posterior is normal (Bishop 2006, "Pattern Recognition and Machine Learning", section 12.2). Images
have 256 levels, which stand for 256 real values; the model's answer for them is a density of those
values, exact wherever it is asked for, so that levels cost no accuracy.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal

from export import Card, Graph, Port, export_artifact
from service.core.engine import Engine
from service.core.requests import Estimator, LikelihoodRequest, LikelihoodResult
from service.errors import InvalidRequest, OutOfRange
from service.settings import Settings

SIDE, LATENT = 4, 2
PIXELS = SIDE * SIDE
LOW, HIGH = -4.0, 4.0
DEVIATION = 0.8  # of x given z
IMAGES, SEEDS = 32, 8


class LinearGaussian(nn.Module):
    """The model and a posterior: the exact one, or one too wide and too near to the prior."""

    def __init__(self, exact: bool):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(PIXELS, LATENT, generator=generator)
        precision = torch.eye(LATENT) + weights.T @ weights / DEVIATION**2
        covariance = precision.inverse()
        self.register_buffer("weights", weights)
        self.register_buffer("offset", 0.5 * torch.randn(PIXELS, generator=generator))
        self.register_buffer("to_mean", covariance @ weights.T / DEVIATION**2)
        self.register_buffer("factor", torch.linalg.cholesky(covariance))
        if not exact:
            self.to_mean *= 0.9
            self.factor *= 1.5

    def posterior(self, data: Tensor) -> Tensor:
        """Images [N, 1, H, W] to the mean of q(z|x), [N, LATENT]."""
        return (data.flatten(1) - self.offset) @ self.to_mean.T

    def log_density_given(self, data: Tensor, latent: Tensor) -> Tensor:
        """log p(x|z) in nats, [N]."""
        return log_normal((data.flatten(1) - self.decode(latent).flatten(1)) / DEVIATION) - (
            PIXELS * np.log(DEVIATION)
        )

    def decode(self, latent: Tensor) -> Tensor:
        """Latents [N, LATENT] to mean images [N, 1, H, W]."""
        return (latent @ self.weights.T + self.offset).reshape(-1, 1, SIDE, SIDE)

    def exact_log_density(self, data: Tensor) -> Tensor:
        """log p(x) in nats, [N], in float64."""
        weights, offset = self.weights.double(), self.offset.double()
        covariance = weights @ weights.T + DEVIATION**2 * torch.eye(PIXELS).double()
        return MultivariateNormal(offset, covariance).log_prob(data.double().flatten(1))


class LogWeight(nn.Module):
    """log p(x|z) + log p(z) - log q(z|x) at z = mean + factor @ noise."""

    def __init__(self, model: LinearGaussian):
        super().__init__()
        self.model = model

    def forward(self, data: Tensor, noise: Tensor) -> Tensor:
        latent = self.model.posterior(data) + noise @ self.model.factor.T
        log_posterior = log_normal(noise) - self.model.factor.diagonal().log().sum()
        return self.model.log_density_given(data, latent) + log_normal(latent) - log_posterior


class Method(nn.Module):
    """A method of the model as a graph."""

    def __init__(self, model: LinearGaussian, name: str):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, *inputs: Tensor) -> Tensor:
        return getattr(self.model, self.name)(*inputs)


def log_normal(x: Tensor) -> Tensor:
    """log N(x; 0, I) in nats, [N]."""
    return (-0.5 * x.square() - 0.5 * np.log(2 * np.pi)).sum(1)


CARD = Card(
    family="linear-Gaussian autoencoder",
    event={"kind": "image", "shape": [SIDE, SIDE, 1], "levels": 256, "base_measure": "lebesgue"},
    preprocess={"range": [LOW, HIGH]},
    latent={"shape": [LATENT], "prior": "standard_normal"},
    operations={
        "likelihood": {
            "quantity": "density",
            "kind": "lower_bound",
            "base_measure": "lebesgue",
            "estimator": "elbo",
            "draws": 1,
            "importance_estimator": "iwae",
            "conditioning": "none",
        }
    },
)


def graphs(model: LinearGaussian, with_mass: bool) -> list[Graph]:
    data, latent = Port("data", "data", (1, SIDE, SIDE)), Port("latent", "latent", (LATENT,))
    noise = Port("noise", "noise", (LATENT,), "float32", "normal", "posterior")
    score = Port("log_likelihood", "log_likelihood", ())
    given = Graph(
        "log_mass_given_latent", Method(model, "log_density_given"), (data, latent), (score,)
    )
    return [
        Graph("decode", Method(model, "decode"), (latent,), (data,)),
        Graph("log_likelihood", LogWeight(model), (data, noise), (score,)),
        *([given] if with_mass else []),
    ]


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("linear")
    for name, exact in (("exact-posterior", True), ("wide-posterior", False)):
        export_artifact(
            folder,
            name=name,
            version="1",
            card=CARD,
            graphs=graphs(LinearGaussian(exact), with_mass=not exact),
            licence="MIT",
        )
    return folder


@pytest.fixture
def settings(repository: Path) -> Settings:
    names = ("exact-posterior", "wide-posterior")
    return Settings(
        model_repository=repository, default_models=names, maximum_queued_rows=IMAGES * 1000
    )


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Images that the model generates, to the nearest level, uint8 [IMAGES, SIDE, SIDE, 1]."""
    torch.manual_seed(1)
    model = LinearGaussian(exact=True)
    mean = model.decode(torch.randn(IMAGES, LATENT))
    values = Normal(mean, DEVIATION).sample().permute(0, 2, 3, 1).numpy()
    levels = np.rint(255 * (values - LOW) / (HIGH - LOW)).clip(0, 255)
    return levels.astype(np.uint8)


@pytest.fixture(scope="module")
def exact(images: np.ndarray) -> np.ndarray:
    """log p(x) of the images, nats, [IMAGES]."""
    values = torch.from_numpy(LOW + (HIGH - LOW) * images / 255.0)
    return LinearGaussian(exact=True).exact_log_density(values).numpy()


async def score(
    engine: Engine, model: str, images: np.ndarray, seed: int, **wanted: object
) -> LikelihoodResult:
    request = LikelihoodRequest(images=images, seed=seed, **wanted)
    result = (await engine.run("likelihood", request, model=model)).result
    assert isinstance(result, LikelihoodResult)
    return result


async def errors_of(
    engine: Engine,
    images: np.ndarray,
    exact: np.ndarray,
    samples: int,
    estimator: Estimator | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Estimate minus log p(x), and the standard error stated, each [SEEDS * IMAGES]."""
    results = [
        await score(engine, "wide-posterior", images, seed, samples=samples, estimator=estimator)
        for seed in range(SEEDS)
    ]
    errors = [result.log_likelihood - exact for result in results]
    stated = [result.standard_error for result in results if result.standard_error is not None]
    return np.concatenate(errors), np.concatenate(stated) if stated else np.empty(0)


def standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


@pytest.mark.parametrize("seed", [0, 1])
async def test_one_draw_of_the_exact_posterior_is_the_exact_value(
    engine: Engine, images: np.ndarray, exact: np.ndarray, seed: int
) -> None:
    result = await score(engine, "exact-posterior", images, seed, samples=1)
    assert result.log_likelihood == pytest.approx(exact, abs=1e-3)
    assert exact.std() > 1.0, "or else any constant would do"
    assert result.bits_per_dim is None, "a density of reals is no number of bits"


async def test_more_draws_raise_the_bound_and_never_past_the_exact_value(
    engine: Engine, images: np.ndarray, exact: np.ndarray
) -> None:
    errors = [(await errors_of(engine, images, exact, k))[0] for k in (1, 4, 16, 64)]
    means = [error.mean() for error in errors]
    assert means == sorted(means)
    assert means[0] < -3 * standard_error(errors[0]), "one draw leaves room to rise"
    for error in errors:
        assert error.mean() <= 3 * standard_error(error)
    assert means[-1] == pytest.approx(0.0, abs=0.05)


async def test_plain_monte_carlo_has_the_right_mean_and_a_lower_log(
    engine: Engine, images: np.ndarray, exact: np.ndarray
) -> None:
    few, _ = await errors_of(engine, images, exact, 16, "monte_carlo")
    many, _ = await errors_of(engine, images, exact, 1000, "monte_carlo")
    assert abs(np.exp(many).mean() - 1.0) <= 3 * standard_error(np.exp(many))
    assert few.mean() < many.mean() <= 3 * standard_error(many)
    assert few.mean() < -3 * standard_error(few)


async def test_plain_monte_carlo_varies_more_than_the_posterior_and_says_so(
    engine: Engine, images: np.ndarray, exact: np.ndarray
) -> None:
    plain, stated = await errors_of(engine, images, exact, 1000, "monte_carlo")
    drawn, drawn_stated = await errors_of(engine, images, exact, 1000)
    assert plain.std() > 3 * drawn.std()
    assert np.median(stated) > 3 * np.median(drawn_stated)
    # The delta method's error is that of repetition, where no few draws dominate.
    assert 0.8 < (plain / stated).std() < 1.25


async def test_plain_monte_carlo_says_what_it_is_and_follows_the_image(
    engine: Engine, images: np.ndarray
) -> None:
    result = await score(engine, "wide-posterior", images, 3, samples=8, estimator="monte_carlo")
    alone = await score(
        engine, "wide-posterior", images[5:6], 3, samples=8, estimator="monte_carlo"
    )
    assert (result.estimator, result.kind, result.draws) == ("monte_carlo", "lower_bound", 8)
    assert alone.log_likelihood[0] == result.log_likelihood[5]


@pytest.mark.parametrize(
    ("model", "samples", "error", "message"),
    [
        ("exact-posterior", 8, InvalidRequest, "leave out estimator"),
        ("wide-posterior", None, InvalidRequest, "needs samples"),
        ("wide-posterior", 0, OutOfRange, "samples"),
        ("wide-posterior", 1001, OutOfRange, "samples"),
    ],
)
async def test_plain_monte_carlo_is_refused_where_it_can_not_be(
    engine: Engine,
    images: np.ndarray,
    model: str,
    samples: int | None,
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        await score(engine, model, images, 0, samples=samples, estimator="monte_carlo")
