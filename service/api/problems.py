"""Errors over HTTP: the table of status codes, and problem details (RFC 9457)."""

import json
import math
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from service import errors
from service.errors import GenserveError

PROBLEM_JSON = "application/problem+json"
CLIENT_CLOSED_REQUEST = 499  # no standard code: nobody is left to read it but the logs

STATUS: Mapping[type[GenserveError], int] = {
    errors.InvalidRequest: 422,
    errors.MalformedRequest: 400,
    errors.UnsupportedMediaType: 415,
    errors.NotAcceptable: 406,
    errors.PayloadTooLarge: 413,
    errors.InvalidImage: 422,
    errors.InvalidVector: 422,
    errors.InvalidLatent: 422,
    errors.InvalidCodes: 422,
    errors.OutOfRange: 422,
    errors.BinarisationRequired: 422,
    errors.LatentSpaceMismatch: 422,
    errors.ControlNotOffered: 422,
    errors.ConditionNotOffered: 422,
    errors.ConditionRequired: 422,
    errors.InvalidResumeToken: 422,
    errors.ResumeMismatch: 422,
    errors.Unauthenticated: 401,
    errors.ModelNotFound: 404,
    errors.OperationNotOffered: 422,
    errors.NotCalibrated: 422,
    errors.ModelUnavailable: 503,
    errors.ModelUnloaded: 503,
    errors.AdministrationOff: 403,
    errors.ArtifactRefused: 422,
    errors.RepositoryUnavailable: 503,
    errors.QueueFull: 429,
    errors.TooManyRequests: 429,
    errors.DeadlineExceeded: 504,
    errors.RequestCancelled: CLIENT_CLOSED_REQUEST,
    errors.ShuttingDown: 503,
    errors.InferenceFailed: 500,
}


_TITLES = {code.value: code.phrase for code in HTTPStatus}
_TITLES[CLIENT_CLOSED_REQUEST] = "Client Closed Request"


class Problem(BaseModel):
    """Why a request was not answered."""

    model_config = ConfigDict(extra="allow")

    type: str = Field("about:blank", description="always about:blank; `reason` tells more")
    title: str = Field(description="the status in words")
    status: int = Field(description="the HTTP status")
    detail: str = Field(description="what was wrong, what is allowed, what to do next")
    reason: str = Field(description="stable, for programs", examples=["OUT_OF_RANGE"])
    request_id: str = Field(description="the id in the server's log, as in X-Request-Id")


def describe(
    status: int, reason: str, detail: str, request_id: str, **details: object
) -> dict[str, object]:
    """Return a problem by the names of `Problem`; `details` are JSON values."""
    return {
        "type": "about:blank",
        "title": _TITLES[status],
        "status": status,
        "detail": detail,
        "reason": reason,
        "request_id": request_id,
        **details,
    }


def describe_error(error: GenserveError, request_id: str) -> dict[str, object]:
    """Return an error of the tree as a problem."""
    status = STATUS[type(error)]
    return describe(status, error.reason, error.message, request_id, **error.details)


def describe_internal_error(request_id: str) -> dict[str, object]:
    """Return a fault of the server, which is in its log, as a problem."""
    detail = "the server failed; the log of the server has the request id"
    return describe(500, "INTERNAL", detail, request_id)


def internal_problem(request_id: str) -> Response:
    """Return the answer to a request that met a fault of the server."""
    return _answer(500, describe_internal_error(request_id))


def problem_of(error: GenserveError, request_id: str) -> Response:
    """Return the answer to a request that met an error of the tree."""
    response = _answer(STATUS[type(error)], describe_error(error, request_id))
    _tell_client(response, error)
    return response


def inference_error_of(error: GenserveError) -> Response:
    """Return the same as `problem_of` in the shape of the Open Inference Protocol."""
    content = json.dumps({"error": error.message})
    response = Response(content, STATUS[type(error)], media_type="application/json")
    _tell_client(response, error)
    return response


def _tell_client(response: Response, error: GenserveError) -> None:
    """Set the headers that say what to do next."""
    wait = error.details.get("retry_after_seconds")
    if isinstance(wait, int | float):
        response.headers["Retry-After"] = str(math.ceil(wait))  # whole seconds
    if isinstance(error, errors.Unauthenticated):
        response.headers["WWW-Authenticate"] = "Bearer"


def add_problem_handlers(app: FastAPI) -> None:
    """Answer the error tree, and what routing refuses, as problems."""
    app.add_exception_handler(GenserveError, _on_genserve_error)
    app.add_exception_handler(HTTPException, _on_http_exception)


async def _on_genserve_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, GenserveError)
    return problem_of(error, request.state.request_id)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Answer what routing refuses: an unknown path or a method that a path does not have."""
    assert isinstance(error, HTTPException)
    allowed = (error.headers or {}).get("Allow")
    if allowed is None:
        detail = f"there is no {request.url.path[:200]}; /docs lists what there is"
    else:
        detail = f"{request.url.path} does not take {request.method}; it takes {allowed}"
    reason = HTTPStatus(error.status_code).name
    content = describe(error.status_code, reason, detail, request.state.request_id)
    response = _answer(error.status_code, content)
    response.headers.update(error.headers or {})
    return response


def _answer(status: int, content: dict[str, object]) -> Response:
    # ASCII only: a request may have held text that is no UTF-8.
    return Response(json.dumps(content), status, media_type=PROBLEM_JSON)
