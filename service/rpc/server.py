"""The gRPC server: its services, health, reflection, and what is around every call."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from service.admission import Admission
from service.core.engine import INFER, Engine
from service.core.operations import OPERATIONS
from service.errors import (
    DeadlineExceeded,
    GenserveError,
    InvalidRequest,
    MalformedRequest,
    QueueFull,
    RequestCancelled,
)
from service.keys import Keys
from service.metrics import Metrics
from service.rpc.guard import Guard, end_with, refuse
from service.rpc.inference import InferenceServicer
from service.rpc.pb import generation_service_pb2 as pb
from service.rpc.pb import inference_service_pb2 as inference_pb
from service.rpc.pb.generation_service_pb2_grpc import add_GenerationServiceServicer_to_server
from service.rpc.pb.inference_service_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from service.rpc.reading import timeout_seconds
from service.rpc.request_id import REQUEST_ID, request_id_of
from service.rpc.servicer import GenerationServicer
from service.rpc.standard import Health, reading_bytes
from service.rpc.status import internal_status, to_status
from service.tracing import Tracing

SERVICE = pb.DESCRIPTOR.services_by_name["GenerationService"].full_name
INFERENCE_SERVICE = inference_pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name

access = logging.getLogger("genserve.access")
log = logging.getLogger(__name__)

_OPERATIONS = {"ModelInfer": INFER, "ModelStreamInfer": INFER}
"""What calls are counted as, where it is not their name."""
_FAULTS = (
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
)


_SMALL_BYTES = 64 * 1024  # to read a message twice of that size costs less than to refuse it late


@dataclass(frozen=True)
class Rpc:
    """A gRPC server without a port yet, and what it tells those who ask for its health."""

    server: grpc.aio.Server
    health: Health

    async def start(self) -> None:
        """Start on the ports that were added; not serving, for health checks, until told to be."""
        await self.set_serving(False)
        await self.server.start()

    async def set_serving(self, serving: bool) -> None:
        """Answer health checks of the server and of its services with this."""
        status = health_pb2.HealthCheckResponse
        for service in ("", SERVICE, INFERENCE_SERVICE):
            self.health.set(service, status.SERVING if serving else status.NOT_SERVING)


def create_server(
    engine: Engine,
    *,
    metrics: Metrics,
    maximum_message_bytes: int,
    version: str,
    maximum_connections: int = 1024,
    admission: Admission | None = None,
    keys: Keys | None = None,
) -> Rpc:
    """Build the server; it has no port and is not started yet.

    A request message of more than `maximum_message_bytes` is refused by gRPC itself with
    RESOURCE_EXHAUSTED, and a compressed one with UNIMPLEMENTED. Answers are not limited, but a
    stream ends where one of its messages is not read within the engine's default timeout. Where
    `keys` are given, calls need one.
    """
    admission = admission or Admission()
    calls = _Calls(engine, metrics)
    server = grpc.aio.server(
        interceptors=[Guard(metrics=metrics, admission=admission, keys=keys), calls],
        options=[
            ("grpc.max_receive_message_length", maximum_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # a port that is taken is an error, not shared silently
            ("grpc.compression_enabled_algorithms_bitset", 1 << grpc.Compression.NoCompression),
            ("grpc.max_concurrent_streams", admission.maximum_requests),
            ("grpc.max_allowed_incoming_connections", maximum_connections),
        ],
    )
    methods = _Methods(server)
    servicer = GenerationServicer(engine, metrics)
    add_GenerationServiceServicer_to_server(servicer, methods)  # type: ignore[no-untyped-call]
    inference = InferenceServicer(engine, metrics, version)
    add_GRPCInferenceServiceServicer_to_server(inference, methods)  # type: ignore[no-untyped-call]
    checks = Health(engine.until_draining)
    health_pb2_grpc.add_HealthServicer_to_server(checks, methods)
    reflection.enable_server_reflection(
        (SERVICE, INFERENCE_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server
    )
    return Rpc(server, checks)


class _Methods:
    """What generated code adds methods to a server by; they are found by their name alone.

    Grpc.aio waits for a call of each method that is registered apart, and for all of them anew
    with each call: with thirty of them that is a tenth of what a call costs.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        """Leave it at the generic ones."""


class _Calls(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Around every call of the service: its id, its errors as statuses, and a line in the log."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = metrics
        self._tracing = engine.tracing
        self._write_seconds = engine.default_timeout_seconds

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """Replace a method's handler by one that reads the bytes itself."""
        handler = await continuation(handler_call_details)
        service, _, method = handler_call_details.method.removeprefix("/").partition("/")
        if handler is None:
            return None
        if service not in (SERVICE, INFERENCE_SERVICE):
            return reading_bytes(handler)
        # gRPC would answer bytes that are no message with UNKNOWN, and log them as an error.
        serializer = handler.response_serializer
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(
                partial(_converse, self._tracing, self._write_seconds, method, handler),
                response_serializer=serializer,
            )
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                partial(
                    _stream, self._metrics, self._tracing, self._write_seconds, method, handler
                ),
                response_serializer=serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            partial(_answer, self._engine, self._metrics, method, handler),
            response_serializer=serializer,
        )


