"""What the REST operations answer in JSON: schemas, and how they are made from results."""

import base64
from typing import Any

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field

from service.api.schemas import (
    Body,
    CompleteBody,
    EncodeBody,
    GenerationBody,
    LikelihoodBody,
)
from service.core import noise
from service.core.engine import Answer, Reproducible
from service.core.manifest import Manifest
from service.core.requests import (
    Anomaly,
    Array,
    ClassifyResult,
    EncodePart,
    EncodeResult,
    GenerationResult,
    LikelihoodResult,
    ScoreResult,
)
from service.core.scoring.conformal import COVERAGE
from service.core.scoring.scores import UNITS
from service.errors import NotAcceptable
from service.images import heat_map, levels_to_png


class Metadata(BaseModel):
    """What every answer says."""

    model: str = Field(description="the exact model, name@version")
    artifact_digest: str = Field(description="hash of the whole artifact")
    request_id: str = Field(description="as in X-Request-Id")
    noise_scheme: str = Field(description="how noise follows from seeds")
    reproducible: Reproducible = Field(
        description="what a repeat with the same seed equals: every bit, or the numbers nearly"
    )
    seed: int = Field(description="the seed that was used, given or drawn")


class GenerationAnswer(Metadata):
    """Images or vectors, and what they were decoded from."""

    images: list[Any] | None = Field(
        None, description="base64 PNG strings, or arrays [count, height, width, channels]"
    )
    vectors: list[list[float]] | None = Field(
        None, description="[count, size], of models of vectors instead of images"
    )
    latents: list[list[float]] | None = Field(None, description="[count, size]")
    codes: list[list[int]] | None = Field(None, description="[count, size]")
    latent_space: str | None = Field(
        None, description="beside latents or codes: the space they are of"
    )
    class_weights: list[list[float]] | None = Field(
        None, description="[count, classes]; conditional models only"
    )
    class_label: list[int] | None = Field(
        None, description="one for each image, where the weights are of one class each"
    )
    log_likelihood: list[float] | None = Field(
        None, description="nats, one for each image, at temperature 1 and unfiltered"
    )
    log_weight: list[float] | None = Field(
        None,
        description="nats, one for each image: the log-probability of its known pixels that come "
        "after unknown ones, by which completions can be ranked",
    )


class CompleteAnswer(GenerationAnswer):
    """Completions of an image, and how its known pixels counted."""

    late_known_pixels: int = Field(
        description="known pixels that come after unknown ones in raster order: they were forced, "
        "and did not influence the pixels before them"
    )
    note: str | None = Field(None, description="says so, where there are any")
    candidate: list[int] | None = Field(
        None,
        description="where `candidates` were asked for: which of them each image is, from 0, best "
        "first; candidate i has the noise of image i of the seed",
    )


class ProgressEvent(BaseModel):
    """How far the reader of a stream is."""

    rows_done: int = Field(
        description="rows of all images that were sent up to this event, before a cut included"
    )
    rows_total: int = Field(description="rows of all images")
    resume_token: str = Field(
        description="sent with the same request, it goes on after this event",
        examples=["AX9xPnKX9SByBwAAAAAAAABmmqOMmcxvXAEAAAAEAAAAEuXTpg"],
    )


class RowsEvent(ProgressEvent):
    """Rows of one image that were painted since its last ones: the event `rows` of a stream."""

    image: int = Field(description="which of the images, or of the candidates, from 0")
    first_row: int = Field(description="the first of the rows, from 0 at the top")
    rows: list[list[int]] = Field(description="levels, [rows, width], whatever `scale` is")


class PreviewEvent(ProgressEvent):
    """All images, or candidates, as far as they are painted: the event `preview` of a stream."""

    png: str = Field(
        description="base64 PNG, laid out as the PNG of an answer; what is not painted is level 0"
    )


class EncodeAnswer(Metadata):
    """Latents or codes of images, in the order of the images."""

    latents: list[list[float]] | None = Field(None, description="posterior means, [count, size]")
    codes: list[list[int]] | None = Field(
        None, description="[count, size], of models that have codes instead of latents"
    )
    latent_space: str = Field(description="the space that the latents or codes are of")
    deviations: list[list[float]] | None = Field(
        None, description="[count, size]; null where an image has exactly one latent"
    )
    draws: list[list[float]] | None = Field(None, description="posterior draws, [count, size]")


