"""What is around the operations over REST: problems, ids, logs, models, health, OpenAPI."""

import asyncio
import json
import logging
import shutil
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from service.api.answers import LikelihoodAnswer
from service.api.app import OPERATIONS, create_app
from service.api.problems import STATUS
from service.api.schemas import LikelihoodBody, StreamCompleteBody, StreamSampleBody
from service.core import operations as core
from service.core.engine import Engine
from service.core.painting.resumption import read_token
from service.errors import GenserveError
from service.metrics import Metrics
from service.server import build_engine
from service.settings import Settings
from tests.both_transports import counts
from tests.fakes import GatedSession
from tests.test_streams import events_of

JSON = "application/json"
SECONDS = 30  # a test that hangs fails


def app_of(engine: Engine, metrics: Metrics, cors_origins: Sequence[str] = ()) -> FastAPI:
    return create_app(
        engine, metrics=metrics, maximum_body_bytes=10_000, cors_origins=cors_origins, version="1"
    )


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://genserve")


def decoder_of(engine: Engine, session: Any) -> None:
    """Give toy-gan's decode graph another session."""
    model = engine.models.find("toy-gan")
    model.graphs["decode"] = replace(model.graphs["decode"], session=session)


@pytest.fixture
def gated(engine: Engine) -> Iterator[GatedSession]:
    """The session of toy-gan's decode graph, which waits until its gate is set."""
    session = GatedSession(engine.models.find("toy-gan").graphs["decode"].session)
    decoder_of(engine, session)
    yield session
    session.gate.set()


def cancelled(metrics: Metrics) -> float:
    labels = {
        "model": "toy-gan",
        "version": "1",
        "operation": "sample",
        "code": "REQUEST_CANCELLED",
    }
    return metrics.registry.get_sample_value("genserve_requests_total", labels) or 0.0


class Client:
    """A client at the level of ASGI, which sends a request and leaves when it wants."""

    def __init__(
        self,
        fields: dict[str, Any],
        *,
        path: str = "/sample",
        content_type: str = JSON,
        beginning: bytes | None = None,
    ) -> None:
        self._path, self._content_type = path, content_type
        self._more = beginning is not None  # and the rest never follows
        self.left = asyncio.Event()
        self.messages: list[Any] = []
        self._body = json.dumps(fields).encode() if beginning is None else beginning
        self._sent = False

    async def call(self, app: FastAPI) -> int:
        """Return the status of the answer, which only the server's log would see."""
        headers = [(b"content-type", self._content_type.encode())]
        scope = {
            "type": "http", "method": "POST", "path": self._path, "raw_path": self._path.encode(),
            "query_string": b"", "headers": headers, "http_version": "1.1", "scheme": "http",
            "server": ("genserve", 80), "client": ("somebody", 1), "root_path": "",
        }  # fmt: skip
        await app(scope, self._receive, self._send)
        return int(self.messages[0]["status"])

    async def _receive(self) -> dict[str, Any]:
        if not self._sent:
            self._sent = True
            return {"type": "http.request", "body": self._body, "more_body": self._more}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.messages.append(message)


def subclasses_of(kind: type[Any]) -> set[type[Any]]:
    below = set(kind.__subclasses__())
    return below.union(*(subclasses_of(child) for child in below)) if below else set()


def test_every_error_has_a_status() -> None:
    assert set(STATUS) == subclasses_of(GenserveError)


def test_every_operation_has_a_route() -> None:
    assert {operation.name for operation in OPERATIONS} == set(core.OPERATIONS)


async def test_operations_are_found_below_the_path_of_a_proxy_too(
    engine: Engine, metrics: Metrics
) -> None:
    transport = httpx.ASGITransport(app_of(engine, metrics), root_path="/images")
    async with httpx.AsyncClient(transport=transport, base_url="http://genserve") as client:
        for path in ("/images/sample", "/sample"):
            assert (await client.post(path, json={"seed": 1})).status_code == 200


