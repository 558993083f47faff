"""Rows as they are painted: through the engine, as server-sent events, and as gRPC streams."""

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status

from service.api.app import create_app
from service.core.engine import Answer, Engine
from service.core.painting.streaming import Progress
from service.core.requests import SampleRequest
from service.errors import OutOfRange, ShuttingDown
from service.metrics import Metrics
from service.rpc.pb import generation_service_pb2 as pb
from service.rpc.pb.generation_service_pb2_grpc import GenerationServiceStub
from tests.fakes import SIDE

MODEL = "toy-raster"
SECONDS = 30  # a test that hangs fails
BODY = {"model": MODEL, "count": 3, "seed": 5, "image_format": "array"}


class Metered:
    """A session that runs as often as it is allowed to, and can break."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.allowed = threading.Semaphore(0)
        self.runs = 0
        self.breaks_at = 0

    def run(self, inputs: Any) -> Any:
        self.runs += 1
        if self.runs == self.breaks_at:
            raise RuntimeError("the loom is broken")
        self.allowed.acquire()
        return self._session.run(inputs)


@pytest.fixture
async def metered(engine: Engine):
    """The session of toy-raster's row step, which waits until it is allowed to run."""
    model = engine.models.find(MODEL)
    await engine.models.load(model)
    session = Metered(model.graphs["row_step"].session)
    model.graphs["row_step"] = replace(model.graphs["row_step"], session=session)
    yield session
    session.allowed.release(1000)


async def until(condition: Callable[[], object]) -> None:
    """Let the event loop run until the condition holds."""
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0)


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, {"model": MODEL, **labels}) or 0.0


def busy_slots(metrics: Metrics) -> float:
    return value(metrics, "genserve_busy_slots", graph="row_step")


