"""A calibration is a file that proves itself, and its p-values hold where it says they do."""

import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.core.manifest_parts import Split
from service.core.scoring.calibration import (
    MINIMUM_IMAGES,
    Calibration,
    Data,
    Protocol,
    identify,
    in_halves,
    list_calibrations,
    make_calibration,
    read_calibration,
    save_calibration,
)
from service.core.scoring.conformal import p_values
from service.core.scoring.scores import CODEC
from service.errors import ArtifactError, InvalidRequest, OutOfRange
from tests.test_scores import normal_statistics

DIGEST = "sha256:" + "a" * 64
PROTOCOL = Protocol(
    conditioning="none", binarisation=None, estimator="elbo", draws=4, seed=0, codec=CODEC
)


def split(count: int) -> Split:
    return Split(count=count, sha256="sha256:" + "0" * 64)


def make(statistics: dict[str, np.ndarray], fitted: int, **changes: Any) -> Calibration:
    """A calibration that is fitted on the first images and calibrated on the rest."""
    count = len(statistics["log_likelihood"])
    given = {
        "artifact_digest": DIGEST,
        "protocol": PROTOCOL,
        "data": Data(source="toys", score_fit=split(fitted), calibrate=split(count - fitted)),
        "score_fit": {name: column[:fitted] for name, column in statistics.items()},
        "calibrate": {name: column[fitted:] for name, column in statistics.items()},
    }
    return make_calibration(**given | changes)


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return make(normal_statistics(300), 150)


def test_a_calibration_is_read_back_bit_for_bit(calibration: Calibration, tmp_path: Path) -> None:
    path = save_calibration(tmp_path / "calibrations", calibration)
    assert path.name == f"{calibration.id}.json.xz"
    read = read_calibration(path, DIGEST)
    assert read.model_dump() == calibration.model_dump()
    statistics = normal_statistics(40, seed=5)
    for name, scores in calibration.fit.score(statistics).items():
        assert np.array_equal(read.fit.score(statistics)[name], scores)
        assert np.array_equal(read.sorted_scores[name], calibration.sorted_scores[name])
    again = save_calibration(tmp_path, read)
    assert again.read_bytes() == path.read_bytes()


def test_a_calibration_that_can_not_be_written_leaves_nothing(
    calibration: Calibration, tmp_path: Path
) -> None:
    (tmp_path / f"{calibration.id}.json.xz").mkdir()
    with pytest.raises(OSError):
        save_calibration(tmp_path, calibration)
    assert [path.name for path in tmp_path.iterdir()] == [f"{calibration.id}.json.xz"]


def test_a_calibration_that_is_not_compressed_is_read_as_well(
    calibration: Calibration, tmp_path: Path
) -> None:
    path = save_calibration(tmp_path, calibration)
    plain = tmp_path / f"{calibration.id}.json"
    plain.write_bytes(lzma.decompress(path.read_bytes()))
    assert read_calibration(plain, DIGEST).model_dump() == calibration.model_dump()
    assert set(list_calibrations(tmp_path)) == {plain, path}


def test_the_id_follows_the_content(calibration: Calibration) -> None:
    assert make(normal_statistics(300), 150).id == calibration.id
    assert make(normal_statistics(300, seed=1), 150).id != calibration.id
    other = PROTOCOL.model_copy(update={"draws": 5})
    assert make(normal_statistics(300), 150, protocol=other).id != calibration.id


def test_five_thousand_images_with_every_score_make_a_small_file(tmp_path: Path) -> None:
    path = save_calibration(tmp_path, make(normal_statistics(5500), 500))
    assert path.stat().st_size < 120_000


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_a_calibration_image_scores_what_it_scored(seed: int) -> None:
    """Rounded on one side only, an image would not tie with itself, and p would be too low."""
    statistics = normal_statistics(2 * MINIMUM_IMAGES, seed)
    made = make(statistics, MINIMUM_IMAGES)
    own = {name: column[MINIMUM_IMAGES:] for name, column in statistics.items()}
    for name, scores in made.fit.score(own).items():
        p = p_values(made.sorted_scores[name], scores)
        assert p.min() >= 2 / (MINIMUM_IMAGES + 1)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
def test_normal_images_are_rarely_called_anomalous(rate: float) -> None:
    """The bound is three standard errors of both the calibration's and the new images' draw."""
    calibrated, new = 5000, 5000
    statistics = normal_statistics(2000 + calibrated + new, seed=8)
    made = make({name: column[:-new] for name, column in statistics.items()}, 2000)
    fresh = {name: column[-new:] for name, column in statistics.items()}
    slack = 3 * np.sqrt(rate * (1 - rate) * (1 / calibrated + 1 / new))
    for name, scores in made.fit.score(fresh).items():
        assert np.mean(p_values(made.sorted_scores[name], scores) <= rate) <= rate + slack


def test_what_differs_between_protocols_is_said_in_words() -> None:
    other = PROTOCOL.model_copy(update={"draws": 5, "conditioning": "given"})
    assert PROTOCOL.difference(PROTOCOL) is None
    assert other.difference(PROTOCOL) == "conditioning is given, not none and draws is 5, not 4"


