"""Connections of REST: how many, and how long a client may let the server wait."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from service.api.guard import CROWDED
from service.api.protocol import HttpProtocol

_UNANSWERED = 2  # times the maximum, from where on connections are closed at once


def bounded_protocol(*, maximum: int, seconds: float) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol with bounds that it lacks.

    Uvicorn waits for ever for the headers of a request, and for a client to read its answer. Here
    a connection is cut where `seconds` pass before the headers are there, or before so much of an
    answer is read that more can be written. Requests on more than `maximum` connections are marked,
    for the guard to refuse; connections beyond twice as many are cut at once.
    """

    class BoundedProtocol(HttpProtocol):
        app_state: dict[str, Any]
        _answered: RequestResponseCycle | None = None  # last; cycle is the last one read
        _awaiting_request: asyncio.TimerHandle | None = None
        _awaiting_reader: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > _UNANSWERED * maximum:
                transport.abort()
            elif len(self.connections) > maximum:
                self.app_state = {**self.app_state, CROWDED: True}
            self._await_request()

        def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
            self._answered = cycle
            super()._start_asgi_task(cycle, app)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._in_request():
                _cancel(self._awaiting_request)

        def send_400_response(self, message: str) -> None:
            # In the middle of a request its handler would go on, and fail to answer a second time.
            handled = self._in_request()
            super().send_400_response(message)
            if handled:
                self._leave_off()

        def on_response_complete(self) -> None:
            super().on_response_complete()  # may begin the next request, where it has come already
            if not self._in_request():
                self._await_request()

        def pause_writing(self) -> None:
            super().pause_writing()
            _cancel(self._awaiting_reader)
            self._awaiting_reader = self.loop.call_later(seconds, self._cut)

        def resume_writing(self) -> None:
            super().resume_writing()
            _cancel(self._awaiting_reader)

        def connection_lost(self, error: Exception | None) -> None:
            _cancel(self._awaiting_request)
            _cancel(self._awaiting_reader)
            self._leave_off()
            super().connection_lost(error)

        def _cut(self) -> None:
            self._leave_off()
            self.transport.abort()

        def _leave_off(self) -> None:
            """Tell who makes an answer that nobody is there: writing it would be an error."""
            for cycle in (self._answered, self.cycle):
                if cycle is not None and not cycle.response_complete:
                    cycle.disconnected = True
                    cycle.message_event.set()

        def _in_request(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _await_request(self) -> None:
            _cancel(self._awaiting_request)
            self._awaiting_request = self.loop.call_later(seconds, self._cut)

    return BoundedProtocol


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
