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
from service.core.calls import Call, Outputs, feed, no_noise, noise_of_port, output
from service.core.conditions import class_weights
from service.core.events import check_scale, events_of
from service.core.manifest import Manifest, graphs_of
from service.core.manifest_parts import Port
from service.core.painting.paint import (
    Paint,
    forced_levels,
    known_pixels,
    late_known,
    painted,
    painted_latents,
)
from service.core.preprocess import binarise, item_keys
from service.core.requests import (
    Array,
    ClassifyRequest,
    CompleteRequest,
    DecodeRequest,
    DeferredRows,
    EncodeRequest,
    EncodeResult,
    Endpoint,
    EventRows,
    EventsRequest,
    GenerationResult,
    InterpolateRequest,
    LikelihoodRequest,
    Limits,
    ReconstructRequest,
    Request,
    Result,
    SampleRequest,
    Scale,
    as_array,
    check_range,
)
from service.core.sampling import priors
from service.core.sampling.ancestral import drawn
from service.core.sampling.chains import FREE, chained, rows_of_a_call
from service.core.scoring.calibration import Calibration
from service.core.scoring.classification import classify
from service.core.scoring.critic import score
from service.core.scoring.likelihood import likelihood, rows_for_image
from service.errors import InvalidLatent, InvalidRequest, InvalidVector, OperationNotOffered

Decoding = Generator[Call | Paint, Outputs, GenerationResult]
Encoding = Generator[Call, Outputs, EncodeResult]

_PIXEL_PROGRAMS: Mapping[str, Callable[..., Decoding]] = {
    "raster_rows": painted,
    "ancestral": drawn,
}
"""Those that draw pixel after pixel, where each may be forced."""


def sample(manifest: Manifest, request: SampleRequest, limits: Limits) -> Decoding:
    """Draw latents or codes and decode them, draw images pixel after pixel, or run chains."""
    check_range("count", request.count, 1, limits.count)
    seed = _seed(request.seed)
    if (draw := _PIXEL_PROGRAMS.get(manifest.program)) is not None:
        free = np.full((request.count, *manifest.image.shape[:2]), -1, np.int64)
        return (yield from draw(manifest, request, free, seed))
    if manifest.program == "markov_chain":
        free = np.full(manifest.image.shape[:2], FREE)
        return (yield from chained(manifest, request, free, seed))
    weights = class_weights(manifest, request.condition, request.count, seed)
    drawn = yield from priors.draw(manifest, request, weights, seed)
    return (yield from _decoded(manifest, drawn, weights, seed, request.scale))


def complete(manifest: Manifest, request: CompleteRequest, limits: Limits) -> Decoding:
    """Draw the rest of an image, `count` times, with its known pixels forced.

    A chain clamps them, wherever they are: all of them influence all others. A painted model is a
    product of conditionals in raster order: a pixel that is known after an unknown one can't
    influence it. `log_weight` says how well they fit: the log-probability of those late
    known pixels, by which completions can be ranked.
    """
    check_range("count", request.count, 1, limits.count)
    if request.candidates is not None:
        check_range("candidates", request.candidates, request.count, limits.count)
    seed = _seed(request.seed)
    point = Endpoint(image=request.image)
    levels = _read_point(manifest, point, request.scale, limits)[0, :, :, 0]
    known = known_pixels(manifest, request)
    forced = forced_levels(manifest, levels, known)
    if manifest.program == "markov_chain":
        return (yield from _clamped(manifest, request, forced, seed))
    if request.candidates is not None and not late_known(forced[None]).any():
        raise InvalidRequest(
            "candidates are ranked by how well known pixels fit that come after unknown ones, and "
            "there are none here; give some in known, or leave out candidates"
        )
    forced = np.repeat(forced[None], request.drawn, axis=0)
    result = yield from _PIXEL_PROGRAMS[manifest.program](manifest, request, forced, seed)
    return result if request.candidates is None else _best(result, request.count)


def _clamped(
    manifest: Manifest, request: CompleteRequest, forced: NDArray[np.int64], seed: int
) -> Decoding:
    if request.candidates is not None:
        raise InvalidRequest(
            f"{manifest.name} runs chains in which every known pixel counts from the start, so "
            "there is no log_weight to choose candidates by; leave out candidates"
        )
    return (yield from chained(manifest, request, forced, seed))


def _best(result: GenerationResult, count: int) -> GenerationResult:
    """Return the images with the highest log_weight, best first; of equal ones the earlier."""
    assert result.log_weight is not None, "what is painted has weights"
    best = np.argsort(-result.log_weight, kind="stable")[:count]

    def chosen(array: Array | None) -> Array | None:
        return None if array is None else array[best]

    return replace(
        result,
        images=chosen(result.images),
        class_weights=chosen(result.class_weights),
        log_likelihood=chosen(result.log_likelihood),
        log_weight=result.log_weight[best],
        candidate=best.tolist(),
    )


