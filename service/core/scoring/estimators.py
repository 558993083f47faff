"""Log-likelihoods of weights: over noise draws, and over the classes that nobody gave.

A weight estimates p(x), or p(x|y) of a class y, without bias; what is here is of log weights.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def mean_log_weight(weights: Floats) -> tuple[Floats, Floats | None]:
    """Return the mean over draws of log weights [N, k], and its standard error for k > 1.

    Where a weight is 0, its log is -inf: so is the mean, and the error is not a number.
    """
    draws = weights.shape[1]
    if draws == 1:
        return weights[:, 0], None
    with np.errstate(invalid="ignore"):
        return weights.mean(axis=1), weights.std(axis=1, ddof=1) / np.sqrt(draws)


def log_mean_weight(weights: Floats) -> tuple[Floats, Floats | None]:
    """Return log(mean over draws of exp(log weights)) for [N, k], and its standard error.

    The error is the delta method's: the standard error of the mean weight over the mean weight.
    Where a few weights dominate it says too little: it can't exceed 1 nat. Where every weight is 0,
    the result is -inf, and the error is not a number.
    """
    highest = _highest(weights, axis=1)
    mean, error = mean_log_weight(np.exp(weights - highest))
    with np.errstate(invalid="ignore", divide="ignore"):
        return highest[:, 0] + np.log(mean), None if error is None else error / mean


class Marginal(NamedTuple):
    """Log-likelihoods of images without a class, and what each class has to do with them."""

    log_likelihood: Floats  # [N]
    standard_error: Floats | None  # [N]
    posterior: Floats  # [N, K], p(y|x)


def marginalise(weights: Floats, prior: Sequence[float], importance: bool) -> Marginal:
    """Return the log of the sum over classes of p(y) p(x|y), of log weights [N, K, k].

    With `importance`, p(x|y) is the mean of weights over draws, and the log of the sum is a lower
    bound in expectation as it is for one class. Without, log p(x|y) is the mean of log weights,
    which is at most the log of their mean, for each class and so for the sum: a lower bound too.
    The classes share their draws, so the error is of what each draw adds to the sum.
    """
    logs = _log(prior)
    if importance:
        of_classes = _log_sum(weights, axis=2) - np.log(weights.shape[2])
        score, error = log_mean_weight(_log_sum(weights + logs[:, None], axis=1))
    else:
        of_classes = weights.mean(axis=2)
        score, error = _log_sum(of_classes + logs, axis=1), None
    joint = of_classes + logs
    shares = np.exp(joint - _highest(joint, axis=1))
    total = shares.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):  # an image that no class can have says nothing of its own
        posterior = np.where(total == 0, prior, shares / total)
    if not importance:  # delta method: the derivative by log p(x|y) is p(y|x)
        _, error = mean_log_weight(expected(posterior[:, :, None], weights))
    return Marginal(score, error, posterior)


def marginalise_map(maps: Floats, prior: Sequence[float]) -> Floats:
    """Return log p of each pixel given those before it, in raster order, [N, H, W].

    `maps`, [N, K, H, W], holds the same given the class too. What the class may be is known the
    better the more pixels are; they add up to the log-likelihood without a class.
    """
    count, classes, height, width = maps.shape
    so_far = maps.reshape(count, classes, -1).cumsum(axis=2) + _log(prior)[:, None]
    until = _log_sum(so_far, axis=1)  # [N, H * W]
    with np.errstate(invalid="ignore"):
        return np.diff(until, axis=1, prepend=0.0).reshape(count, height, width)


def expected(posterior: Floats, values: Floats) -> Floats:
    """Return the mean over classes, the second axis, of values weighted by p(y|x)."""
    with np.errstate(invalid="ignore"):  # a class that is impossible has no say, whatever its value
        mean: Floats = np.where(posterior == 0, 0.0, posterior * values).sum(axis=1)
    return mean


def _log(prior: Sequence[float]) -> Floats:
    with np.errstate(divide="ignore"):
        logs: Floats = np.log(np.array(prior, np.float64))
    return logs


def _log_sum(logs: Floats, axis: int) -> Floats:
    highest = _highest(logs, axis)
    with np.errstate(divide="ignore"):
        total: Floats = np.log(np.exp(logs - highest).sum(axis=axis))
    return total + highest.squeeze(axis)


def _highest(logs: Floats, axis: int) -> Floats:
    """Return the highest along an axis, 0 where that is -inf: -inf - -inf is no number."""
    highest = logs.max(axis=axis, keepdims=True)
    return np.where(np.isneginf(highest), 0.0, highest)
