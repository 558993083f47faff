"""Painting: what a model that draws pixel after pixel is asked, and what comes of it."""

from collections.abc import Generator, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.core import latents as space
from service.core import noise
from service.core.calls import Call, feed, no_noise, output
from service.core.conditions import class_weights
from service.core.controls import control, refuse_controls
from service.core.manifest import Manifest
from service.core.manifest_parts import Graph
from service.core.painting.lanes import Canvas
from service.core.requests import (
    Array,
    CompleteRequest,
    GenerationResult,
    SampleRequest,
    check_range,
)
from service.core.sampling import priors
from service.errors import BinarisationRequired, InvalidLatent, InvalidRequest


class Paint(NamedTuple):
    """A canvas to paint row by row; levels, of images, and log_probability come back, [N, H, W]."""

    graph: str
    canvas: Canvas
    seed: int  # that the canvas's noise, and classes or latents that were drawn, are of


Painting = Generator[Call | Paint, Mapping[str, Array], GenerationResult]


def painted(
    manifest: Manifest, request: SampleRequest, forced: NDArray[np.int64], seed: int
) -> Painting:
    """Paint images whose known pixels are `forced`, [N, H, W], -1 where they are free.

    They are levels of the model, as `forced_levels` returns them. Of a model with a latent, which
    is drawn first, all are free.
    """
    of_latent = ("truncation",) if manifest.latent else ()
    refuse_controls(manifest, request, ("temperature", "greedy", "top_k", "top_p", *of_latent))
    weights = class_weights(manifest, request.condition, len(forced), seed)
    if manifest.latent:
        truncation = control(manifest, "truncation", request.truncation)
        size = priors.latent_size(manifest)
        latents = space.draw(seed, len(forced), size, truncation=truncation).join([])
        return (yield from painted_latents(manifest, request, latents, weights, seed))
    outputs = yield _paint(manifest, request, forced, weights, seed)
    return picture(manifest, request, forced, outputs, weights, seed)


def painted_latents(
    manifest: Manifest,
    request: SampleRequest,
    latents: NDArray[np.float32],
    weights: Array | None,
    seed: int,
    items: NDArray[np.uint64] | None = None,
) -> Painting:
    """Paint an image of every latent, [N, D]; the noise of pixels is that of `items`, [N].

    The request says how pixels are drawn, and the scale. What comes back has no likelihood: those
    of its pixels are given the latent.
    """
    graph = manifest.graphs["features"]
    features = output(
        graph, (yield Call("features", feed(graph, no_noise, latent=latents))), "features"
    )
    free = np.full((len(latents), *manifest.image.shape[:2]), -1, np.int64)
    paint = _paint(manifest, request, free, weights, seed, items)
    canvas = replace(paint.canvas, latents=latents, features=features)
    outputs = yield paint._replace(canvas=canvas)
    if not (np.isfinite(features).all() and np.isfinite(outputs["log_probability"]).all()):
        raise InvalidLatent("the latents decode to values that are not finite; use smaller ones")
    return GenerationResult(
        images=_shown(manifest, request, outputs),
        latents=latents,
        class_weights=weights,
        seed=seed,
    )


def _paint(
    manifest: Manifest,
    request: SampleRequest,
    forced: NDArray[np.int64],
    weights: Array | None,
    seed: int,
    items: NDArray[np.uint64] | None = None,
) -> Paint:
    controls = _row_controls(manifest, request)
    graph = "row_step_filtered" if len(controls) > 1 else "row_step"
    canvas = Canvas(
        uniforms=pixel_noise(
            manifest.graphs[graph], seed, forced.shape, controls["temperature"], items
        ),
        forced=forced,
        class_weights=weights,
        controls={name: np.full(len(forced), value) for name, value in controls.items()},
        level_step=manifest.level_step,
    )
    return Paint(graph, canvas, seed)


def picture(
    manifest: Manifest,
    request: SampleRequest,
    forced: NDArray[np.int64],
    outputs: Mapping[str, Array],
    weights: Array | None,
    seed: int,
) -> GenerationResult:
    """Return images [N, H, W, 1] of the levels, of images, and log_probability [N, H, W]."""
    log_probability = outputs["log_probability"].astype(np.float64)
    late = late_known(forced)
    return GenerationResult(
        images=_shown(manifest, request, outputs),
        latents=None,
        class_weights=weights,
        seed=seed,
        log_likelihood=log_probability.sum(axis=(1, 2)),
        log_weight=(log_probability * late).sum(axis=(1, 2)),
        late_known_pixels=int(late[0].sum()),
    )


