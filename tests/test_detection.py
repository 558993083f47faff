"""The figures of docs/anomaly.md: areas and rates by their definitions, sets as they are said."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from benchmarks.anomaly.baselines import CODEC_SIZE, mahalanobis, pixel_statistics
from benchmarks.anomaly.detection import auroc, false_positive_rate, matched
from benchmarks.anomaly.findings import Detector, Section, Validity, findings
from benchmarks.anomaly.image_sets import Pair, shuffle_quarters
from benchmarks.anomaly.scoring import RAW, load_model, statistics_of
from service.core.engine import Engine
from service.core.requests import LikelihoodRequest, LikelihoodResult
from tests.fakes import RASTER_LEVELS, SIDE

few_values = arrays.arrays(
    np.float64,
    st.integers(2, 30),
    elements=st.one_of(st.integers(-3, 3).map(float), st.just(math.inf)),
)


# Areas and rates


@given(few_values, few_values)
def test_auroc_is_the_share_of_pairs_in_order_ties_counting_half(
    normal: np.ndarray, anomalous: np.ndarray
) -> None:
    wins = [float(a > n) + 0.5 * float(a == n) for a in anomalous for n in normal]
    assert auroc(normal, anomalous).value == pytest.approx(np.mean(wins), abs=1e-12)


@given(few_values, few_values)
def test_the_standard_error_is_that_of_delong(normal: np.ndarray, anomalous: np.ndarray) -> None:
    wins = np.array([[float(a > n) + 0.5 * float(a == n) for n in normal] for a in anomalous])
    variance = wins.mean(axis=1).var(ddof=1) / len(anomalous)
    variance += wins.mean(axis=0).var(ddof=1) / len(normal)
    assert auroc(normal, anomalous).error == pytest.approx(math.sqrt(variance), abs=1e-9)


def test_the_standard_error_is_the_spread_of_areas_that_are_drawn_again() -> None:
    random = np.random.default_rng(0)
    drawn = [auroc(random.normal(size=150), random.normal(0.7, 1.5, 100)) for _ in range(500)]
    spread = np.std([area.value for area in drawn], ddof=1)
    assert np.mean([area.error for area in drawn]) == pytest.approx(spread, rel=0.15)


@given(few_values, few_values, st.sampled_from([0.5, 0.95, 1.0]))
def test_the_false_positive_rate_is_the_lowest_of_thresholds_that_find_enough(
    normal: np.ndarray, anomalous: np.ndarray, found: float
) -> None:
    enough = [t for t in anomalous if np.mean(anomalous >= t) >= found]
    lowest = min(float(np.mean(normal >= threshold)) for threshold in enough)
    assert false_positive_rate(normal, anomalous, found) == lowest


# Sets


@given(few_values, few_values)
def test_matched_images_are_as_many_pairs_of_one_value_as_there_are(
    first: np.ndarray, second: np.ndarray
) -> None:
    places = matched(first, second)
    assert np.array_equal(first[places[0]], second[places[1]])
    assert all(len(set(each.tolist())) == len(each) for each in places)
    pairs = sum(min(np.sum(first == v), np.sum(second == v)) for v in np.unique(first))
    assert len(places[0]) == pairs


def test_shuffled_quarters_are_the_same_four_in_another_order() -> None:
    images = np.arange(200 * 4 * 6).reshape(200, 4, 6, 1)
    shuffled = shuffle_quarters(images, np.random.default_rng(0))

    def quarters(image: np.ndarray) -> list[bytes]:
        return [image[y : y + 2, x : x + 3].tobytes() for y in (0, 2) for x in (0, 3)]

    orders = set()
    for before, after in zip(map(quarters, images), map(quarters, shuffled), strict=True):
        assert sorted(after) == sorted(before)
        orders.add(tuple(before.index(quarter) for quarter in after))
    assert (0, 1, 2, 3) not in orders and len(orders) == 23


# Baselines


def test_pixel_statistics_are_what_they_are_called() -> None:
    image = np.array([[0, 4], [8, 4]], np.uint8).reshape(1, 2, 2, 1)
    right, below = (4 + 4) / 2, (8 + 0) / 2
    assert pixel_statistics(image).tolist() == [[4.0, math.sqrt(8.0), 0.25, right + below]]


def test_mahalanobis_counts_standard_deviations_along_and_against_the_correlation() -> None:
    normal = np.array([[1.0, 1.0], [-1.0, -1.0], [0.5, -0.5], [-0.5, 0.5]])
    along, against = mahalanobis(normal, np.array([[1.0, 1.0], [1.0, -1.0]]))
    assert along == pytest.approx(math.sqrt(1.5)) and against == pytest.approx(math.sqrt(6.0))


# Scores


@pytest.mark.parametrize("name", ["toy-flow", "toy-raster"])
async def test_images_are_scored_as_the_service_scores_them(
    engine: Engine, repository: Path, name: str
) -> None:
    images = np.random.default_rng(0).integers(0, RASTER_LEVELS, (40, SIDE, SIDE, 1))
    statistics = statistics_of(load_model(repository / name / "1"), images.astype(np.uint8))
    answer = await engine.run("likelihood", LikelihoodRequest(images=images[20:]), model=name)
    assert isinstance(answer.result, LikelihoodResult)
    assert np.array_equal(statistics["log_likelihood"][20:], answer.result.log_likelihood)


# Sentences


def detector(model: str | None, score: str, shift: float) -> Detector:
    random = np.random.default_rng(len(score))
    names = ("test", "train", "other")
    return Detector(
        model, score, {name: random.normal(shift * (name == "other"), 1, 500) for name in names}
    )


def said(*detectors: Detector) -> str:
    pairs = [Pair("the other", "test", "other"), Pair("training images", "test", "train")]
    counts = {"test": 500, "train": 500, "other": 500}
    return "\n".join(findings(Section("toys", pairs, counts, detectors)))


@pytest.mark.parametrize(
    ("shift", "words"),
    [(9.0, "reaches 0.99: the other"), (2.5, "falls short of 0.99"), (0.5, "stay hard: the other")],
)
def test_the_page_says_what_is_reached_and_what_stays_hard(shift: float, words: str) -> None:
    text = said(detector("toy", RAW, 0.0), detector("toy", "combined", shift))
    assert words in text and "does not tell training images" in text
    assert "fails" not in text and "alone does better" not in text


def test_the_page_says_when_something_simpler_does_better_and_when_likelihood_fails() -> None:
    text = said(
        detector("toy", RAW, -3.0),
        detector("toy", "combined", 1.0),
        detector("toy", "typicality", 3.0),
        detector(None, "pixel statistics", 3.0),
        detector(None, "codec size", 1.0),
    )
    assert "`typicality` alone does better on: the other" in text
    assert "Without a model, pixel statistics alone does better on: the other" in text
    assert "codec size" not in text
    assert "Raw likelihood fails" in text


def test_the_page_compares_averages_where_codec_size_tells_little() -> None:
    model = (detector("toy", RAW, 0.0), detector("toy", "combined", 9.0))
    blind, pixels = detector(None, CODEC_SIZE, 0.0), detector(None, "pixel statistics", 9.0)
    text = said(*model, blind, pixels)
    assert "where codec size tells little (the other): combined 1.000" in text
    assert "pixel statistics 1.000" in text
    assert "tells little" not in said(*model, detector(None, CODEC_SIZE, 9.0), pixels)


def test_p_values_are_bounded_as_promised() -> None:
    validity = Validity("toy", 5000, {"combined": np.ones(2000)}, {})
    expected = 0.01 + 3 * math.sqrt(0.01 * 0.99 * (1 / 5000 + 1 / 2000))
    assert validity.bound(0.01) == pytest.approx(expected)
    assert validity.bound(0.01) < validity.bound(0.01, family=2) < validity.bound(0.01, family=7)
