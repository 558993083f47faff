"""HTTP/2 by hand: what no gRPC client would send, and clients that do not read."""

import re
import socket
import ssl
import struct
from contextlib import suppress
from typing import Self

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, END_HEADERS, ACK = 1, 4, 1
_INITIAL_WINDOW_SIZE = 4


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def message(content: bytes, *, compressed: bool = False) -> bytes:
    """A message as gRPC sends it: whether it is compressed, its length, its bytes."""
    return struct.pack(">BI", compressed, len(content)) + content


def opening(window: int = 65535) -> bytes:
    """What a client begins with; the server may send `window` bytes of an answer at once."""
    return _PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW_SIZE, window))


def request(stream: int, path: str, *contents: bytes, **headers: str) -> bytes:
    """The frames of a call."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "127.0.0.1",
        "content-type": "application/grpc",
        "te": "trailers",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    block = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())
    frames = [frame(HEADERS, END_HEADERS, stream, block)]
    for content in contents:
        pieces = (content[start : start + 16384] for start in range(0, len(content), 16384))
        frames += [frame(DATA, 0, stream, piece) for piece in pieces]
    return b"".join((*frames, frame(DATA, END_STREAM, stream)))


class Connection:
    """One connection to a gRPC server; calls on it have the streams 1, 3, 5, ..."""

    def __init__(
        self,
        port: int,
        *,
        window: int = 65535,
        seconds: float = 20.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=seconds)
        if tls is not None:
            self._socket = tls.wrap_socket(self._socket, server_hostname="127.0.0.1")
        self._socket.sendall(opening(window))
        self._next_stream = 1
        self._read = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, content: bytes) -> None:
        """Send bytes as they are."""
        self._socket.sendall(content)

    def call(self, path: str, *contents: bytes, **headers: str) -> None:
        """Call a method with messages as they are sent, and end the request."""
        self.send(request(self._next_stream, path, *contents, **headers))
        self._next_stream += 2

    def status(self) -> int | None:
        """Read until a call ends; its status, or None where the server ended it without one."""
        while True:
            kind, flags, payload = self.read_frame()
            found = re.search(rb"grpc-status[\x01\x02](\d+)", payload) if kind == HEADERS else None
            if found:
                return int(found[1])
            ended = kind in (HEADERS, DATA) and flags & END_STREAM
            if ended or kind in (RST_STREAM, GOAWAY, None):
                return None

    def read_frame(self) -> tuple[int | None, int, bytes]:
        """Return kind, flags and payload of the next frame; the kind is None at the end."""
        header = self._read_exactly(9)
        if header is None:
            return None, 0, b""
        length, kind, flags = int.from_bytes(header[:3]), header[3], header[4]
        payload = self._read_exactly(length) or b""
        if kind in (SETTINGS, PING) and not flags & ACK:
            with suppress(ConnectionError):  # what was sent before the end is still read
                self.send(frame(kind, ACK, 0, payload if kind == PING else b""))
        return kind, flags, payload

    def _read_exactly(self, size: int) -> bytes | None:
        while len(self._read) < size:
            try:
                received = self._socket.recv(65536)
            except ConnectionError:
                return None
            if not received:
                return None
            self._read += received
        content, self._read = self._read[:size], self._read[size:]
        return content


def _text(text: str) -> bytes:
    """A string of HPACK, not Huffman-coded (RFC 7541, 5.2)."""
    content = text.encode("latin-1")
    length, prefix = len(content), b""
    if length < 127:
        return bytes([length]) + content
    length, prefix = length - 127, b"\x7f"
    while length >= 128:
        prefix, length = prefix + bytes([length % 128 + 128]), length // 128
    return prefix + bytes([length]) + content