def _shown(manifest: Manifest, request: SampleRequest, outputs: Mapping[str, Array]) -> Array:
    """Return levels [N, H, W] as images of the scale that is asked for, [N, H, W, 1]."""
    levels = outputs["levels"][:, :, :, None]
    if request.scale == "levels":
        return levels
    shown: Array = levels / np.float32(manifest.image.levels - 1)
    return shown


def pixel_noise(
    graph: Graph,
    seed: int,
    shape: tuple[int, ...],
    temperature: float,
    items: NDArray[np.uint64] | None = None,
) -> NDArray[np.float32]:
    """Return one uniform for each pixel, [N, H, W]; its position is that of the pixel.

    Rows are the items 0 .. N - 1, or those given. At temperature 0 they are zeros: of equally
    likely levels, greedy takes the lowest.
    """
    if temperature == 0.0:
        return np.zeros(shape, np.float32)
    port = graph.input("noise")
    assert port is not None, "pixels are drawn by noise"
    count, height, width = shape
    if items is None:
        items = np.arange(count, dtype=np.uint64)
    uniforms = noise.uniform(
        np.full(count, seed, np.uint64), str(port.purpose), items, height * width
    )
    return noise.to_float32(uniforms).reshape(count, height, width)


def late_known(forced: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return where a known pixel comes after an unknown one in raster order, [N, H, W]."""
    flat = forced.reshape(len(forced), -1)
    after_unknown = np.cumsum(flat < 0, axis=1) > 0
    late: NDArray[np.bool_] = (after_unknown & (flat >= 0)).reshape(forced.shape)
    return late


def known_pixels(manifest: Manifest, request: CompleteRequest) -> NDArray[np.bool_]:
    """Return which pixels are known, [H, W]."""
    height, width, _ = manifest.image.shape
    if (request.prefix_rows is None) == (request.known is None):
        raise InvalidRequest("give exactly one of prefix_rows and known")
    if request.prefix_rows is not None:
        check_range("prefix_rows", request.prefix_rows, 0, height)
        return np.repeat(np.arange(height)[:, None] < request.prefix_rows, width, axis=1)
    known = np.asarray(request.known)
    if known.shape != (height, width) or known.dtype != np.bool_:
        raise InvalidRequest(
            f"known has shape {list(known.shape)} of {known.dtype}; "
            f"{manifest.name} takes booleans of [{height}, {width}], true where the pixel is known"
        )
    return known


def forced_levels(
    manifest: Manifest, levels: NDArray[np.uint8], known: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return the model's level of every known pixel of an image, and -1 elsewhere, [H, W].

    Raises BinarisationRequired where the model is of binary images and a known pixel is grey: which
    of the two it is forced to be, the client must say.
    """
    forced, between = np.divmod(levels.astype(np.int64), manifest.level_step)
    if np.any(between[known]):
        raise BinarisationRequired(
            f"{manifest.name} is a distribution over binary images, and known pixels hold levels "
            f"other than 0 and {manifest.image.levels - 1}; "
            f"make them 0 or {manifest.image.levels - 1}"
        )
    return np.where(known, forced, -1)


def sharpness(manifest: Manifest, request: SampleRequest) -> float:
    """Return the temperature; greedy is 0, which a request can't ask for by number."""
    temperature = control(manifest, "temperature", request.temperature)
    greedy = control(manifest, "greedy", request.greedy)
    if greedy and request.temperature is not None:
        raise InvalidRequest("greedy takes the most likely level: leave out temperature")
    return 0.0 if greedy else 1.0 if temperature is None else temperature


def _row_controls(manifest: Manifest, request: SampleRequest) -> dict[str, float]:
    """Return the controls of a row step by port: temperature, and top_k and top_p if asked for."""
    controls = {"temperature": sharpness(manifest, request)}
    top_k = control(manifest, "top_k", request.top_k)
    top_p = control(manifest, "top_p", request.top_p)
    if top_k is not None or top_p is not None:
        controls["top_k"] = manifest.drawn_levels if top_k is None else top_k
        controls["top_p"] = 1.0 if top_p is None else top_p
    return controls
