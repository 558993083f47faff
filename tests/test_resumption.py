"""Streams that are cut and go on, and what they show meanwhile: by core, over both transports."""

import base64
import json
import shutil
import zlib
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from service.core.engine import Answer, Engine
from service.core.manifest import artifact_digest
from service.core.painting.resumption import read_token, write_token
from service.core.painting.streaming import Preview, Progress, Rows, due_images, is_preview_due
from service.core.requests import CompleteRequest, SampleRequest, StreamRequest
from service.errors import InvalidResumeToken
from service.images import grid, levels_to_png
from service.metrics import Metrics
from service.rpc.pb import generation_service_pb2 as pb
from service.rpc.pb.generation_service_pb2_grpc import GenerationServiceStub
from tests.fakes import RASTER_LEVELS, SIDE
from tests.live import ROOT, LiveServer
from tests.test_streams import MODEL, Metered, events_of, metered, until, value

__all__ = ["metered"]  # a fixture

DIGEST = "sha256:" + "0123456789abcdef" * 4
CANVAS = bytes(range(8))


def rows_of(token: str) -> np.ndarray:
    """Return how many rows of each image a token says that its reader has."""
    images, rows = read_token(token).runs.T
    return np.repeat(rows, images).astype(np.int64)


class Seen:
    """What a reader has put together of a stream, over all its cuts."""

    def __init__(self, count: int) -> None:
        self.images = np.zeros((count, SIDE, SIDE, 1), np.uint8)
        self.rows = np.zeros(count, np.int64)
        self.token: str | None = None

    def see(self, event: Progress) -> None:
        told = rows_of(event.resume_token)
        if isinstance(event, Rows):
            first, last = event.first_row, event.first_row + len(event.levels)
            assert first == self.rows[event.image], "no row is left out or told twice"
            self.images[event.image, first:last, :, 0] = event.levels
            self.rows[event.image] = last
            assert np.array_equal(told, self.rows)
        else:
            assert isinstance(event, Preview)
            assert np.all(told >= self.rows), "a preview takes nothing back"
            known = np.arange(SIDE) < self.rows[:, None]
            assert np.array_equal(event.images[known], self.images[known])
            assert np.all(event.images[np.arange(SIDE) >= told[:, None]] == 0)
            self.images, self.rows = event.images, told
        assert event.rows_done == self.rows.sum()
        assert event.rows_total == len(self.rows) * SIDE
        self.token = event.resume_token


# Tokens


@given(rows=st.lists(st.integers(0, 2**31), min_size=1), seed=st.integers(0, 2**53 - 1))
def test_a_token_says_what_was_written(rows: list[int], seed: int) -> None:
    token = read_token(write_token(DIGEST, seed, CANVAS, np.array(rows)))
    assert token.seed_for(None) == token.seed_for(seed) == seed
    token.check_artifact(DIGEST)
    assert token.fingerprint == CANVAS
    assert rows_of(write_token(DIGEST, seed, CANVAS, np.array(rows))).tolist() == rows


def test_a_token_is_short_where_images_share_their_steps() -> None:
    one, many = np.array([27]), np.repeat([28, 13, 12, 0], [64, 12, 12, 168])
    assert len(write_token(DIGEST, 2**53 - 1, CANVAS, one)) == 50
    assert len(write_token(DIGEST, 2**53 - 1, CANVAS, many)) < 100


@given(data=st.data())
def test_a_mangled_token_is_refused(data: st.DataObject) -> None:
    token = write_token(DIGEST, 7, CANVAS, np.array([3, 3, 1]))
    place = data.draw(st.integers(0, len(token) - 2))  # the last one has bits that mean nothing
    changed = data.draw(st.text(max_size=3))
    assume(changed != token[place])
    with pytest.raises(InvalidResumeToken):
        read_token(token[:place] + changed + token[place + 1 :])


@given(st.text(max_size=80) | st.binary(max_size=80).map(lambda b: base64.b64encode(b).decode()))
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(InvalidResumeToken, match="not one of this service"):
        read_token(text)


# What is due

COUNTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1)