def decode(manifest: Manifest, request: DecodeRequest, limits: Limits) -> Decoding:
    """Map latents or codes to images or vectors."""
    given = priors.given(manifest, request)
    check_range(f"the number of {request.given}", len(given), 1, limits.count)
    seed = _seed(request.seed)
    weights = class_weights(manifest, request.condition, len(given), seed)
    return (yield from _decoded(manifest, given, weights, seed, request.scale))


def encode(manifest: Manifest, request: EncodeRequest, limits: Limits) -> Encoding:
    """Map images or vectors to latents or codes."""
    seed = _seed(request.seed)
    rows = events_of(manifest).read(request, limits)
    rows = binarise(manifest, "encode", rows, request.binarisation, seed)
    mean, deviation = yield from _encoded(manifest, rows)
    if manifest.codes:
        if request.draw:
            raise InvalidRequest(
                f"{manifest.name} maps an image to one map of codes, so there is nothing to draw; "
                "leave out draws"
            )
        return EncodeResult(latents=None, codes=mean, deviations=None, draws=None, seed=seed)
    draws = None
    if request.draw:
        if deviation is None:
            raise InvalidRequest(
                f"{manifest.name} maps an image to one latent, so there is nothing to draw; "
                "leave out draws"
            )
        seeds = np.full(len(rows), seed, np.uint64)
        uniforms = noise.uniform(seeds, "posterior", item_keys(rows), mean.shape[1])
        draws = mean + deviation * noise.normal(uniforms).astype(np.float32)
    return EncodeResult(latents=mean, deviations=deviation, draws=draws, seed=seed)


def reconstruct(manifest: Manifest, request: ReconstructRequest, limits: Limits) -> Decoding:
    """Map events to the mean of their latents, or to codes, and back; or by a graph of its own."""
    seed = _seed(request.seed)
    rows = events_of(manifest).read(request, limits)
    rows = binarise(manifest, "reconstruct", rows, request.binarisation, seed)
    if "reconstruct" in manifest.graphs:
        return (yield from _reconstructed(manifest, request, rows, seed))
    latents, _ = yield from _encoded(manifest, rows)
    weights = class_weights(manifest, request.condition, len(latents), seed)
    return (yield from _decoded(manifest, latents, weights, seed, request.scale))


def _reconstructed(
    manifest: Manifest, request: ReconstructRequest, rows: EventRows, seed: int
) -> Decoding:
    class_weights(manifest, request.condition, len(rows), seed)  # refuses what there is not
    graph, events = manifest.graphs["reconstruct"], events_of(manifest)
    inputs = feed(graph, no_noise, data=events.to_values(rows))
    values = output(graph, (yield Call("reconstruct", inputs)), "data")
    shown = events.shown(values, request.scale)
    return GenerationResult(**shown, latents=None, class_weights=None, seed=seed)


def interpolate(manifest: Manifest, request: InterpolateRequest, limits: Limits) -> Decoding:
    """Decode a path between two points, a grid between four, or plus - minus."""
    seed = _seed(request.seed)
    points, columns = _shape_of(request, limits)
    # One class for the whole path, and one noise: what changes along it is the latent alone.
    weights = class_weights(manifest, request.condition, 1, seed)
    ends = yield from _located(manifest, points, weights, request.scale, limits)
    if request.corners:
        latents = space.corner_grid(list(ends), request.steps, request.mode)
    elif request.start:
        latents = space.path(ends[0], ends[1], request.steps, request.mode)
    else:
        signs = np.repeat([1.0, -1.0], [len(request.plus), len(request.minus)])
        latents = priors.check_latents(manifest, (signs @ ends.astype(np.float64))[None])
    if weights is not None:
        weights = np.repeat(weights, len(latents), axis=0)
    same_noise = np.zeros(len(latents), np.uint64)
    result = yield from _decoded(manifest, latents, weights, seed, request.scale, same_noise)
    return replace(result, columns=columns)


OPERATIONS: Mapping[str, Callable[..., Generator[Call | Paint, Outputs, Result]]] = {
    "sample": sample,
    "encode": encode,
    "decode": decode,
    "reconstruct": reconstruct,
    "likelihood": likelihood,
    "interpolate": interpolate,
    "complete": complete,
    "score": score,
    "classify": classify,
}


def begin(
    operation: str,
    manifest: Manifest,
    calibrations: Sequence[Calibration],
    request: Request,
    limits: Limits,
) -> Generator[Call | Paint, Outputs, Result]:
    """Begin an operation on a model: its manifest, and the calibrations that lie beside it."""
    check_scale(manifest, request.scale)
    if isinstance(request, LikelihoodRequest):
        return likelihood(manifest, request, limits, calibrations)
    return OPERATIONS[operation](manifest, request, limits)


def paints(manifest: Manifest, operation: str) -> bool:
    """Return whether an operation paints row by row, instead of calling graphs."""
    return "row_step" in graphs_of(manifest, operation)


