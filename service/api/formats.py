"""The media types of answers: JSON, one PNG, or npy, and which of them can hold what is asked.

What JSON says beside its arrays, the other two say in headers: `artifact_digest` is
`X-Genserve-Artifact-Digest`.
"""

from typing import Any
from urllib.parse import quote

from fastapi import Response

from service.api.answers import latent_space, metadata, to_json
from service.api.bodies import JSON, NPY, PNG
from service.api.schemas import Body, GenerationBody
from service.core.engine import Answer
from service.core.requests import EncodeResult, GenerationResult, LikelihoodResult
from service.errors import InvalidRequest, NotAcceptable
from service.images import array_to_npy, grid, levels_to_png


def media_types(body: type[Body]) -> list[str]:
    """Return the media types in which an operation answers, JSON first."""
    return [JSON, PNG, NPY] if issubclass(body, GenerationBody) else [JSON, NPY]


def check_answerable(body: Body, media_type: str) -> None:
    """Raise, before anything runs, where the media type can't hold what is asked for."""
    asked = list(dict.fromkeys(body.answer_parts))
    if media_type == PNG and asked != ["images"]:
        raise NotAcceptable(f"a PNG holds images, not {' and '.join(asked)}; accept {JSON}")
    if media_type == NPY and len(asked) != 1:
        raise NotAcceptable(
            f"npy holds one array, not {' and '.join(asked)}; name one in return, or accept {JSON}"
        )
    if isinstance(body, GenerationBody) and body.scale == "unit" and "images" in asked:
        as_png = media_type == PNG or (media_type == JSON and body.image_format == "png")
        if as_png:
            raise InvalidRequest(
                "a PNG holds levels; with scale set to unit, set image_format to array, "
                f"or accept {NPY}"
            )


def write(answer: Answer, body: Body, media_type: str, request_id: str) -> Response:
    """Return an answer in the media type that was negotiated."""
    if media_type == JSON:
        return Response(to_json(answer, body, request_id), media_type=JSON)
    content = _to_png(answer) if media_type == PNG else _to_npy(answer, body.answer_parts[0])
    facts = metadata(answer, request_id) | _facts(answer)
    del facts["request_id"]  # X-Request-Id says it
    headers = {f"X-Genserve-{_header_name(name)}": _header(fact) for name, fact in facts.items()}
    return Response(content, media_type=media_type, headers=headers)


def _to_png(answer: Answer) -> bytes:
    """Return one picture of all images: in the columns of the result, or about square."""
    assert isinstance(answer.result, GenerationResult)
    picture = grid(answer.result.images, answer.result.columns)
    return levels_to_png(picture, answer.manifest.event.levels)


def _to_npy(answer: Answer, part: str) -> bytes:
    if isinstance(answer.result, GenerationResult):
        return array_to_npy(answer.result.part(part))
    array = getattr(answer.result, part)
    if array is None:
        raise InvalidRequest(
            f"{answer.model} maps an image to exactly one latent, so there are no {part}; "
            "ask for latents"
        )
    return array_to_npy(array)


def _facts(answer: Answer) -> dict[str, Any]:
    """Return what JSON would say of this result, as far as headers can hold it."""
    match answer.result:
        case GenerationResult() as result:
            labels = result.class_label
            said = {} if labels is None else {"class_label": ",".join(map(str, labels))}
            if result.latents is not None:
                said["latent_space"] = latent_space(answer)
            if result.note:
                said["note"] = result.note
            if result.candidate is not None:
                said["candidate"] = ",".join(map(str, result.candidate))
            return said
        case EncodeResult():
            return {"latent_space": latent_space(answer)}
        case LikelihoodResult() as result:
            names = ("quantity", "kind", "base_measure", "estimator", "conditioning", "draws")
            said = {name: getattr(result, name) for name in names}
            if result.binarisation is not None:
                said["binarisation"] = result.binarisation
            return said


def _header_name(name: str) -> str:
    return "-".join(word.capitalize() for word in name.split("_"))


def _header(value: object) -> str:
    # A manifest may say things that a header can't hold; those are percent-encoded.
    return quote(str(value), safe=" !#$&'()*+,-./:;<=>?@[]^_`{|}~")
