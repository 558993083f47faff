"""Who may call over gRPC, and how much of it is held at once: decided before a method runs."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from grpc_health.v1 import health
from grpc_status import rpc_status

from service.admission import Admission
from service.errors import GenserveError, TooManyRequests
from service.keys import Keys
from service.metrics import Metrics
from service.rpc.request_id import REQUEST_ID, request_id_of
from service.rpc.servicer import MAXIMUM_UNANSWERED
from service.rpc.status import to_status

PROBE = f"/{health.SERVICE_NAME}/Check"
"""Answered whatever happens: an orchestrator has no key, and must not end a server for its load."""
OPEN = (PROBE, f"/{health.SERVICE_NAME}/Watch")
"""What needs no key."""

Context: TypeAlias = grpc.aio.ServicerContext

# gRPC would log it as an error of the server. A client can end a call at any time, and gRPC does
# where a message is too large, before a method has written anything.
_OVER = "the call was over before its answer could be written"

access = logging.getLogger("genserve.access")


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Refuses who has no key, where keys are set, and what is beyond the bounds.

    It is the outermost interceptor, and the next one reads the bytes of requests itself. Reflection
    needs a key, since its calls last as long as a client likes. Calls that watch the health are
    counted apart, so that nobody without a key takes the place of who has one.
    """

    def __init__(self, *, metrics: Metrics, admission: Admission, keys: Keys | None) -> None:
        self._metrics = metrics
        self._admission = admission
        self._watching = Admission(maximum_requests=admission.maximum_requests)
        self._keys = keys
        self._handlers: dict[str, grpc.RpcMethodHandler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """Replace a method's handler by one that refuses, or that is counted while it runs."""
        method = handler_call_details.method
        if self._keys is not None and method not in OPEN:
            try:
                self._keys.check(_authorization(handler_call_details))
            except GenserveError as error:
                return self._refusing(method, error)
        counted = self._handlers.get(method)
        if counted is None:
            counted = await continuation(handler_call_details)
            if counted is None:
                return None
            if method != PROBE:
                admission = self._watching if method in OPEN else self._admission
                counted = self._counted(method, counted, admission)
            self._handlers[method] = counted  # it is the same for all calls
        return counted

    def _refusing(self, method: str, error: GenserveError) -> grpc.RpcMethodHandler:
        async def refuse(_: object, context: Context) -> None:
            await self._refuse(method, error, context)

        # The one kind that is called before a message has come, whatever the client will send.
        return grpc.stream_stream_rpc_method_handler(refuse)

    async def _refuse(self, method: str, error: GenserveError, context: Context) -> None:
        self._metrics.count_refusal("", error)
        await refuse(method, error, context)

    def _counted(
        self, method: str, handler: grpc.RpcMethodHandler, admission: Admission
    ) -> grpc.RpcMethodHandler:
        async def enter(size: int, context: Context) -> None:
            try:
                admission.enter(size)
            except TooManyRequests as error:
                await self._refuse(method, error, context)

        async def run(content: bytes, context: Context) -> Any:
            await enter(len(content), context)
            try:
                return await behaviour(content, context)
            except grpc.aio.InternalError:
                raise asyncio.CancelledError(_OVER) from None
            finally:
                admission.leave(len(content))

        async def converse(contents: AsyncIterator[bytes], context: Context) -> None:
            await enter(0, context)
            window = _Window(admission)
            try:
                await behaviour(window.pass_on(contents), context)
            except grpc.aio.InternalError:
                raise asyncio.CancelledError(_OVER) from None
            finally:
                admission.leave(window.size)

        if handler.request_streaming:
            behaviour = handler.stream_stream
            return handler._replace(stream_stream=converse)
        if handler.response_streaming:
            behaviour = handler.unary_stream
            return handler._replace(unary_stream=run)
        behaviour = handler.unary_unary
        return handler._replace(unary_unary=run)


async def refuse(method: str, error: GenserveError, context: Context) -> None:
    """End a call, of which nothing was made, with an error and its line in the log."""
    status, request_id = to_status(error), request_id_of(context)
    name, code = method.rpartition("/")[2], status.code.name
    access.info("request", extra={"request_id": request_id, "method": name, "status": code})
    await end_with(status, request_id, context)


async def end_with(status: rpc_status._Status, request_id: str, context: Context) -> None:
    """End a call with a status, and with its id beside that."""
    trailing = (*status.trailing_metadata, (REQUEST_ID, request_id))
    await context.abort(status.code, status.details, trailing)


class _Window:
    """Holds the bytes of the messages of a stream that may not be answered yet: the last ones."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._sizes: deque[int] = deque()

    @property
    def size(self) -> int:
        """How many bytes are held."""
        return sum(self._sizes)

    async def pass_on(self, contents: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield the messages; raises TooManyRequests."""
        async for content in contents:
            if len(self._sizes) == MAXIMUM_UNANSWERED:
                self._admission.release(self._sizes.popleft())
            self._admission.take(len(content))
            self._sizes.append(len(content))
            yield content


def _authorization(details: grpc.HandlerCallDetails) -> str | None:
    for key, value in details.invocation_metadata or ():
        if key == "authorization":
            return str(value)
    return None
