"""What every HTTP exchange gets: a request id, an answer whatever happens, a line in the log."""

import logging
import re
import secrets
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import CLIENT_CLOSED_REQUEST, internal_problem
from service.tracing import Tracing

REQUEST_ID = "X-Request-Id"

access = logging.getLogger("genserve.access")
log = logging.getLogger(__name__)

_HEADER = REQUEST_ID.lower().encode()
_SANE_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class Envelope:
    """Middleware around the whole app, so that no answer leaves without an id."""

    def __init__(self, app: ASGIApp, *, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one exchange; other scopes than HTTP pass through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, method, path = _request_id(scope), scope["method"], scope["path"]
        attributes = {"http.request.method": method, "url.path": path, "request_id": request_id}
        with self._tracing.request(f"{method} {path}", scope["headers"], **attributes) as trace:
            status = await self._serve(scope, receive, send, request_id)
            trace.answered(status, fault=status >= 500)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> int:
        """Serve one exchange and return its status."""
        started, status = time.monotonic(), 0
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
        return status or CLIENT_CLOSED_REQUEST


def _request_id(scope: Scope) -> str:
    """Return the client's id where it is sane, or a new one."""
    for name, value in scope["headers"]:
        if name == _HEADER and _SANE_ID.fullmatch(value):
            return str(value.decode())
    return secrets.token_hex(16)