class Score(BaseModel):
    """An anomaly score of one image, higher for the more anomalous."""

    value: float | None = Field(
        description="null where it is infinite, since a number that it is made of is not finite: "
        "the image is more anomalous than any with a number"
    )
    unit: str | None = Field(None, description="nats, bits or latent units; null without one")
    p_value: float = Field(
        description="(1 + the calibration images that score as high) / (n + 1), so the lowest is "
        "1 / (n + 1)"
    )


class Likelihood(BaseModel):
    """The likelihood of one image, what it means, and how anomalous the image is."""

    name: str | None = Field(None, description="of its file, where images came as a zip archive")

    log_likelihood: float | None = Field(None, description="nats; null where it is not finite")
    standard_error: float | None = Field(
        None,
        description="nats, of the Monte Carlo draws and of an estimated normaliser; null for one "
        "draw and no such normaliser",
    )
    bits_per_dim: float | None = Field(
        None, description="-log2 of the probability over the image's values; null without levels"
    )
    quantity: str = Field(description="probability or density")
    kind: str = Field(description="exact, lower_bound or estimate")
    base_measure: str = Field(description="counting or lebesgue")
    estimator: str = Field(description="how it was computed")
    conditioning: str = Field(description="given, none or marginal")
    draws: int = Field(description="noise draws for this image")
    scores: dict[str, Score] | None = Field(
        None, description="by name; null, as what follows, where no calibration holds for them"
    )
    p_value: float | None = Field(None, description="of the decision score")
    percentile: float | None = Field(
        None, description="percentage of calibration images with a lower decision score"
    )
    q_value: float | None = Field(
        None,
        description="lowest false discovery rate at which this image would be called anomalous "
        "among those of the request (Benjamini and Hochberg)",
    )
    anomalous: bool | None = Field(
        None, description="whether p_value is at most the false-positive rate"
    )
    log_likelihood_map: list[Any] | str | None = Field(
        None,
        description="nats, [height, width], null where one is not finite; or a base64 PNG in "
        "which the unlikely is bright: black is 0 nats, middle grey a guess among all levels",
    )


# FastAPI leaves null out of examples, so there is none in this one.
_EXAMPLE: dict[str, Any] = {
    "model": "mnist-vae@1",
    "artifact_digest": "sha256:1f2d...",
    "request_id": "5f0c2d9a71be4c6f",
    "noise_scheme": noise.SCHEME,
    "reproducible": "bitwise",
    "seed": 0,
    "binarisation": "stochastic",
    "results": [
        {
            "log_likelihood": -212.4,
            "standard_error": 1.7,
            "bits_per_dim": 0.391,
            "quantity": "probability",
            "kind": "lower_bound",
            "base_measure": "counting",
            "estimator": "elbo",
            "conditioning": "none",
            "draws": 4,
            "scores": {
                "typicality": {"value": 118.2, "unit": "nats", "p_value": 0.0162},
                "combined": {"value": 7.914, "p_value": 0.0002},
            },
            "p_value": 0.0002,
            "percentile": 100.0,
            "q_value": 0.0002,
            "anomalous": True,
        }
    ],
    "calibration": {
        "id": "5f0c2d9a71be",
        "count": 5000,
        "decision": "combined",
        "false_positive_rate": 0.01,
        "realised_rate": [0.0074, 0.0129],
        "coverage": 0.95,
    },
}


class AppliedCalibration(BaseModel):
    """The calibration that scores were compared with, and how far verdicts can be trusted."""

    id: str = Field(description="12 hexadecimal digits", examples=["5f0c2d9a71be"])
    count: int = Field(description="n, the number of images that scores were compared with")
    decision: str = Field(description="the score that p_value and anomalous are of")
    false_positive_rate: float = Field(description="at which anomalous was decided")
    realised_rate: tuple[float, float] = Field(
        description="low and high: the share of normal images that this calibration really calls "
        "anomalous lies between them with the probability `coverage`"
    )
    coverage: float = Field(description="probability that realised_rate holds")


