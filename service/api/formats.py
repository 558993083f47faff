"""The media types of answers: JSON, one PNG, or npy, and which of them can hold what is asked.

What JSON says beside its arrays, the other two say in headers: `artifact_digest` is
`X-Genserve-Artifact-Digest`.
"""

from functools import cache, lru_cache
from typing import Any, TypeVar
from urllib.parse import quote

from fastapi import Response

from service.api.answers import (
    classification_meaning,
    latent_space,
    metadata,
    score_meaning,
    to_json,
)
from service.api.bodies import JSON, NPY, PNG
from service.api.schemas import Body, EncodeBody, GenerationBody, LikelihoodBody
from service.core.engine import Answer
from service.core.requests import (
    ClassifyResult,
    EncodeResult,
    GenerationResult,
    LikelihoodResult,
    ScoreResult,
)
from service.errors import InvalidRequest, NotAcceptable
from service.images import array_to_npy, grid, heat_map, levels_to_png

B = TypeVar("B", bound=Body)

_PICTURES = "images", "log_likelihood_map"  # what a PNG can hold


def media_types(body: type[Body]) -> list[str]:
    """Return the media types in which an operation answers, JSON first."""
    shown = issubclass(body, GenerationBody | LikelihoodBody)
    return [JSON, PNG, NPY] if shown else [JSON, NPY]


def settle(body: B, media_type: str) -> B:
    """Return a body that says what to answer, where that was left to the media type.

    Scores are of several arrays: only JSON holds them.
    """
    if isinstance(body, LikelihoodBody) and body.parts is None and media_type != JSON:
        part = "log_likelihood_map" if media_type == PNG else "log_likelihood"
        return body.model_copy(update={"parts": [part]})
    return body


def check_answerable(body: Body, media_type: str) -> None:
    """Raise, before anything runs, where the media type can't hold what is asked for."""
    asked = list(dict.fromkeys(body.answer_parts))
    if media_type == PNG and (len(asked) != 1 or asked[0] not in _PICTURES):
        held = "log_likelihood_map" if isinstance(body, LikelihoodBody) else "images"
        raise NotAcceptable(f"a PNG holds {held}, not {' and '.join(asked)}; accept {JSON}")
    if media_type == NPY and (len(asked) != 1 or asked == ["scores"]):
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
    content = _to_png(answer) if media_type == PNG else _to_npy(answer, body)
    facts = metadata(answer, request_id) | _facts(answer)
    del facts["request_id"]  # X-Request-Id says it
    response = Response(content, media_type=media_type)
    # As they go out: Starlette would encode them anew for each answer.
    response.raw_headers += [
        (_header_name(name), _header(str(fact))) for name, fact in facts.items()
    ]
    return response


def _to_png(answer: Answer) -> bytes:
    """Return one picture of all images or maps: in the columns of the result, or about square."""
    if isinstance(answer.result, LikelihoodResult):
        assert answer.result.log_likelihood_map is not None, "a PNG holds the map alone"
        maps = heat_map(answer.result.log_likelihood_map, answer.manifest.drawn_levels)
        return levels_to_png(grid(maps), 256)
    assert isinstance(answer.result, GenerationResult)
    if answer.result.images is None:
        raise NotAcceptable(
            f"{answer.manifest.name} makes vectors, and a PNG holds images; accept {JSON} or {NPY}"
        )
    picture = grid(answer.result.images, answer.result.columns)
    return levels_to_png(picture, answer.manifest.image.levels)


def _to_npy(answer: Answer, body: Body) -> bytes:
    if isinstance(answer.result, GenerationResult):
        assert isinstance(body, GenerationBody)
        return array_to_npy(answer.result.part(body.parts_of(answer.result)[0]))
    if isinstance(answer.result, EncodeResult):
        assert isinstance(body, EncodeBody)
        return array_to_npy(answer.result.part(body.parts_of(answer.result)[0]))
    return array_to_npy(getattr(answer.result, body.answer_parts[0]))


def _facts(answer: Answer) -> dict[str, Any]:
    """Return what JSON would say of this result, as far as headers can hold it."""
    match answer.result:
        case GenerationResult() as result:
            labels = result.class_label
            said = {} if labels is None else {"class_label": ",".join(map(str, labels))}
            if result.latents is not None or result.codes is not None:
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
        case ScoreResult() as result:
            return dict(score_meaning(result))
        case ClassifyResult() as result:
            classes = ",".join(map(str, result.class_label))
            return classification_meaning(result) | {"class_label": classes}


@cache
def _header_name(name: str) -> bytes:
    return f"x-genserve-{name.replace('_', '-')}".encode()


@lru_cache(maxsize=1000)  # most of what is said is said of every answer
def _header(fact: str) -> bytes:
    # A manifest may say things that a header can't hold; those are percent-encoded.
    return quote(fact, safe=" !#$&'()*+,-./:;<=>?@[]^_`{|}~").encode()
