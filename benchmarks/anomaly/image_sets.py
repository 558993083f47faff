"""The images that are scored: normal ones, and those that a model should find anomalous.

All sets were fixed before any score was seen, and none of them chose anything: not a score, a
statistic or a constant. Levels are uint8 [N, height, width, 1].
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.anomaly.detection import matched
from model_zoo.data import WITHOUT_A_CLASS, Examples, load, load_splits
from service.core.scoring.scores import codec_bits

Levels = NDArray[np.uint8]

COUNT = 2000
"""Images in a set at most: a standard error of an AUROC is then at most 0.011."""
SEED = 0
OTHER = {"mnist": "fashion-mnist", "fashion-mnist": "mnist"}
TITLES = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}


class Pair(NamedTuple):
    """Two sets of images by name, of which a score should tell the second from the first."""

    title: str
    normal: str
    anomalous: str


PAIRS = (
    Pair("the other data set", "test", "other"),
    Pair("the other, matched in codec size", "test_matched", "other_matched"),
    Pair("uniform noise", "test", "noise"),
    Pair("constant", "test", "constant"),
    Pair("flipped left to right", "test", "flipped_horizontally"),
    Pair("flipped upside down", "test", "flipped_vertically"),
    Pair("quarters shuffled", "test", "shuffled"),
    Pair("class held out", "test", "held_out"),
    Pair("training images", "test", "train"),
)


def pairs_of(sets: dict[str, Levels]) -> list[Pair]:
    """Return the pairs whose sets exist."""
    return [pair for pair in PAIRS if {pair.normal, pair.anomalous} <= sets.keys()]


def title_of(dataset: str) -> str:
    """Return the name of a data set for readers."""
    if less_one_class := WITHOUT_A_CLASS.fullmatch(dataset):
        whole, label = less_one_class.groups()
        return f"{TITLES[whole]} without class {label}"
    return TITLES[dataset]


def image_sets(dataset: str) -> dict[str, Levels]:
    """Return the sets of a data set by name: what calibrates, what is normal, and the anomalies.

    A model of `<data set>-without-<label>` is asked for that label only. Images that are changed
    are none of those that they are compared with. Raises DataError where there is no such data set.
    """
    splits, random = load_splits(dataset), np.random.default_rng(SEED)
    sets = {name: levels(splits[name]) for name in ("score_fit", "calibrate", "select")}
    test = random.permutation(levels(splits["test"]))
    sets["test"], rest = test[:COUNT], test[COUNT : 2 * COUNT]
    sets["train"] = random.permutation(levels(splits["fit"]))[:COUNT]
    if less_one_class := WITHOUT_A_CLASS.fullmatch(dataset):
        whole, label = less_one_class.groups()
        examples = load(whole, "test")
        return sets | {"held_out": levels(examples)[examples.labels.numpy() == int(label)][:COUNT]}
    other = random.permutation(levels(load(OTHER[dataset], "test")))
    places = matched(codec_bits(test), codec_bits(other))
    return sets | {
        "other": other[:COUNT],
        "test_matched": test[places[0]],
        "other_matched": other[places[1]],
        "noise": random.integers(0, 256, test[:COUNT].shape).astype(np.uint8),
        "constant": random.integers(0, 256, (COUNT, 1, 1, 1)).astype(np.uint8)
        + np.zeros_like(test[:COUNT]),
        "flipped_horizontally": rest[:, :, ::-1],
        "flipped_vertically": rest[:, ::-1],
        "shuffled": shuffle_quarters(rest, random),
    }


def levels(examples: Examples) -> Levels:
    """Return the images of a data set as the service takes them."""
    # [N, 1, H, W] -> [N, H, W, 1]
    images: Levels = examples.images.numpy().transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images)


def shuffle_quarters(images: Levels, random: np.random.Generator) -> Levels:
    """Return images [N, H, W, C] cut into 2 x 2 quarters, put together in another order.

    The orders are drawn uniformly of the 23 that differ from the first. H and W must be even.
    """
    count, height, width, channels = images.shape
    # [N, 2, H/2, 2, W/2, C] -> [N, 2, 2, H/2, W/2, C] -> [N, 4, H/2, W/2, C]
    grid = images.reshape(count, 2, height // 2, 2, width // 2, channels).swapaxes(2, 3)
    quarters = grid.reshape(count, 4, height // 2, width // 2, channels)
    order = np.array([_another_order(random) for _ in range(count)]).reshape(count, 4)
    mixed: Levels = quarters[np.arange(count)[:, None], order].reshape(grid.shape)
    return mixed.swapaxes(2, 3).reshape(images.shape)


def _another_order(random: np.random.Generator) -> NDArray[np.int64]:
    """Return an order of four that is not the first, all such being equally likely."""
    while True:
        order = random.permutation(4)
        if order.tolist() != [0, 1, 2, 3]:
            return order
