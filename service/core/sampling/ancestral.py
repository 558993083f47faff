"""Ancestral sampling: images drawn pixel after pixel by one graph that has the loop inside."""

from collections.abc import Generator

import numpy as np
from numpy.typing import NDArray

from service.core.calls import Call, Outputs, feed, output
from service.core.conditions import class_weights
from service.core.controls import refuse_controls
from service.core.manifest import Manifest
from service.core.manifest_parts import Port
from service.core.painting.paint import picture, pixel_noise, sharpness
from service.core.requests import Array, GenerationResult, SampleRequest


def drawn(
    manifest: Manifest, request: SampleRequest, forced: NDArray[np.int64], seed: int
) -> Generator[Call, Outputs, GenerationResult]:
    """Draw images whose known pixels are `forced`, [N, H, W], -1 where they are free.

    They are levels of the model, as `forced_levels` returns them. Noise, controls and what is
    answered are as where rows are painted.
    """
    refuse_controls(manifest, request, ("temperature", "greedy"))
    graph, count = manifest.graphs["draw"], len(forced)
    temperature = sharpness(manifest, request)
    weights = class_weights(manifest, request.condition, count, seed)

    def rows_of_noise(_: Port) -> Array:
        return pixel_noise(graph, seed, forced.shape, temperature).reshape(count, -1)

    inputs = feed(
        graph,
        rows_of_noise,
        {"temperature": np.full(count, temperature)},
        forced=forced.reshape(count, -1),
        condition=weights,
    )
    outputs = yield Call("draw", inputs)
    of_pixels = {
        "levels": output(graph, outputs, "levels") * manifest.level_step,
        "log_probability": output(graph, outputs, "log_likelihood_map"),
    }
    shaped = {name: values.reshape(forced.shape) for name, values in of_pixels.items()}
    shaped["levels"] = shaped["levels"].astype(np.uint8)
    return picture(manifest, request, forced, shaped, weights, seed)
