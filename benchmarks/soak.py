"""`make bench TARGET=soak`: very many mixed requests, that nothing breaks and nothing grows.

It writes benchmarks/results/soak.md in about ten minutes. Other load only makes it slower.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import grpc

from benchmarks import pages
from benchmarks.pages import Target, table
from benchmarks.server import Server, running_server
from benchmarks.traffic import ALLOWED, Behaviour, Grpc, Rest, Visit, draw_visits

REQUESTS = 200_000
FIRST = 20_000
"""Requests after which resident memory is what it is to be measured against."""

GROWTH = 1.05
"""Of resident memory at most, from then to the end."""

AT_ONCE = 32
SEED = 1
_ANSWER_SECONDS = 60.0  # a request that hangs is unanswered
_REUSE_SECONDS = 4.0  # the server closes a connection that is idle for 5


@dataclass
class Tally:
    """What became of the requests."""

    answers: Counter[tuple[str, Behaviour, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)  # in words, answers that are not allowed
    different: list[str] = field(default_factory=list)  # the same request, answered otherwise
    repeated: int = 0  # answers that were compared with earlier ones
    _seen: dict[Rest | Grpc, int] = field(default_factory=dict)

    @property
    def requests(self) -> int:
        """How many were sent."""
        return self.answers.total()

    def note(self, visit: Visit, status: str, content: bytes) -> None:
        """Count an answer, and compare it with what is allowed and with earlier ones."""
        self.answers[visit.name, visit.behaviour, status] += 1
        if status not in ALLOWED[visit.behaviour]:
            self.wrong.append(f"{visit.name} ({visit.behaviour.value}): {status} {content[:300]!r}")
        elif visit.request.repeats and status in ALLOWED[Behaviour.GOOD]:
            self.repeated += visit.request in self._seen
            if self._seen.setdefault(visit.request, hash(content)) != hash(content):
                self.different.append(visit.name)


async def send(
    http_port: int, grpc_port: int, visits: Iterator[Visit], count: int, tally: Tally
) -> None:
    """Send so many visits, AT_ONCE at a time, and return when all are over."""
    chosen = (next(visits) for _ in range(count))
    address, options = f"127.0.0.1:{grpc_port}", [("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:

        async def keep_sending() -> None:
            async with AsyncExitStack() as stack:
                connection = _Connection(http_port)
                stack.push_async_callback(connection.close)
                for visit in chosen:
                    status, content = await _visit(visit, connection, channel)
                    tally.note(visit, status, content)

        await asyncio.gather(*(keep_sending() for _ in range(AT_ONCE)))


async def _visit(
    visit: Visit, connection: "_Connection", channel: grpc.aio.Channel
) -> tuple[str, bytes]:
    """Return the status, or `left`, and what was answered."""
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            if isinstance(visit.request, Grpc):
                return await _call(visit, visit.request, channel)
            if visit.behaviour is not Behaviour.LEFT:
                return await connection.ask(visit.request)
    except TimeoutError:
        await connection.close()
        return "unanswered", b""
    try:
        async with asyncio.timeout(visit.seconds):
            return await connection.ask(visit.request)
    except TimeoutError:
        await connection.close()
        return "left", b""


async def _call(visit: Visit, request: Grpc, channel: grpc.aio.Channel) -> tuple[str, bytes]:
    """Make a call; its client's deadline, or its leaving, are the visit's."""
    path = f"/genserve.v1.GenerationService/{request.method}"
    deadline = visit.seconds if visit.behaviour is Behaviour.LATE else None
    options = {"timeout": deadline, "metadata": (("x-request-id", "soak"),)}
    leaves = visit.seconds if visit.behaviour is Behaviour.LEFT else None
    try:
        async with asyncio.timeout(leaves):
            if request.method == "StreamLikelihood":
                call = channel.stream_stream(path)(iter(request.messages), **options)
                return "OK", b"".join([answer async for answer in call])
            if request.streamed:
                call = channel.unary_stream(path)(request.messages[0], **options)
                return "OK", b"".join([answer async for answer in call])
            return "OK", await channel.unary_unary(path)(request.messages[0], **options)
    except grpc.aio.AioRpcError as error:
        return error.code().name, (error.details() or "").encode()
    except TimeoutError:
        if leaves is None:
            raise
        return "left", b""


class _Connection:
    """A keep-alive connection that is made again where it was closed, or was idle for long.

    Idle counts from the last request, not from its answer: where the machine stalls, that may have
    been there for long before it is read.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._asked = 0.0
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: Rest) -> tuple[str, bytes]:
        """Return status and body; a stream is read to its end."""
        if time.monotonic() - self._asked > _REUSE_SECONDS:
            await self.close()
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        self._asked = time.monotonic()
        try:
            writer.write(request.to_bytes())
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            content = await _read_body(reader, head)
        except (OSError, EOFError) as error:
            await self.close()
            return "disconnected", str(error).encode()
        if b"\r\nconnection: close" in head:
            await self.close()
        return head[9:12].decode(), content

    async def close(self) -> None:
        """Leave, whatever is under way."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _read_body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    if b"transfer-encoding: chunked" not in head:
        length = head.partition(b"content-length:")[2].split(b"\r\n", 1)[0]
        return await reader.readexactly(int(length))
    chunks = []
    while size := int(await reader.readuntil(b"\r\n"), 16):
        chunks.append(await reader.readexactly(size))
        await reader.readexactly(2)  # the line's end
    await reader.readexactly(2)
    return b"".join(chunks)


def measure() -> None:
    """Run everything and write it down."""
    started = time.monotonic()
    with running_server() as server:
        tally, memory = asyncio.run(soak(server, REQUESTS, FIRST))
        errors = server.read_errors()
    minutes = (time.monotonic() - started) / 60
    growth = memory[REQUESTS] / memory[FIRST]
    targets = [
        Target("answers that are not allowed", len(tally.wrong), 0, False, 0),
        Target("answers that differ from earlier ones", len(tally.different), 0, False, 0),
        Target("warnings and errors in the server's log", len(errors), 0, False, 0),
        Target(f"resident memory, the end over {FIRST} requests", growth, GROWTH, False, 3),
    ]
    parts = [
        f"# Soak\n\n{pages.head('soak')}",
        f"""{REQUESTS} requests in {minutes:.1f} minutes, {AT_ONCE} at a time, drawn with a seed
