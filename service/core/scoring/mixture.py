"""A mixture of Gaussians, fitted to normal images: how usual a combination of statistics is.

The density of what a model says of an image tells anomalies that no single number tells
(Morningstar et al. 2021, "Density of States Estimation", arXiv:2006.09273). One Gaussian is too
stiff for it: the likelihoods of simple images spread less than those of complex ones.
"""

from itertools import pairwise
from typing import Annotated, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from service.core.manifest_parts import Part

Floats = NDArray[np.float64]

RIDGE = 1e-6
"""Added to every variance. What differs by less than a thousandth of a standard deviation may be
float32 rounding, which changes with the batch and the processor."""

_COMPONENTS = (1, 2, 4, 8, 16)  # of a fit
_FITS = 4  # each from a start of its own: their mean is denser at new rows than any one of them
_ROWS_OF_A_COMPONENT = 50  # at least: fewer would fit chance
_ROUNDS = 200  # of expectation-maximisation at most
_GAIN = 1e-3  # nats a row; a round that gains less is the last, before chance is fitted


class Component(Part):
    """One Gaussian of a mixture; the covariance is without `RIDGE`."""

    weight: Annotated[float, Field(gt=0, le=1)]
    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]

    @model_validator(mode="after")
    def _is_a_gaussian(self) -> Self:
        size = len(self.mean)
        if any(len(part) != size for part in (self.covariance, *self.covariance)):
            raise ValueError("a covariance must have as many rows and columns as the mean has")
        if not np.array_equal(self.covariance, np.transpose(self.covariance)):
            raise ValueError("a covariance must be symmetric")
        try:
            _whitening(np.array([self.covariance]))
        except np.linalg.LinAlgError:
            raise ValueError("a covariance must be positive definite") from None
        return self


class Mixture(Part):
    """Weights that add up to 1, of Gaussians of the same size."""

    components: Annotated[tuple[Component, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _is_a_density(self) -> Self:
        if any(len(one.mean) != len(other.mean) for one, other in pairwise(self.components)):
            raise ValueError("all components must have the same size")
        if not np.isclose(sum(each.weight for each in self.components), 1.0):
            raise ValueError("the weights must add up to 1")
        return self

    @property
    def size(self) -> int:
        """How many numbers a row has."""
        return len(self.components[0].mean)

    def log_density(self, rows: Floats) -> Floats:
        """Return the log density of each row [N, size], in nats, [N]."""
        return _log_sum(_log_joint(self._arrays(), rows))

    def _arrays(self) -> "_Arrays":
        parts = self.components
        return _Arrays(
            np.array([part.weight for part in parts]),
            np.array([part.mean for part in parts]),
            np.array([part.covariance for part in parts]),
        )


class _Arrays(NamedTuple):
    """The parameters of K components of size D."""

    weights: Floats  # [K]
    means: Floats  # [K, D]
    covariances: Floats  # [K, D, D]


def fit_mixture(rows: Floats) -> Mixture:
    """Fit a mixture to rows [N, D], the mean of a few fits from starts of their own.

    A fit has as many components as give either half of the rows the highest density after fits to
    the other half: the data choose, and no anomaly is needed to.
    """
    halves = rows[::2], rows[1::2]
    numbers = [number for number in _COMPONENTS if number * _ROWS_OF_A_COMPONENT <= len(rows) // 2]
    number = max(numbers or [1], key=lambda number: _held_out_log_density(*halves, number))
    fitted = _mean_of_fits(rows, number)
    return Mixture(
        components=tuple(
            Component(weight=weight, mean=tuple(mean), covariance=tuple(map(tuple, covariance)))
            for weight, mean, covariance in zip(*(part.tolist() for part in fitted), strict=True)
        )
    )


def _held_out_log_density(one: Floats, other: Floats, number: int) -> float:
    """Return the mean log density of either half under a fit to the other, nats a row."""
    densities = [
        _log_sum(_log_joint(_mean_of_fits(fitted, number), held_out))
        for fitted, held_out in ((one, other), (other, one))
    ]
    return float(np.concatenate(densities).mean())


def _mean_of_fits(rows: Floats, number: int) -> _Arrays:
    """Return the mixture, in equal parts, of fits of so many components."""
    if number == 1:
        return _maximisation(rows, np.ones((len(rows), 1)))
    fits = [_expectation_maximisation(rows, number, seed) for seed in range(_FITS)]
    weights, means, covariances = (np.concatenate(part) for part in zip(*fits, strict=True))
    return _Arrays(weights / _FITS, means, covariances)


def _expectation_maximisation(rows: Floats, number: int, seed: int) -> _Arrays:
    """Fit components that start from rows drawn at random, each as wide as all rows together.

    Dempster, Laird and Rubin 1977, "Maximum Likelihood from Incomplete Data via the EM Algorithm".
    """
    everything = _covariance(rows, np.ones(len(rows)), rows.mean(axis=0))
    starts = np.random.default_rng(seed).choice(len(rows), number, replace=False)
    mixture = _Arrays(np.full(number, 1 / number), rows[starts], np.stack([everything] * number))
    before = -np.inf
    for _ in range(_ROUNDS):
        joint = _log_joint(mixture, rows)
        log_density = _log_sum(joint)
        if log_density.mean() - before < _GAIN:
            break
        before = log_density.mean()
        mixture = _maximisation(rows, np.exp(joint - log_density[:, None]))
    return mixture


def _maximisation(rows: Floats, responsibilities: Floats) -> _Arrays:
    """Return the components that rows [N, D] belong to by responsibilities [N, K]."""
    responsibilities = responsibilities + 1e-12  # a component that lost every row stays a Gaussian
    weights = responsibilities.sum(axis=0)
    means = responsibilities.T @ rows / weights[:, None]
    covariances = [
        _covariance(rows, share, mean)
        for share, mean in zip(responsibilities.T, means, strict=True)
    ]
    return _Arrays(weights / weights.sum(), means, np.stack(covariances))


def _covariance(rows: Floats, weights: Floats, mean: Floats) -> Floats:
    centred = rows - mean
    covariance = (weights[:, None] * centred).T @ centred / weights.sum()
    symmetric: Floats = (covariance + covariance.T) / 2.0
    return symmetric


def _whitening(covariances: Floats) -> Floats:
    """Return W [K, D, D], lower triangular, with W' W the inverse of covariance + RIDGE."""
    unit = np.eye(covariances.shape[-1])
    lower = np.linalg.cholesky(covariances + RIDGE * unit)
    return np.asarray(np.linalg.solve(lower, np.broadcast_to(unit, lower.shape)))


def _log_joint(mixture: _Arrays, rows: Floats) -> Floats:
    """Return log of weight times density for each row [N, D] and component, [N, K]."""
    whitening = _whitening(mixture.covariances)
    centred = rows[:, None, :] - mixture.means  # [N, K, D]
    # No matrix product: how BLAS adds up depends on the rows that share the call.
    whitened = (centred[:, :, None, :] * whitening).sum(axis=3)
    scale = np.log(np.diagonal(whitening, axis1=1, axis2=2)).sum(axis=1)  # [K]
    constant = np.log(mixture.weights) + scale - 0.5 * rows.shape[1] * np.log(2.0 * np.pi)
    log_joint: Floats = constant - 0.5 * (whitened * whitened).sum(axis=2)
    return log_joint


def _log_sum(log_joint: Floats) -> Floats:
    """Return log of the sum over components of exp(log_joint), [N, K] to [N]."""
    highest = log_joint.max(axis=1, keepdims=True)
    total: Floats = highest[:, 0] + np.log(np.exp(log_joint - highest).sum(axis=1))
    return total