@given(counts=COUNTS, every_rows=st.integers(1, 9))
def test_what_is_due_is_new_and_the_last_rows_always_are(
    counts: list[tuple[int, int]], every_rows: int
) -> None:
    done, told = np.array(counts).T
    due = due_images(done, told, every_rows, height=9)
    for image, (painted, known) in enumerate(counts):
        last = painted == 9 and known < 9
        assert (image in due) == (last or painted - known >= every_rows)
    if is_preview_due(done, told, every_rows, height=9):
        assert np.all(done >= told) and np.any(done > told)
    whole = np.full_like(done, 9)
    assert is_preview_due(whole, told, every_rows, height=9) == bool(np.any(told < 9))
    nothing = np.zeros_like(done)
    enough = int(done.sum()) >= every_rows * len(counts) or bool(np.all(done == 9))
    assert is_preview_due(done, nothing, every_rows, height=9) == enough


async def test_rows_come_so_many_at_once_and_then_the_last(
    engine: Engine, metrics: Metrics, metered: Metered
) -> None:
    stream = StreamRequest(every_rows=3)
    request = SampleRequest(seed=1)
    async with aclosing(engine.stream("sample", request, stream=stream, model=MODEL)) as events:
        metered.allowed.release(3)
        first = await anext(events)
        metered.allowed.release(100)
        last, answer = await anext(events), await anext(events)
    assert isinstance(first, Rows) and len(first.levels) == 3 and first.rows_done == 3
    assert isinstance(last, Rows) and len(last.levels) == 1 and last.first_row == 3
    assert isinstance(answer, Answer)


async def test_previews_come_so_many_rows_apart_and_then_the_last(
    engine: Engine, metered: Metered
) -> None:
    stream = StreamRequest(show="preview", every_rows=3)
    request = SampleRequest(seed=1)
    async with aclosing(engine.stream("sample", request, stream=stream, model=MODEL)) as events:
        metered.allowed.release(3)
        first = await anext(events)
        metered.allowed.release(100)
        last, answer = await anext(events), await anext(events)
    assert isinstance(first, Preview) and first.rows_done == 3
    assert isinstance(last, Preview) and isinstance(answer, Answer)
    assert np.array_equal(last.images, answer.result.images)
    assert np.array_equal(first.images[:, :3], last.images[:, :3]) and not first.images[:, 3].any()


async def test_a_slow_reader_gets_fewer_previews(engine: Engine, metrics: Metrics) -> None:
    stream = StreamRequest(show="preview")
    request = SampleRequest(count=4, seed=7)
    async with aclosing(engine.stream("sample", request, stream=stream, model=MODEL)) as events:
        first = await anext(events)
        await until(lambda: value(metrics, "genserve_rows_total", version="1") == 4 * SIDE)
        *previews, _ = [event async for event in events]
    assert first.rows_done == 4 * SIDE or [event.rows_done for event in previews] == [4 * SIDE]


# A stream that is cut

IMAGE = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE, 1) % RASTER_LEVELS
KNOWN = np.zeros((SIDE, SIDE), bool)
KNOWN[0, 1] = KNOWN[2, 2] = True

SHOWS = st.sampled_from(["rows", "preview"])


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, SampleRequest]:
    """Return an operation and what it is asked."""
    count, seed = draw(st.integers(1, 20)), draw(st.none() | st.integers(0, 2**53 - 1))
    controls = draw(st.sampled_from([{}, {"top_k": 3}, {"temperature": 2.0}]))
    if draw(st.booleans()):
        return "sample", SampleRequest(count=count, seed=seed, **controls)
    candidates = draw(st.none() | st.integers(count, 20))
    asked = CompleteRequest(
        count=count, seed=seed, image=IMAGE, known=KNOWN, candidates=candidates, **controls
    )
    return "complete", asked


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    asked=requests(),
    shows=st.lists(SHOWS, min_size=2, max_size=4),
    every_rows=st.integers(1, SIDE),
    cut=st.integers(1, 20 * SIDE),
)
async def test_a_stream_that_is_cut_goes_on_to_the_picture_of_one_that_is_not(
    engine: Engine,
    asked: tuple[str, SampleRequest],
    shows: list[str],
    every_rows: int,
    cut: int,
) -> None:
    operation, request = asked
    drawn = request.drawn if isinstance(request, CompleteRequest) else request.count
    seen, answer = Seen(drawn), None
    for index, show in enumerate(shows):
        stream = StreamRequest(show=show, every_rows=every_rows, resume_token=seen.token)
        events = engine.stream(operation, request, stream=stream, model=MODEL)
        read = 0
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Answer):
                    answer = event
                    break
                seen.see(event)
                read += 1
                if read == cut and index < len(shows) - 1:
                    break  # the connection is cut, after this event was read
    assert answer is not None and np.all(seen.rows == SIDE)
    uncut = await engine.run(operation, replace(request, seed=answer.result.seed), model=MODEL)
    assert request.seed in (None, answer.result.seed)
    assert np.array_equal(answer.result.images, uncut.result.images)
    assert np.array_equal(answer.result.log_likelihood, uncut.result.log_likelihood)
    order = range(drawn) if answer.result.candidate is None else answer.result.candidate
    assert np.array_equal(seen.images[list(order)], uncut.result.images)