class LikelihoodAnswer(Metadata):
    """Likelihoods and verdicts, one for each image, in the order of the images."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    results: list[Likelihood]
    binarisation: str | None = Field(description="the rule that was applied, or null")
    calibration: AppliedCalibration | None = Field(
        None, description="null where none holds for the scores of this request"
    )
    group_p_value: float | None = Field(
        None,
        description="where `group` asks for it: how often as many normal images have a mean "
        "decision score as high",
    )


class ScoreAnswer(Metadata):
    """What a discriminator or critic says of images, in their order, and what that means."""

    score: list[float | None] = Field(
        description="one for each image, in `unit`; null where it is not finite"
    )
    higher_means: str = Field(description="more_real or less_real")
    unit: str = Field(description="of the scores, the model's own: those of two don't compare")
    meaning: str = Field(description="in words or as a formula")
    conditioning: str = Field(
        description="given: as images of the condition; none: there is none, or the model did "
        "without"
    )


class ClassifyAnswer(Metadata):
    """The classes of images, in their order."""

    class_label: list[int] = Field(description="the most probable class of each image, from 0")
    posterior: list[list[float | None]] = Field(
        description="p(y|x) of each class y of each image x; each row sums to 1"
    )
    class_names: list[str] = Field(description="of the classes, in the order of `posterior`")
    log_likelihood: list[float | None] = Field(
        description="of each image, nats: log of the sum over y of p(y) p(x|y)"
    )
    kind: str = Field(description="of the likelihoods compared: exact, lower_bound or estimate")
    estimator: str
    draws: int = Field(description="of noise, for each image and class")
    binarisation: str | None


def metadata(answer: Answer, request_id: str) -> dict[str, Any]:
    """Return what every answer says, by the names of `Metadata`."""
    return {
        "model": answer.model,
        "artifact_digest": answer.manifest.artifact_digest,
        "request_id": request_id,
        "noise_scheme": noise.SCHEME,
        "reproducible": answer.reproducible,
        "seed": answer.result.seed,
    }


def to_json(answer: Answer, body: Body, request_id: str) -> bytes:
    """Return an answer as JSON, as the schemas above say it.

    What was not asked for is absent; what there is none of, and what is not finite, is null.
    """
    content = metadata(answer, request_id)
    match answer.result:
        case GenerationResult() as result:
            content |= _generated(answer, result, body) | _classes(result)
            if isinstance(body, CompleteBody):
                content |= _completed(result)
        case EncodeResult() as result:
            assert isinstance(body, EncodeBody)
            content["latent_space"] = latent_space(answer)
            content |= {part: _encoded(result, part) for part in body.parts_of(result)}
        case LikelihoodResult() as result:
            assert isinstance(body, LikelihoodBody)
            content |= _scored(answer.manifest, result, body)
        case ScoreResult() as result:
            content |= score_meaning(result) | {"score": _numbers(result.score)}
        case ClassifyResult() as result:
            content |= classification_meaning(result) | {"binarisation": result.binarisation}
            content |= {"class_label": result.class_label, "class_names": result.class_names}
            content["posterior"] = _numbers(result.posterior)
            content["log_likelihood"] = _numbers(result.log_likelihood)
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def latent_space(answer: Answer) -> str:
    """Return the space of the model's latents or codes; only for models that have them."""
    space = answer.manifest.latent_space
    assert space is not None, "a result with latents or codes is from a model that has them"
    return space


def _encoded(result: EncodeResult, part: EncodePart) -> Array | None:
    """Return a part of what images were encoded to; deviations are null where there are none."""
    return _numbers(result.deviations if part == "deviations" else result.part(part))


def score_meaning(result: ScoreResult) -> dict[str, str]:
    """Return what the scores of a result mean, by the names of `ScoreAnswer`."""
    names = ("higher_means", "unit", "meaning", "conditioning")
    return {name: getattr(result, name) for name in names}


def classification_meaning(result: ClassifyResult) -> dict[str, Any]:
    """Return by which likelihoods images were classified, by the names of `ClassifyAnswer`."""
    return {"kind": result.kind, "estimator": result.estimator, "draws": result.draws}


