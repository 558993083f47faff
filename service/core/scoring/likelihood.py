"""The likelihood operation: log-likelihoods, what they mean, and what is anomalous."""

from collections.abc import Generator, Sequence
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from service.core import noise
from service.core.calls import Call, Inputs, Outputs, feed, no_noise, noise_of_port, output
from service.core.conditions import class_weights, every_class, is_given
from service.core.events import events_of
from service.core.manifest import Manifest
from service.core.manifest_parts import Port
from service.core.preprocess import binarise, item_keys
from service.core.requests import (
    Array,
    EventRows,
    LikelihoodRequest,
    LikelihoodResult,
    Limits,
    check_range,
)
from service.core.scoring.anomaly import applicable, verdict
from service.core.scoring.calibration import Calibration, Protocol
from service.core.scoring.estimators import (
    Floats,
    Marginal,
    expected,
    log_mean_weight,
    marginalise,
    marginalise_map,
    mean_log_weight,
)
from service.core.scoring.scores import Statistic
from service.errors import InvalidRequest

Scoring = Generator[Call, Outputs, LikelihoodResult]
Measuring = Generator[Call, Outputs, tuple[Protocol, dict[Statistic, Floats]]]


class Estimate(NamedTuple):
    """How a likelihood is estimated: on which graph, of how many draws an image."""

    graph: str
    estimator: str
    draws: int
    noisy: bool
    importance: bool  # the log of the mean weight, not the mean of log weights
    classes: int  # that an image is scored under, to be summed over; 1 where there is nothing to

    @property
    def rows(self) -> int:
        """Rows of the graph for one image: its draws, under one class after the other."""
        return self.draws * self.classes


def likelihood(
    manifest: Manifest,
    request: LikelihoodRequest,
    limits: Limits,
    calibrations: Sequence[Calibration] = (),
) -> Scoring:
    """Score images by the mean of log weights, or by the log of their mean (importance weighted).

    The mean of k log weights is the ELBO (Kingma & Welling 2013, eq. 2) or the dequantisation
    bound (Theis et al. 2015, section 3.1); the log of the mean weight is IWAE-k (Burda et al.
    2015, eq. 8). In expectation both bound log p from below. So does plain Monte Carlo, the log of
    the mean of p(x|z) over z of the prior: the mean is right, and a log is concave (Jensen).

    A model that needs a class and is given none answers the log of the sum over y of p(y) p(x|y),
    with the prior of its manifest.

    Anomaly scores are added where a calibration was computed by the same protocol.
    """
    estimate = _estimate(manifest, request, limits)
    rows = _rows(manifest, request, limits, estimate)
    _check_map(manifest, request, estimate)
    protocol, meaning = _protocol(manifest, request, estimate), manifest.operations["likelihood"]
    calibration = applicable(calibrations, request, protocol)
    outputs = yield Call(estimate.graph, _inputs(manifest, request, estimate, rows))
    score, error, _ = _log_likelihood(manifest, estimate, outputs)
    error = _with_error_of_normaliser(error, meaning.normaliser_standard_error, len(score))
    anomaly = None
    if calibration is not None:
        statistics = yield from _statistics(manifest, request, estimate, rows, outputs)
        anomaly = verdict(calibration, statistics, request)
    return LikelihoodResult(
        log_likelihood=score,
        standard_error=error,
        bits_per_dim=_bits_per_dim(manifest, score),
        quantity=str(meaning.quantity),
        kind="lower_bound" if request.estimator else str(meaning.kind),
        base_measure=str(meaning.base_measure),
        estimator=protocol.estimator,
        conditioning=protocol.conditioning,
        draws=estimate.draws,
        binarisation=request.binarisation,
        seed=request.seed,
        log_likelihood_map=_map(manifest, estimate, outputs) if _wants_map(request) else None,
        anomaly=anomaly,
    )


def _with_error_of_normaliser(
    error: Floats | None, of_normaliser: float | None, images: int
) -> Floats | None:
    """Return the standard error [N] of draws and of a normaliser that was estimated once."""
    if of_normaliser is None:
        return error
    of_draws = np.zeros(images) if error is None else error
    both: Floats = np.hypot(of_draws, of_normaliser)
    return both


def measure(manifest: Manifest, request: LikelihoodRequest, limits: Limits) -> Measuring:
    """Return what a calibration is made of: the protocol of a request and its statistics, [N]."""
    estimate = _estimate(manifest, request, limits)
    rows = _rows(manifest, request, limits, estimate)
    outputs = yield Call(estimate.graph, _inputs(manifest, request, estimate, rows))
    statistics = yield from _statistics(manifest, request, estimate, rows, outputs)
    return _protocol(manifest, request, estimate), statistics


