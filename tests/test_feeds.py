"""StreamLikelihood: a feed of images over gRPC, from a real client to a real server."""

import asyncio
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status

from service.core.engine import Engine
from service.metrics import Metrics
from service.rpc.pb import generation_service_pb2 as pb
from service.rpc.pb.generation_service_pb2_grpc import GenerationServiceStub
from service.rpc.server import SERVICE
from service.settings import Settings
from tests.calibrated import normal_images
from tests.conftest import TOYS
from tests.fakes import RASTER_LEVELS, GatedSession
from tests.live import LiveServer
from tests.test_transports_agree import levels_of

FLOW, RASTER = "toy-flow", "toy-raster"
AT_ONCE = 32  # as the proto says
SECONDS = 30  # a test that hangs fails


@pytest.fixture
def settings(settings: Settings, calibrated: tuple[Path, Any]) -> Settings:
    """The calibrated toys, and requests of any size that a message holds."""
    return settings.model_copy(update={"model_repository": calibrated[0], "maximum_count": 256})


@pytest.fixture
def gated(engine: Engine):
    """The session of toy-flow's likelihood, which waits at the gate."""
    model = engine.models.find(FLOW)
    session = GatedSession(model.graphs["log_likelihood"].session)
    model.graphs["log_likelihood"] = replace(model.graphs["log_likelihood"], session=session)
    yield session
    session.gate.set()


def request_of(
    count: int = 1, seed: int = 0, model: str = FLOW, **fields: Any
) -> pb.LikelihoodRequest:
    images = normal_images(count, RASTER_LEVELS if model == RASTER else 256, seed)
    return pb.LikelihoodRequest(model=model, images=levels_of(images.astype(np.uint8)), **fields)


def feed(requests: Iterable[pb.LikelihoodRequest]) -> list[pb.StreamLikelihoodRequest]:
    return [pb.StreamLikelihoodRequest(request=request) for request in requests]


async def read(call: Any, count: int) -> list[pb.StreamLikelihoodResponse]:
    async with asyncio.timeout(SECONDS):
        return [await call.read() for _ in range(count)]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0)


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0


def answered(metrics: Metrics, code: str, model: str = FLOW) -> float:
    version = "1" if model else ""
    labels = {"model": model, "version": version, "operation": "likelihood", "code": code}
    return value(metrics, "genserve_requests_total", **labels)


def without_id(answer: pb.LikelihoodResponse) -> pb.LikelihoodResponse:
    plain = pb.LikelihoodResponse()
    plain.CopyFrom(answer)
    plain.request_id = ""
    return plain


class Dawdling:
    """A session that takes now longer, now shorter."""

    def __init__(self, session: Any, seed: int) -> None:
        self._session, self._chance = session, random.Random(seed)
        self._lock = threading.Lock()

    def run(self, inputs: Any) -> Any:
        with self._lock:
            delay = self._chance.choice([0.0, 0.0, 0.001, 0.01])
        time.sleep(delay)
        return self._session.run(inputs)


# Answers


@pytest.mark.parametrize("seed", range(3))
async def test_answers_come_in_order_with_the_numbers_of_likelihood(
    stub: GenerationServiceStub, engine: Engine, seed: int
) -> None:
    chance = random.Random(seed)
    requests = [
        request_of(
            count=chance.choice([1, 1, 2, 7, 40]),
            seed=index,
            model=chance.choice([FLOW, RASTER]),
            **chance.choice([{}, {"group": True}, {"false_positive_rate": 0.05}]),
        )
        for index in range(100)
    ]
    expected = [without_id(await stub.Likelihood(request)) for request in requests]
    for name in (FLOW, RASTER):
        graphs = engine.models.find(name).graphs
        slow = Dawdling(graphs["log_likelihood"].session, seed)
        graphs["log_likelihood"] = replace(graphs["log_likelihood"], session=slow)
    call = stub.StreamLikelihood(iter(feed(requests)))
    found = [answer async for answer in call]
    assert len(found) == len(expected)
    request_id = dict(await call.initial_metadata())["x-request-id"]
    for answer, alone in zip(found, expected, strict=True):
        assert answer.result.request_id == request_id
        # How many rows share a run may change the last digits of a float32.
        for name in ("log_likelihood", "p_value", "percentile"):
            assert getattr(answer.result, name) == pytest.approx(getattr(alone, name), rel=1e-5)
        assert answer.result.calibration == alone.calibration
        assert answer.result.HasField("group_p_value") == alone.HasField("group_p_value")


