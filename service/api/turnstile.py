"""Turns requests away while the queue is full, before FastAPI or a schema has seen them."""

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress

from pydantic_core import from_json
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import problem_of
from service.core.engine import Engine
from service.core.requests import MAXIMUM_TIMEOUT_MS
from service.errors import QueueFull

_SMALL_BYTES = 64 * 1024  # what is larger is not read twice


class Turnstile:
    """Middleware that looks at the first bytes of a request for an operation, in a crowd alone.

    What it does not understand it passes on, and so it does with all that there may be room for: a
    body that is wrong is told so by who reads all of it.
    """

    def __init__(self, app: ASGIApp, *, engine: Engine, operations: Mapping[str, str]) -> None:
        """Guard the `operations`, by their paths."""
        self._app = app
        self._engine = engine
        self._operations = operations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one exchange; other scopes than HTTP pass through."""
        operation = self._operations.get(scope["path"]) if scope["type"] == "http" else None
        if operation is None or scope["method"] != "POST" or not self._engine.crowded:
            await self._app(scope, receive, send)
            return
        held: deque[Message] = deque()

        async def receive_again() -> Message:
            return held.popleft() if held else await receive()

        with suppress(TimeoutError):  # who reads the rest of the body says so
            async with asyncio.timeout(self._engine.default_timeout_seconds):
                await _receive_small(receive, held)
        try:
            self._check_room(operation, held)
        except QueueFull as error:
            await problem_of(error, scope["state"]["request_id"])(scope, receive, send)
            return
        await self._app(scope, receive_again, send)

    def _check_room(self, operation: str, held: Iterable[Message]) -> None:
        """Raise QueueFull where a request, whole and in JSON, can't be run now."""
        try:
            fields = from_json(b"".join(message.get("body", b"") for message in held))
        except ValueError:
            return
        if not isinstance(fields, dict):
            return
        model = fields.get("model")
        milliseconds = _whole(fields.get("timeout_ms"), MAXIMUM_TIMEOUT_MS)
        self._engine.check_room(
            operation,
            model=model if isinstance(model, str) else None,
            rows=_whole(fields.get("count"), self._engine.limits.count) or 1,
            timeout_seconds=milliseconds and milliseconds / 1000,
        )


async def _receive_small(receive: Receive, held: deque[Message]) -> None:
    """Receive a body to its end, or until it is no small one any more."""
    size, more = 0, True
    while more and size <= _SMALL_BYTES:
        held.append(await receive())
        size, more = size + len(held[-1].get("body", b"")), held[-1].get("more_body", False)


def _whole(value: object, maximum: int) -> int | None:
    return value if isinstance(value, int) and 1 <= value <= maximum else None