def work(manifest: Manifest, request: Request) -> int:
    """Return how many rows a request makes arrays for, before anything is checked or made."""
    match request:
        case SampleRequest() if manifest.program == "markov_chain":
            return request.count * rows_of_a_call(manifest)
        case CompleteRequest():
            return request.drawn
        case SampleRequest():
            return request.count
        case DecodeRequest():
            return request.rows
        case InterpolateRequest():
            return request.steps ** (2 if request.corners else 1)
        case LikelihoodRequest():
            return request.rows * rows_for_image(manifest, request)
        case ClassifyRequest():
            classes = len(manifest.condition.names) if manifest.condition else 1
            return request.rows * (request.samples or 1) * classes
        case _:
            return request.rows


def _decoded(
    manifest: Manifest,
    points: Array | DeferredRows,
    weights: Array | None,
    seed: int,
    scale: Scale,
    items: NDArray[np.uint64] | None = None,
) -> Decoding:
    """Return the images or vectors of latents or codes, [N, D], and those.

    What noise there is besides is that of `items`, [N], or else of one item a row.
    """
    if items is None:
        items = np.arange(len(points), dtype=np.uint64)
    if manifest.program == "raster_rows":
        request = SampleRequest(scale=scale)  # pixels are drawn as by default
        latents = as_array(points)
        return (yield from painted_latents(manifest, request, latents, weights, seed, items))
    graph, role = manifest.graphs["decode"], priors.role(manifest)

    def rows_of_noise(port: Port) -> Array:
        seeds = np.full(len(points), seed, np.uint64)
        return noise_of_port(port, seeds, items, 1).reshape(len(points), *port.row_shape)

    inputs = feed(graph, rows_of_noise, **{role: points}, condition=weights)
    values = output(graph, (yield Call("decode", inputs)), "data")
    if not np.isfinite(values).all():
        raise InvalidLatent("the latents decode to values that are not finite; use smaller ones")
    return GenerationResult(
        **events_of(manifest).shown(values, scale),
        latents=points if role == "latent" else None,
        codes=as_array(points) if role == "codes" else None,
        class_weights=weights,
        seed=seed,
    )


def _encoded(
    manifest: Manifest, rows: EventRows
) -> Generator[Call, Outputs, tuple[Array, Array | None]]:
    """Return codes, or the mean of the latents and the deviation that some models have, [N, D]."""
    graph, events = manifest.graphs["encode"], events_of(manifest)
    inputs = feed(graph, no_noise, data=events.to_values(rows))
    outputs = yield Call("encode", inputs)
    deviation = graph.output("latent_deviation")
    encoded = output(graph, outputs, priors.role(manifest))
    if events.part == "vectors" and not np.isfinite(encoded).all():
        raise InvalidVector("the vectors have latents that are not finite; send smaller ones")
    return encoded, outputs[deviation.name] if deviation else None


def _located(
    manifest: Manifest,
    points: Sequence[Endpoint],
    weights: Array | None,
    scale: Scale,
    limits: Limits,
) -> Generator[Call, Outputs, Array]:
    """Return the latents [len(points), D] that the endpoints name; events are encoded at once."""
    latents = np.empty((len(points), priors.latent_size(manifest)), np.float32)
    encoded = [index for index, point in enumerate(points) if _is_event(point)]
    for index, point in enumerate(points):
        priors.check_space(manifest, point.latent_space)
        if point.seed is not None:
            check_range("seed", point.seed, 0, noise.MAXIMUM_SEED)
            first = yield from priors.draw_first(manifest, point.seed, weights)
            latents[index] = first[0]
        elif point.latent is not None:
            latents[index] = priors.check_latents(manifest, point.latent[None])[0]
    if encoded:
        if "encode" not in manifest.operations:
            made = events_of(manifest).part
            raise OperationNotOffered(
                f"{manifest.name} can't encode {made}, so endpoints must be seeds or latents",
                operations=sorted(manifest.operations),
            )
        rows = [_read_point(manifest, points[index], scale, limits) for index in encoded]
        latents[encoded], _ = yield from _encoded(manifest, np.concatenate(rows))
    return latents


def _is_event(point: Endpoint) -> bool:
    return point.image is not None or point.vector is not None


def _read_point(manifest: Manifest, point: Endpoint, scale: Scale, limits: Limits) -> EventRows:
    """Return the image or vector of a point as one row."""
    image, vector = point.image, point.vector
    request = EventsRequest(
        images=[image] if isinstance(image, bytes) else None if image is None else image[None],
        vectors=None if vector is None else vector[None],
        scale=scale,
    )
    return events_of(manifest).read(request, limits)


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
        ways = (point.seed, point.latent, point.image, point.vector)
        if sum(way is not None for way in ways) != 1:
            raise InvalidRequest("a point is exactly one of a seed, a latent, an image or a vector")
    longest = int(limits.count**0.5) if request.corners else limits.count
    check_range("steps", request.steps, 2, longest)
    return list(shapes[0]), 1 if arithmetic else request.steps


def _seed(seed: int | None) -> int:
    if seed is None:
        return noise.draw_seed()
    check_range("seed", seed, 0, noise.MAXIMUM_SEED)
    return seed
