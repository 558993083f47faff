"""Gated PixelCNN: causal, a distribution, and sampled row by row as by full forward passes."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from export import export_artifact
from export.graphs import IR_VERSION, OPSET
from export.row_step import build_row_step
from model_zoo.autoregressive.gated_pixelcnn import GatedPixelCNN
from model_zoo.autoregressive.row_step import RowStep, draw, keep_likely
from model_zoo.family import Batch
from model_zoo.recipe import RECIPES, read_recipe
from model_zoo.recipe import build as build_recipe
from model_zoo.sheets import write_sample_sheet
from service.core.manifest import read_manifest

NEAR_TIE = 1e-4
"""Two samplers may differ where a cumulative probability is this close to the uniform number."""

CONFIGURATIONS = {
    "8-bit": {"image_shape": (1, 8, 8), "layers": 4, "channels": 8, "head_width": 12},
    "binary": {"image_shape": (1, 6, 9), "layers": 2, "channels": 5, "levels": 2},
    "deep": {"image_shape": (1, 7, 5), "layers": 9, "channels": 6, "levels": 17, "reach": 2},
    "narrow": {"image_shape": (1, 5, 4), "layers": 3, "channels": 1, "levels": 3, "reach": 1},
}
TINY = {"image_shape": (1, 2, 2), "layers": 2, "channels": 4, "levels": 3, "head_width": 8}


def build(classes: int = 3, seed: int = 0, sharpness: float = 4, **configuration) -> GatedPixelCNN:
    """A model that has opinions: fresh heads are nearly uniform and would prove little."""
    torch.manual_seed(seed)
    model = GatedPixelCNN(classes=classes, **configuration).eval()
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter *= sharpness
    return model


# The model


@pytest.mark.parametrize("name", CONFIGURATIONS)
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**31), place=st.floats(0, 1, exclude_max=True))
def test_no_logit_sees_its_own_pixel_or_a_later_one(name: str, seed: int, place: float) -> None:
    model = build(seed=seed, **CONFIGURATIONS[name])
    pixel = int(place * model.event_size)
    levels = torch.randint(model.levels, model.image_shape)
    other = levels.clone()
    other.flatten()[pixel] = (other.flatten()[pixel] + 1) % model.levels
    logits, changed = (model.logits(image, torch.zeros(1, 3)) for image in (levels, other))
    before = slice(None, pixel + 1)
    assert torch.equal(logits.flatten(1, 2)[:, before], changed.flatten(1, 2)[:, before])


def test_every_later_neighbour_sees_a_pixel() -> None:
    """No blind spot: the point of two stacks."""
    model = build(image_shape=(1, 9, 9), layers=4, channels=8)
    levels = torch.zeros(1, 9, 9, dtype=torch.int64)
    other = levels.clone()
    other[0, 4, 4] = 200
    logits, changed = (model.logits(image, torch.zeros(1, 3)) for image in (levels, other))
    moved = (logits != changed).any(dim=3)[0]
    assert moved[4, 5:].all() and moved[5:].all()


def test_probabilities_of_all_images_sum_to_one() -> None:
    model = build(**TINY)
    images = torch.tensor(list(itertools.product(range(3), repeat=4))).reshape(-1, 2, 2)
    for weights in (torch.zeros(3), torch.eye(3)[1], torch.full((3,), 1 / 3)):
        log_probability = model.log_probability(images, weights.expand(len(images), 3))
        assert log_probability.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_predictive_entropies_average_to_the_mean_surprise() -> None:
    """Chain rule of entropy, over every image there is: the two are one number."""
    model = build(**TINY)
    images = torch.tensor(list(itertools.product(range(3), repeat=4))).reshape(-1, 1, 2, 2)
    graph = model.graphs()[0]
    log_likelihood, _, entropy = graph.module(images.float(), torch.zeros(len(images), 3))
    probability = log_likelihood.exp()
    surprise = -(probability * log_likelihood).sum().item()
    assert (probability * entropy).sum().item() == pytest.approx(surprise, rel=1e-5)
    assert entropy.std() > 0.01  # it is of the image, not of the model
    # The last pixel is not foreseen by itself: whatever its level, the entropy is the same.
    by_last_pixel = entropy.reshape(-1, 3)
    assert torch.allclose(by_last_pixel[:, 0], by_last_pixel[:, 1])


@pytest.mark.parametrize(("levels", "seen"), [(256, [0, 100, 255]), (4, [0, 1, 3]), (2, [0, 1])])
def test_grey_values_become_the_levels_of_the_model(levels: int, seen: list[int]) -> None:
    model = build(levels=levels, layers=2, channels=2)
    grey = torch.tensor([0.0, 100.0, 255.0]).reshape(3, 1, 1, 1).expand(3, 1, 9, 9)
    found = model.from_grey(grey, torch.Generator().manual_seed(0))
    assert sorted(found.unique().tolist()) == seen


def test_one_layer_scores_images_and_paints_none(tmp_path: Path) -> None:
    model = build(layers=1)
    assert [graph.name for graph in model.graphs()] == ["log_likelihood"]
    assert list(model.card().operations) == ["likelihood", "classify"]
    write_sample_sheet(model, tmp_path / "none.png")  # as training does after every epoch
    with pytest.raises(ValueError, match="at least 2"):
        RowStep(model.features, model.layers, model.head, 28, filtered=False)


def test_the_large_recipe_is_of_the_published_size() -> None:
    model = build_recipe(read_recipe(str(RECIPES / "gpu" / "mnist-pixelcnn-large.toml")))
    assert sum(map(torch.numel, model.parameters())) == pytest.approx(852_160, rel=0.05)


def multiplications(model: GatedPixelCNN) -> int:
    """Count those of one image's log-likelihood: every weight of a convolution, at every pixel."""
    pixels = math.prod(model.image_shape[1:])
    convolutions = [part for part in model.modules() if isinstance(part, nn.Conv2d)]
    conditions = [layer.condition.weight.numel() for layer in model.layers]
    return pixels * sum(part.weight.numel() for part in convolutions) + sum(conditions)


