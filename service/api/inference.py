"""The Open Inference Protocol over REST: `/v2`, with tensors as JSON or as bytes behind it."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import orjson
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import Response

from service.api.arrays import read_numbers
from service.api.bodies import BodyLimits, read_content
from service.api.connection import while_connected
from service.api.problems import inference_error_of
from service.core.engine import INFER
from service.core.open_inference.inference import (
    EXTENSIONS,
    Inference,
    InferenceRequest,
    InferenceResponse,
    describe_outputs,
    refuse_parameters,
)
from service.core.open_inference.models import SERVER_NAME
from service.core.open_inference.tensors import Tensor
from service.core.requests import MAXIMUM_LISTED, Array
from service.errors import (
    GenserveError,
    InvalidRequest,
    MalformedRequest,
    ModelNotFound,
)
from service.metrics import Metrics

HEADER_LENGTH = "Inference-Header-Content-Length"
"""The HTTP header that says how many bytes of a body are JSON; tensors come behind them."""

_BINARY = "application/octet-stream"
_LARGE_BYTES = 128 * 1024  # converting more than this takes milliseconds

log = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]


class _Part(BaseModel):
    """Strict: what is unknown or mistyped is refused by name."""

    model_config = ConfigDict(strict=True, extra="forbid")


class _InputBody(_Part):
    name: str
    datatype: str
    shape: list[int] = Field(max_length=32)
    parameters: dict[str, Any] = {}
    data: Any = None


class _OutputBody(_Part):
    name: str
    parameters: dict[str, Any] = {}


class _InferBody(_Part):
    id: str = Field("", max_length=MAXIMUM_LISTED)
    parameters: dict[str, Any] = {}
    inputs: list[_InputBody] = Field(max_length=MAXIMUM_LISTED)
    outputs: list[_OutputBody] = Field([], max_length=MAXIMUM_LISTED)
    # The path says them; some clients repeat them here.
    model_name: str | None = None
    model_version: str | None = None


class _IndexBody(_Part):
    ready: bool = False


class _RepositoryBody(_Part):
    parameters: dict[str, Any] = {}


B = TypeVar("B", bound=_Part)


def inference_routes(
    inference: Inference, metrics: Metrics, limits: BodyLimits, version: str
) -> APIRouter:
    """Return the routes; whatever goes wrong is answered as the protocol's `{"error": ...}`."""
    # Not in the OpenAPI document: the protocol has its own.
    router = APIRouter(include_in_schema=False)

    async def server(_: Request) -> Response:
        extensions = list(EXTENSIONS)
        return _json({"name": SERVER_NAME, "version": version, "extensions": extensions})

    async def live(_: Request) -> Response:
        return _json({"live": True})

    async def ready(_: Request) -> Response:
        return _json({"ready": inference.ready}, 200 if inference.ready else 503)

    async def model_ready(request: Request) -> Response:
        model = inference.find(*_names(request))
        content = {"name": model.name, "ready": model.ready}
        return _json(content, 200 if model.ready else 503)

    async def metadata(request: Request) -> Response:
        return _json(inference.metadata(inference.find(*_names(request))))

    async def configuration(request: Request) -> Response:
        return _json(inference.configuration(inference.find(*_names(request))))

    async def infer(request: Request) -> Response:
        with metrics.counting_refusals(INFER):
            read = await _read(request, limits)
        asked, is_binary = read
        response = await while_connected(request, inference.infer(asked))
        if sum(array.size for array in response.outputs.values()) > _LARGE_BYTES:
            # On a thread, so that other requests are answered meanwhile.
            return await asyncio.to_thread(_write, response, is_binary)
        return _write(response, is_binary)

    async def statistics(request: Request) -> Response:
        return _json({"model_stats": inference.statistics([inference.find(*_names(request))])})

    async def all_statistics(_: Request) -> Response:
        return _json({"model_stats": inference.statistics(inference.models())})

    async def index(request: Request) -> Response:
        content = await read_content(request, limits)
        body = _check(content, _IndexBody) if content else _IndexBody()
        return _json(inference.index(body.ready))

    async def load(request: Request) -> Response:
        await inference.load(request.path_params["name"], await parameters(request))
        return _json({})

    async def unload(request: Request) -> Response:
        await inference.unload(request.path_params["name"], await parameters(request))
        return _json({})

    async def parameters(request: Request) -> dict[str, Any]:
        content = await read_content(request, limits)
        return _check(content, _RepositoryBody).parameters if content else {}

    async def unknown(request: Request) -> Response:
        raise ModelNotFound(
            f"there is no {request.method} {request.url.path[:200]}; docs/protocol.md lists what "
            "there is"
        )

    def add(path: str, endpoint: Endpoint, method: str = "GET") -> None:
        router.add_route(path, _answering(endpoint), methods=[method])

    add("/v2", server)
    add("/v2/health/live", live)
    add("/v2/health/ready", ready)
    add("/v2/models/stats", all_statistics)
    for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        add(model, metadata)
        add(f"{model}/ready", model_ready)
        add(f"{model}/config", configuration)
        add(f"{model}/stats", statistics)
        add(f"{model}/infer", infer, "POST")
    add("/v2/repository/index", index, "POST")
    add("/v2/repository/models/{name}/load", load, "POST")
    add("/v2/repository/models/{name}/unload", unload, "POST")
    everything = ["GET", "POST", "PUT", "PATCH", "DELETE"]
    router.add_route("/v2/{rest:path}", _answering(unknown), methods=everything)
    return router