async def test_messages_share_batches(
    stub: GenerationServiceStub, gated: GatedSession, metrics: Metrics
) -> None:
    call = stub.StreamLikelihood(iter(feed(request_of(seed=index) for index in range(AT_ONCE))))
    await until(lambda: value(metrics, "genserve_requests_in_flight") == AT_ONCE)
    gated.gate.set()
    await read(call, AT_ONCE)
    assert sum(gated.batches) == AT_ONCE * 4, "toy-flow takes 4 draws an image"
    assert len(gated.batches) < AT_ONCE


async def test_an_empty_feed_ends_well(stub: GenerationServiceStub) -> None:
    assert [answer async for answer in stub.StreamLikelihood(iter(()))] == []


# What goes wrong


async def test_a_bad_message_is_answered_with_its_error_and_the_stream_goes_on(
    stub: GenerationServiceStub, metrics: Metrics
) -> None:
    grey = request_of()
    grey.images.count = 2
    requests = [
        request_of(seed=1),
        grey,
        request_of(model="toy-gan"),
        request_of(false_positive_rate=2.0),
        request_of(samples=4, returns=[pb.LIKELIHOOD_PART_SCORES]),
        pb.LikelihoodRequest(model=FLOW),
        request_of(model="nobody"),
        request_of(timeout_ms=0),
        request_of(seed=2),
    ]
    answers = [answer async for answer in stub.StreamLikelihood(iter(feed(requests)))]
    reasons = [answer.error.reason for answer in answers]
    assert reasons == [
        "",
        "INVALID_IMAGE",
        "OPERATION_NOT_OFFERED",
        "OUT_OF_RANGE",
        "NOT_CALIBRATED",
        "INVALID_REQUEST",
        "MODEL_NOT_FOUND",
        "OUT_OF_RANGE",
        "",
    ]
    assert "allowed is more than 0 and less than 1" in answers[3].error.message
    assert "decode" in answers[2].error.metadata["operations"]
    for index in (0, -1):
        assert len(answers[index].result.log_likelihood) == 1
    assert answered(metrics, "OK") == 2 and answered(metrics, "NOT_CALIBRATED") == 1


async def test_the_reason_is_that_of_likelihood(stub: GenerationServiceStub) -> None:
    request = request_of(calibration="none")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Likelihood(request)
    (answer,) = [answer async for answer in stub.StreamLikelihood(iter(feed([request])))]
    info = info_of(refused.value)
    assert (answer.error.reason, answer.error.message) == (info.reason, refused.value.details())
    assert answer.error.metadata == info.metadata


async def test_bytes_that_are_no_message_are_answered_too(
    channel: grpc.aio.Channel, metrics: Metrics
) -> None:
    raw = channel.stream_stream(
        f"/{SERVICE}/StreamLikelihood",
        response_deserializer=pb.StreamLikelihoodResponse.FromString,
    )
    (good,) = feed([request_of()])
    contents = [good.SerializeToString(), b"\xff\xff", good.SerializeToString()]
    answers = [answer async for answer in raw(iter(contents))]
    assert [answer.error.reason for answer in answers] == ["", "MALFORMED_REQUEST", ""]
    assert answers[0].result == answers[2].result
    assert answered(metrics, "MALFORMED_REQUEST", model="") == 1


async def test_a_deadline_is_of_its_message(
    stub: GenerationServiceStub, gated: GatedSession
) -> None:
    call = stub.StreamLikelihood()
    hurried, patient = feed([request_of(timeout_ms=20), request_of(seed=1)])
    await call.write(hurried)
    await call.write(patient)
    (late,) = await read(call, 1)
    assert late.error.reason == "DEADLINE_EXCEEDED"
    gated.gate.set()
    (there,) = await read(call, 1)
    assert there.HasField("result")
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


# Bounds