@pytest.mark.parametrize("name", ["mnist-pixelcnn", "fashion-mnist-pixelcnn"])
def test_a_background_is_the_same_family_at_a_quarter_of_the_arithmetic_at_most(name: str) -> None:
    recipe = read_recipe(str(RECIPES / f"{name}.toml"))
    background = read_recipe(str(RECIPES / f"{name}-background.toml"))
    assert background.family == recipe.family and background.dataset == recipe.dataset
    model, small = build_recipe(recipe), build_recipe(background)
    assert multiplications(small) / multiplications(model) == pytest.approx(0.180, abs=0.001)
    assert small.graphs()[0].inputs == model.graphs()[0].inputs


def test_a_background_sees_two_pixels_up_and_to_each_side_and_no_further() -> None:
    background = build_recipe(read_recipe("mnist-pixelcnn-background")).eval()
    levels = torch.randint(256, (1, 28, 28), generator=torch.Generator().manual_seed(0))
    none = torch.zeros(1, 10)
    seen = background.logits(levels, none)[0, 14, 14]
    near = {(row, column) for row in (12, 13, 14) for column in range(12, 17)}
    for row, column in itertools.product(range(28), range(28)):
        changed = levels.clone()
        changed[0, row, column] = (changed[0, row, column] + 128) % 256
        if (row, column) in near and (row, column) < (14, 14):
            assert not torch.equal(background.logits(changed, none)[0, 14, 14], seen)
        elif (row + column) % 7 == 0:  # a few of the others: each costs a pass
            assert torch.equal(background.logits(changed, none)[0, 14, 14], seen)


def test_it_learns_what_its_class_says() -> None:
    """Black and white images: a class is worth the bit that the first pixel costs without it."""
    model = GatedPixelCNN((1, 2, 2), classes=2, layers=2, channels=4, levels=2)
    labels = torch.arange(64) % 2
    data = Batch(255.0 * labels.reshape(-1, 1, 1, 1).expand(64, 1, 2, 2), labels)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        optimiser.zero_grad()
        model.objectives()["pixelcnn"].loss(data, generator).backward()
        optimiser.step()
    plain, with_class = model.eval().evaluate(data, generator)
    assert plain.value == pytest.approx(1 / 4, abs=0.05)
    assert with_class.value == pytest.approx(0, abs=0.05)


