"""PixelCNN, PixelRNN and PixelCNN++: causal, distributions, and painted as full passes would."""

import itertools
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model_zoo.autoregressive.binary_rows import BinaryRows
from model_zoo.autoregressive.pixel_rnn import PixelRNN
from model_zoo.autoregressive.pixelcnn import PixelCNN
from model_zoo.autoregressive.pixelcnn_plus_plus import PixelCNNPlusPlus, log_mass
from model_zoo.autoregressive.row_step import keep_likely

Array = np.ndarray
Model = BinaryRows | PixelCNNPlusPlus

NEAR_TIE = 1e-4
"""Two samplers may differ where a cumulative probability is this close to the uniform number."""

MODELS: Mapping[str, Callable[[], Model]] = {
    "binary": lambda: PixelCNN((1, 6, 9), blocks=3, channels=6),
    "binary, one row high": lambda: PixelCNN((1, 1, 5), blocks=1, channels=4),
    "recurrent": lambda: PixelRNN((1, 6, 9), layers=2, hidden=3),
    "recurrent, one row high": lambda: PixelRNN((1, 1, 5), layers=1, hidden=2),
    "8-bit": lambda: PixelCNNPlusPlus((1, 7, 6), blocks=4, channels=4),
    "few levels": lambda: PixelCNNPlusPlus((1, 5, 4), 2, channels=3, levels=5, reach=1),
}
TINY: Mapping[str, Callable[[], Model]] = {
    "binary": lambda: PixelCNN((1, 2, 2), blocks=2, channels=4),
    "recurrent": lambda: PixelRNN((1, 2, 2), layers=2, hidden=2),
    "few levels": lambda: PixelCNNPlusPlus((1, 2, 2), 2, channels=4, logistics=2, levels=3),
}


def with_opinions(make: Callable[[], Model], sharpness: float = 3.0) -> Model:
    """A model with another head than a fresh one, which is nearly uniform and proves little."""
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter *= sharpness
    return model


def level_count(model: Model) -> int:
    return 2 if isinstance(model, BinaryRows) else model.levels


@torch.no_grad()
def distributions(model: Model, levels: Array) -> Array:
    """Return p(x_i | x_1 .. x_i-1) of every level by a full pass, [N, H, W, levels]."""
    images = torch.from_numpy(levels)
    if isinstance(model, BinaryRows):
        on = model.logits(images[:, None].float())[:, 0].double().sigmoid()
        return torch.stack([1 - on, on], dim=-1).numpy()
    mixture = model.mixture(images).double()
    return log_mass(mixture, torch.arange(model.levels), model.levels).exp().numpy()


@torch.no_grad()
def log_probability(model: Model, levels: Array) -> Array:
    images = torch.from_numpy(levels)
    if isinstance(model, BinaryRows):
        return model.log_probability(images[:, None].float()).numpy()
    return model.log_probability(images).numpy()


def all_images(model: Model) -> Array:
    _, height, width = model.image_shape
    every = itertools.product(range(level_count(model)), repeat=height * width)
    return np.array(list(every)).reshape(-1, height, width)


# The models


@pytest.mark.parametrize("name", MODELS)
def test_no_pixel_sees_itself_or_a_later_one(name: str) -> None:
    model = with_opinions(MODELS[name])
    height, width = model.image_shape[1:]
    generator = np.random.default_rng(1)
    levels = generator.integers(level_count(model), size=(1, height, width))
    before = distributions(model, levels)[0].reshape(height * width, -1)
    for pixel in range(height * width):
        other = levels.copy()
        other.flat[pixel] = (other.flat[pixel] + 1) % level_count(model)
        after = distributions(model, other)[0].reshape(height * width, -1)
        assert np.array_equal(after[: pixel + 1], before[: pixel + 1])


def test_a_pixel_of_the_binary_one_sees_three_rows_and_one_for_every_block() -> None:
    model = with_opinions(lambda: PixelCNN((1, 9, 5), blocks=3, channels=8))
    levels = np.zeros((1, 9, 5), np.int64)
    seen = distributions(model, levels)[0, 8, 2]
    for row, is_seen in ((1, False), (2, True), (7, True)):
        other = levels.copy()
        other[0, row] = 1
        assert np.array_equal(distributions(model, other)[0, 8, 2], seen) != is_seen


