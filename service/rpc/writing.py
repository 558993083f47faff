"""The core's answers to proto messages."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np

from service.core.engine import Answer
from service.core.manifest import Manifest
from service.core.manifest_parts import VectorEvent
from service.core.models import Change, Model
from service.core.noise import SCHEME
from service.core.painting.streaming import Preview, Rows
from service.core.requests import (
    Anomaly,
    Array,
    ClassifyResult,
    EncodeResult,
    GenerationResult,
    LikelihoodResult,
    ScoreResult,
)
from service.core.scoring.calibration import Calibration
from service.core.scoring.conformal import COVERAGE
from service.core.scoring.scores import UNITS
from service.errors import NotAcceptable
from service.images import grid, heat_map, levels_to_png
from service.rpc.pb import generation_service_pb2 as pb
from service.rpc.words import to_name

Generation = TypeVar(
    "Generation",
    pb.SampleResponse,
    pb.DecodeResponse,
    pb.ReconstructResponse,
    pb.InterpolateResponse,
    pb.CompleteResponse,
)


def generation(
    response: type[Generation], answer: Answer, parts: Sequence[str], png: bool
) -> Generation:
    """Return the answer of an operation that generates; `parts` are words, [] what it made."""
    result = answer.result
    assert isinstance(result, GenerationResult), "the operation generates images or vectors"
    fields = {**_origin(answer), **_classes(result)}
    parts = parts or [result.made]
    if "images" in parts:
        fields["images"] = _images(answer.manifest, result.part("images"), png)
    if "vectors" in parts:
        fields["vectors"] = _vectors(answer.manifest, result.part("vectors"), png)
    if "latents" in parts:
        fields["latents"] = _latents(result.part("latents"))
        fields["latent_space"] = answer.manifest.latent_space
    if "codes" in parts:
        fields["codes"] = pb.Codes(**_rows(result.part("codes")))
        fields["latent_space"] = answer.manifest.latent_space
    for part in {"log_likelihood", "log_weight"}.intersection(parts):
        fields[part] = result.part(part).tolist()
    if response is pb.CompleteResponse:
        fields |= {"late_known_pixels": result.late_known_pixels, "note": result.note}
        fields["candidate"] = result.candidate
    return response(**fields)


def rows(event: Rows) -> pb.Rows:
    """Return rows of an image that were painted."""
    count, width = event.levels.shape
    return pb.Rows(
        image=event.image,
        first_row=event.first_row,
        count=count,
        width=width,
        levels=event.levels.tobytes(),
        rows_done=event.rows_done,
        rows_total=event.rows_total,
        resume_token=event.resume_token,
    )


def preview(event: Preview) -> pb.Preview:
    """Return one picture of all images as far as they are painted."""
    return pb.Preview(
        png=levels_to_png(grid(event.images), event.manifest.image.levels),
        rows_done=event.rows_done,
        rows_total=event.rows_total,
        resume_token=event.resume_token,
    )


def encoding(answer: Answer, parts: Sequence[str]) -> pb.EncodeResponse:
    """Return the answer of Encode; `parts` are words, [] latents or codes."""
    result = answer.result
    assert isinstance(result, EncodeResult), "the operation encodes"
    parts = parts or [result.encoded]
    return pb.EncodeResponse(
        **_origin(answer),
        latents=_latents(result.part("latents")) if "latents" in parts else None,
        codes=pb.Codes(**_rows(result.part("codes"))) if "codes" in parts else None,
        latent_space=answer.manifest.latent_space,
        deviations=_latents(result.deviations) if "deviations" in parts else None,
        draws=_latents(result.draws) if "draws" in parts else None,
    )


def likelihoods(answer: Answer, parts: Sequence[str], png: bool) -> pb.LikelihoodResponse:
    """Return the answer of Likelihood: a column for each number, and what all of them mean.

    `parts` are words, [] log-likelihoods and what scores there are.
    """
    result = answer.result
    assert isinstance(result, LikelihoodResult), "the operation scores"
    fields = _origin(answer)
    if not parts or "log_likelihood" in parts:
        for name in ("log_likelihood", "standard_error", "bits_per_dim"):
            fields[name] = _column(getattr(result, name))
    if result.anomaly is not None:
        fields |= _verdict(result.anomaly)
    return pb.LikelihoodResponse(
        **fields,
        log_likelihood_map=_map(answer.manifest, result.log_likelihood_map, png),
        quantity=to_name(pb.Quantity.DESCRIPTOR, result.quantity),
        kind=to_name(pb.LikelihoodKind.DESCRIPTOR, result.kind),
        base_measure=to_name(pb.BaseMeasure.DESCRIPTOR, result.base_measure),
        estimator=result.estimator,
        conditioning=to_name(pb.Conditioning.DESCRIPTOR, result.conditioning),
        draws=result.draws,
        binarisation=to_name(pb.Binarisation.DESCRIPTOR, result.binarisation),
    )


def scores(answer: Answer) -> pb.ScoreResponse:
    """Return the answer of Score."""
    result = answer.result
    assert isinstance(result, ScoreResult), "the operation asks a discriminator"
    return pb.ScoreResponse(
        **_origin(answer),
        score=result.score.tolist(),
        higher_means=to_name(pb.HigherMeans.DESCRIPTOR, result.higher_means),
        unit=result.unit,
        meaning=result.meaning,
        conditioning=to_name(pb.Conditioning.DESCRIPTOR, result.conditioning),
    )


def classes(answer: Answer) -> pb.ClassifyResponse:
    """Return the answer of Classify: the posterior of every image, one after the other."""
    result = answer.result
    assert isinstance(result, ClassifyResult), "the operation tells classes apart"
    return pb.ClassifyResponse(
        **_origin(answer),
        class_label=result.class_label,
        posterior=result.posterior.ravel().tolist(),
        class_names=result.class_names,
        log_likelihood=result.log_likelihood.tolist(),
        kind=to_name(pb.LikelihoodKind.DESCRIPTOR, result.kind),
        estimator=result.estimator,
        draws=result.draws,
        binarisation=to_name(pb.Binarisation.DESCRIPTOR, result.binarisation),
    )


def _verdict(found: Anomaly) -> dict[str, Any]:
    return {
        "scores": {
            name: pb.Score(unit=UNITS[name], value=_column(values), p_value=found.p_values[name])
            for name, values in found.scores.items()
        },
        "p_value": _column(found.p_value),
        "percentile": _column(found.percentile),
        "q_value": _column(found.q_value),
        "anomalous": found.anomalous.tolist(),
        "calibration": pb.AppliedCalibration(
            id=found.calibration,
            count=found.count,
            decision=found.decision,
            false_positive_rate=found.false_positive_rate,
            realised_rate=found.realised_rate,
            coverage=COVERAGE,
        ),
        "group_p_value": found.group_p_value,
    }


def _map(manifest: Manifest, nats: Array | None, png: bool) -> pb.LogLikelihoodMap | None:
    if nats is None:
        return None
    count, height, width = nats.shape
    sizes = {"count": count, "height": height, "width": width}
    if not png:
        return pb.LogLikelihoodMap(**sizes, values=nats.ravel().tolist())
    pictures = heat_map(nats, manifest.drawn_levels)
    files = [levels_to_png(picture, 256) for picture in pictures]
    return pb.LogLikelihoodMap(**sizes, png=pb.PngFiles(files=files))


def model(found: Model, default_for: Sequence[str]) -> pb.Model:
    """Return the description of a model, and the operations that it is the default of."""
    return pb.Model(
        name=found.name,
        version=found.version,
        state=to_name(pb.ModelState.DESCRIPTOR, found.state),
        reason=found.reason,
        default_for=default_for,
        calibrations=[_calibration(made) for made in found.calibrations.values()],
        refused_calibrations=[
            pb.RefusedCalibration(file=file, reason=reason)
            for file, reason in found.refused_calibrations.items()
        ],
        compatibility=asdict(found.compatibility) if found.compatibility else None,
        **(_description(found.manifest) if found.manifest else {}),
    )


def change(made: Change) -> pb.ModelChange:
    """Return what a rescan did about one version."""
    kind = to_name(pb.ModelChangeKind.DESCRIPTOR, made.kind)
    return pb.ModelChange(model=made.model, kind=kind, reason=made.reason)


def _origin(answer: Answer) -> dict[str, Any]:
    """Return what every answer says of where it is from; the call's id is set around it."""
    return {
        "model": answer.model,
        "artifact_digest": answer.manifest.artifact_digest,
        "noise_scheme": SCHEME,
        "reproducible": to_name(pb.Reproducibility.DESCRIPTOR, answer.reproducible),
        "seed": answer.result.seed,
    }


