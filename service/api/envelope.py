"""What every HTTP exchange gets: a request id, an answer whatever happens, a line in the log."""

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import CLIENT_CLOSED_REQUEST, internal_problem

REQUEST_ID = "X-Request-Id"

access = logging.getLogger("genserve.access")
log = logging.getLogger(__name__)

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


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
        request_id = _request_id(Headers(scope=scope))
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
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


def _request_id(headers: Headers) -> str:
    """Return the client's id where it is sane, or a new one."""
    asked = headers.get(REQUEST_ID, "")
    return asked if _SANE_ID.fullmatch(asked) else uuid.uuid4().hex
