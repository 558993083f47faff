"""The OpenAPI document of the operations, made of the schemas that check and answer them."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.api import bodies, formats
from service.api.answers import PreviewEvent, RowsEvent
from service.api.bodies import FORM, JSON, NPY, PNG, ZIP
from service.api.problems import PROBLEM_JSON, Problem
from service.api.schemas import Body

_REFERENCE = "#/components/schemas/{model}"
_BINARY = {"type": "string", "format": "binary"}


def describe_request(body: type[Body]) -> dict[str, Any]:
    """Return the request part of an operation: every media type, and the query beside raw ones."""
    content = {name: {"schema": _schema(name, body)} for name in bodies.media_types(body)}
    required = any(field.is_required() for field in body.model_fields.values())
    return {
        "requestBody": {"content": content, "required": required},
        "parameters": _query(body),
    }


def describe_answers(body: type[Body], answer: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """Return the responses of an operation, problems included."""
    content: dict[str, Any] = {
        name: {"schema": _BINARY} for name in formats.media_types(body) if name != JSON
    }
    return {
        200: {"model": answer, "description": (answer.__doc__ or "").strip(), "content": content},
        **PROBLEMS,
    }


def describe_events() -> dict[int | str, dict[str, Any]]:
    """Return the responses of a stream, problems before its first event included."""
    description = (
        "Server-sent events, each with one line of JSON as its data: `rows` (a RowsEvent) or "
        "`preview` (a PreviewEvent) while images are painted, more at once for who reads slowly; "
        "then `result`, the JSON answer of the operation without stream; or `error`, a Problem, "
        "where it fails on the way. A stream that is cut goes on where the same request is sent "
        "with the last `resume_token` that was read."
    )
    content = {"text/event-stream": {"schema": {"type": "string"}, "example": _EVENTS}}
    return {200: {"description": description, "content": content}, **PROBLEMS}


_EVENTS = """event: preview
data: {"rows_done":4,"rows_total":28,\
"resume_token":"AX9xPnKX9SByBwAAAAAAAABmmqOMmcxvXAEAAAAEAAAAEuXTpg",\
"png":"iVBORw0KGgo..."}

event: result
data: {"model":"mnist-pixelcnn@1","seed":7,"images":["iVBORw0KGgo..."]}

"""

PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": f"{description}",
        "content": {PROBLEM_JSON: {"schema": {"$ref": _REFERENCE.format(model="Problem")}}},
    }
    for status, description in {
        "4XX": "The request can't be answered; `reason` and `detail` say why.",
        "5XX": "The server can't answer now, or failed.",
    }.items()
}


def build(app: FastAPI, schemas: list[type[Body]]) -> dict[str, Any]:
    """Return the document of all routes, with the request schemas that handlers read themselves."""
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    models: list[type[BaseModel]] = [*schemas, Problem, RowsEvent, PreviewEvent]
    _, definitions = models_json_schema(
        [(model, "validation") for model in models], ref_template=_REFERENCE
    )
    document["components"]["schemas"].update(definitions["$defs"])
    return document


def _schema(media_type: str, body: type[Body]) -> dict[str, Any]:
    if media_type == JSON:
        return {"$ref": _REFERENCE.format(model=body.__name__)}
    if media_type != FORM:
        return {**_BINARY, "description": _RAW[media_type, body.upload]}
    files = {"type": "array", "items": _BINARY, "description": "PNG files"}
    texts = {name: schema for name, schema in _properties(body).items() if name != body.upload}
    return {"type": "object", "properties": {"images": files, **texts}, "required": ["images"]}


_RAW: dict[tuple[str, str | None], str] = {
    (PNG, "images"): "one PNG",
    (ZIP, "images"): "an archive of PNG files; each row of the answer has the name of its file",
    (NPY, "images"): "an array of images [count, height, width, channels], or vectors "
    "[count, size]",
    (NPY, "latents"): "an array [count, size]",
}


def _query(body: type[Body]) -> list[dict[str, Any]]:
    """Return the fields as query parameters, which go beside a raw body, or none."""
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": "Beside a raw body, or none: see the JSON schema.",
            "schema": schema,
        }
        for name, schema in _properties(body).items()
        if name != body.upload and "$ref" not in str(schema)  # objects go into JSON bodies
    ]


def _properties(body: type[Body]) -> dict[str, Any]:
    properties: dict[str, Any] = body.model_json_schema(ref_template=_REFERENCE)["properties"]
    return properties