def _classes(result: GenerationResult) -> dict[str, Any]:
    if result.class_weights is None:
        return {}
    weights = pb.ClassWeights(**_rows(result.class_weights))
    return {"class_weights": weights, "class_label": result.class_label or ()}


def _images(manifest: Manifest, images: Array, png: bool) -> pb.Images:
    count, height, width, channels = images.shape
    if png and channels not in (1, 3):
        raise NotAcceptable(
            f"{manifest.name} makes images of {channels} channels, and a PNG holds 1 or 3; "
            "set image_format to IMAGE_FORMAT_ARRAY"
        )
    return pb.Images(
        count=count,
        height=height,
        width=width,
        channels=channels,
        **_pixels(images, png, manifest.image.levels),
    )


def _vectors(manifest: Manifest, vectors: Array, png: bool) -> pb.Vectors:
    if png:
        raise NotAcceptable(
            f"{manifest.name} makes vectors, and a PNG holds images; leave out image_format"
        )
    return pb.Vectors(**_rows(vectors))


def _pixels(images: Array, png: bool, levels: int) -> dict[str, Any]:
    if png:
        return {"png": pb.PngFiles(files=[levels_to_png(image, levels) for image in images])}
    if images.dtype == np.uint8:
        return {"levels": images.tobytes()}
    return {"unit_values": images.astype("<f4").tobytes()}


