"""What the REST operations answer in JSON: schemas, and how they are made from results."""

import base64
from typing import Any

from pydantic import BaseModel, Field

from service.api.schemas import Body, CompleteBody, GenerationBody
from service.core import noise
from service.core.engine import Answer, Reproducible
from service.core.requests import Array, EncodeResult, GenerationResult, LikelihoodResult
from service.images import levels_to_png


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
    """Images, and what they were decoded from."""

    images: list[Any] | None = Field(
        None, description="base64 PNG strings, or arrays [count, height, width, channels]"
    )
    latents: list[list[float]] | None = Field(None, description="[count, size]")
    latent_space: str | None = Field(None, description="beside latents: the space they are of")
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
    """Latents of images, in the order of the images."""

    latents: list[list[float]] | None = Field(None, description="posterior means, [count, size]")
    latent_space: str = Field(description="the space that the latents are of")
    deviations: list[list[float]] | None = Field(
        None, description="[count, size]; null where an image has exactly one latent"
    )
    draws: list[list[float]] | None = Field(None, description="posterior draws, [count, size]")


class Likelihood(BaseModel):
    """The score of one image, and what it means."""

    log_likelihood: float = Field(description="nats")
    standard_error: float | None = Field(
        description="nats, of the Monte Carlo draws; null for one draw"
    )
    bits_per_dim: float | None = Field(
        description="-log2 of the probability over the image's values; null without levels"
    )
    quantity: str = Field(description="probability or density")
    kind: str = Field(description="exact, lower_bound or estimate")
    base_measure: str = Field(description="counting or lebesgue")
    estimator: str = Field(description="how it was computed")
    conditioning: str = Field(description="given, none or marginal")
    draws: int = Field(description="noise draws for this image")


class LikelihoodAnswer(Metadata):
    """Scores, one for each image, in the order of the images."""

    results: list[Likelihood]
    binarisation: str | None = Field(description="the rule that was applied, or null")


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


def to_json(answer: Answer, body: Body, request_id: str) -> str:
    """Return an answer as JSON. What was not asked for is absent; what there is none of is null."""
    said = metadata(answer, request_id)
    content: Metadata
    match answer.result:
        case GenerationResult() as result:
            said |= _generated(answer, result, body) | _classes(result)
            content = (
                CompleteAnswer(**said, **_completed(result))
                if isinstance(body, CompleteBody)
                else GenerationAnswer(**said)
            )
        case EncodeResult() as result:
            arrays: Any = {part: _listed(getattr(result, part)) for part in body.answer_parts}
            content = EncodeAnswer(**said, latent_space=latent_space(answer), **arrays)
        case LikelihoodResult() as result:
            content = LikelihoodAnswer(
                **said, results=_likelihoods(result), binarisation=result.binarisation
            )
    return content.model_dump_json(exclude_unset=True)


def latent_space(answer: Answer) -> str:
    """Return the space of the model's latents; only for models that have them."""
    assert answer.manifest.latent is not None, "a result with latents is from a model with latents"
    return answer.manifest.latent.space


def _generated(answer: Answer, result: GenerationResult, body: Body) -> dict[str, Any]:
    assert isinstance(body, GenerationBody)
    content: dict[str, Any] = {}
    if "images" in body.parts:
        levels = answer.manifest.event.levels
        content["images"] = (
            result.images.tolist()
            if body.image_format == "array"
            else [
                base64.b64encode(levels_to_png(image, levels)).decode() for image in result.images
            ]
        )
    for part in set(body.parts) - {"images"}:
        content[part] = result.part(part).tolist()
    if "latents" in body.parts:
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
    weights = {"class_weights": result.class_weights.tolist()}
    return weights if labels is None else {**weights, "class_label": labels}


def _likelihoods(result: LikelihoodResult) -> list[Likelihood]:
    absent = [None] * result.count
    rows = zip(
        result.log_likelihood.tolist(),
        _listed(result.standard_error) or absent,
        _listed(result.bits_per_dim) or absent,
        strict=True,
    )
    return [
        Likelihood(
            log_likelihood=score,
            standard_error=error,
            bits_per_dim=bits,
            quantity=result.quantity,
            kind=result.kind,
            base_measure=result.base_measure,
            estimator=result.estimator,
            conditioning=result.conditioning,
            draws=result.draws,
        )
        for score, error, bits in rows
    ]


def _listed(array: Array | None) -> list[Any] | None:
    return None if array is None else array.tolist()
