"""What every HTTP exchange gets: a request id, an answer whatever happens, a line in the log."""

import logging
import re
import time
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import CLIENT_CLOSED_REQUEST, internal_problem

REQUEST_ID = "X-Request-Id"

access = logging.getLogger("genserve.access")
log = logging.getLogger(__name__)

_HEADER = REQUEST_ID.lower().encode()
_SANE_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class Envelope:
    """Middleware around the whole app, so that no answer leaves without an id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one exchange; other scopes than HTTP pass through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 0
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (_HEADER, request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            log.exception("unexpected error", extra={"request_id": request_id})
            if not status:
                await internal_problem(request_id)(scope, receive, send_with_id)
        finally:
            access.info(
                "request",
                extra={
                    "request_id": request_id,
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status or CLIENT_CLOSED_REQUEST,
                    "seconds": round(time.monotonic() - started, 6),
                },
            )


def _request_id(scope: Scope) -> str:
    """Return the client's id where it is sane, or a new one."""
    for name, value in scope["headers"]:
        if name == _HEADER and _SANE_ID.fullmatch(value):
            return str(value.decode())
    return uuid.uuid4().hex