def _latents(latents: Array | None) -> pb.Latents | None:
    return None if latents is None else pb.Latents(**_rows(latents))


def _rows(rows: Array) -> dict[str, Any]:
    count, size = rows.shape
    return {"count": count, "size": size, "values": rows.ravel().tolist()}


def _column(values: Array | None) -> list[float]:
    return [] if values is None else values.tolist()


def _description(manifest: Manifest) -> dict[str, Any]:
    binarisation = manifest.binarisation
    rules = binarisation.rules if binarisation else ()
    return {
        "family": manifest.family,
        "licence": manifest.licence,
        "artifact_digest": manifest.artifact_digest,
        "operations": manifest.operations,
        "event": _event(manifest),
        "latent": manifest.latent
        and pb.LatentSpace(
            space=manifest.latent.space,
            size=manifest.latent.shape[0],
            prior=manifest.latent.prior,
            prior_meaning=manifest.latent.prior_meaning,
        ),
        "codes": manifest.codes
        and pb.CodeSpace(
            space=manifest.codes.space,
            size=manifest.codes.size,
            maps=[pb.CodeMap(**each.model_dump()) for each in manifest.codes.maps],
            prior_meaning=manifest.codes.prior_meaning,
        ),
        "condition": manifest.condition and pb.ConditionSpace(**manifest.condition.model_dump()),
        "controls": {
            name: pb.Control(
                meaning=control.meaning,
                minimum=control.minimum,
                maximum=control.maximum,
                default_value=control.default,
            )
            for name, control in manifest.controls.items()
        },
        "binarisations": [to_name(pb.Binarisation.DESCRIPTOR, rule) for rule in rules],
        "binarisation_required_by": binarisation.required_by if binarisation else (),
        "quality": [
            pb.Figure(**figure.model_dump(exclude={"published"})) for figure in manifest.quality
        ],
    }


def _calibration(made: Calibration) -> pb.Calibration:
    protocol = made.protocol
    return pb.Calibration(
        id=made.id,
        count=made.count,
        source=made.data.source,
        protocol=pb.CalibrationProtocol(
            conditioning=to_name(pb.Conditioning.DESCRIPTOR, protocol.conditioning),
            binarisation=to_name(pb.Binarisation.DESCRIPTOR, protocol.binarisation),
            estimator=protocol.estimator,
            draws=protocol.draws,
            seed=protocol.seed,
            codec=protocol.codec,
        ),
        decision=made.decision,
        scores=made.scores,
    )


def _event(manifest: Manifest) -> pb.Event:
    event = manifest.event
    measure = to_name(pb.BaseMeasure.DESCRIPTOR, event.base_measure)
    if isinstance(event, VectorEvent):
        return pb.Event(kind=event.kind, size=event.dimensions, base_measure=measure)
    height, width, channels = event.shape
    return pb.Event(
        kind=event.kind,
        height=height,
        width=width,
        channels=channels,
        levels=event.levels,
        base_measure=measure,
    )
