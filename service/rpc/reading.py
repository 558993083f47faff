"""Proto messages to the core's requests. What the messages can't express wrongly needs no check.

Only what is set is handed on, so that the defaults live in the core alone.
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from google.protobuf.message import Message

from service.core.requests import (
    MAXIMUM_LISTED,
    MAXIMUM_PARTS,
    MAXIMUM_POINTS,
    MAXIMUM_TIMEOUT_MS,
    Array,
    ClassifyRequest,
    CompleteRequest,
    ConditionRequest,
    DecodeRequest,
    EncodeRequest,
    Endpoint,
    Images,
    InterpolateRequest,
    LikelihoodPart,
    LikelihoodRequest,
    ReconstructRequest,
    SampleRequest,
    ScoreRequest,
    StreamRequest,
    check_range,
)
from service.errors import InvalidCodes, InvalidImage, InvalidLatent, InvalidRequest, InvalidVector
from service.images import png_size
from service.rpc.pb import generation_service_pb2 as pb
from service.rpc.words import to_word

Batch = pb.Images | pb.Vectors | pb.Latents | pb.Codes | pb.ClassWeights

_DTYPES: dict[str, np.dtype[Any]] = {
    "levels": np.dtype(np.uint8),
    "unit_values": np.dtype("<f4"),
}
_SAMPLING = (
    "count", "seed", "temperature", "truncation", "top_k", "top_p", "greedy", "burn_in", "thinning",
    "chains", "scale"
)  # fmt: skip
_SCORING = (
    "binarisation", "samples", "estimator", "seed", "scale", "false_positive_rate", "calibration",
    "group"
)  # fmt: skip
_SCALES = {"levels": pb.SCALE_LEVELS, "unit_values": pb.SCALE_UNIT}

# The fields that shape a batch, and the error where its values are more or fewer.
_SHAPES: dict[type[Batch], tuple[Sequence[str], type[InvalidRequest]]] = {
    pb.Images: (("count", "height", "width", "channels"), InvalidImage),
    pb.Vectors: (("count", "size"), InvalidVector),
    pb.Latents: (("count", "size"), InvalidLatent),
    pb.Codes: (("count", "size"), InvalidCodes),
    pb.ClassWeights: (("count", "size"), InvalidRequest),
}


def sample(message: pb.SampleRequest) -> SampleRequest:
    """Return what a SampleRequest asks."""
    return SampleRequest(
        **_given(message, *_SAMPLING),
        condition=_condition(message),
    )


def encode(message: pb.EncodeRequest) -> EncodeRequest:
    """Return what an EncodeRequest asks."""
    return EncodeRequest(
        **_given(message, "binarisation", "seed", "scale"),
        **_events(message),
        draw="draws" in parts(message),
    )


def decode(message: pb.DecodeRequest) -> DecodeRequest:
    """Return what a DecodeRequest asks."""
    return DecodeRequest(
        **_given(message, "latent_space", "seed", "scale"),
        latents=_rows(message.latents) if message.HasField("latents") else None,
        codes=_codes(message.codes) if message.HasField("codes") else None,
        condition=_condition(message),
    )


def reconstruct(message: pb.ReconstructRequest) -> ReconstructRequest:
    """Return what a ReconstructRequest asks."""
    return ReconstructRequest(
        **_given(message, "binarisation", "seed", "scale"),
        **_events(message),
        condition=_condition(message),
    )


def likelihood(message: pb.LikelihoodRequest) -> LikelihoodRequest:
    """Return what a LikelihoodRequest asks."""
    return LikelihoodRequest(
        **_given(message, *_SCORING),
        **_events(message),
        condition=_condition(message),
        parts=cast(list[LikelihoodPart], parts(message)) or None,
    )


def classify(message: pb.ClassifyRequest) -> ClassifyRequest:
    """Return what a ClassifyRequest asks."""
    return ClassifyRequest(
        **_given(message, "binarisation", "samples", "seed", "scale"),
        **_events(message),
    )


def interpolate(message: pb.InterpolateRequest) -> InterpolateRequest:
    """Return what an InterpolateRequest asks."""

    def endpoints(holder: Message, name: str) -> list[Endpoint]:
        points = _listed(holder, name, MAXIMUM_POINTS)
        return [_endpoint(point, message.scale) for point in points]

    return InterpolateRequest(
        **_given(message, "steps", "mode", "seed", "scale"),
        start=_endpoint(message.start, message.scale) if message.HasField("start") else None,
        end=_endpoint(message.end, message.scale) if message.HasField("end") else None,
        corners=endpoints(message, "corners"),
        plus=endpoints(message.arithmetic, "plus"),
        minus=endpoints(message.arithmetic, "minus"),
        condition=_condition(message),
    )


def complete(message: pb.CompleteRequest) -> CompleteRequest:
    """Return what a CompleteRequest asks."""
    image = _only(_images(message.image, message.scale), InvalidImage)
    return CompleteRequest(
        **_given(message, *_SAMPLING, "prefix_rows", "candidates"),
        image=image,
        known=_known(message.known, image) if message.HasField("known") else None,
        condition=_condition(message),
    )


def score(message: pb.ScoreRequest) -> ScoreRequest:
    """Return what a ScoreRequest asks."""
    return ScoreRequest(
        **_given(message, "scale"),
        **_events(message),
        condition=_condition(message),
    )


def stream(message: pb.StreamSampleRequest | pb.StreamCompleteRequest) -> StreamRequest:
    """Return how a request to stream wants to be shown what is painted."""
    return StreamRequest(**_given(message, "show", "every_rows", "resume_token"))


def parts(message: Message) -> list[str]:
    """Return what a request wants in its answer, as words; empty for the default."""
    field = message.DESCRIPTOR.fields_by_name.get("returns")
    if field is None:
        return []
    return [
        to_word(field.enum_type, number) for number in _listed(message, "returns", MAXIMUM_PARTS)
    ]


def as_png(message: Message) -> bool:
    """Return whether images, or maps, shall be PNG files."""
    return bool(_given(message, "image_format").get("image_format") == "png")


def check_answerable(message: Message) -> None:
    """Raise InvalidRequest, before anything runs, where the answer can't be what is asked for."""
    parts(message)
    scored = isinstance(message, pb.LikelihoodRequest)  # a map has no scale
    if as_png(message) and not scored and message.scale == pb.SCALE_UNIT:
        raise InvalidRequest(
            "a PNG holds levels: set image_format to IMAGE_FORMAT_ARRAY, or leave out scale"
        )