def of_every_class(
    manifest: Manifest, request: LikelihoodRequest, limits: Limits
) -> Generator[Call, Outputs, tuple[Estimate, Marginal]]:
    """Score images given each class of the model, and return what the prior makes of that.

    Also of a model that can do without a class, by itself: what it says then is no sum over them.
    """
    assert manifest.condition is not None, "the manifest was checked for classes"
    estimate = _estimate(manifest, request, limits)
    estimate = estimate._replace(classes=len(manifest.condition.names))
    rows = _rows(manifest, request, limits, estimate)
    outputs = yield Call(estimate.graph, _inputs(manifest, request, estimate, rows))
    return estimate, _log_likelihood(manifest, estimate, outputs)


def _estimate(manifest: Manifest, request: LikelihoodRequest, limits: Limits) -> Estimate:
    """Return how the request's likelihood is estimated; raises InvalidRequest or OutOfRange."""
    name, meaning = _scoring_graph(manifest, request), manifest.operations["likelihood"]
    classes = _summed_classes(manifest, request)
    noisy = request.estimator is not None or manifest.graphs[name].input("noise") is not None
    draws = (meaning.draws or 1) if request.samples is None else request.samples
    if request.samples is not None:
        check_range("samples", draws, 1, limits.draws if noisy else 1)
    importance = request.samples is not None and noisy
    named = meaning.importance_estimator if importance else meaning.estimator
    return Estimate(name, request.estimator or str(named), draws, noisy, importance, classes)


def rows_for_image(manifest: Manifest, request: LikelihoodRequest) -> int:
    """Return how many rows one image of a request takes, before the request is checked."""
    draws = request.samples or manifest.operations["likelihood"].draws or 1
    return draws * _summed_classes(manifest, request)


def _summed_classes(manifest: Manifest, request: LikelihoodRequest) -> int:
    condition = manifest.condition
    if condition is None or condition.optional or is_given(request.condition):
        return 1
    if manifest.graphs["log_likelihood"].input("condition") is None:
        return 1
    return len(condition.names)


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


def _rows(
    manifest: Manifest, request: LikelihoodRequest, limits: Limits, estimate: Estimate
) -> EventRows:
    """Return the images or vectors that the model scores."""
    check_range("seed", request.seed, 0, noise.MAXIMUM_SEED)
    events = events_of(manifest)
    rows = events.read(request, limits)
    rows = binarise(manifest, "likelihood", rows, request.binarisation, request.seed)
    asked = f"the number of {events.part} times samples"
    if estimate.classes > 1:
        asked += f" times {estimate.classes} classes, of which none is given,"
    check_range(asked, len(rows) * estimate.rows, 1, limits.rows)
    return rows


def _protocol(manifest: Manifest, request: LikelihoodRequest, estimate: Estimate) -> Protocol:
    """Return how the statistics of a request are computed."""
    conditioning = manifest.operations["likelihood"].conditioning or "none"
    if estimate.classes > 1:
        conditioning = "marginal"
    elif is_given(request.condition):
        conditioning = "given"
    drawn = estimate.noisy or request.binarisation == "stochastic"
    return Protocol(
        conditioning=conditioning,
        binarisation=request.binarisation,
        estimator=estimate.estimator,
        draws=estimate.draws,
        seed=request.seed if drawn else None,
        codec=events_of(manifest).codec,
    )


def _inputs(
    manifest: Manifest, request: LikelihoodRequest, estimate: Estimate, rows: EventRows
) -> Inputs:
    """Return the inputs of the scoring graph: an image's draws are rows that follow each other.

    Where classes are summed over they come one after the other, each with the same draws.
    """
    seeds, keys = np.full(len(rows), request.seed, np.uint64), item_keys(rows)
    draws, classes = estimate.draws, estimate.classes

    def rows_of_noise(port: Port) -> Array:
        # An image's draws are consecutive positions of its stream: [N, draws * size].
        stream = np.repeat(noise_of_port(port, seeds, keys, draws), classes, axis=0)
        return stream.reshape(len(rows) * estimate.rows, *port.row_shape)

    repeated = {
        role: None if array is None else np.repeat(array, draws, axis=0)
        for role, array in _roles(manifest, request, estimate, rows).items()
    }
    if request.estimator == "monte_carlo":
        latents = np.repeat(_prior_draws(manifest, seeds, keys, draws), classes, axis=0)
        repeated["latent"] = latents.reshape(len(rows) * estimate.rows, -1)
    return feed(manifest.graphs[estimate.graph], rows_of_noise, **repeated)


