"""Server-sent events: what is painted meanwhile, then the answer, or why there is none."""

import asyncio
import base64
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from service.api.answers import PreviewEvent, RowsEvent, to_json
from service.api.connection import while_connected
from service.api.problems import describe_error, describe_internal_error
from service.api.schemas import Body
from service.core.engine import Answer
from service.core.painting.streaming import Preview, Progress, Rows
from service.errors import GenserveError, RequestCancelled
from service.images import grid, levels_to_png

EVENT_STREAM = "text/event-stream"

log = logging.getLogger(__name__)

Events = AsyncGenerator[Progress | Answer, None]


async def write_events(events: Events, body: Body, request_id: str) -> AsyncGenerator[str, None]:
    """Yield each event as text; an error is one too, unless it comes before all others."""
    begun = False
    try:
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Rows):
                    yield _write(event, body, request_id)
                else:
                    # Compression takes a while, in which the thread lets other requests go on.
                    yield await asyncio.to_thread(_write, event, body, request_id)
                begun = True
    except GenserveError as error:
        if not begun:
            raise
        yield _text("error", json.dumps(describe_error(error, request_id)))
    except Exception:
        if not begun:
            raise
        log.exception("unexpected error", extra={"request_id": request_id})
        yield _text("error", json.dumps(describe_internal_error(request_id)))


class EventStream(Response):
    """An answer that goes on until its events end or its client leaves."""

    media_type = EVENT_STREAM

    def __init__(self, request: Request, first: str, rest: AsyncGenerator[str, None]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._request, self._first, self._rest = request, first, rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; the next one is asked for once the last one is on its way."""
        with suppress(RequestCancelled):  # nobody is left to tell
            await while_connected(self._request, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._rest):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send(_body(self._first))
            async for text in self._rest:
                await send(_body(text))
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _body(text: str) -> Message:
    return {"type": "http.response.body", "body": text.encode(), "more_body": True}


def _write(event: Progress | Answer, body: Body, request_id: str) -> str:
    if isinstance(event, Answer):
        return _text("result", to_json(event, body, request_id).decode())
    progress: dict[str, Any] = {
        "rows_done": event.rows_done,
        "rows_total": event.rows_total,
        "resume_token": event.resume_token,
    }
    if isinstance(event, Rows):
        levels = event.levels.tolist()
        rows = RowsEvent(image=event.image, first_row=event.first_row, rows=levels, **progress)
        return _text("rows", rows.model_dump_json())
    assert isinstance(event, Preview), "there are two kinds of progress"
    png = levels_to_png(grid(event.images), event.manifest.image.levels)
    preview = PreviewEvent(png=base64.b64encode(png).decode(), **progress)
    return _text("preview", preview.model_dump_json())


def _text(name: str, data: str) -> str:
    """Return one event; JSON holds no line breaks, which would end it."""
    return f"event: {name}\ndata: {data}\n\n"
