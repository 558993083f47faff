"""P-values are valid for every n, rates are what they say, and refusals tell what would do."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.scoring.conformal import (
    GROUPS,
    drift,
    group_p_value,
    p_values,
    percentiles,
    q_values,
    realised_rate_interval,
    rejected_ranks,
)
from service.errors import OutOfRange

SCORES = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=12)


def p_value(calibration: list[float], score: float) -> float:
    return float(p_values(np.sort(calibration), np.array([score]))[0])


# P-values


@given(SCORES.filter(lambda scores: len(scores) > 1))
def test_p_values_are_valid_exactly_whichever_of_the_images_is_the_new_one(
    scores: list[float],
) -> None:
    """Under exchangeability each of n + 1 values is the new one with the same probability."""
    found = [
        p_value(scores[:index] + scores[index + 1 :], score) for index, score in enumerate(scores)
    ]
    for rank in range(1, len(scores) + 1):
        share = Fraction(sum(p <= rank / len(scores) for p in found), len(scores))
        assert share <= Fraction(rank, len(scores))
        if len(set(scores)) == len(scores):
            assert share == Fraction(rank, len(scores))


@given(SCORES, st.integers(-5, 5).map(float))
def test_a_p_value_counts_calibration_scores_that_are_at_least_as_high(
    calibration: list[float], score: float
) -> None:
    count = len(calibration)
    at_least = sum(other >= score for other in calibration)
    assert p_value(calibration, score) == (1 + at_least) / (count + 1)
    below = percentiles(np.sort(calibration), np.array([score]))[0]
    assert below == pytest.approx(100.0 * (count - at_least) / count)


@given(SCORES, SCORES)
def test_a_higher_score_never_has_a_higher_p_value(
    calibration: list[float], scores: list[float]
) -> None:
    p = p_values(np.sort(calibration), np.sort(scores))
    assert np.all(np.diff(p) <= 0)


def test_an_infinite_score_has_the_lowest_p_value() -> None:
    assert p_value([1.0, 2.0, 3.0], np.inf) == 0.25


# Rates


@given(st.integers(1, 6000), st.integers(1, 6000))
def test_a_rate_that_is_a_rank_rejects_up_to_that_rank(first: int, second: int) -> None:
    rank, count = min(first, second), max(first, second)
    assert rejected_ranks(rank / (count + 1), count) == rank


@given(st.floats(0.001, 0.999), st.integers(1000, 6000))
def test_the_rejected_ranks_are_those_whose_p_value_is_at_most_the_rate(
    rate: float, count: int
) -> None:
    ranks = rejected_ranks(rate, count)
    assert ranks / (count + 1) <= rate < (ranks + 1) / (count + 1)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 2.0, np.nan, np.inf])
def test_a_rate_outside_the_unit_interval_is_refused(rate: float) -> None:
    with pytest.raises(OutOfRange, match="more than 0 and less than 1"):
        rejected_ranks(rate, 5000)


def test_a_rate_finer_than_the_calibration_is_refused_with_the_finest_one() -> None:
    assert rejected_ranks(1 / 5001, 5000) == 1
    with pytest.raises(OutOfRange, match=r"5000 calibration images resolve rates from 0\.000200"):
        rejected_ranks(0.00019, 5000)


def test_the_interval_of_the_realised_rate_is_that_of_the_beta_distribution() -> None:
    # Beta(1, n): P(X <= x) = 1 - (1 - x)^n; Beta(n, 1): P(X <= x) = x^n.
    for count in (1, 10, 5000):
        low, high = realised_rate_interval(1, count)
        assert low == pytest.approx(1 - 0.975 ** (1 / count), rel=1e-9)
        assert high == pytest.approx(1 - 0.025 ** (1 / count), rel=1e-9)
        assert realised_rate_interval(count, count) == pytest.approx(
            (0.025 ** (1 / count), 0.975 ** (1 / count)), rel=1e-9
        )


def test_the_realised_rate_of_many_calibrations_falls_into_the_interval() -> None:
    rng, count, rate = np.random.default_rng(0), 300, 0.05
    ranks = rejected_ranks(rate, count)
    uniforms = np.sort(rng.random((20_000, count)), axis=1)
    realised = 1.0 - uniforms[:, count - ranks]  # of a new uniform to exceed the k-th highest
    low, high = realised_rate_interval(ranks, count)
    # Four standard errors of 20,000 draws at 0.025.
    assert np.mean(realised < low) == pytest.approx(0.025, abs=0.0045)
    assert np.mean(realised > high) == pytest.approx(0.025, abs=0.0045)


# Many images


@given(st.lists(st.integers(1, 20).map(lambda rank: rank / 20), min_size=1, max_size=15))
def test_q_values_are_the_lowest_rates_at_which_benjamini_and_hochberg_reject(
    p: list[float],
) -> None:
    q = q_values(np.array(p))
    count = len(p)
    for rate in sorted({*q.tolist(), 0.03, 0.2, 0.7}):
        # The procedure itself: reject the k lowest, k the last with p_(k) <= rate k / count.
        ordered = sorted(p)
        passed = [
            k for k in range(1, count + 1) if ordered[k - 1] * count / k <= rate * (1 + 1e-12)
        ]
        threshold = ordered[passed[-1] - 1] if passed else -1.0
        rejected = np.array(p) <= threshold
        assert np.array_equal(q <= rate * (1 + 1e-12), rejected)
    assert np.all(q >= p) and np.all(q <= 1.0)


def test_the_permutation_test_of_a_group_agrees_with_all_permutations() -> None:
    calibration, group = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), np.array([3.5, 4.5])
    pool = np.concatenate([calibration, group])
    means = [np.mean(chosen) for chosen in itertools.combinations(pool, 2)]
    exact = np.mean(np.array(means) >= group.mean())
    # Four standard errors of 999 groups.
    error = 4 * np.sqrt(exact * (1 - exact) / GROUPS)
    assert group_p_value(calibration, group, seed=3) == pytest.approx(exact, abs=error)


def test_a_group_of_normal_images_is_rarely_called_anomalous() -> None:
    rng, trials, rate = np.random.default_rng(1), 400, 0.1
    found = []
    for seed in range(trials):
        scores = rng.gamma(2.0, size=330)  # skewed, and a group of a tenth of the calibration
        found.append(group_p_value(np.sort(scores[:300]), scores[300:], seed))
    assert np.mean(np.array(found) <= rate) <= rate + 3 * np.sqrt(rate * (1 - rate) / trials)


def test_a_group_that_leans_one_way_is_found_though_each_image_is_usual() -> None:
    rng = np.random.default_rng(2)
    calibration = np.sort(rng.normal(size=2000))
    group = rng.normal(0.8, size=50)
    assert np.median(p_values(calibration, group)) > 0.1
    assert group_p_value(calibration, group, seed=0) == 1 / (GROUPS + 1)


def test_equal_scores_are_ties_in_a_group_too() -> None:
    assert group_p_value(np.full(50, 0.1), np.full(7, 0.1), seed=0) == 1.0


def test_a_group_with_an_infinite_score_is_anomalous() -> None:
    assert group_p_value(np.arange(500.0), np.array([3.0, np.inf]), seed=0) < 0.02


@pytest.mark.parametrize("size", [0, 21])
def test_a_group_that_is_empty_or_larger_than_the_calibration_is_refused(size: int) -> None:
    with pytest.raises(OutOfRange, match=f"the group has {size} images; allowed are 1 to 20"):
        group_p_value(np.arange(20.0), np.ones(size), seed=0)


# Drift


@pytest.mark.parametrize(("count", "size"), [(5, 1), (4, 3), (2, 5)])
def test_drift_has_mean_0_and_variance_1_over_all_ways_to_choose_the_calibration(
    count: int, size: int
) -> None:
    ranks = np.arange(float(count + size))
    found = []
    for chosen in itertools.combinations(ranks, count):
        calibration = np.array(chosen)
        found.append(drift(p_values(calibration, np.setdiff1d(ranks, calibration)), count))
    assert np.mean(found) == pytest.approx(0.0, abs=1e-12)
    assert np.var(found) == pytest.approx(1.0)


def test_drift_is_positive_where_images_score_higher() -> None:
    calibration = np.arange(100.0)
    assert drift(p_values(calibration, calibration[80:]), 100) > 4
    assert drift(p_values(calibration, calibration[:20]), 100) < -4
