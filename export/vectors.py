"""Test inputs like those that will be served, so that parity is proved where the model is used."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.errors import ExportError
from model_zoo.family import Card, Graph, Port

Array = NDArray[Any]
Arrays = dict[str, Array]
"""Arrays by port name."""

ROWS = 5
SEED = 20


def draw_inputs(graph: Graph, card: Card) -> Arrays:
    """Return `ROWS` rows for every input of a graph, the same ones each time.

    Raises ExportError where the card and the port don't fit together.
    """
    generator = np.random.default_rng(SEED)
    inputs = {}
    for port in graph.inputs:
        values = _draw(graph, port, card, generator)  # rows first, wherever the port has them
        if values.shape[1:] != port.shape:
            raise ExportError(
                f"graph '{graph.name}', input '{port.name}': rows have the shape "
                f"{list(port.shape)}, but by the card it is {list(values.shape[1:])}"
            )
        inputs[port.name] = np.moveaxis(values, 0, port.batch_axis).astype(port.dtype)
    return inputs


def stored(graph: Graph, arrays: Arrays) -> Arrays:
    """Return those rows of a graph's inputs and outputs that an artifact is to hold.

    All of them prove the graph while it is exported, rows apart and together. Where there are
    caches or features, which are large, a loader repeats the last row alone, whose classes are a
    mixture.
    """
    ports = (*graph.inputs, *graph.outputs)
    if not any(port.role in ("cache", "features") for port in ports):
        return arrays
    axes = {port.name: port.batch_axis for port in ports}
    return {name: values.take([ROWS - 1], axes[name]) for name, values in arrays.items()}


def _draw(graph: Graph, port: Port, card: Card, generator: np.random.Generator) -> Array:
    # In sixteenths, or 8 bits of each number, because those pack well: an artifact keeps them.
    match port.role, port.distribution:
        case ("latent", _) | ("noise", "normal"):
            return np.rint(16 * generator.standard_normal((ROWS, *port.shape))) / 16
        case "noise", "uniform":
            return (generator.integers(256, size=(ROWS, *port.shape)) + 0.5) / 256
        case ("codes", _) if card.codes is not None:
            return _draw_codes(card.codes["maps"], generator)
        case "data", _:
            return _draw_data(card, generator)
        case "cache", _ if _highest_step(graph):
            return generator.integers(2, size=(ROWS, *port.shape))  # the state of a chain
        case (("cache" | "features"), _):
            # As inputs and gates are.
            return generator.integers(-16, 17, (ROWS, *port.shape)) / 16
        case "steps", _:
            return generator.integers(0, _highest_step(graph) + 1, (ROWS, *port.shape))
        case "forced", _:
            # About one value in three is forced, the others are free.
            highest = _levels(card)
            return generator.integers(-2 * highest, highest, (ROWS, *port.shape)).clip(-1)
        case "condition", _ if card.condition is not None:
            return _draw_class_weights(len(card.condition["names"]), generator)
        case "control", _ if port.name in card.controls:
            limits = card.controls[port.name]
            return generator.uniform(limits["minimum"], limits["maximum"], (ROWS, *port.shape))
    raise ExportError(
        f"graph '{graph.name}', input '{port.name}': nothing says how to test the role "
        f"'{port.role}'; it is latent, features, codes, data, noise (normal or uniform), cache, "
        "forced, steps, or a condition or control that the card describes"
    )


def _draw_codes(maps: Sequence[Mapping[str, Any]], generator: np.random.Generator) -> Array:
    """Return codes of each map, below its levels, one map after the other: [ROWS, codes]."""
    parts = [
        generator.integers(each["levels"], size=(ROWS, int(np.prod(each["shape"]))))
        for each in maps
    ]
    return np.concatenate(parts, axis=1)


def _highest_step(graph: Graph) -> int:
    """Return how many steps a graph makes at most by its noise; 0 if it is not asked how many."""
    if all(port.role != "steps" for port in graph.inputs):
        return 0
    return next(port.shape[0] for port in graph.inputs if port.role == "noise")


def _draw_class_weights(classes: int, generator: np.random.Generator) -> Array:
    """Return one-hot rows and, last, a mixture: [ROWS, classes]."""
    weights = np.eye(classes)[generator.integers(classes, size=ROWS)]
    weights[-1] = generator.dirichlet(np.ones(classes))
    return weights


def _draw_data(card: Card, generator: np.random.Generator) -> Array:
    """Return events as graphs take them: images, or vectors about as far from 0 as normal ones."""
    if card.preprocess is None:
        return np.rint(16 * generator.standard_normal((ROWS, *card.event["shape"]))) / 16
    return _to_graph_values(_draw_levels(card, generator), card.preprocess, _levels(card) - 1)


def _draw_levels(card: Card, generator: np.random.Generator) -> Array:
    """Return soft discs on black as levels, [ROWS, height, width, channels].

    Smooth, as pictures are: on white noise a flow's latents leave the range that it knows.
    """
    height, width, channels = card.event["shape"]
    shape = (ROWS, 1, 1, channels)
    down, right = generator.uniform(0.3, 0.7, (2, *shape))
    radius = generator.uniform(0.1, 0.4, shape)
    y = np.linspace(0, 1, height).reshape(1, height, 1, 1)
    x = np.linspace(0, 1, width).reshape(1, 1, width, 1)
    brightness = np.exp(-((y - down) ** 2 + (x - right) ** 2) / radius**2)
    levels: Array = np.rint(brightness * (_levels(card) - 1))
    return levels


def _levels(card: Card) -> int:
    """Return how many levels the graphs see: a binarised model is shown two."""
    binarisation: Mapping[str, int] | None = (card.preprocess or {}).get("binarisation")
    return binarisation["levels"] if binarisation else int(card.event["levels"])


def _to_graph_values(levels: Array, preprocess: Mapping[str, Any], highest: int) -> Array:
    """Apply a card's preprocess, as the service will, to levels [N, height, width, channels]."""
    low, high = preprocess["range"]
    top, bottom, left, right = preprocess.get("padding", (0, 0, 0, 0))
    levels = np.pad(levels, ((0, 0), (top, bottom), (left, right), (0, 0)))
    values: Array = low + (high - low) * levels / highest
    values = (values - preprocess.get("mean", 0.0)) / preprocess.get("deviation", 1.0)
    # [N, H, W, C] -> [N, C, H, W]
    return values if preprocess.get("layout") == "NHWC" else values.transpose(0, 3, 1, 2)