def _generated(answer: Answer, result: GenerationResult, body: Body) -> dict[str, Any]:
    assert isinstance(body, GenerationBody)
    content: dict[str, Any] = {}
    parts = set(body.parts_of(result))
    if "vectors" in parts and body.wants_png:
        raise NotAcceptable(
            f"{answer.manifest.name} makes vectors, and a PNG holds images; leave out image_format"
        )
    if "images" in parts:
        images = result.part("images")
        content["images"] = (
            _numbers(images)
            if body.image_format == "array"
            else _base64_png(images, answer.manifest.image.levels)
        )
    for part in parts - {"images"}:
        content[part] = _numbers(result.part(part))
    if {"latents", "codes"} & parts:
        content["latent_space"] = latent_space(answer)
    return content


def _completed(result: GenerationResult) -> dict[str, Any]:
    said: dict[str, Any] = {"late_known_pixels": result.late_known_pixels}
    if result.note:
        said["note"] = result.note
    if result.candidate is not None:
        said["candidate"] = result.candidate
    return said


def _classes(result: GenerationResult) -> dict[str, Any]:
    if result.class_weights is None:
        return {}
    labels = result.class_label
    weights = {"class_weights": _numbers(result.class_weights)}
    return weights if labels is None else {**weights, "class_label": labels}


def _scored(manifest: Manifest, result: LikelihoodResult, body: LikelihoodBody) -> dict[str, Any]:
    columns: dict[str, list[Any]] = {}
    said: dict[str, Any] = {"binarisation": result.binarisation}
    absent = [None] * result.count
    if body.names is not None:
        columns["name"] = list(body.names)
    if "log_likelihood" in body.answer_parts:
        columns["log_likelihood"] = result.log_likelihood.tolist()
        columns["standard_error"] = _listed(result.standard_error) or absent
        columns["bits_per_dim"] = _listed(result.bits_per_dim) or absent
    if "scores" in body.answer_parts:
        found = result.anomaly
        columns["scores"] = absent if found is None else _scores(found)
        for name in ("p_value", "percentile", "q_value", "anomalous"):
            columns[name] = absent if found is None else getattr(found, name).tolist()
        said["calibration"] = None if found is None else _applied(found)
        if found is not None and found.group_p_value is not None:
            said["group_p_value"] = found.group_p_value
    if result.log_likelihood_map is not None:
        columns["log_likelihood_map"] = (
            result.log_likelihood_map.tolist()
            if body.image_format == "array"
            else _base64_png(heat_map(result.log_likelihood_map, manifest.drawn_levels), 256)
        )
    names = ("quantity", "kind", "base_measure", "estimator", "conditioning", "draws")
    meaning = {name: getattr(result, name) for name in names}
    rows = zip(*columns.values(), strict=True)
    said["results"] = [{**meaning, **dict(zip(columns, row, strict=True))} for row in rows]
    return said


def _scores(found: Anomaly) -> list[dict[str, dict[str, Any]]]:
    """Return the scores of each image by name."""
    columns = {
        name: [
            {"value": value, "unit": UNITS[name], "p_value": p_value}
            for value, p_value in zip(values.tolist(), found.p_values[name].tolist(), strict=True)
        ]
        for name, values in found.scores.items()
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _applied(found: Anomaly) -> dict[str, Any]:
    return {
        "id": found.calibration,
        "count": found.count,
        "decision": found.decision,
        "false_positive_rate": found.false_positive_rate,
        "realised_rate": found.realised_rate,
        "coverage": COVERAGE,
    }


def _base64_png(images: Array, levels: int) -> list[str]:
    return [base64.b64encode(levels_to_png(image, levels)).decode() for image in images]


def _listed(array: Array | None) -> list[Any] | None:
    return None if array is None else array.tolist()


def _numbers(array: Array | None) -> Array | None:
    """Return an array as orjson reads it, floats with all digits that they have as doubles."""
    if array is None:
        return None
    return np.ascontiguousarray(array, np.float64 if array.dtype.kind == "f" else array.dtype)
