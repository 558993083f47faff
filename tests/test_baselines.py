"""Baselines: what scikit-learn says of them, densities that are one, and samplers of those."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from sklearn.cluster import KMeans as SklearnKMeans
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture as SklearnMixture
from sklearn.neighbors import KernelDensity as SklearnKernelDensity
from torch import Tensor

from model_zoo.baselines.gaussian_mixture import GaussianMixture
from model_zoo.baselines.k_means import KMeans
from model_zoo.baselines.kernel_density import BANDWIDTHS, KernelDensity, choose_bandwidth
from model_zoo.baselines.mixtures import MixtureOfNormals
from model_zoo.baselines.probabilistic_pca import ProbabilisticPCA
from model_zoo.dequantised import DequantisedDensity
from model_zoo.family import Batch, Family
from model_zoo.train import round_to_half

DENSITIES: dict[str, Callable[[tuple[int, int, int]], DequantisedDensity]] = {
    "mixture": lambda shape: GaussianMixture(shape, components=3),
    "kernels": lambda shape: KernelDensity(shape, kernels=12),
    "ppca": lambda shape: ProbabilisticPCA(shape, components=1),
}
MIXTURES = ["mixture", "kernels"]
STEP = 0.5  # levels, of grids


def digits(shape: tuple[int, int, int], count: int = 200, seed: int = 0) -> Batch:
    """Two crowds of images, one dark and one bright, whose pixels hang together."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.tensor([90.0, 160.0])[torch.randint(2, (count,), generator=generator)]
    brightness = centre + 8 * torch.randn(count, generator=generator)
    texture = 12 * torch.randn(count, *shape, generator=generator)
    images = (brightness.reshape(-1, 1, 1, 1) + texture).round().clamp(0, 255)
    return Batch(images, torch.zeros(count, dtype=torch.int64))


def fit(family: Family, data: Batch, seed: int = 0) -> Family:
    family.eval().conclude(data, torch.Generator().manual_seed(seed))
    return family


def fitted_density(name: str, shape: tuple[int, int, int]) -> DequantisedDensity:
    density = fit(DENSITIES[name](shape), digits(shape))
    assert isinstance(density, DequantisedDensity)
    return density


def graph_of(family: Family, name: str) -> torch.nn.Module:
    return {graph.name: graph.module for graph in family.graphs()}[name]


# Densities


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", DENSITIES)
def test_density_over_two_pixels_integrates_to_one(name: str, half: bool) -> None:
    density = fitted_density(name, (1, 1, 2))
    if half:  # as it is served: any numbers are those of a density, rounded ones too
        round_to_half(density)
    axis = torch.arange(-100, 356, STEP)
    grid = torch.cartesian_prod(axis, axis).reshape(-1, 1, 1, 2)
    mass = density.log_density(grid).double().exp().sum().item() * STEP**2
    assert mass == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", DENSITIES)
def test_half_the_precision_changes_next_to_nothing(name: str) -> None:
    density, data = fitted_density(name, (1, 6, 6)), digits((1, 6, 6), seed=1)
    (before, *_) = density.evaluate(data, torch.Generator().manual_seed(0))
    round_to_half(density)
    (after, *_) = density.evaluate(data, torch.Generator().manual_seed(0))
    assert after.value == pytest.approx(before.value, abs=2e-3)


@pytest.mark.parametrize("name", DENSITIES)
def test_served_density_is_that_of_levels_and_noise(name: str) -> None:
    density, levels = fitted_density(name, (1, 4, 4)), digits((1, 4, 4), count=5, seed=1).images
    noise = torch.rand(levels.shape, generator=torch.Generator().manual_seed(0))
    served = graph_of(density, "log_likelihood")(levels, noise)
    assert torch.allclose(served, density.log_density(levels + noise), atol=1e-4)


def test_a_certain_pixel_is_certain_to_the_width_of_a_level_and_no_more() -> None:
    """Dequantised, a pixel that is always black is worth a quarter of a bit, or with doubt more."""
    data = digits((1, 4, 4))
    data.images[:, :, 0] = 0
    mixture = fit(GaussianMixture((1, 4, 4), components=2), data)
    assert isinstance(mixture, GaussianMixture)
    variance = (2 * mixture.log_deviations).exp().unflatten(1, (4, 4))[:, 0]
    assert torch.allclose(variance, torch.tensor(2 / 12), rtol=0.3)