# Row by row

Array = np.ndarray
Arrays = dict[str, Array]


def open_step(model: GatedPixelCNN, filtered: bool = False) -> onnxruntime.InferenceSession:
    name = "row_step_filtered" if filtered else "row_step"
    (step,) = [graph.module for graph in model.graphs() if graph.name == name]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    proto = build_row_step(step, OPSET, IR_VERSION).SerializeToString()
    return onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])


def wishes(model: GatedPixelCNN, count: int, seed: int = 0, **fixed: float) -> Arrays:
    """What is asked for each of `count` images, the last axis of every array."""
    generator = np.random.default_rng(seed)
    rows = (*model.image_shape[1:], count)
    drawn = {
        "class_weights": generator.dirichlet(np.ones(model.classes), count).T,  # [classes, B]
        "temperature": generator.uniform(0.3, 2, count),
        "top_k": generator.integers(1, model.levels + 1, count),
        "top_p": generator.uniform(0.3, 1.2, count),
        "forced": np.full(rows, -1),
        "uniform": generator.random(rows, np.float32),
    }
    chosen = {name: np.full(count, value) for name, value in fixed.items()}
    return {
        name: values.astype(np.int64 if name in ("top_k", "forced") else np.float32)
        for name, values in (drawn | chosen).items()
    }


def of_image(wanted: Mapping[str, Array], image: int) -> Arrays:
    return {name: values[..., image : image + 1] for name, values in wanted.items()}


def paint(
    session: onnxruntime.InferenceSession,
    model: GatedPixelCNN,
    wanted: Arrays,
    starts: Array | None = None,
) -> tuple[Array, Array]:
    """Levels and log-probabilities [H, W, B] of images that join at the calls `starts`."""
    _, height, width = model.image_shape
    slots = np.arange(wanted["temperature"].size)
    starts = np.zeros_like(slots) if starts is None else starts
    names = {port.name for port in session.get_inputs()}
    steady = {name: wanted[name] for name in names & {"temperature", "top_k", "top_p"}}
    steady["class_weights"] = wanted["class_weights"].T
    first = model.layers[0]
    seen, channels = first.vertical.weight[0, :, :, 0].numel(), first.residual.in_channels
    caches = {  # of ones: whatever an earlier image left in the slots
        "rows_above": np.ones((width, len(slots), seen)),
        "activations": np.ones((len(model.layers) - 1, width, len(slots), channels)),
    }
    levels, log_probability = np.zeros((2, height, width, len(slots)))
    for call in range(height + starts.max()):
        row = call - starts
        caches["rows_above"][:, row == 0] = 0
        caches["activations"][:, :, row == 0] = 0
        at = row.clip(0, height - 1)
        of_row = {name: wanted[name][at, :, slots].T for name in ("forced", "uniform")}
        fed = {name: cache.astype(np.float32) for name, cache in caches.items()}
        drawn, scored, above, activations = session.run(None, steady | of_row | fed)
        caches = {"rows_above": above, "activations": activations}
        painting = (row >= 0) & (row < height)
        levels[at[painting], :, slots[painting]] = drawn[:, painting].T
        log_probability[at[painting], :, slots[painting]] = scored[:, painting].T
    return levels.astype(np.int64), log_probability


def likely(probability: Array, top_k: int, top_p: float) -> Array:
    """Top-k, then top-p, of one distribution, the long way round."""
    order = sorted(range(len(probability)), key=lambda level: (-probability[level], level))
    order = order[:top_k]
    whole, larger, kept = sum(probability[order]), 0.0, np.zeros_like(probability)
    for level in order:
        if top_p < 1 and larger >= top_p * whole:
            break
        kept[level] = probability[level]
        larger += probability[level]
    return kept