class TestSmallQueue:
    """A queue that takes what waits of two messages of 10 images, of 4 draws each, and no third."""

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"maximum_queued_rows": 80})

    async def test_no_message_is_refused_for_those_before_it(
        self, stub: GenerationServiceStub, gated: GatedSession, metrics: Metrics
    ) -> None:
        requests = [request_of(count=10, seed=index) for index in range(12)]
        call = stub.StreamLikelihood(iter(feed(requests)))
        await until(lambda: value(metrics, "genserve_requests_in_flight") == 12)
        gated.gate.set()
        answers = await read(call, 12)
        assert [len(answer.result.log_likelihood) for answer in answers] == [10] * 12
        for request, answer in zip(requests, answers, strict=True):
            alone = await stub.Likelihood(request)
            expected = pytest.approx(list(alone.log_likelihood), rel=1e-5)
            assert list(answer.result.log_likelihood) == expected
        assert answered(metrics, "QUEUE_FULL") == 0, "nor is it counted as one"

    async def test_a_message_waits_for_its_stream_no_longer_than_its_deadline(
        self, stub: GenerationServiceStub, gated: GatedSession, metrics: Metrics
    ) -> None:
        hurried = request_of(count=10, seed=2, timeout_ms=50)
        requests = [request_of(count=10), request_of(count=10, seed=1), hurried]
        call = stub.StreamLikelihood(iter(feed(requests)))
        await until(lambda: answered(metrics, "DEADLINE_EXCEEDED"))
        gated.gate.set()
        reasons = [answer.error.reason for answer in await read(call, 3)]
        assert reasons == ["", "", "DEADLINE_EXCEEDED"]

    async def test_a_message_is_refused_where_others_fill_the_queue(
        self, stub: GenerationServiceStub, gated: GatedSession, metrics: Metrics
    ) -> None:
        others = [stub.Likelihood(request_of(count=10, seed=index)) for index in range(2)]
        await until(lambda: value(metrics, "genserve_queued_rows") >= 40)
        call = stub.StreamLikelihood(iter(feed([request_of(count=10, seed=3)])))
        (refused,) = await read(call, 1)
        assert refused.error.reason == "QUEUE_FULL"
        gated.gate.set()
        await asyncio.gather(*others)


async def test_no_more_is_read_than_is_answered(
    stub: GenerationServiceStub, gated: GatedSession, metrics: Metrics
) -> None:
    def in_flight() -> float:
        return value(metrics, "genserve_requests_in_flight")

    messages = feed(request_of(seed=index % 7) for index in range(3 * AT_ONCE))
    call = stub.StreamLikelihood(iter(messages))
    await until(lambda: in_flight() == AT_ONCE)
    for _ in range(1000):  # chances to read one more
        await asyncio.sleep(0)
    assert in_flight() == AT_ONCE
    assert value(metrics, "genserve_open_streams") == 1
    gated.gate.set()
    answers = await read(call, len(messages))
    assert all(answer.HasField("result") for answer in answers)
    await until(lambda: value(metrics, "genserve_open_streams") == 0)
    assert in_flight() == 0


async def test_a_client_that_does_not_read_is_not_read_either(
    channel: grpc.aio.Channel, metrics: Metrics
) -> None:
    """Messages and answers of about 100 KB: those that fit into the windows of HTTP/2 travel."""
    total, written = 600, 0
    parts = [pb.LIKELIHOOD_PART_SCORES, pb.LIKELIHOOD_PART_LOG_LIKELIHOOD_MAP]
    (message,) = feed([request_of(count=200, model=RASTER, returns=parts)])
    # A field that the server does not know makes a message large that is little work.
    unknown = pb.Images(levels=bytes(100_000)).SerializeToString()
    content = message.SerializeToString() + unknown

    async def write_all(call: Any) -> None:
        nonlocal written
        for _ in range(total):
            await call.write(content)
            written += 1
        await call.done_writing()

    def progress() -> tuple[int, float]:
        return written, answered(metrics, "OK", RASTER)

    raw = channel.stream_stream(
        f"/{SERVICE}/StreamLikelihood",
        response_deserializer=pb.StreamLikelihoodResponse.FromString,
    )
    call = raw()
    writing = asyncio.create_task(write_all(call))
    before: tuple[int, float] | None = None
    while progress() != before or not all(progress()):
        before = progress()
        await asyncio.sleep(1.0)
    assert max(progress()) < total, progress()
    await until(lambda: value(metrics, "genserve_requests_in_flight") == 0)  # answers wait
    print(f"stopped after {progress()} of {total} messages written and scored")
    async with asyncio.timeout(120):
        answers = [answer async for answer in call]
    await writing
    assert progress() == (total, total) and len(answers) == total
    assert all(len(answer.result.p_value) == 200 for answer in answers)