# Images


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 300))
def test_halves_do_not_depend_on_the_order_of_images(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 3, (count, 2, 2, 1)).astype(np.uint8)  # many are alike
    halves = in_halves(images)
    shuffled = in_halves(rng.permutation(images))
    assert [len(half) for half in halves] == [count // 2, count - count // 2]
    assert np.array_equal(np.concatenate(halves), np.concatenate(shuffled))
    assert sorted(map(bytes, np.concatenate(halves))) == sorted(map(bytes, images))


def test_copies_fall_into_both_halves() -> None:
    images = np.zeros((400, 2, 2, 1), np.uint8)
    images[200:] = np.random.default_rng(0).integers(0, 255, (200, 2, 2, 1))
    black = np.sum(in_halves(images)[0].sum(axis=(1, 2, 3)) == 0)
    assert 70 < black < 130  # 100, and three standard deviations of a draw without replacement


def test_images_are_identified_whatever_their_order() -> None:
    images = np.arange(40, dtype=np.uint8).reshape(10, 2, 2, 1)
    assert identify(images) == identify(images[::-1])
    assert identify(images).count == 10
    assert identify(images[:9]) != identify(images)


# Refusals


@pytest.mark.parametrize(("fitted", "count"), [(98, 300), (200, 298)])
def test_too_few_images_are_refused_with_the_number_that_would_do(fitted: int, count: int) -> None:
    with pytest.raises(OutOfRange, match=r"98.* images can't calibrate; give at least 198"):
        make(normal_statistics(count), fitted)


@pytest.mark.parametrize("row", [0, 250])
def test_an_image_without_a_finite_statistic_does_not_calibrate(row: int) -> None:
    statistics = normal_statistics(300)
    statistics["latent_norm"][row] = np.nan
    with pytest.raises(InvalidRequest, match="latent_norm is not finite for an image"):
        make(statistics, 150)


def first_score(content: dict[str, Any], value: float) -> None:
    content["scores"]["combined"][0] = value


def component_of(content: dict[str, Any]) -> Any:
    return content["fit"]["combination"]["density"]["components"][0]


WIDE = {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 2**28}
"""A filter of which the reader would take more memory than it may."""

SPOILERS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "altered": (lambda content: content["data"].update(source="elsewhere"), "contradicts its id"),
    "unsorted": (lambda content: first_score(content, 99.0), "combined must be ascending"),
    "long": (lambda content: first_score(content, 0.012345678), "7 significant digits"),
    "missing": (lambda content: content["scores"].pop("typicality"), "scores must be"),
    "short": (lambda content: content["scores"]["typicality"].pop(), "149 scores of 150 images"),
    "unknown": (lambda content: content.update(more=1), "more: Extra inputs"),
    "mistyped": (lambda content: content["protocol"].update(draws="4"), "protocol.draws"),
    "small": (lambda content: content["data"]["score_fit"].update(count=98), "at least 99 images"),
    "singular": (
        lambda content: component_of(content).update(covariance=[[-1.0] * 6] * 6),
        "positive definite",
    ),
    "lopsided": (
        lambda content: component_of(content)["covariance"][0].__setitem__(1, 0.0),
        "symmetric",
    ),
    "uneven": (lambda content: content["fit"]["combination"]["mean"].pop(), "named statistics"),
    "ragged": (lambda content: component_of(content)["mean"].pop(), "as many rows and columns"),
    "too light": (lambda content: component_of(content).update(weight=0.5), "add up to 1"),
    "unfitted": (lambda content: content["fit"]["medians"].pop("codec_bits"), "codec_bits"),
}


@pytest.mark.parametrize("spoiler", SPOILERS)
def test_a_broken_calibration_is_refused_by_name(
    calibration: Calibration, tmp_path: Path, spoiler: str
) -> None:
    path = tmp_path / "broken.json"
    content = json.loads(calibration.model_dump_json())
    spoil, words = SPOILERS[spoiler]
    spoil(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=path.name) as refusal:
        read_calibration(path, DIGEST)
    assert words in str(refusal.value)


@pytest.mark.parametrize("text", ["", "not JSON", "[" * 100_000, '{"id": NaN}', "[]"])
def test_a_file_that_is_no_calibration_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ArtifactError, match=r"broken\.json"):
        read_calibration(path, DIGEST)


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"none\.json can't be read: No such file"):
        read_calibration(tmp_path / "none.json", DIGEST)


def flipped(packed: bytes) -> bytes:
    middle = len(packed) // 2
    return packed[:middle] + bytes([packed[middle] ^ 1]) + packed[middle + 1 :]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda packed: b"{}" * 20, "can't be decompressed"),
        (lambda packed: b"", "cut short"),
        (lambda packed: packed[:-1], "cut short"),
        (flipped, "can't be decompressed"),
        (lambda packed: lzma.compress(b"[" * 1000), "is not JSON|Invalid JSON"),
        (lambda packed: lzma.compress(b" " * 2**20), "holds more than 1048575 bytes"),
        (lambda packed: lzma.compress(b"{}", filters=[WIDE]), "can't be decompressed: Memory"),
    ],
)
def test_what_does_not_decompress_to_a_calibration_is_refused_by_name(
    calibration: Calibration,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[bytes], bytes],
    words: str,
) -> None:
    monkeypatch.setattr("service.core.scoring.calibration._MAXIMUM_BYTES", 2**20 - 1)
    path = save_calibration(tmp_path, calibration)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ArtifactError, match=rf"{path.name}.*({words})"):
        read_calibration(path, DIGEST)


def test_a_calibration_of_another_artifact_is_refused(
    calibration: Calibration, tmp_path: Path
) -> None:
    path = save_calibration(tmp_path, calibration)
    with pytest.raises(ArtifactError, match="is of artifact sha256:aaa"):
        read_calibration(path, "sha256:" + "b" * 64)