(`benchmarks/traffic.py`): every operation over both transports, some broken, some with a deadline
of a few milliseconds, some left before they are answered. Allowed are 200 and OK for what is good,
a 4xx or its status for what is broken, and 504 or 429, DEADLINE_EXCEEDED or
RESOURCE_EXHAUSTED only where a deadline was set.
Where a request was sent before, its answer must have the same bytes: {tally.repeated} were
compared.
""",
        pages.target_table(targets),
        table(
            ["requests", "resident memory (RSS), MiB"],
            [[str(requests), f"{held:.1f}"] for requests, held in memory.items()],
        ),
        _answer_table(tally),
        *(f"- {wrong}\n" for wrong in (*tally.wrong, *errors)[:20]),
    ]
    pages.write("soak", "\n".join(parts))


async def soak(server: Server, requests: int, step: int) -> tuple[Tally, dict[int, float]]:
    """Return what became of the requests, and resident MiB after each `step` of them."""
    tally, visits = Tally(), draw_visits(SEED)
    memory: dict[int, float] = {}
    for total in range(step, requests + 1, step):
        await send(server.http_port, server.grpc_port, visits, step, tally)
        memory[total] = server.resident_mebibytes
    return tally, memory


def _answer_table(tally: Tally) -> str:
    names = sorted({name for name, _, _ in tally.answers})
    rows = []
    for name in names:
        row = [name]
        for behaviour in Behaviour:
            seen = {
                status: count
                for (which, how, status), count in sorted(tally.answers.items(), key=str)
                if (which, how) == (name, behaviour)
            }
            row.append(", ".join(f"{status}: {count}" for status, count in seen.items()))
        rows.append(row)
    return table(["", *(behaviour.value for behaviour in Behaviour)], rows)