def test_mixture_has_the_density_of_scikit_learn() -> None:
    mixture, x = fitted_density("mixture", (1, 4, 4)), digits((1, 4, 4), seed=1).images + 0.3
    assert isinstance(mixture, GaussianMixture)
    theirs = SklearnMixture(3, covariance_type="diag")
    theirs.weights_ = mixture.log_weights.double().exp().numpy()
    theirs.means_ = mixture.means.double().numpy()
    theirs.precisions_cholesky_ = (-mixture.log_deviations.double()).exp().numpy()
    expected = theirs.score_samples(x.flatten(1).numpy())
    np.testing.assert_allclose(mixture.log_density(x).numpy(), expected, rtol=1e-5)


def test_kernels_have_the_density_of_scikit_learn() -> None:
    kernels, x = fitted_density("kernels", (1, 4, 4)), digits((1, 4, 4), seed=1).images + 0.3
    assert isinstance(kernels, KernelDensity)
    width = kernels.log_width.double().exp()
    theirs = SklearnKernelDensity(bandwidth=1.0).fit(((kernels.centres + 0.5) / width).numpy())
    expected = theirs.score_samples((x.flatten(1) / width).numpy()) - width.log().sum().item()
    np.testing.assert_allclose(kernels.log_density(x).numpy(), expected, rtol=1e-5)


def test_bandwidth_is_the_one_under_which_others_are_the_likeliest() -> None:
    generator = np.random.default_rng(0)
    centres, judges = generator.normal(size=(200, 2)), generator.normal(size=(300, 2))
    chosen = choose_bandwidth(centres, judges)
    scores = [
        SklearnKernelDensity(bandwidth=width).fit(centres).score(judges) for width in BANDWIDTHS
    ]
    assert chosen == BANDWIDTHS[np.argmax(scores)]
    assert BANDWIDTHS[0] < chosen < BANDWIDTHS[-1], "the best is inside of what was tried"


def covariance(model: ProbabilisticPCA) -> Tensor:
    variance = (2 * model.log_deviation).exp()
    return model.weight @ model.weight.T + variance * torch.eye(model.event_size)


def test_ppca_is_the_normal_density_of_its_covariance() -> None:
    model = fit(ProbabilisticPCA((1, 4, 4), components=3), digits((1, 4, 4)))
    assert isinstance(model, ProbabilisticPCA)
    x = digits((1, 4, 4), seed=1).images.flatten(1) + 0.3
    normal = torch.distributions.MultivariateNormal(model.mean, covariance(model))
    found = model.log_density(x.unflatten(1, (1, 4, 4)))
    assert torch.allclose(found, normal.log_prob(x), rtol=1e-4)


def test_ppca_has_the_covariance_of_scikit_learn_and_the_blur_of_dequantisation() -> None:
    data = digits((1, 4, 4))
    model = fit(ProbabilisticPCA((1, 4, 4), components=3), data)
    assert isinstance(model, ProbabilisticPCA)
    theirs = PCA(3).fit(data.images.flatten(1).double().numpy()).get_covariance() + np.eye(16) / 12
    np.testing.assert_allclose(covariance(model).numpy(), theirs, rtol=1e-3, atol=0.05)


def test_ppca_encodes_to_the_posterior_of_the_joint_normal() -> None:
    model = fit(ProbabilisticPCA((1, 4, 4), components=3), digits((1, 4, 4)))
    assert isinstance(model, ProbabilisticPCA)
    levels = digits((1, 4, 4), count=7, seed=1).images
    mean, deviation = graph_of(model, "encode")(levels)
    gain = torch.linalg.solve(covariance(model).double(), model.weight.double()).T  # [Q, D]
    expected = (levels.flatten(1) + 0.5 - model.mean).double() @ gain.T
    variance = torch.eye(3).double() - gain @ model.weight.double()
    assert torch.allclose(mean.double(), expected, atol=1e-4)
    assert torch.allclose(deviation.double(), variance.diagonal().sqrt(), atol=1e-4)


def test_a_few_components_reconstruct_better_than_none() -> None:
    data = digits((1, 4, 4))
    errors = []
    for components in (1, 8):
        model = fit(ProbabilisticPCA((1, 4, 4), components), data)
        errors.append(model.evaluate(data, torch.Generator())[1].value)
    mean = data.images.mean(dim=0)
    assert errors[1] < errors[0] < ((data.images - mean) / 255).square().mean().item()


# Sampling