def cancelled(metrics: Metrics) -> float:
    code = {"operation": "sample", "code": "REQUEST_CANCELLED"}
    return value(metrics, "genserve_requests_total", version="1", **code)


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the names and the data of server-sent events."""
    events = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events


async def stream(client: httpx.AsyncClient, path: str, body: dict[str, Any]):
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-request-id"]
    return events_of(answer.text)


def put_together(count: int, parts: list[tuple[int, int, np.ndarray]]) -> np.ndarray:
    """Return the images [N, H, W, 1] that rows add up to; each must follow the one before it."""
    images, known = np.zeros((count, SIDE, SIDE), np.uint8), [0] * count
    for image, first, rows in parts:
        assert first == known[image], "no row is left out or sent twice"
        known[image] += len(rows)
        images[image, first : known[image]] = rows
    assert known == [SIDE] * count
    return images[..., None]


# What is streamed


async def test_streamed_rows_put_together_are_the_result(engine: Engine) -> None:
    request = SampleRequest(count=20, seed=7)  # more than a request gets slots for at once
    *rows, answer = [event async for event in engine.stream("sample", request, model=MODEL)]
    assert isinstance(answer, Answer)
    images = put_together(20, [(part.image, part.first_row, part.levels) for part in rows])
    assert np.array_equal(images, answer.result.images)
    alone = await engine.run("sample", request, model=MODEL)
    assert np.array_equal(alone.result.images, images)


async def test_an_operation_without_rows_streams_its_answer_alone(engine: Engine) -> None:
    request = SampleRequest(count=2, seed=7)
    (answer,) = [event async for event in engine.stream("sample", request)]
    assert answer.model == "toy-gan@1"
    assert np.array_equal(answer.result.images, (await engine.run("sample", request)).result.images)


async def test_a_slow_reader_gets_more_rows_at_once(engine: Engine, metrics: Metrics) -> None:
    events = engine.stream("sample", SampleRequest(count=2, seed=7), model=MODEL)
    first = await anext(events)
    await until(lambda: value(metrics, "genserve_rows_total", version="1") == 2 * SIDE)
    rest = [event async for event in events]
    rows = [event for event in rest if isinstance(event, Progress)]
    assert len(rows) <= 3, "what is left of the first wake-up, then once for each image"
    put_together(2, [(part.image, part.first_row, part.levels) for part in (first, *rows)])


async def test_a_stream_is_admitted_and_counted_like_any_request(
    engine: Engine, metrics: Metrics
) -> None:
    with pytest.raises(OutOfRange):
        await anext(engine.stream("sample", SampleRequest(count=0), model=MODEL))
    rows = engine.stream("sample", SampleRequest(), model=MODEL)
    await anext(rows)
    assert metrics.registry.get_sample_value("genserve_requests_in_flight") == 1
    assert [event async for event in rows]
    for code in ("OK", "OUT_OF_RANGE"):
        labels = {"version": "1", "operation": "sample", "code": code}
        assert value(metrics, "genserve_requests_total", **labels) == 1
    assert metrics.registry.get_sample_value("genserve_requests_in_flight") == 0
    assert cancelled(metrics) == 0


async def test_both_transports_stream_what_they_would_answer(
    client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    plain = (await client.post("/sample", json=BODY)).json()
    *rows, (name, result) = await stream(client, "/sample/stream", BODY)
    assert {name for name, _ in rows} == {"rows"} and name == "result"
    parts = [(part["image"], part["first_row"], np.array(part["rows"])) for _, part in rows]
    assert np.array_equal(put_together(3, parts), plain["images"])
    del plain["request_id"], result["request_id"]
    assert result == plain
    call = stub.StreamSample(request_of(count=3, seed=5))
    *steps, last = [message async for message in call]
    parts = [(s.rows.image, s.rows.first_row, levels_of(s.rows)) for s in steps]
    assert np.array_equal(put_together(3, parts), plain["images"])
    expected = await stub.Sample(pb.SampleRequest(model=MODEL, count=3, seed=5))
    assert last.result.request_id == dict(await call.initial_metadata())["x-request-id"]
    last.result.request_id = expected.request_id
    assert last.result == expected


def request_of(**fields: Any) -> pb.StreamSampleRequest:
    return pb.StreamSampleRequest(request=pb.SampleRequest(**{"model": MODEL, **fields}))


def levels_of(rows: pb.Rows) -> np.ndarray:
    return np.frombuffer(rows.levels, np.uint8).reshape(rows.count, rows.width)


async def test_completions_are_streamed_too(
    client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    image = np.full((SIDE, SIDE, 1), 3, np.uint8)
    known = np.zeros((SIDE, SIDE), bool)
    known[1, 1] = True
    body = {**BODY, "image": image.tolist(), "known": known.tolist()}
    *rows, (_, result) = await stream(client, "/complete/stream", body)
    parts = [(part["image"], part["first_row"], np.array(part["rows"])) for _, part in rows]
    assert np.array_equal(put_together(3, parts), result["images"])
    assert result["late_known_pixels"] == 1
    picture = pb.Images(count=1, height=SIDE, width=SIDE, channels=1, levels=image.tobytes())
    request = pb.CompleteRequest(model=MODEL, count=3, seed=5, image=picture, known=known.tobytes())
    call = stub.StreamComplete(pb.StreamCompleteRequest(request=request))
    *_, last = [message async for message in call]
    assert last.result.images.levels == np.array(result["images"], np.uint8).tobytes()
    assert last.result.note == result["note"]


async def test_a_model_without_rows_streams_its_result_alone_on_both(
    client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    ((name, result),) = await stream(client, "/sample/stream", {"seed": 1})
    assert name == "result" and result["model"] == "toy-gan@1"
    (message,) = [message async for message in stub.StreamSample(request_of(model=None, seed=1))]
    assert message.result.model == "toy-gan@1"


# What goes wrong


async def test_an_error_before_the_first_event_is_an_ordinary_one(
    client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    for body in ({"count": 0}, {"top_k": 0}, {"model": "none"}):
        answer = await client.post("/sample/stream", json={"model": MODEL, **body})
        assert answer.headers["content-type"] == "application/problem+json"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.StreamSample(request_of(**body)).read()
        assert info_of(refused.value).reason == answer.json()["reason"]
    accept = {"Accept": "image/png"}
    answer = await client.post("/sample/stream", json={}, headers=accept)
    assert answer.status_code == 406 and "text/event-stream" in answer.json()["detail"]


def info_of(error: grpc.aio.AioRpcError) -> ErrorInfo:
    info = ErrorInfo()
    assert rpc_status.from_call(error).details[0].Unpack(info)
    return info


async def test_an_error_on_the_way_is_a_typed_event_or_the_status(
    client: httpx.AsyncClient, stub: GenerationServiceStub, metered: Metered
) -> None:
    metered.allowed.release(2)
    metered.breaks_at = 2
    (_, first), (name, problem) = await stream(client, "/sample/stream", {**BODY, "count": 1})
    assert first["first_row"] == 0 and name == "error"
    assert problem["reason"] == "INFERENCE_FAILED" and problem["status"] == 500
    metered.breaks_at = 4
    call = stub.StreamSample(request_of())
    assert (await call.read()).rows.count == 1
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call.read()
    assert failed.value.code() is grpc.StatusCode.INTERNAL
    assert info_of(failed.value).reason == "INFERENCE_FAILED"


async def test_a_deadline_ends_a_stream(
    client: httpx.AsyncClient, stub: GenerationServiceStub, metered: Metered
) -> None:
    answer = await client.post("/sample/stream", json={"model": MODEL, "timeout_ms": 1})
    assert answer.status_code == 504
    with pytest.raises(grpc.aio.AioRpcError, match="DEADLINE_EXCEEDED"):
        await stub.StreamSample(request_of(timeout_ms=1)).read()


async def test_a_stream_that_nobody_reads_does_not_keep_the_server_from_stopping(
    engine: Engine, metered: Metered
) -> None:
    events = engine.stream("sample", SampleRequest(), model=MODEL)
    metered.allowed.release()
    await anext(events)
    draining = asyncio.create_task(engine.drain())
    await asyncio.sleep(0)
    assert not draining.done()
    engine.abort()
    metered.allowed.release(100)
    await asyncio.wait_for(draining, SECONDS)
    with pytest.raises(ShuttingDown):
        async for event in events:
            assert isinstance(event, Progress), "rows may come before the error, no answer does"


# Who leaves


async def test_a_closed_iterator_frees_its_slots_before_the_next_row(
    engine: Engine, metrics: Metrics, metered: Metered
) -> None:
    events = engine.stream("sample", SampleRequest(count=4), model=MODEL)
    metered.allowed.release(2)  # a row in the lane of each worker
    await anext(events)
    await until(lambda: metered.runs == 4)
    await events.aclose()
    assert cancelled(metrics) == 1
    metered.allowed.release(100)
    await until(lambda: busy_slots(metrics) == 0)
    assert metered.runs == 4, "the rows that ran when it was closed, and no more"


class Leaver:
    """A client at the level of ASGI, which leaves when it is told to."""

    def __init__(self, path: str, body: dict[str, Any]) -> None:
        self.left = asyncio.Event()
        self.messages: list[Any] = []
        self._path, self._body = path, json.dumps(body).encode()

    async def call(self, app: Any) -> None:
        headers = [(b"content-type", b"application/json")]
        scope = {
            "type": "http", "method": "POST", "path": self._path, "raw_path": self._path.encode(),
            "query_string": b"", "headers": headers, "http_version": "1.1", "scheme": "http",
            "server": ("genserve", 80), "client": ("somebody", 1), "root_path": "",
        }  # fmt: skip
        await app(scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        if self._body:
            body, self._body = self._body, b""
            return {"type": "http.request", "body": body, "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.messages.append(message)


async def test_a_client_that_leaves_a_stream_frees_its_slots_before_the_next_row(
    engine: Engine, metrics: Metrics, metered: Metered
) -> None:
    app = create_app(
        engine, metrics=metrics, maximum_body_bytes=10_000, cors_origins=(), version="1"
    )
    leaver = Leaver("/sample/stream", {"model": MODEL})
    call = asyncio.create_task(leaver.call(app))
    metered.allowed.release()
    await until(lambda: len(leaver.messages) == 2 and metered.runs == 2)
    assert leaver.messages[1]["body"].startswith(b"event: rows")
    leaver.left.set()
    await asyncio.wait_for(call, SECONDS)
    await until(lambda: cancelled(metrics) == 1)
    metered.allowed.release(100)
    await until(lambda: busy_slots(metrics) == 0)
    assert metered.runs == 2 and len(leaver.messages) == 2


async def test_a_cancelled_call_frees_its_slots_before_the_next_row(
    stub: GenerationServiceStub, metrics: Metrics, metered: Metered
) -> None:
    call = stub.StreamSample(request_of())
    metered.allowed.release()
    assert (await call.read()).rows.first_row == 0
    await until(lambda: metered.runs == 2)
    call.cancel()
    await until(lambda: cancelled(metrics) == 1)
    metered.allowed.release(100)
    await until(lambda: busy_slots(metrics) == 0)
    assert metered.runs == 2
    (*_, last) = [step async for step in stub.StreamSample(request_of())]
    assert last.result.images.count == 1, "the next one has slots"
