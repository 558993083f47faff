"""Connections: the head of a request is bounded, whatever its pieces."""

import asyncio
from pathlib import Path

import pytest

from tests.live import LiveServer

SECONDS = 10


@pytest.fixture(scope="module")
def port(repository: Path):
    with LiveServer(repository, default_models="toy-gan") as server:
        server.wait_until_ready()
        yield server.http_port


async def answer_of(port: int, pieces: list[bytes]) -> bytes:
    """Return all that the server says to these pieces of a request until it hangs up."""
    async with asyncio.timeout(SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            return await reader.read()
        except ConnectionError:  # it hung up while more was on its way
            return b""
        finally:
            writer.close()


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([b"X-Long: ", *[b"x" * 8192] * 40], id="one header"),
        pytest.param([b"X-Short: x\r\n" * 700] * 40, id="many headers"),
    ],
)
async def test_a_head_that_does_not_end_is_refused(port: int, pieces: list[bytes]) -> None:
    answer = await answer_of(port, [b"GET /healthz HTTP/1.1\r\nHost: genserve\r\n", *pieces])
    assert not answer or answer.startswith(b"HTTP/1.1 400 ")


async def test_large_bodies_do_not_count_as_heads(port: int) -> None:
    content = b"[" + b"0," * 100_000 + b"0]"
    head = (
        b"POST /sample HTTP/1.1\r\nHost: genserve\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n" % len(content)
    )
    again = head + b"Connection: close\r\n\r\n" + content
    answer = await answer_of(port, [head + b"\r\n" + content + again])
    assert answer.count(b"HTTP/1.1 422 ") == 2
