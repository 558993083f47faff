"""A mixture of Gaussians: a density, with as many components as the data speak for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.core.scoring.mixture import Mixture, fit_mixture

GRID = np.linspace(-8.0, 8.0, 161)


def two_clusters(count: int, seed: int = 0) -> np.ndarray:
    """Rows [count, 2]: a third lie narrow at -2, the others wide at +2, the axes correlated."""
    rng = np.random.default_rng(seed)
    narrow = np.arange(count) % 3 == 0
    rows = rng.normal(size=(count, 2)) * np.where(narrow, 0.2, 1.0)[:, None]
    rows[:, 1] += rows[:, 0]
    return rows + np.where(narrow, -2.0, 2.0)[:, None]


def log_density_by_formula(mixture: Mixture, row: np.ndarray) -> float:
    total = 0.0
    for part in mixture.components:
        covariance, centred = np.array(part.covariance), row - np.array(part.mean)
        exponent = -0.5 * centred @ np.linalg.inv(covariance) @ centred
        scale = np.sqrt((2.0 * np.pi) ** len(row) * np.linalg.det(covariance))
        total += part.weight * np.exp(exponent) / scale
    return float(np.log(total))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.sampled_from([120, 400, 1000]))
def test_the_density_is_the_formula_and_integrates_to_one(seed: int, count: int) -> None:
    mixture = fit_mixture(two_clusters(count, seed))
    rows = np.stack(np.meshgrid(GRID, GRID, indexing="ij"), axis=-1).reshape(-1, 2)
    area = (GRID[1] - GRID[0]) ** 2
    assert np.exp(mixture.log_density(rows)).sum() * area == pytest.approx(1.0, abs=0.02)
    for row in two_clusters(5, seed + 1):
        expected = log_density_by_formula(mixture, row)
        assert mixture.log_density(row[None])[0] == pytest.approx(expected, abs=1e-3)


def test_clusters_are_found_and_one_gaussian_stays_one() -> None:
    clusters = sorted(fit_mixture(two_clusters(2000)).components, key=lambda part: part.mean)
    assert len(clusters) >= 2
    assert clusters[0].mean == pytest.approx((-2.0, -2.0), abs=0.1)
    assert sum(part.weight for part in clusters if part.mean[0] < -1.0) == pytest.approx(
        1 / 3, abs=0.03
    )
    single = fit_mixture(np.random.default_rng(0).normal(size=(2000, 3)))
    assert len(single.components) == 1


def test_a_fit_is_better_on_rows_that_it_has_not_seen_than_one_gaussian() -> None:
    rows, new = two_clusters(2000), two_clusters(2000, seed=1)
    centred, spread = new - rows.mean(axis=0), np.cov(rows.T)
    exponent = (centred @ np.linalg.inv(spread) * centred).sum(axis=1)
    single = -0.5 * exponent - np.log(2.0 * np.pi) - 0.5 * np.linalg.slogdet(spread)[1]
    assert fit_mixture(rows).log_density(new).mean() > single.mean() + 0.5


def test_few_rows_are_fitted_by_few_components() -> None:
    assert len(fit_mixture(two_clusters(99)).components) == 1
    four_fits_of_two = 8
    assert len(fit_mixture(two_clusters(250)).components) <= four_fits_of_two


def test_columns_that_repeat_each_other_are_fitted() -> None:
    column = np.random.default_rng(0).normal(size=(500, 1))
    mixture = fit_mixture(np.hstack([column, column]))
    usual, contradictory = mixture.log_density(np.array([[1.0, 1.0], [1.0, 0.9]]))
    assert usual > contradictory + 100


def test_far_away_the_density_still_falls() -> None:
    mixture = fit_mixture(two_clusters(1000))
    steps = np.array([[10.0**power, 0.0] for power in range(1, 9)])
    assert np.all(np.diff(mixture.log_density(steps)) < 0)


def test_the_same_rows_give_the_same_fit() -> None:
    assert fit_mixture(two_clusters(500)) == fit_mixture(two_clusters(500))