def naive_cumulative(
    model: GatedPixelCNN, levels: Tensor, place: tuple[int, int], wanted: Arrays, filtered: bool
) -> Array:
    """The cumulative distribution of one pixel by a full forward pass, in double precision."""
    weights = torch.from_numpy(wanted["class_weights"].T)
    with torch.no_grad():
        logits = model.logits(levels, weights)[0, *place].double().numpy()
    scaled = logits / wanted["temperature"][0]
    probability = np.exp(scaled - scaled.max())
    probability /= probability.sum()
    if filtered:
        probability = likely(probability, int(wanted["top_k"][0]), float(wanted["top_p"][0]))
    return np.cumsum(probability) / probability.sum()


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_rows_paint_what_a_full_pass_for_every_pixel_would(name: str, filtered: bool) -> None:
    model = build(**CONFIGURATIONS[name])
    wanted = wishes(model, 3, seed=1)
    painted, _ = paint(open_step(model, filtered), model, wanted)
    near_ties = 0
    for image in range(3):
        one = of_image(wanted, image)
        levels = torch.zeros(model.image_shape, dtype=torch.int64)
        for place in np.ndindex(*model.image_shape[1:]):
            cumulative = naive_cumulative(model, levels, place, one, filtered)
            uniform = one["uniform"][*place, 0]
            level = painted[*place, image]
            if level != np.searchsorted(cumulative, uniform, side="right"):
                assert np.abs(cumulative - uniform).min() < NEAR_TIE
                near_ties += 1
            levels[0, *place] = int(level)
    assert near_ties <= 1


@pytest.mark.parametrize("filtered", [False, True])
def test_images_at_different_rows_of_one_call_are_those_painted_alone(filtered: bool) -> None:
    model = build(**CONFIGURATIONS["8-bit"])
    session, wanted = open_step(model, filtered), wishes(model, 6)
    together = paint(session, model, wanted, starts=np.array([0, 3, 3, 1, 11, 6]))
    for image in range(6):
        alone = paint(session, model, of_image(wanted, image))
        for among, single in zip(together, alone, strict=True):
            assert np.array_equal(among[..., image], single[..., 0])


def test_forced_pixels_stay_and_a_forced_beginning_is_continued_alike() -> None:
    model = build(**CONFIGURATIONS["8-bit"])
    session, wanted = open_step(model), wishes(model, 4)
    levels, log_probability = paint(session, model, wanted)
    for rows in range(9):
        wanted["forced"] = np.where(np.arange(8)[:, None, None] < rows, levels, -1)
        again, probability_again = paint(session, model, wanted)
        assert np.array_equal(again, levels)
        assert np.array_equal(probability_again, log_probability)
    wanted["forced"][:] = -1
    wanted["forced"][5, 2] = 200
    changed, _ = paint(session, model, wanted)
    assert (changed[5, 2] == 200).all()
    assert np.array_equal(changed[:5], levels[:5])
    assert not np.array_equal(changed[5:], levels[5:])


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_sampler_reports_the_likelihood_of_what_it_painted(name: str) -> None:
    model = build(**CONFIGURATIONS[name])
    wanted = wishes(model, 3)
    levels, reported = paint(open_step(model, filtered=True), model, wanted)
    images = torch.from_numpy(levels).permute(2, 0, 1)  # [H, W, B] -> [B, H, W]
    with torch.no_grad():
        exact = model.log_probability(images, torch.from_numpy(wanted["class_weights"].T))
    np.testing.assert_allclose(reported.sum(axis=(0, 1)), exact.numpy(), rtol=0, atol=1e-3)


def test_greedy_is_temperature_zero_and_top_k_of_one() -> None:
    model = build(**CONFIGURATIONS["8-bit"])
    cold = paint(open_step(model), model, wishes(model, 3, temperature=0))
    first = paint(open_step(model, filtered=True), model, wishes(model, 3, top_k=1, top_p=1))
    other_draws = wishes(model, 3, temperature=0) | {"uniform": wishes(model, 3, 9)["uniform"]}
    assert np.array_equal(cold[0], first[0])
    assert np.array_equal(cold[0], paint(open_step(model), model, other_draws)[0])


