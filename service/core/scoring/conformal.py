"""What scores mean beside those of a calibration: p-values, rates, q-values, a test of a group.

The scores of n images that nothing was fitted on are compared with new ones. If a new image is
exchangeable with them, its p-value is valid whatever the model and the score are (Vovk, Gammerman &
Shafer 2005, "Algorithmic learning in a random world", chapter 2).
"""

import functools
import math

import numpy as np
from numpy.typing import NDArray

from service.core import noise
from service.errors import OutOfRange

Floats = NDArray[np.float64]

DEFAULT_RATE = 0.01
"""The false-positive rate of a verdict where none is asked for."""
COVERAGE = 0.95
"""The probability that the interval of the realised rate holds it."""
GROUPS = 999
"""Reference groups of the group test; its p-value is a multiple of 1 / (GROUPS + 1)."""


def p_values(calibration: Floats, scores: Floats) -> Floats:
    """Return (1 + #{calibration >= score}) / (n + 1) of each score; ties count as at least.

    `calibration` [n] is sorted, ascending. An infinite score has the lowest p-value, 1 / (n + 1).
    """
    p: Floats = (1 + _at_least(calibration, scores)) / (len(calibration) + 1)
    return p


def percentiles(calibration: Floats, scores: Floats) -> Floats:
    """Return the percentage of calibration scores that lie below each score."""
    below = len(calibration) - _at_least(calibration, scores)
    shares: Floats = 100.0 * below / len(calibration)
    return shares


def _at_least(calibration: Floats, scores: Floats) -> NDArray[np.intp]:
    return len(calibration) - np.searchsorted(calibration, scores, side="left")


def rejected_ranks(rate: float, count: int) -> int:
    """Return k: an image is anomalous at a false-positive rate where p <= k / (count + 1) <= rate.

    k = floor(rate (count + 1)). Raises OutOfRange where the rate is not inside (0, 1), or finer
    than `count` calibration images resolve.
    """
    if not 0.0 < rate < 1.0:
        raise OutOfRange(f"false_positive_rate is {rate}; allowed is more than 0 and less than 1")
    ranks = round(rate * (count + 1))
    ranks -= ranks / (count + 1) > rate  # so that rounding never parts k from p <= rate
    if ranks < 1:
        raise OutOfRange(
            f"false_positive_rate is {rate}; {count} calibration images resolve rates from "
            f"{1 / (count + 1):.6f}: ask for a higher rate, or calibrate with more images"
        )
    return ranks


@functools.lru_cache(maxsize=256)
def realised_rate_interval(ranks: int, count: int) -> tuple[float, float]:
    """Return the central interval that holds the realised false-positive rate with `COVERAGE`.

    A calibration is one draw of n images; given it, the rate at which normal images are called
    anomalous is Beta(k, n + 1 - k) for scores without ties, and lower with them (Vovk 2012,
    "Conditional validity of inductive conformal predictors", proposition 2a).
    """
    tail = (1.0 - COVERAGE) / 2.0
    return _beta_quantile(tail, ranks, count), _beta_quantile(1.0 - tail, ranks, count)


def _beta_quantile(probability: float, ranks: int, count: int) -> float:
    """Return the quantile of Beta(k, n + 1 - k), by P(Beta <= x) = P(Binomial(n, x) >= k)."""
    hits = np.arange(ranks, count + 1, dtype=np.float64)
    logs = np.log(np.arange(1, count + 1, dtype=np.float64))
    factorial = np.concatenate([[0.0], np.cumsum(logs)])
    choose = (factorial[count] - factorial - factorial[::-1])[ranks:]
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2.0
        terms = choose + hits * math.log(middle) + (count - hits) * math.log1p(-middle)
        if np.exp(terms).sum() < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2.0


def q_values(p: Floats) -> Floats:
    """Return the lowest false discovery rate at which each of p-values [N] would be rejected.

    The procedure is Benjamini & Hochberg's (1995). P-values of one calibration depend on each
    other such that it holds (Bates et al. 2023, "Testing for outliers with conformal p-values").
    """
    order = np.argsort(p, kind="stable")
    bounds = p[order] * (len(p) / np.arange(1, len(p) + 1))  # never below p by rounding
    q = np.empty_like(p)
    q[order] = np.minimum.accumulate(bounds[::-1])[::-1]
    return np.minimum(q, 1.0)


def drift(p: Floats, count: int) -> float:
    """Return how many standard deviations the mean rank of images is above that of normal ones.

    `p` [N] are p-values by a calibration of `count` images. Their mean is the rank-sum statistic of
    two samples, and N + `count` exchangeable images have its mean and variance (Mann & Whitney
    1947, "On a test of whether one of two random variables is stochastically larger than the
    other"): the chance deviations of the calibration are allowed for. Above 0, images score higher,
    so are more anomalous. Ties with the calibration count as below it, and lower the result.
    """
    size = len(p)
    above = 1.0 - (p * (count + 1) - 1.0) / count  # share of the calibration with a lower score
    deviation = math.sqrt((count + size + 1) / (12.0 * count * size))
    return float((above.mean() - 0.5) / deviation)


def group_p_value(calibration: Floats, scores: Floats, seed: int) -> float:
    """Return the p-value of a group of images: is its mean score one of a group of normal images?

    A permutation test: the mean is compared with those of `GROUPS` groups of the same size, drawn
    without replacement from the calibration's scores and the group's together. Groups drawn from
    the calibration alone would share its chance deviations, and call too many groups anomalous.
    Raises OutOfRange for an empty group and for one that is larger than the calibration.
    """
    size, count = len(scores), len(calibration)
    if not 1 <= size <= count:
        raise OutOfRange(
            f"the group has {size} images; allowed are 1 to {count}, the calibration's number"
        )
    finite = np.minimum(scores, 1e30)  # infinite scores would leave no sums to compare
    pool = np.concatenate([calibration, finite])
    means = pool[_random_groups(seed, size, len(pool))].mean(axis=1)
    own = finite.mean()
    # Equal scores summed in another order differ in the last digits: they are ties.
    reached = means >= own - 1e-12 * abs(own)
    return float((1 + reached.sum()) / (GROUPS + 1))


def _random_groups(seed: int, size: int, population: int) -> NDArray[np.int64]:
    """Return `GROUPS` subsets, [GROUPS, size], all equally likely (algorithm F2 of Floyd 1987)."""
    groups = np.arange(GROUPS)
    seeds = np.full(GROUPS, seed, np.uint64)
    uniforms = noise.uniform(seeds, "group", groups.astype(np.uint64), size)
    taken = np.zeros((GROUPS, population), np.bool_)
    picks = np.empty((GROUPS, size), np.int64)
    for column in range(size):
        last = population - size + column
        pick = (uniforms[:, column] * (last + 1)).astype(np.int64)
        picks[:, column] = np.where(taken[groups, pick], last, pick)
        taken[groups, picks[:, column]] = True
    return picks
