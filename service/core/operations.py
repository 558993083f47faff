"""Every operation, both halves side by side: from a request to arrays, from arrays to a result.

An operation is a generator: it yields the graph calls it needs, is sent their outputs, and returns
its result. It awaits nothing and touches no model, so the same code runs under the engine and in a
plain test.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.core import latents as space
from service.core import noise
from service.core.conditions import class_weights, is_given
from service.core.controls import control, refuse_controls
from service.core.manifest import Graph, Manifest, Port
from service.core.painting import Paint, forced_levels, known_pixels, late_known, painted
from service.core.preprocess import binarise, image_keys, read_images, to_images, to_values
from service.core.requests import (
    Array,
    CompleteRequest,
    DecodeRequest,
    EncodeRequest,
    EncodeResult,
    Endpoint,
    GenerationResult,
    InterpolateRequest,
    LikelihoodRequest,
    LikelihoodResult,
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

Outputs = Mapping[str, Array]
Floats = NDArray[np.float64]


class Call(NamedTuple):
    """A graph to run on rows of inputs, by the names of its ports."""

    graph: str
    inputs: dict[str, Array]


Decoding = Generator[Call | Paint, Outputs, GenerationResult]
Encoding = Generator[Call, Outputs, EncodeResult]
Scoring = Generator[Call, Outputs, LikelihoodResult]


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
    items = np.arange(request.count, dtype=np.uint64)
    size = _latent_size(manifest)
    latents = space.draw(seed, items, size, 1.0 if temperature is None else temperature, truncation)
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


def likelihood(manifest: Manifest, request: LikelihoodRequest, limits: Limits) -> Scoring:
    """Score images by the mean of log weights, or by the log of their mean (importance weighted).

    The mean of k log weights is the ELBO (Kingma & Welling 2013, eq. 2) or the dequantisation
    bound (Theis et al. 2015, section 3.1); the log of the mean weight is IWAE-k (Burda et al.
    2015, eq. 8). In expectation both bound log p from below. So does plain Monte Carlo, the log of
    the mean of p(x|z) over z of the prior: the mean is right, and a log is concave (Jensen).
    """
    name = _scoring_graph(manifest, request)
    graph, meaning = manifest.graphs[name], manifest.operations["likelihood"]
    check_range("seed", request.seed, 0, noise.MAXIMUM_SEED)
    plain = request.estimator == "monte_carlo"
    noisy = plain or graph.input("noise") is not None
    draws = (meaning.draws or 1) if request.samples is None else request.samples
    if request.samples is not None:
        check_range("samples", draws, 1, limits.draws if noisy else 1)
    levels = read_images(manifest, request.images, request.scale, limits)
    levels = binarise(manifest, "likelihood", levels, request.binarisation, request.seed)
    check_range("the number of images times samples", len(levels) * draws, 1, limits.rows)
    seeds, keys = np.full(len(levels), request.seed, np.uint64), image_keys(levels)

    def rows_of_noise(port: Port) -> Array:
        # An image's draws are consecutive positions of its stream: [N, draws * size].
        stream = _noise(port, seeds, keys, draws)
        return stream.reshape(len(levels) * draws, *port.row_shape)

    given = is_given(request.condition)
    weights = class_weights(manifest, request.condition, len(levels), request.seed)
    roles = {"data": to_values(manifest, levels), "condition": weights}
    repeated = {
        role: None if array is None else np.repeat(array, draws, axis=0)
        for role, array in roles.items()
    }
    if plain:
        repeated["latent"] = _prior_draws(manifest, seeds, keys, draws)
    outputs = yield Call(name, _feed(graph, rows_of_noise, **repeated))
    scores = _output(graph, outputs, "log_likelihood").astype(np.float64).reshape(-1, draws)
    importance = request.samples is not None and noisy
    score, error = log_mean_weight(scores) if importance else mean_log_weight(scores)
    return LikelihoodResult(
        log_likelihood=score,
        standard_error=error,
        bits_per_dim=_bits_per_dim(manifest, score),
        quantity=str(meaning.quantity),
        kind="lower_bound" if plain else str(meaning.kind),
        base_measure=str(meaning.base_measure),
        estimator=request.estimator
        or str(meaning.importance_estimator if importance else meaning.estimator),
        conditioning="given" if given else str(meaning.conditioning),
        draws=draws,
        binarisation=request.binarisation,
        seed=request.seed,
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
            draws = request.samples or manifest.operations["likelihood"].draws or 1
            return len(request.images) * draws
        case _:
            return len(request.images)


def _scoring_graph(manifest: Manifest, request: LikelihoodRequest) -> str:
    """Return the name of the graph that the estimator runs; raises InvalidRequest."""
    if request.estimator is None:
        return "log_likelihood"
    if "log_mass_given_latent" not in manifest.graphs:
        raise InvalidRequest(
            f"{manifest.name} has no p(x|z) to average over the prior; leave out estimator"
        )
    if request.samples is None:
        raise InvalidRequest(f"estimator {request.estimator} needs samples: how many draws")
    return "log_mass_given_latent"


def _prior_draws(
    manifest: Manifest, seeds: NDArray[np.uint64], keys: NDArray[np.uint64], draws: int
) -> Array:
    """Return `draws` latents for each image, [N * draws, D], of the standard normal prior."""
    size = _latent_size(manifest)
    uniforms = noise.uniform(seeds, "prior", keys, draws * size)
    # [N, draws * D] -> [N * draws, D]
    return noise.normal(uniforms).astype(np.float32).reshape(-1, size)


def mean_log_weight(weights: Floats) -> tuple[Floats, Floats | None]:
    """Return the mean over draws of log weights [N, k], and its standard error for k > 1."""
    draws = weights.shape[1]
    if draws == 1:
        return weights[:, 0], None
    return weights.mean(axis=1), weights.std(axis=1, ddof=1) / np.sqrt(draws)


def log_mean_weight(weights: Floats) -> tuple[Floats, Floats | None]:
    """Return log(mean over draws of exp(log weights)) for [N, k], and its standard error.

    The error is the delta method's: the standard error of the mean weight over the mean weight.
    Where a few weights dominate it says too little: it can't exceed 1 nat.
    """
    highest = weights.max(axis=1, keepdims=True)
    mean, error = mean_log_weight(np.exp(weights - highest))
    return highest[:, 0] + np.log(mean), None if error is None else error / mean


def _bits_per_dim(manifest: Manifest, log_likelihood: Floats) -> Floats | None:
    """Return bits for each value; a density of reals is no number of bits."""
    if manifest.operations["likelihood"].quantity != "probability":
        return None
    bits: Floats = -log_likelihood / (manifest.event.dimensions * np.log(2.0))
    return bits


def _decoded(
    manifest: Manifest, latents: Array, weights: Array | None, seed: int, scale: Scale
) -> Generator[Call, Outputs, Array]:
    graph = manifest.graphs["decode"]
    seeds = np.full(len(latents), seed, np.uint64)
    items = np.arange(len(latents), dtype=np.uint64)

    def rows_of_noise(port: Port) -> Array:
        return _noise(port, seeds, items, 1).reshape(len(latents), *port.row_shape)

    inputs = _feed(graph, rows_of_noise, latent=latents, condition=weights)
    values = _output(graph, (yield Call("decode", inputs)), "data")
    if not np.all(np.isfinite(values)):
        raise InvalidLatent("the latents decode to values that are not finite; use smaller ones")
    return to_images(manifest, values, scale)


def _encoded(
    manifest: Manifest, levels: NDArray[np.uint8]
) -> Generator[Call, Outputs, tuple[Array, Array | None]]:
    """Return the mean and, where the model has one, the deviation of the latents, [N, D]."""
    graph = manifest.graphs["encode"]
    outputs = yield Call("encode", _feed(graph, _no_noise, data=to_values(manifest, levels)))
    deviation = graph.output("latent_deviation")
    return _output(graph, outputs, "latent"), outputs[deviation.name] if deviation else None


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
            latents[index] = space.draw(point.seed, np.zeros(1, np.uint64), size, 1.0, None)[0]
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


def _feed(
    graph: Graph, rows_of_noise: Callable[[Port], Array], **roles: Array | None
) -> dict[str, Array]:
    """Return the graph's inputs by port name, from arrays by role; noise is drawn port by port."""
    inputs = {}
    for port in graph.inputs:
        array = rows_of_noise(port) if port.role == "noise" else roles[port.role]
        inputs[port.name] = np.asarray(array, port.dtype)
    return inputs


def _noise(
    port: Port, seeds: NDArray[np.uint64], items: NDArray[np.uint64], draws: int
) -> NDArray[np.float32]:
    """Return [N, draws * size of one row] of the port's distribution."""
    size = draws * int(np.prod(port.row_shape))
    uniforms = noise.uniform(seeds, str(port.purpose), items, size)
    if port.distribution == "normal":
        return noise.normal(uniforms).astype(np.float32)
    return noise.to_float32(uniforms)


def _no_noise(port: Port) -> Array:
    raise InvalidRequest(f"the encode graph's noise input '{port.name}' is not supported")


def _output(graph: Graph, outputs: Outputs, role: str) -> Array:
    port = graph.output(role)
    assert port is not None, f"the manifest was checked for an output of role {role}"
    return outputs[port.name]


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
