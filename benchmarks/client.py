"""Our own load client, a process of its own: keeps a fixed number of requests in flight.

python -m benchmarks.client (rest | grpc) PORT IN_FLIGHT COUNT SECONDS

Prints one JSON object. REST runs over raw keep-alive HTTP/1.1, gRPC over one channel whose messages
stay bytes, so that the client takes as little as it can of the cores that the server needs.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from benchmarks.requests import ACCEPT, MODEL, SEED, rest_body

Call = Callable[[], Awaitable[None]]


async def run(
    transport: str, port: int, in_flight: int, count: int, seconds: float
) -> dict[str, float]:
    """Load the server for `seconds`; each caller sends its next request once it has its answer."""
    connect = {"rest": _rest, "grpc": _grpc}[transport]
    async with connect(port, in_flight, count) as calls:
        started, processor = time.perf_counter(), time.process_time()
        answers = await asyncio.gather(*(_repeat(call, started + seconds) for call in calls))
        elapsed = time.perf_counter() - started
        processor = time.process_time() - processor
    latencies = sorted(latency for caller in answers for latency in caller)
    return {
        "requests": len(latencies),
        "seconds": elapsed,
        "p50_ms": 1000 * latencies[len(latencies) // 2],
        "p99_ms": 1000 * latencies[len(latencies) * 99 // 100],
        "processor_seconds": processor,
        "errors": 0,  # the first one ends the client
    }


async def _repeat(call: Call, stop: float) -> list[float]:
    latencies = []
    ended = time.perf_counter()
    while ended < stop:
        started = ended
        await call()
        ended = time.perf_counter()
        latencies.append(ended - started)
    return latencies


@asynccontextmanager
async def _rest(port: int, in_flight: int, count: int) -> AsyncIterator[list[Call]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(_connection(port, count)) for _ in range(in_flight)]


@asynccontextmanager
async def _connection(port: int, count: int) -> AsyncIterator[Call]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = _rest_request(port, count)

    async def call() -> None:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if not head.startswith(b"http/1.1 200"):
            raise ConnectionError(f"the server answered {head!r}")
        await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n")[0]))

    try:
        yield call
    finally:
        writer.close()


def _rest_request(port: int, count: int) -> bytes:
    body = rest_body(count)
    head = (
        f"POST /sample HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: {ACCEPT}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@asynccontextmanager
async def _grpc(port: int, in_flight: int, count: int) -> AsyncIterator[list[Call]]:
    import grpc  # here, so that the REST client starts without it

    from service.rpc.pb.generation_service_pb2 import SampleRequest

    request = SampleRequest(model=MODEL, count=count, seed=SEED).SerializeToString()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await channel.channel_ready()
        sample = channel.unary_unary("/genserve.v1.GenerationService/Sample")

        async def call() -> None:
            await sample(request)

        yield [call] * in_flight


if __name__ == "__main__":
    transport, *numbers = sys.argv[1:]
    print(json.dumps(asyncio.run(run(transport, *map(int, numbers)))))
