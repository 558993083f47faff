"""A thousand streams whose clients leave at random, over real connections: nothing is lost."""

import asyncio
import json
import random
import urllib.request
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.rpc.pb import generation_service_pb2 as pb
from service.rpc.pb.generation_service_pb2_grpc import GenerationServiceStub
from tests.live import LiveServer

pytestmark = pytest.mark.slow

ARTIFACTS = Path(__file__).parent.parent / "artifacts"
MODEL = "mnist-pixelcnn"
AT_ONCE = 32
ROUND, ROUNDS = 200, 5
SECONDS = 60  # a round, or a server, that hangs fails
GROWTH = 1.05  # of resident memory, from the first round's end to the last one's
QUIET = (
    "genserve_busy_slots",
    "genserve_waiting_images",
    "genserve_open_streams",
    "genserve_requests_in_flight",
)


@pytest.fixture
def server() -> Iterator[LiveServer]:
    with LiveServer(ARTIFACTS, default_models=MODEL, workers="2") as started:
        started.wait_until_ready()
        yield started


def random_body(chance: random.Random) -> dict[str, Any]:
    body = {"model": MODEL, "count": chance.randint(1, 4), "seed": chance.randrange(2**53)}
    if chance.random() < 0.3:
        body["top_k"] = chance.randint(2, 200)
    return body


async def over_http(client: httpx.AsyncClient, body: dict[str, Any], events: int | None) -> bool:
    """Read so many server-sent events, or all; return whether the result came."""
    async with client.stream("POST", "/sample/stream", json=body) as answer:
        assert answer.status_code == 200
        lines = answer.aiter_lines()
        async with aclosing(lines):
            async for line in lines:
                if line == "event: result":
                    return True
                if line.startswith("event: ") and events is not None:
                    assert line == "event: rows"
                    events -= 1
                    if events < 0:
                        return False
    raise AssertionError("a stream ends with its result")


async def over_grpc(stub: GenerationServiceStub, body: dict[str, Any], events: int | None) -> bool:
    call = stub.StreamSample(pb.StreamSampleRequest(request=pb.SampleRequest(**body)))
    async for step in call:
        if step.HasField("result"):
            return True
        if events is not None:
            events -= 1
            if events < 0:
                call.cancel()
                return False
    raise AssertionError("a stream ends with its result")


async def leave_at_once(server: LiveServer, body: dict[str, Any]) -> bool:
    """Send a request and go, before there is an answer."""
    content = json.dumps(body).encode()
    _, writer = await asyncio.open_connection("127.0.0.1", server.http_port)
    writer.write(
        b"POST /sample/stream HTTP/1.1\r\nHost: genserve\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(content), content)
    )
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    return False


async def storm(server: LiveServer, chance: random.Random) -> int:
    """Send a round of streams, most of which are left; return how many were read to the end."""
    turn = asyncio.Semaphore(AT_ONCE)
    limits = httpx.Limits(max_connections=AT_ONCE)
    address = f"127.0.0.1:{server.grpc_port}"
    async with (
        asyncio.timeout(SECONDS),
        httpx.AsyncClient(base_url=server.url, limits=limits, timeout=SECONDS) as client,
        grpc.aio.insecure_channel(address) as channel,
    ):
        stub = GenerationServiceStub(channel)

        async def visit() -> bool:
            body = random_body(chance)
            events = chance.randint(0, 60) if chance.random() < 0.8 else None
            way = chance.random()
            async with turn:
                if way < 0.1:
                    return await leave_at_once(server, body)
                if way < 0.55:
                    return await over_http(client, body, events)
                return await over_grpc(stub, body, events)

        return sum(await asyncio.gather(*(visit() for _ in range(ROUND))))


async def until_quiet(server: LiveServer) -> dict[str, float]:
    """Wait until nothing is painted, waits, or is open; return the samples of the metrics."""
    async with asyncio.timeout(SECONDS):
        while True:
            _, text = await asyncio.to_thread(server.get, "/metrics")
            samples = [
                sample
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            ]
            totals: dict[str, float] = {}
            for sample in samples:
                totals[sample.name] = totals.get(sample.name, 0) + sample.value
            if all(totals[name] == 0 for name in QUIET):
                return totals
            await asyncio.sleep(0.05)


def resident_bytes(server: LiveServer) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return 1024 * int(line.split()[1])


def fresh(server: LiveServer) -> bytes:
    request = urllib.request.Request(
        f"{server.url}/sample",
        json.dumps({"model": MODEL, "count": 5, "seed": 12}).encode(),
        {"Content-Type": "application/json", "Accept": "application/x-npy"},
    )
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        return answer.read()


async def test_a_thousand_streams_with_random_disconnects_leave_nothing_behind(
    server: LiveServer,
) -> None:
    alone = await asyncio.to_thread(fresh, server)
    chance, finished, resident = random.Random(0), 0, []
    for _ in range(ROUNDS):
        finished += await storm(server, chance)
        totals = await until_quiet(server)
        resident.append(resident_bytes(server))
        joined = totals["genserve_joined_images_total"]
        unfinished = totals["genserve_unfinished_images_total"]
        print(
            f"{finished} read to the end; {joined:.0f} images joined, {unfinished:.0f} left "
            f"unfinished; {resident[-1] / 2**20:.1f} MiB resident"
        )
    assert ROUND * ROUNDS * 0.1 < finished < ROUND * ROUNDS * 0.9, "most left, some stayed"
    assert 0 < unfinished < joined
    assert resident[-1] < GROWTH * resident[0], resident
    assert await asyncio.to_thread(fresh, server) == alone, "every slot is free, and clean"
    assert server.stop() == 0
    assert not [entry for entry in server.log if entry["level"] not in ("info", "warning")]
