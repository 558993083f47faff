"""Request bodies: bytes within the limit, as JSON, form, PNG, npy or zip, checked by one schema.

Fields travel in the JSON object or in the form; beside a raw body, or none, in the query.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError
from pydantic_core import from_json
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser

from service.api.schemas import Body, LikelihoodBody
from service.errors import (
    DeadlineExceeded,
    InvalidRequest,
    MalformedRequest,
    PayloadTooLarge,
    RequestCancelled,
    UnsupportedMediaType,
)
from service.images import npy_to_array, zip_to_files

JSON, FORM, PNG, NPY = "application/json", "multipart/form-data", "image/png", "application/x-npy"
ZIP = "application/zip"

_FILE_NAMES = ("images", "file")
_MAXIMUM_TEXTS = 100  # text fields of one form
_MAXIMUM_TEXT_BYTES = 64 * 1024
_LARGE_BYTES = 128 * 1024  # parsing more than this takes milliseconds

Fields = dict[str, Any]
Chunks = AsyncGenerator[bytes, None]
B = TypeVar("B", bound=Body)
T = TypeVar("T")


@dataclass(frozen=True)
class BodyLimits:
    """Bounds of one body."""

    bytes: int
    files: int  # of one form
    seconds: float  # until all of it is there


def media_types(body: type[Body]) -> list[str]:
    """Return the media types in which an operation reads its body, JSON first."""
    if body.upload is None:
        return [JSON]
    if body.upload == "latents":
        return [JSON, NPY]
    # Only these are answered file by file.
    return [JSON, FORM, PNG, NPY, *([ZIP] if issubclass(body, LikelihoodBody) else [])]


async def read_body(request: Request, body: type[B], limits: BodyLimits) -> B:
    """Read, parse and check the body of a request.

    Raises UnsupportedMediaType, PayloadTooLarge, MalformedRequest, InvalidRequest or InvalidImage,
    RequestCancelled when the client leaves before it has sent everything, and DeadlineExceeded
    when it stays and does not send it in time.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in ("", *media_types(body)):
        raise _unsupported(media_type, body)
    query: Fields = {}
    if request.scope["query_string"]:
        query = read_texts(body, request.query_params.multi_items())
    if media_type == FORM:
        _refuse_query(query)
        _refuse_compressed(request)
        return check(body, await _in_time(_read_form(request, body, limits), limits.seconds))
    content = await read_content(request, limits)
    if content and not media_type:
        raise _unsupported("none", body)
    if len(content) > _LARGE_BYTES or media_type == ZIP:
        # On a thread, so that other requests are answered meanwhile: small archives hold much.
        return await asyncio.to_thread(_parse, media_type, content, query, body, limits)
    return _parse(media_type, content, query, body, limits)


async def read_content(request: Request, limits: BodyLimits) -> bytes:
    """Read the bytes of a body; raises what `read_body` raises before it parses them."""
    _refuse_compressed(request)
    return await _in_time(_read_bytes(request, limits.bytes), limits.seconds)


def _refuse_compressed(request: Request) -> None:
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedMediaType(
            f"the body is compressed, its Content-Encoding is {encoding[:100]}; send identity"
        )


def check(body: type[B], fields: object) -> B:
    """Return fields as the schema; raises InvalidRequest that names the first that is wrong."""
    try:
        return body.model_validate(fields)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_context=False, include_input=False)
    problems = [{"field": _path(item["loc"]), "message": item["msg"]} for item in wrong[:20]]
    field, message = problems[0].values()
    raise InvalidRequest(f"{field or 'the body'}: {message}", errors=problems)


def read_texts(body: type[Body], items: Iterable[tuple[str, str]]) -> Fields:
    """Return text fields as JSON would hold them; a repeated field is a list.

    Text is read as JSON where it is JSON (`4`, `0.5`, `[0, 1]`, `{"class": 3}`). It stays text
    otherwise, and in fields that hold text.
    """
    texts = {
        field.alias or name
        for name, field in body.model_fields.items()
        if field.annotation == str | None
    }
    found: dict[str, list[Any]] = {}
    for name, text in items:
        found.setdefault(name, []).append(text if name in texts else _from_text(text))
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