def bin_masses(mixture: MixtureOfNormals, edges: np.ndarray) -> np.ndarray:
    """Return the mass of every cell of a grid over two pixels, by normal distribution functions."""
    log_weights, means, log_deviations = (part.double() for part in mixture.components())
    weights = log_weights.softmax(dim=0).numpy()
    standard = (edges[:, None, None] - means.numpy()) / log_deviations.exp().numpy()
    shares = np.diff(ndtr(standard), axis=0)  # [cells, K, 2]
    masses: np.ndarray = np.einsum("k,ik,jk->ij", weights, shares[..., 0], shares[..., 1])
    return masses


def draws(mixture: MixtureOfNormals, count: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(count, 2, generator=generator)
    uniform = torch.rand(count, 1, generator=generator)
    x: np.ndarray = mixture.draw(latent, uniform).flatten(1).numpy()
    return x


def chi_square(x: np.ndarray, masses: np.ndarray, edges: np.ndarray) -> float:
    """Compare draws with the masses of 15 cells: the 14 largest of them, and the others as one."""
    cells, _, _ = np.histogram2d(x[:, 0], x[:, 1], bins=(edges, edges))
    order = np.argsort(-masses, axis=None)
    found, expected = (
        np.append(values.flatten()[order[:14]], values.flatten()[order[14:]].sum())
        for values in (cells, len(x) * masses)
    )
    assert expected.min() > 5  # or the statistic does not follow chi-square
    return float(((found - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("name", MIXTURES)
def test_samples_follow_the_density_and_would_not_pass_for_another(name: str) -> None:
    """Chi-square with 14 degrees of freedom; 0.1 % of fair samplers would fail it."""
    mixture = fitted_density(name, (1, 1, 2))
    assert isinstance(mixture, MixtureOfNormals)
    edges = np.array([-np.inf, 95.0, 115.0, 150.0, np.inf])
    x, masses = draws(mixture, 100_000), bin_masses(mixture, edges)
    assert chi_square(x, masses, edges) < 36.1
    other = masses.copy()
    other[0, 0] += 0.02  # 2 % total variation, from one end of the grid to the other
    other[-1, -1] -= 0.02
    assert chi_square(x, other, edges) > 36.1


def test_a_sample_at_temperature_zero_is_the_middle_of_its_component() -> None:
    kernels = fitted_density("kernels", (1, 4, 4))
    assert isinstance(kernels, KernelDensity)
    uniform = (torch.arange(12)[:, None] + 0.5) / 12
    images = graph_of(kernels, "decode")(torch.zeros(12, 16), uniform)
    assert torch.equal(images.flatten(1), kernels.centres.float())


# k-means


def test_k_means_encodes_to_the_nearest_centre_and_decodes_it() -> None:
    data = digits((1, 4, 4))
    model = fit(KMeans((1, 4, 4), centres=5), data)
    assert isinstance(model, KMeans)
    code = graph_of(model, "encode")(data.images)
    distances = torch.cdist(data.images.flatten(1), model.centres.flatten(1))
    assert torch.equal(code.argmax(dim=1), distances.argmin(dim=1))
    assert torch.equal(code.sum(dim=1), torch.ones(len(code)))
    back = graph_of(model, "decode")(code)
    assert torch.equal(back, model.centres[distances.argmin(dim=1)])


def test_k_means_finds_the_centres_of_scikit_learn() -> None:
    data = digits((1, 4, 4))
    model = fit(KMeans((1, 4, 4), centres=2), data)
    assert isinstance(model, KMeans)
    theirs = SklearnKMeans(2, n_init=5, random_state=0).fit(data.images.flatten(1).numpy())
    ours = model.centres.flatten(1).numpy()
    order = [np.argsort(centres.sum(axis=1)) for centres in (ours, theirs.cluster_centers_)]
    np.testing.assert_allclose(ours[order[0]], theirs.cluster_centers_[order[1]], rtol=1e-3)


def test_k_means_offers_nothing_that_needs_a_distribution() -> None:
    assert set(KMeans((1, 4, 4), centres=2).card().operations) == {
        "encode",
        "decode",
        "reconstruct",
    }


@pytest.mark.parametrize("name", DENSITIES)
def test_bits_are_of_the_mass_of_a_level(name: str) -> None:
    """One pixel of all levels alike: a normal density spends at least the eight bits they have."""
    density = DENSITIES[name]((1, 1, 2))
    levels = torch.randint(256, (2000, 1, 1, 2), generator=torch.Generator().manual_seed(0))
    data = Batch(levels.float(), torch.zeros(2000, dtype=torch.int64))
    (figure, *_) = fit(density, data).evaluate(data, torch.Generator().manual_seed(0))
    assert 8 <= figure.value < 8.5