def _answering(endpoint: Endpoint) -> Endpoint:
    """Answer errors in the protocol's shape, with the status that they have elsewhere."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except GenserveError as error:
            return inference_error_of(error)
        except Exception:
            request_id = request.state.request_id
            log.exception("unexpected error", extra={"request_id": request_id})
            return _json(
                {"error": f"the server failed; its log says why, under request id {request_id}"},
                500,
            )

    return answer


def _names(request: Request) -> tuple[str, str]:
    return request.path_params["name"], request.path_params.get("version", "")


async def _read(
    request: Request, limits: BodyLimits
) -> tuple[InferenceRequest, Callable[[str], bool]]:
    """Return a request, and which of its outputs are to be bytes."""
    content = await read_content(request, limits)
    names, length = _names(request), request.headers.get(HEADER_LENGTH)
    if len(content) > _LARGE_BYTES:
        return await asyncio.to_thread(_parse, content, length, *names)
    return _parse(content, length, *names)


def _parse(
    content: bytes, header_length: str | None, name: str, version: str
) -> tuple[InferenceRequest, Callable[[str], bool]]:
    header, binary = _split(content, header_length)
    body = _check(header, _InferBody)
    tensors = _read_tensors(body.inputs, binary)
    all_binary = _flag(body.parameters.pop("binary_data_output", False), "binary_data_output")
    are_binary = {output.name: _is_binary(output, all_binary) for output in body.outputs}
    asked = InferenceRequest(
        model_name=name,
        model_version=version,
        id=body.id,
        parameters=body.parameters,
        tensors=tensors,
        outputs=[output.name for output in body.outputs],
    )
    return asked, lambda output: are_binary.get(output, all_binary)


def _split(content: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    """Return the JSON of a body and the bytes behind it."""
    if header_length is None:
        return content, b""
    # At most 18 digits: int() itself raises for thousands of them.
    if not header_length.isdecimal() or len(header_length) > 18:
        raise MalformedRequest(f"{HEADER_LENGTH} must be a number of bytes")
    length = int(header_length)
    if length > len(content):
        raise MalformedRequest(
            f"{HEADER_LENGTH} is {length}, and the body has {len(content)} bytes"
        )
    return content[:length], content[length:]


def _check(content: bytes, kind: type[B]) -> B:
    try:
        return kind.model_validate(from_json(content, allow_inf_nan=False))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise InvalidRequest(f"{where}: {first['msg']}") from None
    except ValueError as error:
        raise MalformedRequest(f"the body is not JSON: {error}") from None


def _read_tensors(inputs: Sequence[_InputBody], binary: bytes) -> list[Tensor]:
    """Return the inputs, whose bytes lie one behind the other in `binary`."""
    tensors, start = [], 0
    for part in inputs:
        size = part.parameters.pop("binary_data_size", None)
        refuse_parameters("input", part.name, part.parameters)
        if size is None:
            data: bytes | Array = _numbers(part)
        else:
            if part.data is not None:
                raise InvalidRequest(f"input {part.name[:100]} has data and binary_data_size")
            if not isinstance(size, int) or isinstance(size, bool) or size < 0:
                raise InvalidRequest(f"binary_data_size of input {part.name[:100]} must be whole")
            if start + size > len(binary):
                raise MalformedRequest(
                    f"input {part.name[:100]} ends {start + size} bytes behind the header, where "
                    f"there are {len(binary)}"
                )
            data = binary[start : start + size]
            start += size
        tensors.append(
            Tensor(name=part.name, datatype=part.datatype, shape=part.shape, content=data)
        )
    if start != len(binary):
        raise MalformedRequest(
            f"{len(binary) - start} bytes behind the header are of no input; set binary_data_size"
        )
    return tensors


def _numbers(part: _InputBody) -> Array:
    if part.data is None:
        raise InvalidRequest(f"input {part.name[:100]} has neither data nor binary_data_size")
    try:
        return read_numbers(part.data)
    except ValueError as error:
        raise InvalidRequest(f"the data of input {part.name[:100]} {error}") from None


def _is_binary(output: _OutputBody, otherwise: bool) -> bool:
    wanted = _flag(output.parameters.pop("binary_data", otherwise), "binary_data")
    refuse_parameters("output", output.name, output.parameters)
    return wanted


def _flag(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequest(f"parameter {name} must be true or false")
    return value


def _write(response: InferenceResponse, is_binary: Callable[[str], bool]) -> Response:
    outputs, contents = describe_outputs(response), []
    for output in outputs:
        array = response.outputs[output["name"]]
        if is_binary(output["name"]):
            contents.append(array.tobytes())
            output["parameters"] = {"binary_data_size": array.nbytes}
        else:
            output["data"] = _to_numbers(output["name"], array)
    content: dict[str, Any] = {
        "model_name": response.model_name,
        "model_version": response.model_version,
        "outputs": outputs,
    }
    if response.id:
        content["id"] = response.id
    if response.parameters:
        content["parameters"] = response.parameters
    answer = _json(content)
    if not contents:
        return answer
    header = {HEADER_LENGTH: str(len(answer.body))}
    return Response(b"".join([answer.body, *contents]), media_type=_BINARY, headers=header)


def _to_numbers(name: str, array: Array) -> Array:
    """Return an array for JSON, flat; it has no word for what is not finite."""
    if array.dtype.kind == "f" and not all(map(math.isfinite, (array.min(), array.max()))):
        raise InvalidRequest(
            f"output {name} holds numbers that are not finite, which JSON can't hold; ask for it "
            "with binary_data"
        )
    return array.ravel()


def _json(content: object, status: int = 200) -> Response:
    return Response(
        orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY),
        status,
        media_type="application/json",
    )
