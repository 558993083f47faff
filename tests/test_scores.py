"""Statistics to scores: higher for the more anomalous, whatever the units, alone or in a batch."""

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from service.core.scoring.scores import Fit, codec_bits, fit, rounded
from service.errors import InvalidRequest


def normal_statistics(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Statistics of images that a model likes: everything grows with an image's complexity."""
    rng = np.random.default_rng(seed)
    complexity = rng.lognormal(0.0, 0.3, count)
    noise = rng.normal(size=(5, count))
    return {
        "log_likelihood": -900.0 * complexity * np.exp(0.05 * noise[0]),
        "background_log_likelihood": -1000.0 * complexity * np.exp(0.05 * noise[1]),
        "codec_bits": np.round(2000.0 * complexity * np.exp(0.1 * noise[2])),
        "reconstruction_error": 800.0 * complexity,
        "kl_divergence": 25.0 + noise[3],
        "latent_norm": 8.0 + 0.7 * noise[4],
    }


def changed(statistics: dict[str, np.ndarray], **changes: float) -> dict[str, np.ndarray]:
    return statistics | {name: statistics[name] + shift for name, shift in changes.items()}


@pytest.fixture(scope="module")
def fitted() -> Fit:
    return fit(normal_statistics(2000))


# The codec


def paeth_of_png(left: int, above: int, corner: int) -> int:
    """The predictor as the PNG specification writes it."""
    estimate = left + above - corner
    distances = (abs(estimate - left), abs(estimate - above), abs(estimate - corner))
    return (left, above, corner)[distances.index(min(distances))]


@given(arrays.arrays(np.uint8, st.tuples(*[st.integers(1, 5)] * 4)))
def test_codec_bits_are_those_of_the_filter_of_png_and_deflate(levels: np.ndarray) -> None:
    expected = []
    for image in levels.astype(int):
        padded = np.pad(image, ((1, 0), (1, 0), (0, 0)))
        filtered = bytearray()
        for row, column, channel in np.ndindex(image.shape):
            neighbours = ((row + 1, column), (row, column + 1), (row, column))
            guess = paeth_of_png(*(int(padded[at][channel]) for at in neighbours))
            filtered.append((image[row, column, channel] - guess) % 256)
        expected.append(8 * (len(zlib.compress(bytes(filtered), 9)) - 6))  # header and checksum
    assert codec_bits(levels).tolist() == expected


def test_codec_bits_tell_flat_from_smooth_from_noise() -> None:
    smooth = np.add.outer(np.arange(28), np.arange(28) ** 2 // 30)
    noise = np.random.default_rng(0).integers(0, 256, (28, 28))
    flat = np.full((28, 28), 200)
    bits = codec_bits(np.stack([flat, smooth, noise])[..., None].astype(np.uint8))
    assert bits[0] < bits[1] < bits[2]
    assert bits[2] >= 8 * 28 * 28  # noise can't be compressed


# Orientation


@pytest.mark.parametrize(
    ("score", "change"),
    [
        ("typicality", {"log_likelihood": -5000.0}),
        ("typicality", {"log_likelihood": 5000.0}),
        ("complexity_adjusted", {"log_likelihood": -5000.0}),
        ("complexity_adjusted", {"codec_bits": -1500.0}),
        ("likelihood_ratio", {"log_likelihood": -300.0}),
        ("likelihood_ratio", {"background_log_likelihood": 300.0}),
        ("reconstruction_error", {"reconstruction_error": 300.0}),
        ("kl_divergence", {"kl_divergence": 10.0}),
        ("kl_divergence", {"kl_divergence": -10.0}),
        ("latent_norm", {"latent_norm": 5.0}),
        ("latent_norm", {"latent_norm": -5.0}),
        ("combined", {"log_likelihood": -5000.0}),
        ("combined", {"codec_bits": 9000.0}),
        ("combined", {"latent_norm": -5.0}),
    ],
)
def test_every_score_is_higher_for_the_more_anomalous(
    fitted: Fit, score: str, change: dict[str, float]
) -> None:
    normal = normal_statistics(50, seed=1)
    before, after = fitted.score(normal)[score], fitted.score(changed(normal, **change))[score]
    assert np.all(after > before)


def test_an_image_that_is_too_simple_is_anomalous_though_its_likelihood_is_high(
    fitted: Fit,
) -> None:
    simple = {name: column[:1] for name, column in normal_statistics(1).items()} | {
        "log_likelihood": np.array([-60.0]),
        "background_log_likelihood": np.array([-60.0]),
        "codec_bits": np.array([400.0]),
    }
    assert (
        fitted.score(simple)["combined"] > fitted.score(normal_statistics(500, 2))["combined"].max()
    )


def test_a_combination_that_is_never_seen_is_anomalous_though_each_part_is_usual(
    fitted: Fit,
) -> None:
    normal = normal_statistics(500, seed=3)
    simplest = {name: column[[column.argmin()]] for name, column in normal.items()}
    mixed = simplest | {"codec_bits": normal["codec_bits"].max(keepdims=True)}
    assert fitted.score(mixed)["combined"] > fitted.score(normal)["combined"].max()


# What exists and what does not


def test_only_scores_whose_statistics_exist_are_computed() -> None:
    statistics = normal_statistics(200)
    likelihood = {"log_likelihood": statistics["log_likelihood"]}
    assert fit(likelihood).scores == ("typicality", "combined")
    raster = likelihood | {
        name: statistics[name] for name in ("background_log_likelihood", "codec_bits")
    }
    assert fit(raster).scores == (
        "typicality", "complexity_adjusted", "likelihood_ratio", "combined",
    )  # fmt: skip
    assert len(fit(statistics).scores) == 7


def test_a_statistic_that_never_varies_is_left_out_of_the_combination() -> None:
    statistics = normal_statistics(200) | {"codec_bits": np.full(200, 64.0)}
    fitted = fit(statistics)
    assert "codec_bits" not in fitted.combination.statistics
    assert np.all(np.isfinite(fitted.score(statistics)["combined"]))


def test_statistics_that_repeat_each_other_count_once() -> None:
    statistics = normal_statistics(500)
    statistics["kl_divergence"] = statistics["codec_bits"]
    alone = {name: column for name, column in statistics.items() if name != "kl_divergence"}
    both = fit(statistics).score(statistics)["combined"]
    once = fit(alone).score(alone)["combined"]
    # The density of what varies is the same; that of the repetition is the same for every image.
    assert np.allclose(both - once, (both - once)[0], rtol=1e-4)


def test_images_that_are_all_alike_fit_nothing() -> None:
    statistics = {name: np.full(100, 7.0) for name in normal_statistics(1)}
    with pytest.raises(InvalidRequest, match="all alike"):
        fit(statistics)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_fitted_and_scores_highest(fitted: Fit, value: float) -> None:
    statistics = normal_statistics(100)
    statistics["log_likelihood"][3] = value
    with pytest.raises(InvalidRequest, match="log_likelihood is not finite"):
        fit(statistics)
    scores = fitted.score(statistics)
    for name in ("typicality", "complexity_adjusted", "likelihood_ratio", "combined"):
        assert scores[name][3] == np.inf
        assert np.all(np.isfinite(np.delete(scores[name], 3)))
    assert np.all(np.isfinite(scores["latent_norm"]))


# Invariance


@settings(deadline=None, max_examples=30)
@given(
    st.integers(-30, 30),
    st.floats(-1000.0, 1000.0),
    st.sampled_from(sorted(normal_statistics(1))),
)
def test_combined_does_not_depend_on_units_or_origins(power: int, shift: float, name: str) -> None:
    statistics = normal_statistics(300)
    moved = statistics | {name: (statistics[name] + shift) * 2.0**power}
    expected = fit(statistics).score(statistics)["combined"]
    assert np.allclose(fit(moved).score(moved)["combined"], expected, rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 49), st.integers(1, 50))
def test_scores_do_not_depend_on_what_else_is_in_the_batch(start: int, count: int) -> None:
    statistics = normal_statistics(50)
    fitted = fit(statistics)
    part = slice(start, start + count)
    together = fitted.score(statistics)
    alone = fitted.score({name: column[part] for name, column in statistics.items()})
    assert all(np.array_equal(alone[name], together[name][part]) for name in fitted.scores)


# Rounding


@given(arrays.arrays(np.float64, 20, elements=st.floats(-1e25, 1e25)))
def test_rounding_is_once_and_for_all_and_keeps_seven_digits_and_the_order(
    scores: np.ndarray,
) -> None:
    once = rounded(scores)
    assert np.array_equal(rounded(once), once)
    # Halves are rounded to even numbers, and 22 digits after the point is where it ends.
    assert np.allclose(once, [float(f"{score:.6e}") for score in scores], rtol=2e-6, atol=1e-22)
    assert np.allclose(once, scores, rtol=5.1e-7, atol=1e-22)
    order = np.argsort(scores)
    assert np.all(np.diff(once[order]) >= 0)


@given(st.floats(1e-9, 1e9))
def test_rounded_scores_are_short_in_json(score: float) -> None:
    digits = repr(float(rounded(np.array([score]))[0])).partition("e")[0]
    assert len(digits.replace(".", "").strip("0")) <= 7
