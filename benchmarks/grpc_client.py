"""The closed-loop gRPC client, a process of its own.

python -m benchmarks.grpc_client PORT METHOD CALLS SECONDS < MESSAGE

Prints one JSON object, as wrk.lua does. Messages stay bytes and share one channel, so that the
client, on uvloop, takes as little as it can of the cores that the server needs.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable

import grpc
import uvloop

_WARM_UP_SECONDS = 0.3  # see wrk.lua
_UNLIMITED = (("grpc.max_receive_message_length", -1),)

Call = Callable[[bytes], Awaitable[bytes]]


async def run(port: int, method: str, calls: int, seconds: float, message: bytes) -> dict:
    """Keep `calls` in flight for `seconds`; the first error ends the client."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=_UNLIMITED) as channel:
        await channel.channel_ready()
        call = channel.unary_unary(f"/genserve.v1.GenerationService/{method}")
        started, processor = time.perf_counter(), time.process_time()
        stop = started + seconds
        callers = [asyncio.create_task(_repeat(call, message, stop)) for _ in range(calls)]
        answers = [answer for caller in callers for answer in await caller]
        processor = time.process_time() - processor
        elapsed = time.perf_counter() - started
    counted_from = started + _WARM_UP_SECONDS
    latencies = sorted(ended - begun for begun, ended in answers)
    return {
        "requests": sum(counted_from <= ended < stop for _, ended in answers),
        "seconds": stop - counted_from,
        "all_seconds": elapsed,
        "p50_ms": 1000 * latencies[len(latencies) // 2],
        "p99_ms": 1000 * latencies[len(latencies) * 99 // 100],
        "processor_seconds": processor,
        "errors": 0,
    }


async def _repeat(call: Call, message: bytes, stop: float) -> list[tuple[float, float]]:
    answers = []
    ended = time.perf_counter()
    while ended < stop:
        begun = ended
        await call(message)
        ended = time.perf_counter()
        answers.append((begun, ended))
    return answers


if __name__ == "__main__":
    port, method, calls, seconds = sys.argv[1:]
    content = sys.stdin.buffer.read()
    print(json.dumps(uvloop.run(run(int(port), method, int(calls), float(seconds), content))))