def _roles(
    manifest: Manifest, request: LikelihoodRequest, estimate: Estimate, rows: EventRows
) -> dict[str, Array | None]:
    """Return images and conditions, [N * classes]."""
    values = events_of(manifest).to_values(rows)
    if estimate.classes > 1:
        condition = every_class(estimate.classes, len(rows))
        return {"data": np.repeat(values, estimate.classes, axis=0), "condition": condition}
    weights = class_weights(manifest, request.condition, len(rows), request.seed)
    return {"data": values, "condition": weights}


def _prior_draws(
    manifest: Manifest, seeds: NDArray[np.uint64], keys: NDArray[np.uint64], draws: int
) -> Array:
    """Return `draws` latents for each image, [N, draws * D], of the standard normal prior."""
    assert manifest.latent is not None, "the manifest was checked for a latent"
    size = manifest.latent.shape[0]
    uniforms = noise.uniform(seeds, "prior", keys, draws * size)
    return noise.normal(uniforms).astype(np.float32)


def _log_likelihood(manifest: Manifest, estimate: Estimate, outputs: Outputs) -> Marginal:
    """Return the log-likelihood of each image, its standard error, and p(y|x), [N]."""
    values = output(manifest.graphs[estimate.graph], outputs, "log_likelihood")
    weights = values.astype(np.float64).reshape(-1, estimate.classes, estimate.draws)
    if estimate.classes > 1:
        return marginalise(weights, _prior(manifest), estimate.importance)
    score = log_mean_weight if estimate.importance else mean_log_weight
    return Marginal(*score(weights[:, 0]), np.ones(weights.shape[:2]))


def _prior(manifest: Manifest) -> Sequence[float]:
    assert manifest.condition is not None, "classes are summed over where there are some"
    return manifest.condition.prior


def _statistics(
    manifest: Manifest,
    request: LikelihoodRequest,
    estimate: Estimate,
    rows: EventRows,
    outputs: Outputs,
) -> Generator[Call, Outputs, dict[Statistic, Floats]]:
    """Return every statistic that there is of each image, [N]; means over draws.

    Where no class is given, means over p(y|x) too.
    """
    score, _, posterior = _log_likelihood(manifest, estimate, outputs)
    statistics: dict[Statistic, Floats] = {
        "log_likelihood": score,
        **events_of(manifest).statistics(rows),
    }
    for port in manifest.graphs[estimate.graph].outputs:
        if port.role == "statistic":
            values = outputs[port.name].astype(np.float64).reshape(*posterior.shape, -1)
            statistics[cast(Statistic, port.name)] = expected(posterior, values.mean(axis=2))
    background = manifest.graphs.get("background_log_likelihood")
    if background is not None:
        inputs = feed(background, no_noise, **_roles(manifest, request, estimate, rows))
        answer = yield Call("background_log_likelihood", inputs)
        values = output(background, answer, "log_likelihood").astype(np.float64)
        if estimate.classes > 1:
            weights = values.reshape(-1, estimate.classes, 1)
            values = marginalise(weights, _prior(manifest), importance=False).log_likelihood
        statistics["background_log_likelihood"] = values
    return statistics


def _bits_per_dim(manifest: Manifest, log_likelihood: Floats) -> Floats | None:
    """Return bits for each value; a density of reals is no number of bits."""
    if manifest.operations["likelihood"].quantity != "probability":
        return None
    bits: Floats = -log_likelihood / (manifest.event.dimensions * np.log(2.0))
    return bits


def _wants_map(request: LikelihoodRequest) -> bool:
    return request.parts is not None and "log_likelihood_map" in request.parts


def _check_map(manifest: Manifest, request: LikelihoodRequest, estimate: Estimate) -> None:
    """Raise InvalidRequest where a map is asked for and can't be given."""
    if not _wants_map(request):
        return
    if manifest.graphs[estimate.graph].output("log_likelihood_map") is None:
        raise InvalidRequest(
            f"{manifest.name} has no log-likelihood of single pixels, so it answers no "
            "log_likelihood_map; ask for log_likelihood"
        )
    if estimate.importance:
        raise InvalidRequest(
            "the log of a mean weight is no sum over pixels: ask for log_likelihood_map without "
            "samples"
        )


def _map(manifest: Manifest, estimate: Estimate, outputs: Outputs) -> Floats:
    """Return the log-likelihood of each pixel, in nats, the mean over draws, [N, H, W]."""
    values = output(manifest.graphs[estimate.graph], outputs, "log_likelihood_map")
    shape = (-1, estimate.classes, estimate.draws, *values.shape[1:])
    maps: Floats = values.astype(np.float64).reshape(shape).mean(axis=2)
    return marginalise_map(maps, _prior(manifest)) if estimate.classes > 1 else maps[:, 0]