async def test_operations_are_asked_for_by_post(client: httpx.AsyncClient) -> None:
    for operation in OPERATIONS:
        response = await client.get(f"/{operation.name}")
        assert response.status_code == 405
        assert response.headers["allow"] == "POST"


async def test_a_sane_request_id_is_kept_and_any_other_replaced(client: httpx.AsyncClient) -> None:
    for path in ("/healthz", "/nowhere"):
        kept = await client.get(path, headers={"X-Request-Id": "Job-7.a_b"})
        assert kept.headers["x-request-id"] == "Job-7.a_b"
    for bad in ("", "a b", "x" * 129, "ä", "<script>"):
        answer = await client.get("/healthz", headers={"X-Request-Id": bad.encode()})
        assert len(answer.headers["x-request-id"]) == 32


async def test_ids_differ_from_request_to_request(client: httpx.AsyncClient) -> None:
    answers = [await client.get("/healthz") for _ in range(5)]
    assert len({answer.headers["x-request-id"] for answer in answers}) == 5


async def test_each_request_is_one_line_in_the_log(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "genserve.access")
    answer = await client.post("/sample", json={"count": 0})
    (record,) = [record for record in caplog.records if record.name == "genserve.access"]
    assert record.levelno == logging.INFO
    assert (record.method, record.path, record.status) == ("POST", "/sample", 422)
    assert record.request_id == answer.headers["x-request-id"]
    assert record.seconds >= 0


