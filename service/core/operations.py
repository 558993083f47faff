"""Every operation, both halves side by side: from a request to arrays, from arrays to a result.

An operation is a generator: it yields the graph calls it needs, is sent their outputs, and returns
its result. It awaits nothing and touches no model, so the same code runs under the engine and in a
plain test.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from service.core import latents as space
from service.core import noise
from service.core.calibration import Calibration
from service.core.calls import Call, Outputs, feed, no_noise, noise_of_port, output
from service.core.conditions import class_weights
from service.core.controls import control, refuse_controls
from service.core.likelihood import likelihood, rows_for_image
from service.core.manifest import Manifest, Port
from service.core.painting import Paint, forced_levels, known_pixels, late_known, painted
from service.core.preprocess import binarise, image_keys, read_images, to_images, to_values
from service.core.requests import (
    Array,
    CompleteRequest,
    DecodeRequest,
    DeferredRows,
    EncodeRequest,
    EncodeResult,
    Endpoint,
    GenerationResult,
    InterpolateRequest,
    LikelihoodRequest,
    Limits,
    ReconstructRequest,
    Request,
    Result,
    SampleRequest,
    Scale,
    check_range,
)
from service.errors import (
    InvalidLatent,
    InvalidRequest,
    LatentSpaceMismatch,
    OperationNotOffered,
)

Decoding = Generator[Call | Paint, Outputs, GenerationResult]
Encoding = Generator[Call, Outputs, EncodeResult]


def sample(manifest: Manifest, request: SampleRequest, limits: Limits) -> Decoding:
    """Draw latents from the prior and decode them, or paint images row by row."""
    check_range("count", request.count, 1, limits.count)
    seed = _seed(request.seed)
    if manifest.program == "raster_rows":
        free = np.full((request.count, *manifest.event.shape[:2]), -1, np.int64)
        return (yield from painted(manifest, request, free, seed))
    refuse_controls(manifest, request, ("top_k", "top_p", "greedy"))
    temperature = control(manifest, "temperature", request.temperature)
    truncation = control(manifest, "truncation", request.truncation)
    size, temperature = _latent_size(manifest), 1.0 if temperature is None else temperature
    latents = space.draw(seed, request.count, size, temperature, truncation)
    weights = class_weights(manifest, request.condition, request.count, seed)
    images = yield from _decoded(manifest, latents, weights, seed, request.scale)
    return GenerationResult(images=images, latents=latents, class_weights=weights, seed=seed)


def complete(manifest: Manifest, request: CompleteRequest, limits: Limits) -> Decoding:
    """Paint the rest of an image, `count` times, with its known pixels forced.

    The model is a product of conditionals in raster order: a pixel that is known after an unknown
    one can't influence it. `log_weight` says how well they fit: the log-probability of those late
    known pixels, by which completions can be ranked.
    """
    check_range("count", request.count, 1, limits.count)
    if request.candidates is not None:
        check_range("candidates", request.candidates, request.count, limits.count)
    seed = _seed(request.seed)
    levels = _one_image(manifest, request.image, request.scale, limits)[0, :, :, 0]
    known = known_pixels(manifest, request)
    forced = forced_levels(manifest, levels, known)
    if request.candidates is not None and not late_known(forced[None]).any():
        raise InvalidRequest(
            "candidates are ranked by how well known pixels fit that come after unknown ones, and "
            "there are none here; give some in known, or leave out candidates"
        )
    forced = np.repeat(forced[None], request.drawn, axis=0)
    result = yield from painted(manifest, request, forced, seed)
    return result if request.candidates is None else _best(result, request.count)


def _best(result: GenerationResult, count: int) -> GenerationResult:
    """Return the images with the highest log_weight, best first; of equal ones the earlier."""
    assert result.log_weight is not None, "what is painted has weights"
    best = np.argsort(-result.log_weight, kind="stable")[:count]

    def chosen(array: Array | None) -> Array | None:
        return None if array is None else array[best]

    return replace(
        result,
        images=result.images[best],
        class_weights=chosen(result.class_weights),
        log_likelihood=chosen(result.log_likelihood),
        log_weight=result.log_weight[best],
        candidate=best.tolist(),
    )


def decode(manifest: Manifest, request: DecodeRequest, limits: Limits) -> Decoding:
    """Map latents to images."""
    latents = _check_latents(manifest, request.latents)
    check_range("the number of latents", len(latents), 1, limits.count)
    _check_latent_space(manifest, request.latent_space)
    seed = _seed(request.seed)
    weights = class_weights(manifest, request.condition, len(latents), seed)
    images = yield from _decoded(manifest, latents, weights, seed, request.scale)
    return GenerationResult(images=images, latents=latents, class_weights=weights, seed=seed)


def encode(manifest: Manifest, request: EncodeRequest, limits: Limits) -> Encoding:
    """Map images to latents."""
    seed = _seed(request.seed)
    levels = read_images(manifest, request.images, request.scale, limits)
    levels = binarise(manifest, "encode", levels, request.binarisation, seed)
    mean, deviation = yield from _encoded(manifest, levels)
    draws = None
    if request.draw:
        if deviation is None:
            raise InvalidRequest(
                f"{manifest.name} maps an image to one latent, so there is nothing to draw; "
                "leave out draws"
            )
        seeds = np.full(len(levels), seed, np.uint64)
        uniforms = noise.uniform(seeds, "posterior", image_keys(levels), mean.shape[1])
        draws = mean + deviation * noise.normal(uniforms).astype(np.float32)
    return EncodeResult(latents=mean, deviations=deviation, draws=draws, seed=seed)


def reconstruct(manifest: Manifest, request: ReconstructRequest, limits: Limits) -> Decoding:
    """Map images to the mean of their latents and back."""
    seed = _seed(request.seed)
    levels = read_images(manifest, request.images, request.scale, limits)
    levels = binarise(manifest, "reconstruct", levels, request.binarisation, seed)
    latents, _ = yield from _encoded(manifest, levels)
    weights = class_weights(manifest, request.condition, len(latents), seed)
    images = yield from _decoded(manifest, latents, weights, seed, request.scale)
    return GenerationResult(images=images, latents=latents, class_weights=weights, seed=seed)


def interpolate(manifest: Manifest, request: InterpolateRequest, limits: Limits) -> Decoding:
    """Decode a path between two points, a grid between four, or plus - minus."""
    seed = _seed(request.seed)
    points, columns = _shape_of(request, limits)
    ends = yield from _located(manifest, points, request.scale, limits)
    if request.corners:
        latents = space.corner_grid(list(ends), request.steps, request.mode)
    elif request.start:
        latents = space.path(ends[0], ends[1], request.steps, request.mode)
    else:
        signs = np.repeat([1.0, -1.0], [len(request.plus), len(request.minus)])
        latents = _check_latents(manifest, (signs @ ends.astype(np.float64))[None])
    # One class for the whole path: what changes along it is the latent alone.
    weights = class_weights(manifest, request.condition, 1, seed)
    if weights is not None:
        weights = np.repeat(weights, len(latents), axis=0)
    images = yield from _decoded(manifest, latents, weights, seed, request.scale)
    return GenerationResult(
        images=images, latents=latents, class_weights=weights, seed=seed, columns=columns
    )


OPERATIONS: Mapping[str, Callable[..., Generator[Call | Paint, Outputs, Result]]] = {
    "sample": sample,
    "encode": encode,
    "decode": decode,
    "reconstruct": reconstruct,
    "likelihood": likelihood,
    "interpolate": interpolate,
    "complete": complete,
}


def begin(
    operation: str,
    manifest: Manifest,
    calibrations: Sequence[Calibration],
    request: Request,
    limits: Limits,
) -> Generator[Call | Paint, Outputs, Result]:
    """Begin an operation on a model: its manifest, and the calibrations that lie beside it."""
    if isinstance(request, LikelihoodRequest):
        return likelihood(manifest, request, limits, calibrations)
    return OPERATIONS[operation](manifest, request, limits)


def paints(manifest: Manifest, operation: str) -> bool:
    """Return whether an operation paints row by row, instead of calling graphs."""
    return manifest.program == "raster_rows" and operation in ("sample", "complete")


def work(manifest: Manifest, request: Request) -> int:
    """Return how many rows a request makes arrays for, before anything is checked or made."""
    match request:
        case CompleteRequest():
            return request.drawn
        case SampleRequest():
            return request.count
        case DecodeRequest():
            return len(request.latents)
        case InterpolateRequest():
            return request.steps ** (2 if request.corners else 1)
        case LikelihoodRequest():
            return len(request.images) * rows_for_image(manifest, request)
        case _:
            return len(request.images)


def _decoded(
    manifest: Manifest,
    latents: Array | DeferredRows,
    weights: Array | None,
    seed: int,
    scale: Scale,
) -> Generator[Call, Outputs, Array]:
    graph = manifest.graphs["decode"]

    def rows_of_noise(port: Port) -> Array:
        seeds = np.full(len(latents), seed, np.uint64)
        items = np.arange(len(latents), dtype=np.uint64)
        return noise_of_port(port, seeds, items, 1).reshape(len(latents), *port.row_shape)

    inputs = feed(graph, rows_of_noise, latent=latents, condition=weights)
    values = output(graph, (yield Call("decode", inputs)), "data")
    if not np.isfinite(values).all():
        raise InvalidLatent("the latents decode to values that are not finite; use smaller ones")
    return to_images(manifest, values, scale)


def _encoded(
    manifest: Manifest, levels: NDArray[np.uint8]
) -> Generator[Call, Outputs, tuple[Array, Array | None]]:
    """Return the mean and, where the model has one, the deviation of the latents, [N, D]."""
    graph = manifest.graphs["encode"]
    outputs = yield Call("encode", feed(graph, no_noise, data=to_values(manifest, levels)))
    deviation = graph.output("latent_deviation")
    return output(graph, outputs, "latent"), outputs[deviation.name] if deviation else None


def _located(
    manifest: Manifest, points: Sequence[Endpoint], scale: Scale, limits: Limits
) -> Generator[Call, Outputs, Array]:
    """Return the latents [len(points), D] that the endpoints name; images are encoded at once."""
    size = _latent_size(manifest)
    latents = np.empty((len(points), size), np.float32)
    pictures = [index for index, point in enumerate(points) if point.image is not None]
    for index, point in enumerate(points):
        _check_latent_space(manifest, point.latent_space)
        if point.seed is not None:
            check_range("seed", point.seed, 0, noise.MAXIMUM_SEED)
            latents[index] = space.draw(point.seed, 1, size).join([])[0]
        elif point.latent is not None:
            latents[index] = _check_latents(manifest, point.latent[None])[0]
    if pictures:
        if "encode" not in manifest.operations:
            raise OperationNotOffered(
                f"{manifest.name} can't encode images, so endpoints must be seeds or latents",
                operations=sorted(manifest.operations),
            )
        images = [points[index].image for index in pictures]
        levels = [_one_image(manifest, image, scale, limits) for image in images]
        latents[pictures], _ = yield from _encoded(manifest, np.concatenate(levels))
    return latents


def _one_image(
    manifest: Manifest, image: Array | bytes | None, scale: Scale, limits: Limits
) -> NDArray[np.uint8]:
    """Return the levels of one image, [1, H, W, C]."""
    images = [image] if isinstance(image, bytes) else np.asarray(image)[None]
    return read_images(manifest, images, scale, limits)


def _shape_of(request: InterpolateRequest, limits: Limits) -> tuple[list[Endpoint], int]:
    """Return the endpoints of the one shape that is asked for, and the columns of its picture."""
    path = [point for point in (request.start, request.end) if point]
    arithmetic = [*request.plus, *request.minus]
    shapes = [points for points in (path, request.corners, arithmetic) if points]
    if len(shapes) != 1:
        raise InvalidRequest("give exactly one of: start and end, four corners, or arithmetic")
    if path and len(path) != 2:
        raise InvalidRequest("a path needs both start and end")
    if request.corners and len(request.corners) != 4:
        raise InvalidRequest(f"a grid needs 4 corners, not {len(request.corners)}")
    if arithmetic and not request.plus:
        raise InvalidRequest("arithmetic needs at least one point to add")
    check_range("the number of points", len(shapes[0]), 1, limits.count)
    for point in shapes[0]:
        if sum(part is not None for part in (point.seed, point.latent, point.image)) != 1:
            raise InvalidRequest("a point is exactly one of a seed, a latent or an image")
    longest = int(limits.count**0.5) if request.corners else limits.count
    check_range("steps", request.steps, 2, longest)
    return list(shapes[0]), 1 if arithmetic else request.steps


def _check_latents(manifest: Manifest, latents: Array) -> Array:
    size = _latent_size(manifest)
    if latents.ndim != 2 or latents.shape[1] != size:
        raise InvalidLatent(
            f"latents have shape {list(latents.shape)}; {manifest.name} takes [count, {size}]"
        )
    if latents.dtype.kind not in "fiu" or not np.all(np.isfinite(latents)):
        raise InvalidLatent("latents must be finite real numbers")
    with np.errstate(over="ignore"):
        latents = latents.astype(np.float32)
    if not np.all(np.isfinite(latents)):
        raise InvalidLatent("latents must be finite in float32: at most 3.4e38 in magnitude")
    return latents


def _check_latent_space(manifest: Manifest, named: str | None) -> None:
    """Raise LatentSpaceMismatch where a space is named and is not the model's."""
    if named is not None and named != _latent_space(manifest):
        raise LatentSpaceMismatch(
            f"the latents are of space {named}; {manifest.name}@{manifest.version} "
            f"decodes {_latent_space(manifest)}"
        )


def _latent_size(manifest: Manifest) -> int:
    assert manifest.latent is not None, "the manifest was checked for a latent"
    return manifest.latent.shape[0]


def _latent_space(manifest: Manifest) -> str:
    assert manifest.latent is not None, "the manifest was checked for a latent"
    return manifest.latent.space


def _seed(seed: int | None) -> int:
    if seed is None:
        return noise.draw_seed()
    check_range("seed", seed, 0, noise.MAXIMUM_SEED)
    return seed