def timeout_seconds(message: Message, remaining_seconds: float | None) -> float | None:
    """Return the shorter of the request's timeout and what is left of the call's deadline."""
    if not message.HasField("timeout_ms"):
        return remaining_seconds
    check_range("timeout_ms", message.timeout_ms, 1, MAXIMUM_TIMEOUT_MS)
    seconds = float(message.timeout_ms) / 1000
    return seconds if remaining_seconds is None else min(seconds, remaining_seconds)


def _given(message: Message, *names: str) -> dict[str, Any]:
    """Return those of the named fields that are set; choices as words."""
    return {
        field.name: to_word(field.enum_type, value) if field.enum_type else value
        for field, value in message.ListFields()
        if field.name in names
    }


def _listed(message: Message, name: str, maximum: int = MAXIMUM_LISTED) -> list[Any]:
    """Return the entries of a repeated field; a message could hold millions of them."""
    entries = getattr(message, name)
    if len(entries) > maximum:
        raise InvalidRequest(f"{name} has {len(entries)} entries; allowed are at most {maximum}")
    return list(entries)


def _condition(message: Message) -> ConditionRequest:
    if not message.HasField("condition"):
        return ConditionRequest(classes=_listed(message, "class_label") or None)
    if message.class_label:
        raise InvalidRequest("give class_label or condition, not both")
    weights = None
    if message.condition.HasField("class_weights"):
        weights = _rows(message.condition.class_weights)
        if len(weights) == 1:
            weights = weights[0]  # [1, K] -> [K]: the same for all images
    classes = _listed(message.condition, "classes") or None
    return ConditionRequest(classes=classes, class_weights=weights)


def _endpoint(point: pb.Endpoint, scale: int) -> Endpoint:
    given = _given(point, "seed", "latent_space")
    if point.HasField("latent"):
        given["latent"] = _only(_rows(point.latent), InvalidLatent)
    if point.HasField("vector"):
        given["vector"] = _only(_rows(point.vector), InvalidVector)
    if point.HasField("image"):
        given["image"] = _only(_images(point.image, scale), InvalidImage)
    return Endpoint(**given)


def _only(rows: Images, error: type[InvalidRequest]) -> Any:
    if len(rows) != 1:
        raise error(f"exactly 1 latent, image or vector goes here; {len(rows)} were sent")
    return rows[0]


def _events(message: Any) -> dict[str, Any]:
    """Return what is sent of the images and vectors of a request, by name."""
    given: dict[str, Any] = {}
    if message.HasField("vectors"):
        given["vectors"] = _rows(message.vectors)
    if message.HasField("images"):
        given["images"] = _images(message.images, message.scale)
    return given


def _images(images: pb.Images, scale: int) -> Images:
    """Return the PNG files, or the array [N, H, W, C], that the message holds."""
    form = images.WhichOneof("pixels")
    if form is None:
        raise InvalidImage(
            "no images were sent: set one of levels, unit_values and png, or send vectors"
        )
    if form == "png":
        return _listed(images.png, "files")
    if _SCALES[form] != (scale or pb.SCALE_LEVELS):
        raise InvalidRequest(f"{form} goes with {pb.Scale.Name(_SCALES[form])}; set scale to it")
    shape = _shape(images, form, _DTYPES[form].itemsize)
    return np.frombuffer(getattr(images, form), _DTYPES[form]).reshape(shape)


def _known(content: bytes, image: Array | bytes) -> Array:
    """Return which pixels of an image are known, bool [H, W]."""
    height, width = png_size(image) if isinstance(image, bytes) else image.shape[:2]
    if len(content) != height * width:
        raise InvalidRequest(
            f"known has {len(content)} bytes; an image of height {height} and width {width} "
            f"needs {height * width}"
        )
    if content.strip(b"\0\1"):
        raise InvalidRequest("known must hold a byte of 1 for each pixel that is known, else 0")
    return np.frombuffer(content, np.bool_).reshape(height, width)


def _rows(rows: pb.Vectors | pb.Latents | pb.ClassWeights) -> Array:
    return np.array(rows.values, np.float32).reshape(_shape(rows, "values", 1))


def _codes(codes: pb.Codes) -> Array:
    return np.array(codes.values, np.int64).reshape(_shape(codes, "values", 1))


def _shape(batch: Batch, content: str, item_size: int) -> list[int]:
    """Return the shape that a batch states; raises unless its field `content` fits it."""
    name, (fields, error) = batch.DESCRIPTOR.name, _SHAPES[type(batch)]
    sides = [getattr(batch, field) for field in fields]
    stated = ", ".join(f"{field} {side}" for field, side in zip(fields, sides, strict=True))
    if min(sides) < 1:
        raise error(f"{name} has {stated}; each must be at least 1")
    held, needed = len(getattr(batch, content)), math.prod(sides) * item_size
    if held != needed:
        raise error(f"{name}.{content} has the length {held}; {stated} need {needed}")
    return sides