async def _answer(
    engine: Engine,
    metrics: Metrics,
    method: str,
    handler: grpc.RpcMethodHandler,
    content: bytes,
    context: grpc.aio.ServicerContext,
) -> Message:
    """Answer one call."""
    if engine.crowded and method.lower() in OPERATIONS and len(content) <= _SMALL_BYTES:
        await _turn_away(engine, method, handler, content, context)
    async with _enveloped(engine.tracing, method, context) as request_id:
        with metrics.counting_refusals(_OPERATIONS.get(method, method.lower())):
            message = _parse(handler, content)
        answer = await handler.unary_unary(message, context)
        if "request_id" in answer.DESCRIPTOR.fields_by_name:
            answer.request_id = request_id
        return answer


async def _turn_away(
    engine: Engine,
    method: str,
    handler: grpc.RpcMethodHandler,
    content: bytes,
    context: grpc.aio.ServicerContext,
) -> None:
    """End a call that has to be refused because the queue is full, at little cost."""
    try:
        message = handler.request_deserializer(content)
        engine.check_room(
            method.lower(),
            model=message.model or None,
            rows=min(getattr(message, "count", 1) or 1, engine.limits.count),
            timeout_seconds=timeout_seconds(message, context.time_remaining()),
        )
    except QueueFull as error:
        await refuse(method, error, context)
    except (DecodeError, InvalidRequest):
        pass  # said with all that goes with it


async def _stream(
    metrics: Metrics,
    tracing: Tracing,
    write_seconds: float,
    method: str,
    handler: grpc.RpcMethodHandler,
    content: bytes,
    context: grpc.aio.ServicerContext,
) -> None:
    """Answer one call with messages."""
    async with _enveloped(tracing, method, context) as request_id:
        with metrics.counting_refusals(_OPERATIONS.get(method, method.lower())):
            request = _parse(handler, content)
        await _write_all(handler.unary_stream(request, context), request_id, context, write_seconds)


async def _converse(
    tracing: Tracing,
    write_seconds: float,
    method: str,
    handler: grpc.RpcMethodHandler,
    contents: AsyncIterator[bytes],
    context: grpc.aio.ServicerContext,
) -> None:
    """Answer messages with messages, while they arrive."""

    async def messages() -> AsyncIterator[Message | MalformedRequest]:
        async for content in contents:
            try:
                message: Message | MalformedRequest = _parse(handler, content)
            except MalformedRequest as error:
                message = error
            yield message

    async with _enveloped(tracing, method, context) as request_id:
        await _write_all(
            handler.stream_stream(messages(), context), request_id, context, write_seconds
        )


async def _write_all(
    messages: AsyncGenerator[Any, None],
    request_id: str,
    context: grpc.aio.ServicerContext,
    write_seconds: float,
) -> None:
    """Write the id of a call, and then messages; the next one once the last one is on its way.

    Raises DeadlineExceeded where the client takes none for so long, RequestCancelled where it left.
    """
    async with aclosing(messages):  # so that the work ends at once where the client leaves
        await _sent(context.send_initial_metadata(((REQUEST_ID, request_id),)), write_seconds)
        async for message in messages:
            if "result" in message.DESCRIPTOR.fields_by_name and message.HasField("result"):
                message.result.request_id = request_id
            await _sent(context.write(message), write_seconds)


async def _sent(sending: Awaitable[None], write_seconds: float) -> None:
    """Wait until something is on its way to the client; raises what `_write_all` does."""
    try:
        async with asyncio.timeout(write_seconds):
            await sending
    except TimeoutError:
        raise DeadlineExceeded(
            f"the client read nothing for {write_seconds:g} s; read faster, or ask for less"
        ) from None
    except grpc.aio.InternalError:  # the connection is gone, which no cancel has told yet
        raise RequestCancelled("the client left before the result was there") from None


@asynccontextmanager
async def _enveloped(
    tracing: Tracing, method: str, context: grpc.aio.ServicerContext
) -> AsyncIterator[str]:
    """End a call with a status, whatever happens, and write its line in the log."""
    started, request_id = time.monotonic(), request_id_of(context)
    status, refusal = grpc.StatusCode.CANCELLED, None  # stays where the client leaves
    # Behind the answer: ahead of it, the id would be an operation of its own for gRPC.
    context.set_trailing_metadata(((REQUEST_ID, request_id),))
    metadata: Any = context.invocation_metadata() or ()
    attributes = {
        "rpc.system": "grpc",
        "rpc.method": f"{SERVICE}/{method}",
        "request_id": request_id,
    }
    with tracing.request(f"{SERVICE}/{method}", metadata, **attributes) as trace:
        try:
            yield request_id
            status = grpc.StatusCode.OK
        except GenserveError as error:
            refusal = to_status(error)
            status = refusal.code
            if status is grpc.StatusCode.INTERNAL:
                log.error(error.message, extra={"reason": error.reason, "request_id": request_id})
        except Exception:
            refusal = internal_status(request_id)
            status = refusal.code
            log.exception("unexpected error", extra={"request_id": request_id})
        finally:
            access.info(
                "request",
                extra={
                    "request_id": request_id,
                    "method": method,
                    "status": status.name,
                    "seconds": round(time.monotonic() - started, 6),
                },
            )
            trace.answered(status.name, fault=status in _FAULTS)
    if refusal is not None:
        await end_with(refusal, request_id, context)


def _parse(handler: grpc.RpcMethodHandler, content: bytes) -> Message:
    try:
        return handler.request_deserializer(content)
    except DecodeError:
        raise MalformedRequest(
            "the bytes are no message of this method; use stubs made from its proto"
        ) from None
