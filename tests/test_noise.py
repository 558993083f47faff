"""The noise scheme: published known answers, independence of neighbours, sound distributions."""

import json
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core import latents, noise

seeds = st.integers(0, noise.MAXIMUM_SEED)
items = st.integers(0, 2**64 - 1)
purposes = st.sampled_from(["latent", "posterior", "dequantisation", "class"])

# Random123, tests/kat_vectors: philox4x32-10, counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


def draw(seed: int, purpose: str, item: int, size: int, start: int = 0) -> np.ndarray:
    return noise.uniform(
        np.array([seed], np.uint64), purpose, np.array([item], np.uint64), size, start
    )[0]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter: str, key: str, expected: str) -> None:
    def words(text: str) -> np.ndarray:
        return np.array([int(word, 16) for word in text.split()], np.uint32)[:, None, None]

    assert np.array_equal(noise.philox(words(counter), words(key)), words(expected))


def test_the_scheme_gives_its_own_test_vectors() -> None:
    """Clients may reimplement the scheme: these vectors are the promise that it never changes."""
    vectors = json.loads((Path(__file__).parent / "noise_vectors.json").read_text())
    assert vectors["scheme"] == noise.SCHEME
    for vector in vectors["uniform"]:
        actual = draw(vector["seed"], vector["purpose"], vector["item"], 4, vector["position"])
        assert actual.tolist() == vector["values"]


@given(seeds, purposes, items, st.integers(0, 40), st.integers(1, 40))
def test_a_draw_depends_on_its_absolute_position_alone(
    seed: int, purpose: str, item: int, start: int, size: int
) -> None:
    whole = draw(seed, purpose, item, start + size)
    assert np.array_equal(draw(seed, purpose, item, size, start), whole[start:])


@given(st.lists(st.tuples(seeds, items), min_size=1, max_size=8))
def test_a_row_does_not_depend_on_its_neighbours(rows: list[tuple[int, int]]) -> None:
    batch = noise.uniform(
        np.array([seed for seed, _ in rows], np.uint64),
        "latent",
        np.array([item for _, item in rows], np.uint64),
        5,
    )
    for row, (seed, item) in zip(batch, rows, strict=True):
        assert np.array_equal(row, draw(seed, "latent", item, 5))


@given(seeds, items)
def test_seeds_items_and_purposes_give_different_streams(seed: int, item: int) -> None:
    base = draw(seed, "latent", item, 8)
    assert not np.array_equal(base, draw(seed ^ 1, "latent", item, 8))
    assert not np.array_equal(base, draw(seed ^ 2**52, "latent", item, 8))
    assert not np.array_equal(base, draw(seed, "latent", item ^ 1, 8))
    assert not np.array_equal(base, draw(seed, "latent", item ^ 2**63, 8))
    assert not np.array_equal(base, draw(seed, "posterior", item, 8))


def test_uniforms_are_strictly_inside_the_unit_interval_and_flat() -> None:
    values = draw(7, "latent", 0, 200_000)
    assert values.min() > 0.0 and values.max() < 1.0
    counts, _ = np.histogram(values, bins=20, range=(0.0, 1.0))
    chi_square = ((counts - 10_000) ** 2 / 10_000).sum()
    assert chi_square < 43.8  # the 0.999 quantile for 19 degrees of freedom


@given(st.floats(1e-12, 1.0 - 1e-12))
def test_the_inverse_normal_agrees_with_the_standard_library(probability: float) -> None:
    actual = noise.inverse_normal(np.array([probability]))[0]
    assert actual == pytest.approx(NormalDist().inv_cdf(probability), rel=1e-12, abs=1e-12)


@given(st.lists(st.floats(1e-300, 1.0 - 1e-16), min_size=1, max_size=9))
def test_the_inverse_normal_of_one_does_not_depend_on_the_others(values: list[float]) -> None:
    together = noise.inverse_normal(np.array(values))
    assert together.tolist() == [noise.inverse_normal(np.array([v]))[0] for v in values]


@given(st.floats(0.01, 8.0))
def test_truncated_normals_stay_inside_and_keep_their_order(bound: float) -> None:
    uniforms = np.linspace(1e-9, 1.0 - 1e-9, 101)
    values = noise.normal(uniforms, bound)
    assert np.abs(values).max() <= bound
    assert np.all(np.diff(values) >= 0)
    assert values[50] == pytest.approx(0.0, abs=1e-9)


requests = st.tuples(
    seeds, st.integers(1, 5), st.floats(0.0, 3.0), st.sampled_from([None, 0.5, 2.0])
)


@given(st.lists(requests, min_size=1, max_size=5), st.integers(1, 9))
def test_latents_drawn_with_those_of_others_are_those_drawn_alone(
    asked: list[tuple[int, int, float, float | None]], size: int
) -> None:
    alone = [
        latents.draw(seed, count, size, temperature, truncation)
        for seed, count, temperature, truncation in asked
    ]
    joined = alone[0].join(alone[1:])
    assert joined.dtype == np.float32
    assert np.array_equal(joined, np.concatenate([draws.join([]) for draws in alone]))
    assert np.array_equal(alone[0][1:].join([]), alone[0].join([])[1:])


def test_seeds_that_are_drawn_survive_a_javascript_number() -> None:
    drawn = {noise.draw_seed() for _ in range(100)}
    assert len(drawn) == 100
    assert all(0 <= seed <= 2**53 - 1 for seed in drawn)


def test_an_item_key_follows_the_content() -> None:
    assert noise.item_key(b"image") == noise.item_key(b"image")
    assert noise.item_key(b"image") != noise.item_key(b"imagf")