def test_a_pixel_of_the_recurrent_one_sees_a_triangle_up_to_the_first_row() -> None:
    """Of one layer behind a convolution that reaches 3 up and to the sides."""
    model = with_opinions(lambda: PixelRNN((1, 9, 21), layers=1, hidden=4))
    levels = np.zeros((1, 9, 21), np.int64)
    seen = distributions(model, levels)[0, 8, 10]
    for row, column, is_seen in ((0, 10, True), (1, 17, True), (5, 15, True), (5, 16, False)):
        other = levels.copy()
        other[0, row, column] = 1
        assert np.array_equal(distributions(model, other)[0, 8, 10], seen) != is_seen


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_of_likelihoods_says_what_the_model_says(name: str) -> None:
    model = with_opinions(MODELS[name])
    height, width = model.image_shape[1:]
    levels = np.random.default_rng(1).integers(level_count(model), size=(3, height, width))
    graph = model.graphs()[0].module
    with torch.no_grad():
        total, of_pixels = graph(torch.from_numpy(levels)[:, None].float())
    np.testing.assert_allclose(total, log_probability(model, levels), rtol=1e-5)
    of_levels = np.take_along_axis(distributions(model, levels), levels[..., None], axis=3)
    np.testing.assert_allclose(of_pixels, np.log(of_levels[..., 0]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_all_images_together_have_probability_one(name: str) -> None:
    model = with_opinions(TINY[name])
    total = np.exp(log_probability(model, all_images(model)).astype(np.float64)).sum()
    assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("log_scale", [-9.0, -3.0, 0.0, 4.0])
@pytest.mark.parametrize("mean", [-50.0, -1.0, 0.3, 7.0])
def test_the_masses_of_a_mixture_add_up_to_one_however_narrow_or_far(
    mean: float, log_scale: float
) -> None:
    mixture = torch.tensor([0.2, -1.0, mean, 0.5, log_scale, -2.0])
    mass = log_mass(mixture, torch.arange(256), 256)
    assert torch.isfinite(mass).all()
    assert mass.double().exp().sum().item() == pytest.approx(1, abs=1e-5)


# Row by row


def paint(model: Model, uniform: Array, starts: Array | None = None, **wanted: Any) -> Array:
    """Levels and log-probabilities [2, N, H, W], by uniform numbers [N, H, W].

    Image i joins at the call `starts[i]`, where an earlier one has left its caches.
    """
    name = "row_step_filtered" if "top_k" in wanted else "row_step"
    (step,) = [graph.module for graph in model.graphs() if graph.name == name]
    count, height, width = uniform.shape
    starts = np.zeros(count, np.int64) if starts is None else starts
    forced = wanted.pop("forced", np.full(uniform.shape, -1))
    steady = {"temperature": np.ones(count, np.float32), **wanted}
    ports = {port.name: port for port in model.graphs()[1].inputs if port.role == "cache"}
    caches = {key: np.ones(port.shape_of(count), np.float32) for key, port in ports.items()}
    results = np.zeros((2, count, height, width))
    for call in range(height + starts.max()):
        row = call - starts
        caches = {key: values.copy() for key, values in caches.items()}
        for key, port in ports.items():
            caches[key][(slice(None),) * port.batch_axis + (row == 0,)] = 0
        at = np.arange(count), row.clip(0, height - 1)
        of_row = forced[at].T, uniform[at].T
        inputs = (*caches.values(), *steady.values(), *of_row)
        with torch.no_grad():
            outputs = step(*(torch.from_numpy(values) for values in inputs))
        *drawn, above, activations = (values.numpy() for values in outputs)
        caches = {"rows_above": above, "activations": activations}
        painting = np.flatnonzero((row >= 0) & (row < height))
        for result, values in zip(results, drawn, strict=True):
            result[painting, row[painting]] = values.T[painting]
    return results


def uniforms(model: Model, count: int, seed: int = 0) -> Array:
    shape = (count, *model.image_shape[1:])
    return np.random.default_rng(seed).random(shape, np.float32)


FILTERS: Mapping[str, dict[str, Any]] = {
    "plain": {},
    "cold": {"temperature": np.array([0.3, 0.8, 1.7], np.float32)},
    "filtered": {
        "top_k": np.array([1, 2, 200]),
        "top_p": np.array([1.0, 0.7, 0.4], np.float32),
    },
}


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("name", MODELS)
def test_rows_paint_what_a_full_pass_draws(name: str, filters: str) -> None:
    model, wanted = with_opinions(MODELS[name]), FILTERS[filters]
    uniform = uniforms(model, 3)
    levels = paint(model, uniform, **wanted)[0].astype(np.int64)
    temperature = wanted.get("temperature", np.ones(3)).reshape(-1, 1, 1, 1)
    probability = distributions(model, levels) ** (1 / temperature)
    probability /= probability.sum(axis=3, keepdims=True)
    if "top_k" in wanted:
        kept = [
            keep_likely(
                torch.from_numpy(of_image).reshape(-1, level_count(model)),
                torch.tensor(int(top_k)).expand(of_image[..., 0].size),
                torch.tensor(float(top_p)).expand(of_image[..., 0].size),
            ).reshape(of_image.shape)
            for of_image, top_k, top_p in zip(
                probability, wanted["top_k"], wanted["top_p"], strict=True
            )
        ]
        probability = torch.stack(kept).numpy()
    cumulative = probability.cumsum(axis=3) / probability.sum(axis=3, keepdims=True)
    agrees = (cumulative <= uniform[..., None]).sum(axis=3) == levels
    near_tie = np.abs(cumulative - uniform[..., None]).min(axis=3) < NEAR_TIE
    assert (agrees | near_tie).all()
    assert near_tie.mean() < 0.05 or level_count(model) > 100, "or nothing is proved"


@pytest.mark.parametrize("name", ["binary", "recurrent", "8-bit"])
def test_images_at_different_rows_of_one_call_are_those_painted_alone(name: str) -> None:
    model = with_opinions(MODELS[name])
    uniform = uniforms(model, 5)
    together = paint(model, uniform, starts=np.array([0, 3, 3, 1, 9]))
    for image in range(5):
        levels, scored = paint(model, uniform[[image]])
        assert np.array_equal(together[0, [image]], levels)
        np.testing.assert_allclose(together[1, [image]], scored, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["binary", "recurrent", "8-bit"])
def test_a_forced_beginning_is_continued_alike_with_the_likelihood_of_the_whole(name: str) -> None:
    model = with_opinions(MODELS[name])
    uniform = uniforms(model, 4)
    free = paint(model, uniform)
    levels = free[0].astype(np.int64)
    exact = log_probability(model, levels)
    np.testing.assert_allclose(free[1].sum(axis=(1, 2)), exact, rtol=0, atol=1e-3)
    for rows in range(model.image_shape[1] + 1):
        known = np.arange(model.image_shape[1])[:, None] < rows
        again = paint(model, uniform, forced=np.where(known, levels, -1))
        assert np.array_equal(again[0], free[0])
        np.testing.assert_allclose(again[1], free[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_samples_follow_the_distribution(name: str) -> None:
    """Chi-square over all images; a fair sampler fails it once in 1,000 seeds.

    Another model whose distribution is 2 % away, in total variation, does fail.
    """
    model, count = with_opinions(TINY[name], sharpness=1.5), 100_000
    images = all_images(model)
    expected = count * np.exp(log_probability(model, images).astype(np.float64))
    assert expected.min() > 5  # or the statistic does not follow chi-square
    other = two_percent_away(model, expected / count)
    for drawn, fits in ((model, True), (other, False)):
        levels = paint(drawn, uniforms(drawn, count))[0].astype(np.int64)
        cells = np.ravel_multi_index(levels.reshape(count, 4).T, (level_count(model),) * 4)
        found = np.bincount(cells, minlength=len(images))
        statistic = ((found - expected) ** 2 / expected).sum()
        assert (statistic < CHI_SQUARE_LIMITS[name]) == fits


CHI_SQUARE_LIMITS = {"binary": 37.7, "recurrent": 37.7, "few levels": 124.8}
"""Of 15 and of 80 degrees of freedom."""


def two_percent_away(model: Model, probability: Array) -> Model:
    """Return a copy with a head so different that the total variation is 2 to 3 %."""
    for shift in np.linspace(0.005, 1, 200):
        other = deepcopy(model)
        with torch.no_grad():
            last: Tensor = list(other.head.parameters())[-1]  # its bias
            last[0] += float(shift)
        theirs = np.exp(log_probability(other, all_images(other)).astype(np.float64))
        variation = 0.5 * np.abs(theirs - probability).sum()
        if variation >= 0.02:
            assert variation < 0.03
            return other
    raise AssertionError("no shift is large enough")