def _parse(media_type: str, content: bytes, query: Fields, body: type[B], limits: BodyLimits) -> B:
    if media_type == JSON:
        _refuse_query(query)
        return check(body, _from_json(content))
    if media_type == ZIP:
        return _check_archive(content, query, body, limits)
    if media_type == PNG:
        query = _with_upload(query, body.upload, [content])
    elif media_type == NPY:
        array = npy_to_array(content, limits.bytes)
        # Two axes make no image.
        vectors = body.upload == "images" and array.ndim == 2
        query = _with_upload(query, "vectors" if vectors else body.upload, array)
    return check(body, query)


def _check_archive(content: bytes, query: Fields, body: type[B], limits: BodyLimits) -> B:
    files = zip_to_files(content, maximum_files=limits.files, maximum_bytes=limits.bytes)
    checked = check(body, _with_upload(query, body.upload, [content for _, content in files]))
    assert isinstance(checked, LikelihoodBody), "no other operation reads archives"
    checked.name_images([name for name, _ in files])
    return checked


async def _read_form(request: Request, body: type[Body], limits: BodyLimits) -> Fields:
    async with aclosing(_chunks(request, limits.bytes)) as chunks:
        parser = MultiPartParser(
            request.headers,
            chunks,
            max_files=limits.files,
            max_fields=_MAXIMUM_TEXTS,
            max_part_size=_MAXIMUM_TEXT_BYTES,
        )
        # In memory: the body is bounded, the disk may be read-only.
        parser.spool_max_size = limits.bytes
        try:
            form = await parser.parse()
        except MultiPartException as error:
            raise MalformedRequest(f"the form can't be read: {error.message}") from None
    try:
        return await _form_fields(form, body)
    finally:
        await form.close()


async def _form_fields(form: FormData, body: type[Body]) -> Fields:
    texts: list[tuple[str, str]] = []
    files: list[bytes] = []
    for name, item in form.multi_items():
        if isinstance(item, str):
            texts.append((name, item))
        elif name in _FILE_NAMES:
            files.append(await item.read())
        else:
            raise InvalidRequest(f"unknown file '{name[:100]}'; files are named images or file")
    fields = read_texts(body, texts)
    return _with_upload(fields, body.upload, files) if files else fields


async def _in_time(reading: Awaitable[T], seconds: float) -> T:
    """Return what was read of a body; raises DeadlineExceeded where it does not arrive in time."""
    try:
        async with asyncio.timeout(seconds):
            return await reading
    except TimeoutError:
        raise DeadlineExceeded(
            f"the body was not there after {seconds:g} s; send it faster, or less at once"
        ) from None


async def _read_bytes(request: Request, maximum_bytes: int) -> bytes:
    return b"".join([chunk async for chunk in _chunks(request, maximum_bytes)])


async def _chunks(request: Request, maximum_bytes: int) -> Chunks:
    """Yield the body; raises PayloadTooLarge by its declared length, or where it gets there."""
    declared = request.headers.get("content-length", "")
    # At most 18 digits: int() itself raises for thousands of them.
    if declared.isdecimal() and (len(declared) > 18 or int(declared) > maximum_bytes):
        raise _too_large(maximum_bytes)
    size, more = 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise RequestCancelled("the client left before the body was there")
        chunk, more = message.get("body", b""), message.get("more_body", False)
        size += len(chunk)
        if size > maximum_bytes:
            raise _too_large(maximum_bytes)
        yield chunk


def _with_upload(fields: Fields, name: str | None, content: object) -> Fields:
    assert name is not None, "only operations with an upload read this media type"
    if name in fields:
        raise InvalidRequest(f"{name} are given twice, as an upload and as a field")
    return {**fields, name: content}


def _refuse_query(query: Fields) -> None:
    if query:
        raise InvalidRequest(
            f"{', '.join(query)}: with a JSON body or a form, fields must be inside it, "
            "not in the query"
        )


def _from_json(content: bytes) -> object:
    try:
        return from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise MalformedRequest(f"the body is not JSON: {error}") from None


def _from_text(text: str) -> object:
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError:
        return text


def _path(location: Sequence[int | str]) -> str:
    """Return ("condition", "class", 0) as `condition.class[0]`."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location]
    return "".join(parts).removeprefix(".")


def _too_large(maximum_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the body is larger than {maximum_bytes} bytes; send less at once",
        maximum_bytes=maximum_bytes,
    )


def _unsupported(media_type: str, body: type[Body]) -> UnsupportedMediaType:
    accepted = media_types(body)
    return UnsupportedMediaType(
        f"the Content-Type is {media_type}; accepted are {', '.join(accepted)}", accepted=accepted
    )