async def test_an_unexpected_error_is_a_problem_with_its_traceback_in_the_log(
    client: httpx.AsyncClient,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise ValueError("secret")

    monkeypatch.setattr(engine, "run", broken)
    answer = await client.post("/sample")
    assert answer.status_code == 500 and answer.json()["reason"] == "INTERNAL"
    assert "secret" not in answer.text
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "secret" in str(record.exc_text)
    assert record.request_id == answer.json()["request_id"] == answer.headers["x-request-id"]


async def test_a_model_that_fails_is_the_server_s_fault(
    client: httpx.AsyncClient, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def run(self, inputs: object) -> None:
            raise RuntimeError("out of memory")

    decoder_of(engine, Broken())
    answer = await client.post("/sample")
    assert answer.status_code == 500 and answer.json()["reason"] == "INFERENCE_FAILED"
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "out of memory" in str(record.exc_text)
    assert (await client.post("/sample", json={"model": "toy-vae"})).status_code == 200


async def test_a_full_queue_says_when_to_try_again(settings: Settings, metrics: Metrics) -> None:
    engine = build_engine(settings.model_copy(update={"maximum_queued_rows": 4}), metrics)
    await engine.load_default_models()
    session = GatedSession(engine.models.find("toy-gan").graphs["decode"].session)
    decoder_of(engine, session)
    async with client_of(app_of(engine, metrics)) as client:
        # Two rows run on the two workers, three wait.
        accepted = [
            asyncio.create_task(client.post("/sample", json={"count": count})) for count in (2, 3)
        ]
        assert await asyncio.to_thread(session.started.wait, SECONDS)
        while metrics.registry.get_sample_value("genserve_queued_rows") != 3:
            await asyncio.sleep(0)
        refused = await client.post("/sample", json={"count": 2})
        at_once = await client.post("/sample", json={"count": 2, "colour": "red"})
        others = [
            await client.post("/sample", json={"model": "nothing"}),
            await client.post("/sample", json={"model": "toy-raster"}),
            await client.post("/sample", content=b"{", headers={"content-type": JSON}),
            await client.post("/sample", json={"count": 1, "colour": "red"}),
        ]
        session.gate.set()
        assert [answer.status_code for answer in await asyncio.gather(*accepted)] == [200, 200]
    await engine.drain()
    assert refused.status_code == 429 and refused.json()["reason"] == "QUEUE_FULL"
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["retry_after_seconds"] > 0
    same = at_once.json() | {"request_id": refused.json()["request_id"]}
    assert same == refused.json(), "what is wrong with it, nobody has looked for"
    assert at_once.headers["retry-after"] == refused.headers["retry-after"]
    assert at_once.headers["x-request-id"] == at_once.json()["request_id"]
    assert [answer.status_code for answer in others] == [404, 200, 400, 422], "there is room"
    assert engine.admitted == engine.answered == 6
    labels = {"model": "toy-gan", "version": "1", "operation": "sample", "code": "QUEUE_FULL"}
    assert metrics.registry.get_sample_value("genserve_requests_total", labels) == 2


async def test_a_deadline_ends_a_request(client: httpx.AsyncClient, gated: GatedSession) -> None:
    answer = await client.post("/sample", json={"timeout_ms": 1})
    assert answer.status_code == 504 and answer.json()["reason"] == "DEADLINE_EXCEEDED"


async def test_a_client_that_leaves_ends_its_request(
    engine: Engine, metrics: Metrics, gated: GatedSession
) -> None:
    leaver = Client({"count": 1})
    call = asyncio.create_task(leaver.call(app_of(engine, metrics)))
    assert await asyncio.to_thread(gated.started.wait, SECONDS)
    leaver.left.set()
    assert await asyncio.wait_for(call, SECONDS) == 499, "though the model still runs"
    assert cancelled(metrics) == 1


async def test_work_of_a_client_that_left_never_reaches_the_model(
    engine: Engine, metrics: Metrics, gated: GatedSession
) -> None:
    app = app_of(engine, metrics)
    staying, leaving = Client({"count": 32}), Client({"count": 3})
    call = asyncio.create_task(staying.call(app))
    assert await asyncio.to_thread(gated.started.wait, SECONDS)
    leaving.left.set()
    assert await asyncio.wait_for(leaving.call(app), SECONDS) == 499
    gated.gate.set()
    assert await call == 200
    assert sum(gated.batches) == 32


@pytest.mark.parametrize(
    ("content_type", "beginning"),
    [(JSON, b"{"), ("multipart/form-data; boundary=x", b"--x\r\n"), ("image/png", b"\x89PNG")],
)
async def test_a_body_that_does_not_arrive_ends_its_request(
    settings: Settings, metrics: Metrics, content_type: str, beginning: bytes
) -> None:
    engine = build_engine(settings.model_copy(update={"default_timeout_ms": 1}), metrics)
    stalled = Client({}, path="/encode", content_type=content_type, beginning=beginning)
    assert await asyncio.wait_for(stalled.call(app_of(engine, metrics)), SECONDS) == 504
    assert json.loads(stalled.messages[1]["body"])["reason"] == "DEADLINE_EXCEEDED"
    assert counts(metrics) == {("", "encode", "DEADLINE_EXCEEDED"): 1}
    await engine.drain()


async def test_a_client_that_leaves_while_sending_is_no_error(
    engine: Engine, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    leaver = Client({})
    leaver._sent = True
    leaver.left.set()
    assert await leaver.call(app_of(engine, metrics)) == 499
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.fixture
async def address(engine: Engine, metrics: Metrics) -> AsyncIterator[tuple[str, int]]:
    """The address of a real HTTP server."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app_of(engine, metrics), log_config=None, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve([listener]))
    yield listener.getsockname()
    server.should_exit = True
    await serving
    listener.close()


async def test_a_connection_that_closes_ends_its_request(
    address: tuple[str, int], metrics: Metrics, gated: GatedSession
) -> None:
    ended = asyncio.Event()

    class Watcher(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            ended.set()

    access, watcher = logging.getLogger("genserve.access"), Watcher()
    access.addHandler(watcher)
    access.setLevel(logging.INFO)
    _, writer = await asyncio.open_connection(*address)
    writer.write(
        b"POST /sample HTTP/1.1\r\nHost: genserve\r\nContent-Type: application/json\r\n"
        b"Content-Length: 2\r\n\r\n{}"
    )
    assert await asyncio.to_thread(gated.started.wait, SECONDS)
    writer.close()
    await asyncio.wait_for(ended.wait(), SECONDS)
    access.removeHandler(watcher)
    await writer.wait_closed()
    assert cancelled(metrics) == 1


async def test_a_real_server_answers_what_the_app_does(
    address: tuple[str, int], client: httpx.AsyncClient
) -> None:
    fields = {"count": 3, "seed": 5}
    host, port = address
    async with httpx.AsyncClient(base_url=f"http://{host}:{port}") as real:
        answer = await real.post("/sample", json=fields)
        too_large = await real.post("/sample", content=bytes(20_000))
    assert answer.json()["images"] == (await client.post("/sample", json=fields)).json()["images"]
    assert too_large.status_code == 413


async def test_models_are_listed_with_what_they_can_do(client: httpx.AsyncClient) -> None:
    models = {model["name"]: model for model in (await client.get("/models")).json()["models"]}
    assert set(models) == {"toy-flow", "toy-gan", "toy-raster", "toy-vae"}
    gan = models["toy-gan"]
    assert gan["version"] == "1" and gan["family"] == "toy generator"
    assert gan["state"] == "ready" and gan["reason"] is None
    assert gan["dataset"] is None and gan["quality"] == []
    assert gan["operations"] == gan["default_for"] == ["sample", "decode", "interpolate"]
    assert set(models["toy-flow"]["default_for"]) == {"encode", "reconstruct", "likelihood"}
    assert models["toy-vae"]["default_for"] == []


async def test_a_model_shows_its_manifest(client: httpx.AsyncClient) -> None:
    for name in ("toy-gan", "toy-gan@1"):
        manifest = (await client.get(f"/models/{name}")).json()
        assert manifest["event"]["shape"] == [4, 4, 1]
        assert manifest["controls"]["temperature"]["maximum"] == 2.0
        assert manifest["state"] == "ready" and manifest["reason"] is None


async def test_an_altered_model_is_refused_by_name_while_the_others_serve(
    repository: Path, settings: Settings, tmp_path: Path, metrics: Metrics
) -> None:
    folder = tmp_path / "repository"
    shutil.copytree(repository, folder)
    altered = folder / "toy-vae" / "1" / "encode.onnx"
    content = bytearray(altered.read_bytes())
    content[len(content) // 2] ^= 1
    altered.write_bytes(content)
    engine = build_engine(settings.model_copy(update={"model_repository": folder}), metrics)
    async with client_of(app_of(engine, metrics)) as client:
        loading = await client.get("/readyz")
        await engine.load_default_models()
        ready, models = await client.get("/readyz"), await client.get("/models")
        refused = await client.post("/sample", json={"model": "toy-vae"})
        served = await client.post("/sample", json={"model": "toy-gan"})
    await engine.drain()
    assert loading.status_code == 503 and loading.json()["models"]["toy-gan"] == "available"
    assert ready.status_code == 503
    assert ready.json() == {
        "ready": False,
        "models": {"toy-gan": "ready", "toy-flow": "ready", "toy-vae": "refused"},
    }
    (vae,) = [model for model in models.json()["models"] if model["name"] == "toy-vae"]
    assert vae["state"] == "refused" and "encode.onnx" in vae["reason"]
    assert refused.status_code == 503 and refused.json()["reason"] == "MODEL_UNAVAILABLE"
    assert served.status_code == 200


async def test_a_manifest_that_can_t_be_read_is_still_listed(
    repository: Path, settings: Settings, tmp_path: Path
) -> None:
    folder = tmp_path / "repository"
    shutil.copytree(repository, folder)
    (folder / "toy-vae" / "1" / "manifest.json").write_text("{}")
    metrics = Metrics(CollectorRegistry())
    changes = {"model_repository": folder, "default_models": ("toy-gan",)}
    engine = build_engine(settings.model_copy(update=changes), metrics)
    async with client_of(app_of(engine, metrics)) as client:
        models = (await client.get("/models")).json()["models"]
        one = (await client.get("/models/toy-vae")).json()
    await engine.drain()
    (vae,) = [model for model in models if model["name"] == "toy-vae"]
    assert vae["state"] == one["state"] == "refused"
    assert vae["family"] is None and vae["operations"] == [] and vae["reason"]


async def test_health_and_readiness(client: httpx.AsyncClient, engine: Engine) -> None:
    assert (await client.get("/healthz")).status_code == 200
    ready = await client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json() == {
        "ready": True,
        "models": {"toy-gan": "ready", "toy-flow": "ready", "toy-vae": "ready"},
    }
    await engine.drain()
    assert (await client.get("/healthz")).status_code == 200
    assert (await client.get("/readyz")).status_code == 503
    refused = await client.post("/sample")
    assert refused.status_code == 503 and refused.json()["reason"] == "SHUTTING_DOWN"


async def test_metrics_count_what_was_answered(client: httpx.AsyncClient) -> None:
    await client.post("/sample", json={"count": 3})
    await client.post("/sample", json={"count": 0})
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    labels = 'code="%s",model="toy-gan",operation="sample",version="1"'
    requests = f"genserve_requests_total{{{labels}}} 1.0"
    assert requests % "OK" in answer.text and requests % "OUT_OF_RANGE" in answer.text
    assert 'genserve_images_total{model="toy-gan",operation="sample"} 3.0' in answer.text


@pytest.mark.parametrize(
    ("request_of", "model", "reason"),
    [
        ({"content": b"{", "headers": {"Content-Type": JSON}}, "", "MALFORMED_REQUEST"),
        ({"json": {"coutn": 3}}, "", "INVALID_REQUEST"),
        ({"content": bytes(70_000), "headers": {"Content-Type": JSON}}, "", "PAYLOAD_TOO_LARGE"),
        (
            {"content": b"x", "headers": {"Content-Type": "text/plain"}},
            "",
            "UNSUPPORTED_MEDIA_TYPE",
        ),
        ({"json": {}, "headers": {"Accept": "text/html"}}, "", "NOT_ACCEPTABLE"),
        ({"json": {"count": 0}}, "toy-gan", "OUT_OF_RANGE"),
        ({"json": {"model": "none"}}, "", "MODEL_NOT_FOUND"),
    ],
    ids=["malformed", "field", "size", "media type", "accept", "count", "model"],
)
async def test_every_refusal_is_counted_once(
    client: httpx.AsyncClient,
    metrics: Metrics,
    request_of: dict[str, Any],
    model: str,
    reason: str,
) -> None:
    await client.post("/sample", **request_of)
    assert counts(metrics) == {(model, "sample", reason): 1}


async def test_browsers_of_other_origins_may_call_only_where_it_is_set(
    client: httpx.AsyncClient, engine: Engine, metrics: Metrics
) -> None:
    origin = {"Origin": "https://lab.example"}
    preflight = origin | {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    assert (
        "access-control-allow-origin" not in (await client.get("/models", headers=origin)).headers
    )
    async with client_of(app_of(engine, metrics, ["https://lab.example"])) as open_client:
        asked = await open_client.options("/sample", headers=preflight)
        answer = await open_client.post("/sample", headers=origin)
        problem = await open_client.post("/sample", json={"count": 0}, headers=origin)
        foreign = await open_client.post("/sample", headers={"Origin": "https://else.example"})
    assert asked.status_code == 200 and asked.headers["x-request-id"]
    for allowed in (asked, answer, problem):
        assert allowed.headers["access-control-allow-origin"] == "https://lab.example"
    assert answer.headers["access-control-expose-headers"] == "*"
    assert "access-control-allow-origin" not in foreign.headers


@pytest.fixture
async def document(client: httpx.AsyncClient) -> dict[str, Any]:
    return (await client.get("/openapi.json")).json()


async def test_openapi_lists_every_route(document: dict[str, Any]) -> None:
    posts = {f"/{name}" for name in core.OPERATIONS} | {"/sample/stream", "/complete/stream"}
    posts |= {"/models/rescan", "/models/{name}/load", "/models/{name}/unload"}
    gets = {"/models", "/models/{name}", "/healthz", "/readyz", "/metrics"}
    gets |= {"/models/{name}/calibrations/{id}"}
    assert {path for path, methods in document["paths"].items() if "post" in methods} == posts
    assert {path for path, methods in document["paths"].items() if "get" in methods} == gets
    assert document["info"]["version"] == "1.2.3"


async def test_openapi_documents_every_body_and_answer(document: dict[str, Any]) -> None:
    for name in core.OPERATIONS:
        route = document["paths"][f"/{name}"]["post"]
        body = resolve(document, route["requestBody"]["content"][JSON]["schema"])
        assert body["additionalProperties"] is False
        drawn = {"seed"} if name != "score" else set()  # for which nothing is
        assert {"model", "timeout_ms"} | drawn <= body["properties"].keys()
        answer = resolve(document, route["responses"]["200"]["content"][JSON]["schema"])
        assert {"model", "artifact_digest", "seed"} <= answer["properties"].keys()
        for status in ("4XX", "5XX"):
            content = route["responses"][status]["content"]["application/problem+json"]
            assert "reason" in resolve(document, content["schema"])["properties"]


async def test_openapi_documents_every_stream(document: dict[str, Any]) -> None:
    for name, schema in {"sample": StreamSampleBody, "complete": StreamCompleteBody}.items():
        route = document["paths"][f"/{name}/stream"]["post"]
        body = resolve(document, route["requestBody"]["content"][JSON]["schema"])
        for field, described in body["properties"].items():
            assert described.get("description"), f"{field} of {name} has no description"
        assert body["examples"]
        for example in body["examples"]:
            assert schema.model_validate(example).core_stream()
        example = route["responses"]["200"]["content"]["text/event-stream"]["example"]
        (shown, event), (last, _) = events_of(example)
        assert (shown, last) == ("preview", "result")
        assert read_token(event["resume_token"]).runs.tolist() == [[1, event["rows_done"]]]
        assert set(event) == set(document["components"]["schemas"]["PreviewEvent"]["properties"])


async def test_openapi_shows_examples_of_likelihoods_that_fit_their_schemas(
    document: dict[str, Any],
) -> None:
    route = document["paths"]["/likelihood"]["post"]
    body = resolve(document, route["requestBody"]["content"][JSON]["schema"])
    for example in body["examples"]:
        assert LikelihoodBody.model_validate(example).to_core().images
    answer = resolve(document, route["responses"]["200"]["content"][JSON]["schema"])
    (example,) = answer["examples"]
    said = LikelihoodAnswer.model_validate(example)
    assert said.model_dump(mode="json", exclude_unset=True) == example


async def test_openapi_names_the_media_types(document: dict[str, Any]) -> None:
    raw, form = ["application/x-npy"], ["multipart/form-data", "image/png", "application/x-npy"]
    bodies = {"sample": [], "interpolate": [], "complete": [], "decode": raw}
    bodies["likelihood"] = [*form, "application/zip"]
    for name in core.OPERATIONS:
        route = document["paths"][f"/{name}"]["post"]
        assert list(route["requestBody"]["content"]) == [JSON, *bodies.get(name, form)]
        pictured = {"image/png"} if name not in ("encode", "score", "classify") else set()
        expected = {JSON, *raw} | pictured
        assert set(route["responses"]["200"]["content"]) == expected


async def test_openapi_describes_every_field(document: dict[str, Any]) -> None:
    for name in core.OPERATIONS:
        content = document["paths"][f"/{name}"]["post"]["requestBody"]["content"][JSON]
        for field, schema in resolve(document, content["schema"])["properties"].items():
            assert schema.get("description"), f"{field} of {name} has no description"


async def test_openapi_refers_to_nothing_that_is_missing(document: dict[str, Any]) -> None:
    references = list(references_of(document))
    assert references
    for reference in references:
        assert resolve(document, {"$ref": reference})


async def test_the_documentation_page_is_there(client: httpx.AsyncClient) -> None:
    page = await client.get("/docs")
    assert page.status_code == 200 and "/openapi.json" in page.text


def resolve(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    found: Any = document
    for part in schema["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return dict(found)


def references_of(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if "$ref" in part:
            yield part["$ref"]
        for value in part.values():
            yield from references_of(value)
    elif isinstance(part, list):
        for value in part:
            yield from references_of(value)
