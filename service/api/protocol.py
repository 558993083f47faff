"""HTTP/1.1 by uvicorn and httptools, with a bound on the head of a request."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_MAXIMUM_HEAD_BYTES = 64 * 1024


class HttpProtocol(HttpToolsProtocol):
    """One connection. The parser alone would read a head of any length into memory."""

    _head_bytes: int | None = None  # since the head of a request began, None outside of one

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
        """Stop counting."""
        self._head_bytes = None
        super().on_headers_complete()
