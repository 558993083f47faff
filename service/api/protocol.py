"""HTTP/1.1 by uvicorn and httptools: a bound on the head of a request, and answers in one piece."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_MAXIMUM_HEAD_BYTES = 64 * 1024


class HttpProtocol(HttpToolsProtocol):
    """One connection. The parser alone would read a head of any length into memory."""

    transport: "_JoiningTransport"  # type: ignore[assignment]  # all that is used of one
    _head_bytes: int | None = None  # since the head of a request began, None outside of one

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, on a transport that joins the parts of an answer."""
        super().connection_made(_JoiningTransport(transport, self.loop))  # type: ignore[arg-type]

    def data_received(self, data: bytes) -> None:
        """Parse what arrives; a head that does not end within the bound ends the connection."""
        # The first bytes of a head may arrive behind a body; they count from the next ones on.
        if self._head_bytes is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes is not None and self._head_bytes > _MAXIMUM_HEAD_BYTES:
            self.send_400_response("The head of the request is too large.")

    def on_message_begin(self) -> None:
        """Begin to count."""
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Stop counting; what is written next begins an answer."""
        self._head_bytes = None
        super().on_headers_complete()
        self.transport.hold_next_write()


class _JoiningTransport:
    """A transport that sends the head of an answer together with what follows at once.

    Uvicorn writes head and body apart: two system calls, in which no other thread may run Python,
    and the client is woken for a head that says little.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._holds_next = False
        self._held = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def hold_next_write(self) -> None:
        """Hold what is written next until more is written, or nothing is in this turn."""
        self._holds_next = True

    def write(self, data: bytes) -> None:
        """Write, after what is held."""
        if self._holds_next:
            self._holds_next = False
            self._held += data
            self._loop.call_soon(self._flush)
        elif self._held:
            held, self._held = self._held, b""
            self._transport.writelines((held, data))
        else:
            self._transport.write(data)

    def close(self) -> None:
        """Close, after what is held."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._held:
            held, self._held = self._held, b""
            self._transport.write(held)