async def test_a_stream_goes_on_over_the_other_transport(
    client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    body = {"model": MODEL, "count": 2, "image_format": "array"}
    answer = await client.post("/sample/stream", json=body)
    *rows, (_, result) = events_of(answer.text)
    for _, cut in rows:
        token = cut["resume_token"]
        request = pb.SampleRequest(model=MODEL, count=2)
        call = stub.StreamSample(pb.StreamSampleRequest(request=request, resume_token=token))
        *steps, last = [message async for message in call]
        assert last.result.seed == result["seed"]
        assert last.result.images.levels == np.array(result["images"], np.uint8).tobytes()
        known = rows_of(token)
        for step in steps:
            assert step.rows.first_row == known[step.rows.image]
            known[step.rows.image] += step.rows.count
        assert known.tolist() == [SIDE, SIDE]


async def test_the_last_preview_is_the_png_of_the_answer(
    client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    body = {"model": MODEL, "count": 5, "seed": 3}
    png = (await client.post("/sample", json=body, headers={"Accept": "image/png"})).content
    answer = await client.post("/sample/stream", json={**body, "show": "preview"})
    *previews, (name, _) = events_of(answer.text)
    assert {name for name, _ in previews} == {"preview"} and name == "result"
    assert base64.b64decode(previews[-1][1]["png"]) == png
    assert previews[-1][1]["rows_done"] == previews[-1][1]["rows_total"] == 5 * SIDE
    request = pb.SampleRequest(model=MODEL, count=5, seed=3)
    call = stub.StreamSample(pb.StreamSampleRequest(request=request, show=pb.SHOW_PREVIEW))
    *_, preview, last = [message async for message in call]
    assert preview.preview.png == png and last.HasField("result")
    assert preview.preview.resume_token == previews[-1][1]["resume_token"]


async def test_a_preview_of_candidates_shows_all_of_them(client: httpx.AsyncClient) -> None:
    body = {
        "model": MODEL,
        "image": IMAGE.tolist(),
        "known": KNOWN.tolist(),
        "seed": 3,
        "image_format": "array",
    }
    path, stream = "/complete/stream", {"show": "preview", "count": 1, "candidates": 6}
    *_, (_, preview), (_, result) = events_of(
        (await client.post(path, json={**body, **stream})).text
    )
    everyone = (await client.post("/complete", json={**body, "count": 6})).json()
    images = np.array(everyone["images"], np.uint8)
    assert base64.b64decode(preview["png"]) == levels_to_png(grid(images), RASTER_LEVELS)
    (best,) = result["candidate"]
    assert np.array_equal(result["images"][0], images[best])


# What is refused

REQUEST: dict[str, Any] = {"count": 2, "seed": 5, "class_label": [1], "top_k": 4}


def forged(token: str, **changes: Any) -> str:
    said = read_token(token)
    digest = "sha256:" + said.artifact.hex()
    facts = {"digest": digest, "seed": said.seed, "of_canvas": said.fingerprint}
    return write_token(**{**facts, "rows_told": rows_of(token), **changes})


REFUSED: dict[str, tuple[dict[str, Any], Any, str, str]] = {
    "no token": ({}, lambda token: "token", "INVALID_RESUME_TOKEN", "the last one of the stream"),
    "an empty one": ({}, lambda token: "", "INVALID_RESUME_TOKEN", "unaltered"),
    "a cut one": ({}, lambda token: token[:-2], "INVALID_RESUME_TOKEN", "unaltered"),
    "other letters": ({}, lambda token: token.swapcase(), "INVALID_RESUME_TOKEN", "unaltered"),
    "a long one": ({}, lambda token: "A" * 32_769, "INVALID_RESUME_TOKEN", "unaltered"),
    "another format": (
        {},
        lambda token: with_version(token, 2),
        "INVALID_RESUME_TOKEN",
        "has the format 2, and this server reads 1",
    ),
    "another artifact": (
        {},
        lambda token: forged(token, digest=DIGEST),
        "RESUME_MISMATCH",
        "of the artifact 0123456789abcdef, and this is ",
    ),
    "another seed": (
        {"seed": 6},
        lambda token: token,
        "RESUME_MISMATCH",
        "of the seed 5, and the request has the seed 6",
    ),
    "a seed out of range": (
        {"seed": None},
        lambda token: forged(token, seed=2**53),
        "OUT_OF_RANGE",
        "seed is 9007199254740992",
    ),
    "another count": ({"count": 3}, lambda token: token, "RESUME_MISMATCH", "repeat the one"),
    "another class": ({"class_label": [2]}, lambda token: token, "RESUME_MISMATCH", "classes"),
    "no class": ({"class_label": []}, lambda token: token, "RESUME_MISMATCH", "classes"),
    "another control": ({"top_k": 3}, lambda token: token, "RESUME_MISMATCH", "controls"),
    "no control": ({"top_k": None}, lambda token: token, "RESUME_MISMATCH", "controls"),
    "too many rows": (
        {},
        lambda token: forged(token, rows_told=np.array([1, SIDE + 1])),
        "OUT_OF_RANGE",
        "has 5 rows; allowed is 0 to 4",
    ),
    "too many images": (
        {},
        lambda token: forged(token, rows_told=np.array([1, 1, 1])),
        "INVALID_RESUME_TOKEN",
        "unaltered",
    ),
}


def with_version(token: str, version: int) -> str:
    content = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    content = bytes([version]) + content[1:-4]
    content += zlib.crc32(content).to_bytes(4, "little")
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


@pytest.mark.parametrize("name", REFUSED)
async def test_a_token_that_does_not_fit_is_refused_with_what_would(
    name: str, client: httpx.AsyncClient, stub: GenerationServiceStub, metrics: Metrics
) -> None:
    begun = await client.post("/sample/stream", json={"model": MODEL, **REQUEST})
    token = events_of(begun.text)[0][1]["resume_token"]
    changes, change, reason, allowed = REFUSED[name]
    fields = {key: item for key, item in {**REQUEST, **changes}.items() if item not in (None, [])}
    token = change(token)
    body = {"model": MODEL, "resume_token": token, **fields}
    over_rest = await client.post("/sample/stream", json=body)
    assert over_rest.status_code == 422, over_rest.text
    assert over_rest.json()["reason"] == reason and allowed in over_rest.json()["detail"]
    request = pb.SampleRequest(model=MODEL, **fields)
    with pytest.raises(grpc.aio.AioRpcError, match="INVALID_ARGUMENT") as refused:
        await stub.StreamSample(pb.StreamSampleRequest(request=request, resume_token=token)).read()
    assert reason_of(refused.value) == reason and allowed in refused.value.details()
    labels = {"version": "1", "operation": "sample", "code": reason}
    assert value(metrics, "genserve_requests_total", **labels) == 2
    assert value(metrics, "genserve_rows_total", version="1") == 2 * SIDE, (
        "nothing was painted for them"
    )


def reason_of(error: grpc.aio.AioRpcError) -> str:
    info = ErrorInfo()
    assert rpc_status.from_call(error).details[0].Unpack(info)
    return info.reason


@pytest.mark.parametrize("change", ["image", "known", "candidates"])
async def test_another_completion_is_refused(
    change: str, client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    body: dict[str, Any] = {"model": MODEL, "image": IMAGE.tolist(), "known": KNOWN.tolist()}
    begun = await client.post("/complete/stream", json=body)
    token = events_of(begun.text)[0][1]["resume_token"]
    unseen = np.where(KNOWN[:, :, None], IMAGE, 0)  # what is not known is not read
    again = {**body, "image": unseen.tolist(), "return": "log_weight", "resume_token": token}
    assert (await client.post("/complete/stream", json=again)).status_code == 200
    other = {"image": (7 - IMAGE).tolist(), "known": (~KNOWN).tolist(), "candidates": 2}
    refused = await client.post("/complete/stream", json={**again, change: other[change]})
    assert refused.json()["reason"] == "RESUME_MISMATCH"
    picture = pb.Images(count=1, height=SIDE, width=SIDE, channels=1)
    picture.levels = np.array({**body, change: other[change]}["image"], np.uint8).tobytes()
    known = np.array({**body, change: other[change]}["known"], np.uint8).tobytes()
    request = pb.CompleteRequest(model=MODEL, image=picture, known=known)
    if change == "candidates":
        request.candidates = 2
    with pytest.raises(grpc.aio.AioRpcError) as over_grpc:
        message = pb.StreamCompleteRequest(request=request, resume_token=token)
        await stub.StreamComplete(message).read()
    assert reason_of(over_grpc.value) == "RESUME_MISMATCH"


@pytest.mark.parametrize(
    ("field", "number", "reason"),
    [
        ({"every_rows": 0}, {"every_rows": 0}, "OUT_OF_RANGE"),
        ({"every_rows": SIDE + 1}, {"every_rows": SIDE + 1}, "OUT_OF_RANGE"),
        ({"show": "movie"}, {"show": 9}, "INVALID_REQUEST"),
    ],
)
async def test_what_can_t_be_shown_is_refused(
    field: dict[str, Any],
    number: dict[str, Any],
    reason: str,
    client: httpx.AsyncClient,
    stub: GenerationServiceStub,
) -> None:
    over_rest = await client.post("/sample/stream", json={"model": MODEL, **field})
    assert over_rest.json()["reason"] == reason
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        request = pb.SampleRequest(model=MODEL)
        await stub.StreamSample(pb.StreamSampleRequest(request=request, **number)).read()
    assert reason_of(refused.value) == reason


async def test_an_answer_without_a_stream_takes_no_token(client: httpx.AsyncClient) -> None:
    for field in ({"resume_token": "x"}, {"show": "rows"}, {"every_rows": 1}):
        refused = await client.post("/sample", json={"model": MODEL, **field})
        assert refused.json()["reason"] == "INVALID_REQUEST"
        assert f"unknown field '{next(iter(field))}'" in refused.json()["detail"]


# Real connections and restarts

PIXELCNN = "mnist-pixelcnn"
PAINTED = {"model": PIXELCNN, "count": 3, "class_label": 4, "image_format": "array"}


async def read(server: LiveServer, body: dict[str, Any]) -> AsyncIterator[tuple[str, Any]]:
    """Yield the events of a stream as they arrive; closing it closes the connection."""
    async with (
        httpx.AsyncClient(base_url=server.url, timeout=60) as client,
        client.stream("POST", "/sample/stream", json=body) as answer,
    ):
        name = ""
        async for line in answer.aiter_lines():
            field, _, content = line.partition(": ")
            if field == "event":
                name = content
            elif field == "data":
                yield name, json.loads(content)


def write_repository(folder: Path, **changes: object) -> Path:
    """Copy the bundled PixelCNN, with changes to its manifest."""
    artifact = folder / PIXELCNN / "1"
    shutil.copytree(ROOT / "artifacts" / PIXELCNN / "1", artifact)
    manifest = {**json.loads((artifact / "manifest.json").read_text()), **changes}
    manifest["artifact_digest"] = artifact_digest(manifest)
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    return folder


async def test_a_cut_connection_goes_on_after_a_restart_and_not_with_another_artifact(
    tmp_path: Path,
) -> None:
    repository = write_repository(tmp_path / "same")
    images, known = np.zeros((3, 28, 28), np.uint8), [0, 0, 0]

    def see(event: dict[str, Any]) -> str:
        image, first = event["image"], event["first_row"]
        assert first == known[image]
        known[image] += len(event["rows"])
        images[image, first : known[image]] = event["rows"]
        return str(event["resume_token"])

    with LiveServer(repository, default_models=PIXELCNN) as server:
        server.wait_until_ready()
        async with aclosing(read(server, PAINTED)) as events:
            async for name, event in events:
                assert name == "rows"
                token = see(event)
                if event["rows_done"] >= 20:
                    break
    assert min(known) < 28, "it was cut on the way"
    resumed = {**PAINTED, "resume_token": token}
    with LiveServer(repository, default_models=PIXELCNN) as server:
        server.wait_until_ready()
        async for name, event in read(server, resumed):
            if name == "rows":
                see(event)
        assert name == "result" and known == [28] * 3
        assert np.array_equal(np.array(event["images"])[:, :, :, 0], images)
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            plain = await client.post("/sample", json={**PAINTED, "seed": event["seed"]})
        assert plain.json()["images"] == event["images"]
    other = write_repository(tmp_path / "other", licence="MIT")
    with LiveServer(other, default_models=PIXELCNN) as server:
        server.wait_until_ready()
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            refused = await client.post("/sample/stream", json=resumed)
        assert refused.status_code == 422 and refused.json()["reason"] == "RESUME_MISMATCH"
        assert "of the artifact " in refused.json()["detail"]