def test_filters_that_keep_everything_change_nothing() -> None:
    model = build(**CONFIGURATIONS["8-bit"])
    wanted = wishes(model, 3, top_k=model.levels, top_p=1)
    plain, filtered = (paint(open_step(model, which), model, wanted) for which in (False, True))
    assert np.array_equal(plain[0], filtered[0]) and np.array_equal(plain[1], filtered[1])


def test_a_pixel_reads_no_weights_from_outside_of_the_scan() -> None:
    """They would be packed away, and with them ONNX Runtime's plan of memory for every pixel."""
    model = build(**CONFIGURATIONS["8-bit"])
    for step in (graph.module for graph in model.graphs()[1:]):
        graph = build_row_step(step, OPSET, IR_VERSION).graph
        (scan,) = [node for node in graph.node if node.op_type == "Scan"]
        (body,) = [attribute.g for attribute in scan.attribute if attribute.name == "body"]
        read = {name for node in body.node for name in node.input}
        assert read.isdisjoint(array.name for array in graph.initializer)


def test_samples_follow_the_distribution() -> None:
    """Chi-square over all 81 images of the tiny model; 0.1 % of fair samplers would fail it."""
    model, count = build(sharpness=1.5, **TINY), 40_000
    wanted = wishes(model, count, temperature=1)
    wanted["class_weights"][:] = 0
    levels, _ = paint(open_step(model), model, wanted)
    found = np.bincount(np.ravel_multi_index(levels.reshape(4, count), (3,) * 4), minlength=81)
    images = torch.tensor(list(itertools.product(range(3), repeat=4))).reshape(-1, 2, 2)
    with torch.no_grad():
        log_probability = model.log_probability(images, torch.zeros(81, 3))
    expected = count * log_probability.exp().numpy()
    assert expected.min() > 5  # or the statistic does not follow chi-square
    assert ((found - expected) ** 2 / expected).sum() < 124.8  # of 80 degrees of freedom


# Drawing a level


PROBABILITIES = st.lists(
    st.sampled_from([0.0, 1e-30, 0.01, 0.1, 0.1, 0.5, 3.0]), min_size=2
).filter(any)


@settings(deadline=None)
@given(PROBABILITIES, st.floats(0, 1, exclude_max=True, width=32))
def test_a_draw_is_always_a_level_that_is_possible(values: list[float], uniform: float) -> None:
    probability = torch.tensor(values)[None] / sum(values)
    for number in (uniform, 0.0, 1 - 2.0**-24):
        assert probability[0, draw(probability, torch.tensor([number]))] > 0


@settings(deadline=None)
@given(PROBABILITIES, st.integers(1, 9), st.sampled_from([0.05, 0.3, 0.77, 0.999, 1.0, 1.2]))
def test_filters_agree_with_sorting_by_hand(values: list[float], top_k: int, top_p: float) -> None:
    probability = torch.tensor(values).double() / sum(values)
    # Where a sum of the largest is the share itself, rounding decides about the next.
    largest = probability.sort(descending=True).values[:top_k].cumsum(0)
    assume(((largest - top_p * largest[-1]).abs() > 1e-9).all() or top_p >= 1)
    kept = keep_likely(probability[None], torch.tensor([top_k]), torch.tensor([top_p]))
    assert np.array_equal(kept[0].numpy(), likely(probability.numpy(), top_k, top_p))


# As an artifact


def test_its_row_steps_are_exported_and_proved_like_any_graph(tmp_path: Path) -> None:
    model = build(**CONFIGURATIONS["8-bit"])
    card = model.card()
    folder = export_artifact(
        tmp_path,
        name="tiny",
        version="1",
        card=replace(card, operations={**card.operations, "sample": {}}),
        graphs=model.graphs(),
        licence="Apache-2.0",
    )
    step = read_manifest(folder).graphs["row_step_filtered"]
    ports = {port.name: port for port in (*step.inputs, *step.outputs)}
    assert ports["activations"].shape == ports["next_activations"].shape == (3, 8, "batch", 8)
    assert ports["uniform"].shape == (8, "batch") and ports["top_k"].shape == ("batch",)
    assert ports["forced"].batch_axis == 1 and ports["forced"].row_shape == (8,)
