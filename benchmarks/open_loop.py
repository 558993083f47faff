"""The open-loop client, a process of its own: requests are sent when they are due.

python -m benchmarks.open_loop < OFFER

Whether the server keeps up changes nothing about when the next request comes, as with clients that
know nothing of each other. It runs on uvloop, to leave more of the machine to the server. OFFER is
an `Offer` as JSON; what is printed is an `Outcome` as JSON.
"""

import asyncio
import base64
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import cast

import uvloop

from benchmarks.intervals import percentile

MAXIMUM_CONNECTIONS = 900
"""Of REST, each with one request: a process may have about a thousand open files."""

WARM_UP_SECONDS = 1.0
"""What is answered before is not counted as goodput: the queue is still filling."""

_LAST_ANSWERS_SECONDS = 10.0
_RETRY_INFO = b"google.rpc.RetryInfo"


@dataclass(frozen=True)
class Offer:
    """Requests, all the same, that come at random (Poisson) at this rate, on average."""

    transport: str  # rest or grpc
    port: int
    requests_per_second: float
    seconds: float
    head: str = ""  # of REST: the request line and headers, without Content-Length
    method: str = ""  # of gRPC
    content: str = ""  # base64 of the body or message


@dataclass
class Outcome:
    """What became of the requests."""

    due: int = 0
    unsent: int = 0  # no connection was left: the client's bound, not the server's
    statuses: dict[str, int] = field(default_factory=dict)
    without_retry_hint: int = 0  # refusals that do not say when to come again
    accepted_per_second: float = 0.0  # 200s or OKs, after the warm-up
    p50_ms: float = 0.0  # of those, from when they were due
    p99_ms: float = 0.0
    client_cores: float = 0.0


class Watch:
    """Notes answers as they come."""

    def __init__(self, accepted: str, refused: str) -> None:
        self.statuses: Counter[str] = Counter()
        self.without_retry_hint = 0
        self.accepted: list[tuple[float, float]] = []  # when due, when answered
        self.waiting = 0
        self._accepted, self._refused = accepted, refused

    def note(self, due: float, status: str, has_retry_hint: bool) -> None:
        """Count an answer."""
        self.waiting -= 1
        self.statuses[status] += 1
        if status == self._accepted:
            self.accepted.append((due, time.perf_counter()))
        elif status == self._refused and not has_retry_hint:
            self.without_retry_hint += 1


Send = Callable[[float], bool]
"""Sends one request that was due then; returns whether it could."""


def draw_dues(requests_per_second: float, seconds: float) -> Iterator[float]:
    """Yield when requests are due, in seconds from the start: at random, independent."""
    chance = random.Random(1)
    due = chance.expovariate(requests_per_second)
    while due < seconds:
        yield due
        due += chance.expovariate(requests_per_second)


async def run(offer: Offer) -> Outcome:
    """Send what is due, and wait a while for the last answers."""
    connect = {"rest": _rest, "grpc": _grpc}[offer.transport]
    outcome = Outcome()
    async with connect(offer) as (watch, send):
        started, processor = time.perf_counter(), time.process_time()
        for after in draw_dues(offer.requests_per_second, offer.seconds):
            due = started + after
            # Also where requests are late: the answers must be read meanwhile.
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            outcome.due += 1
            if send(due):
                watch.waiting += 1
            else:
                outcome.unsent += 1
        outcome.client_cores = (time.process_time() - processor) / offer.seconds
        ended = time.perf_counter()
        while watch.waiting and time.perf_counter() < ended + _LAST_ANSWERS_SECONDS:
            await asyncio.sleep(0.05)
    outcome.statuses = dict(watch.statuses)
    if watch.waiting:
        outcome.statuses["unanswered"] = watch.waiting
    outcome.without_retry_hint = watch.without_retry_hint
    counts_from = started + WARM_UP_SECONDS
    counted = sum(counts_from <= answered < ended for _, answered in watch.accepted)
    outcome.accepted_per_second = counted / (ended - counts_from)
    if latencies := [1000 * (answered - due) for due, answered in watch.accepted]:
        outcome.p50_ms, outcome.p99_ms = (percentile(latencies, share) for share in (0.5, 0.99))
    return outcome


class _Connection(asyncio.Protocol):
    """A keep-alive connection, one request at a time; goes back to the idle ones on its own."""

    def __init__(self, watch: Watch, idle: "list[_Connection]") -> None:
        self._watch, self._idle = watch, idle
        self._transport: asyncio.Transport | None = None
        self._request, self._due = b"", 0.0
        self._received = bytearray()
        self._lost = asyncio.Event()

    def ask(self, request: bytes, due: float) -> None:
        """Send a request, at once or when the connection is there."""
        self._request, self._due = request, due
        if self._transport is not None:
            self._transport.write(request)

    async def close(self) -> None:
        """Close the connection, if it is there."""
        if self._transport is not None:
            self._transport.close()
            await self._lost.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not asserted: uvloop's is of no type of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        head = head.lower()
        length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(body) >= length:
            self._watch.note(self._due, head[9:12].decode(), b"\r\nretry-after:" in head)
            self._due = 0.0
            self._received.clear()
            self._idle.append(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._lost.set()
        if self._due:
            self._watch.note(self._due, "disconnected", False)
        elif self in self._idle:
            self._idle.remove(self)


@asynccontextmanager
async def _rest(offer: Offer):
    loop = asyncio.get_running_loop()
    watch, idle = Watch("200", "429"), []
    made: list[_Connection] = []
    tasks = set()
    body = base64.b64decode(offer.content)
    request = f"{offer.head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    async def connect(connection: _Connection, due: float) -> None:
        try:
            await loop.create_connection(lambda: connection, "127.0.0.1", offer.port)
        except OSError:
            watch.note(due, "not connected", False)

    def send(due: float) -> bool:
        if idle:
            idle.pop().ask(request, due)
        elif len(made) < MAXIMUM_CONNECTIONS:
            made.append(connection := _Connection(watch, idle))
            connection.ask(request, due)
            tasks.add(task := loop.create_task(connect(connection, due)))
            task.add_done_callback(tasks.discard)
        else:
            return False
        return True

    try:
        yield watch, send
    finally:
        for connection in made:
            await connection.close()


@asynccontextmanager
async def _grpc(offer: Offer):
    import grpc  # here, so that the REST client starts without it

    watch, tasks = Watch("OK", "RESOURCE_EXHAUSTED"), set()
    message = base64.b64decode(offer.content)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{offer.port}") as channel:
        await channel.channel_ready()
        method = channel.unary_unary(f"/genserve.v1.GenerationService/{offer.method}")

        async def call(due: float) -> None:
            try:
                await method(message)
            except grpc.aio.AioRpcError as error:
                details = dict(error.trailing_metadata()).get("grpc-status-details-bin", b"")
                watch.note(due, error.code().name, _RETRY_INFO in details)
            else:
                watch.note(due, "OK", False)

        def send(due: float) -> bool:
            tasks.add(task := asyncio.create_task(call(due)))
            task.add_done_callback(tasks.discard)
            return True

        yield watch, send


if __name__ == "__main__":
    print(json.dumps(asdict(uvloop.run(run(Offer(**json.load(sys.stdin)))))))
