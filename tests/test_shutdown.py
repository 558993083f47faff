"""SIGTERM under load, on both transports: whatever was admitted is answered, and nothing else."""

import asyncio
import json
import signal
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from prometheus_client.parser import text_string_to_metric_families

from service.rpc.pb import generation_service_pb2 as pb
from service.rpc.pb.generation_service_pb2_grpc import GenerationServiceStub
from tests.conftest import TOYS
from tests.fakes import PIXELS
from tests.live import LiveServer, wait_for_log

ARTIFACTS = Path(__file__).parent.parent / "artifacts"
SECONDS = 60  # a server or a client that hangs fails
CLIENTS = 8  # of each kind
ROUNDS = 3  # of answers for every client, before the signal

Client = Callable[[Counter[str]], Awaitable[None]]


def visitor(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Client:
    """Ask over REST until the server refuses or has gone."""

    async def visit(answers: Counter[str]) -> None:
        while True:
            try:
                answer = await client.post(path, json=body)
            except httpx.TransportError:
                return
            if answer.status_code == 503:
                assert answer.json()["reason"] == "SHUTTING_DOWN"
                return
            assert answer.status_code == 200, answer.text
            assert not path.endswith("stream") or "event: result" in answer.text
            answers[path] += 1

    return visit


def caller(method: Callable[[Any], Awaitable[Any]], request: Any) -> Client:
    """Ask over gRPC until the server refuses or has gone."""

    async def call(answers: Counter[str]) -> None:
        while True:
            try:
                await method(request)
            except grpc.aio.AioRpcError as error:
                assert refused(error), error
                return
            answers[type(request).__name__] += 1

    return call


def refused(error: grpc.aio.AioRpcError) -> bool:
    """Whether a call was refused, by us or by gRPC.

    What arrives in the moment in which gRPC stops it cancels itself: no method has seen the call.
    """
    code, seen = error.code(), dict(error.trailing_metadata() or ())
    return code is grpc.StatusCode.UNAVAILABLE or (
        code is grpc.StatusCode.CANCELLED and "x-request-id" not in seen
    )


class Feeder:
    """Write messages as fast as they are taken, and read what comes.

    A client of grpc.aio that writes while its call ends loses answers that it has not read yet: so
    the writing is to be stopped before the server is.
    """

    def __init__(self, stub: GenerationServiceStub, request: pb.LikelihoodRequest) -> None:
        self._stub = stub
        self._message = pb.StreamLikelihoodRequest(request=request)
        self._full = asyncio.Event()
        self._writing: list[asyncio.Task[None]] = []

    async def stop_writing(self) -> None:
        self._full.set()
        await asyncio.gather(*self._writing)

    async def __call__(self, answers: Counter[str]) -> None:
        call = self._stub.StreamLikelihood()
        self._writing.append(asyncio.create_task(self._write(call)))
        try:
            async for answer in call:
                assert answer.HasField("result"), answer
                answers["feed"] += 1
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE, error

    async def _write(self, call: grpc.aio.StreamStreamCall) -> None:
        while not self._full.is_set():
            await call.write(self._message)


async def stop_under_load(server: LiveServer) -> Counter[str]:
    """Send SIGTERM while clients of all kinds are answered; return what they received."""
    answers: Counter[str] = Counter()
    limits = httpx.Limits(max_connections=None)
    images = pb.Images(levels=bytes(2 * PIXELS), count=2, height=4, width=4, channels=1)
    async with (
        asyncio.timeout(SECONDS),
        httpx.AsyncClient(base_url=server.url, limits=limits, timeout=SECONDS) as client,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        stub = GenerationServiceStub(channel)
        feeder = Feeder(stub, pb.LikelihoodRequest(model="toy-flow", images=images))
        kinds: list[Client] = [
            visitor(client, "/sample", {"count": 8}),
            visitor(client, "/sample/stream", {"model": "toy-raster", "count": 2}),
            caller(stub.Sample, pb.SampleRequest(count=8)),
            caller(stub.Reconstruct, pb.ReconstructRequest(model="toy-flow", images=images)),
            feeder,
        ]
        clients = [asyncio.create_task(kind(answers)) for kind in kinds * CLIENTS]
        while len(answers) < len(kinds) or min(answers.values()) < ROUNDS * CLIENTS:
            for client in clients:
                assert not client.done(), client.result()
            await asyncio.sleep(0.001)
        await feeder.stop_writing()
        server.process.send_signal(signal.SIGTERM)
        await asyncio.gather(*clients)
    return answers


async def check_that_nothing_is_lost(repository: Path) -> None:
    with LiveServer(repository, default_models=",".join(TOYS), workers="2") as server:
        await asyncio.to_thread(server.wait_until_ready)
        answers = await stop_under_load(server)
        assert await asyncio.to_thread(server.wait, SECONDS) == 0
    print(dict(answers))
    (stopped,) = [entry for entry in server.log if entry["message"] == "stopped"]
    assert stopped["admitted"] == stopped["answered"] == answers.total()
    assert not [entry for entry in server.log if entry["level"] not in ("info", "debug")]


async def test_sigterm_at_full_load_loses_nothing(repository: Path) -> None:
    await check_that_nothing_is_lost(repository)


@pytest.mark.slow
async def test_sigterm_at_full_load_loses_nothing_twenty_times(repository: Path) -> None:
    for _ in range(20):
        await check_that_nothing_is_lost(repository)


# One signal drains, a second one ends it


def score(server: LiveServer) -> dict[str, Any]:
    """Ask for what takes many seconds; return the problem that it ends with."""
    images = [[[[0]] * 28] * 28] * 4
    body = {"images": images, "samples": 1000, "timeout_ms": 600_000}
    return problem_of(server, "/likelihood", body)


def problem_of(server: LiveServer, path: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        server.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=SECONDS)
    with refused.value as error:
        return {"code": error.code, **json.loads(error.read())}


def value(server: LiveServer, name: str) -> float:
    families = text_string_to_metric_families(server.get("/metrics")[1])
    return sum(each.value for family in families for each in family.samples if each.name == name)


def test_while_the_server_drains_it_says_so_until_a_second_signal() -> None:
    settings = {
        "default_models": "mnist-realnvp",
        "workers": "1",
        "maximum_queued_rows": "1000000",
        "drain_seconds": "600",
    }
    with LiveServer(ARTIFACTS, **settings) as server, ThreadPoolExecutor(8) as pool:
        server.wait_until_ready()
        running = [pool.submit(score, server) for _ in range(8)]
        while value(server, "genserve_queued_rows") < 24_000:  # of 32,000
            for each in running:
                assert not each.done(), each.result()
        server.process.send_signal(signal.SIGTERM)
        wait_for_log(server, "draining")
        assert server.get("/readyz")[0] == 503
        assert server.get("/healthz")[0] == 200
        late = problem_of(server, "/sample", {})
        assert (late["code"], late["reason"]) == (503, "SHUTTING_DOWN")
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING
            with pytest.raises(grpc.RpcError) as refused:
                GenerationServiceStub(channel).Sample(pb.SampleRequest())
            info = ErrorInfo()
            assert rpc_status.from_call(refused.value).details[0].Unpack(info)
            assert info.reason == "SHUTTING_DOWN"
        server.process.send_signal(signal.SIGTERM)
        assert [each.result()["reason"] for each in running] == ["SHUTTING_DOWN"] * 8
        assert server.wait(SECONDS) == 0
    (stopped,) = [entry for entry in server.log if entry["message"] == "stopped"]
    assert stopped["admitted"] == stopped["answered"] == 8
    assert "draining cut short" in [entry["message"] for entry in server.log]
