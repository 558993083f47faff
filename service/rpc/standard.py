"""The standard services, health and reflection, as far as their libraries can't be trusted."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthServicer

from service.errors import MalformedRequest
from service.rpc.status import to_status


class Health(HealthServicer):  # type: ignore[misc]  # grpc has no types
    """The health of services, for those who ask and those who watch (grpc.health.v1).

    That of grpcio-health-checking holds a lock while it writes to a watcher: one that does not read
    would keep the status from ever changing, and the server from draining.
    """

    def __init__(self, until_draining: Callable[[], Awaitable[None]]) -> None:
        self._until_draining = until_draining
        self._statuses: dict[str, int] = {}
        self._changed = asyncio.Event()

    def set(self, service: str, status: int) -> None:
        """Change the status of a service, and tell those who watch."""
        self._statuses[service] = status
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(
        self, request: HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> HealthCheckResponse:
        """Answer with the status, or NOT_FOUND for a service that there is not."""
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        return HealthCheckResponse(status=status)

    async def Watch(self, request: HealthCheckRequest, context: grpc.aio.ServicerContext) -> None:
        """Write the status, and each that follows until the server drains."""
        draining = asyncio.ensure_future(self._until_draining())
        try:
            written = None
            while True:
                status = self._statuses.get(request.service, HealthCheckResponse.SERVICE_UNKNOWN)
                if status != written:
                    await context.write(HealthCheckResponse(status=status))
                    written = status
                    continue  # it may have changed meanwhile, for the last time too
                if draining.done():
                    return
                changed = asyncio.ensure_future(self._changed.wait())
                await asyncio.wait((changed, draining), return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
        finally:
            draining.cancel()


def reading_bytes(handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
    """Return a handler of a standard service that takes bytes, and refuses those of no message.

    gRPC would answer them with UNKNOWN, and log them as an error.
    """

    async def parse(content: bytes, context: grpc.aio.ServicerContext) -> Message:
        try:
            return handler.request_deserializer(content)
        except DecodeError:
            await context.abort_with_status(
                to_status(MalformedRequest("the bytes are no message of this method"))
            )

    async def run(content: bytes, context: grpc.aio.ServicerContext) -> Any:
        behaviour = handler.unary_stream if handler.response_streaming else handler.unary_unary
        return await behaviour(await parse(content, context), context)

    async def converse(contents: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
        messages = (await parse(content, context) async for content in contents)
        async for answer in handler.stream_stream(messages, context):
            await context.write(answer)

    serializer = handler.response_serializer
    if handler.request_streaming:
        return grpc.stream_stream_rpc_method_handler(converse, response_serializer=serializer)
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(run, response_serializer=serializer)
    return grpc.unary_unary_rpc_method_handler(run, response_serializer=serializer)