async def test_a_feed_that_is_cancelled_frees_what_was_queued(
    stub: GenerationServiceStub, gated: GatedSession, metrics: Metrics
) -> None:
    call = stub.StreamLikelihood(iter(feed(request_of(seed=index) for index in range(100))))
    await until(lambda: value(metrics, "genserve_requests_in_flight") == AT_ONCE)
    await until(lambda: value(metrics, "genserve_queued_rows") > 0)
    call.cancel()
    await until(lambda: value(metrics, "genserve_open_streams") == 0)
    await until(lambda: value(metrics, "genserve_requests_in_flight") == 0)
    assert value(metrics, "genserve_queued_rows") == 0
    assert answered(metrics, "REQUEST_CANCELLED") == AT_ONCE
    ran = sum(gated.batches)
    gated.gate.set()
    (answer,) = [answer async for answer in stub.StreamLikelihood(iter(feed([request_of()])))]
    assert answer.HasField("result")
    assert sum(gated.batches) == ran + 4, "nothing of the cancelled feed ran on"


# The end of the server


async def test_a_feed_is_drained_what_was_read_is_answered(
    stub: GenerationServiceStub, engine: Engine, gated: GatedSession, metrics: Metrics
) -> None:
    busy, idle = stub.StreamLikelihood(), stub.StreamLikelihood()
    for message in feed(request_of(seed=index) for index in range(3)):
        await busy.write(message)
    await idle.write(feed([request_of(model="nobody")])[0])
    assert (await read(idle, 1))[0].error.reason == "MODEL_NOT_FOUND"
    await until(lambda: value(metrics, "genserve_requests_in_flight") == 3)
    draining = asyncio.create_task(engine.drain())
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await idle.read()
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    gated.gate.set()
    answers = await read(busy, 3)
    assert all(answer.HasField("result") for answer in answers)
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await busy.read()
    assert info_of(ended.value).reason == "SHUTTING_DOWN"
    await asyncio.wait_for(draining, SECONDS)


class BusyThreads(ThreadPoolExecutor):
    """Threads that are all taken until `free` is set; `asked` is how often one was wanted."""

    def __init__(self) -> None:
        super().__init__(1)
        self.free = threading.Event()
        self.asked = 0
        super().submit(self.free.wait)

    def submit(self, *arguments: Any, **options: Any) -> Any:
        self.asked += 1
        return super().submit(*arguments, **options)


async def test_a_message_that_was_read_before_draining_is_answered_though_it_begins_later(
    stub: GenerationServiceStub, engine: Engine, metrics: Metrics
) -> None:
    """Large messages, which threads convert before the engine gets them."""
    threads = BusyThreads()
    asyncio.get_running_loop().set_default_executor(threads)
    (message,) = feed([request_of()])
    # Field 1000, which the server does not know, makes it large: 200,000 bytes.
    message.request.MergeFromString(b"\xc2\x3e\xc0\x9a\x0c" + bytes(200_000))
    call = stub.StreamLikelihood()
    for _ in range(3):
        await call.write(message)
    await until(lambda: threads.asked == 3)
    assert value(metrics, "genserve_requests_in_flight") == 0
    draining = asyncio.create_task(engine.drain())
    await until(lambda: not engine.ready)
    threads.free.set()
    assert all(answer.HasField("result") for answer in await read(call, 3))
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await call.read()
    assert info_of(ended.value).reason == "SHUTTING_DOWN"
    await asyncio.wait_for(draining, SECONDS)
    assert engine.admitted == engine.answered == 3


async def test_an_open_feed_does_not_keep_the_server_from_stopping(repository: Path) -> None:
    with LiveServer(repository, default_models=",".join(TOYS)) as live:
        await asyncio.to_thread(live.wait_until_ready)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{live.grpc_port}") as channel:
            call = GenerationServiceStub(channel).StreamLikelihood()
            await call.write(feed([request_of()])[0])
            assert (await read(call, 1))[0].HasField("result")
            live.process.send_signal(signal.SIGTERM)
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await asyncio.wait_for(call.read(), SECONDS)
        assert info_of(ended.value).reason == "SHUTTING_DOWN"
        assert await asyncio.to_thread(live.process.wait, SECONDS) == 0
    messages = [entry["message"] for entry in live.log]
    assert "stopped" in messages and "draining cut short" not in messages


def info_of(error: grpc.aio.AioRpcError) -> ErrorInfo:
    info = ErrorInfo()
    assert rpc_status.from_call(error).details[0].Unpack(info)
    return info
