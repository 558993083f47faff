"""Traces as a collector gets them, by OTLP: where time was spent, and what a batch was for."""

import asyncio
import json
import subprocess
import sys
import threading
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from service.core.engine import Engine
from service.metrics import Metrics
from service.opentelemetry_tracing import OpenTelemetryTracing
from service.rpc.pb import generation_service_pb2 as pb
from service.rpc.pb.generation_service_pb2_grpc import GenerationServiceStub
from service.server import build_engine
from service.settings import Settings
from tests.fakes import LATENT, GatedSession
from tests.live import ROOT, LiveServer

FIRST, SECOND, THIRD, FOURTH = (digit * 32 for digit in "abcd")
CALLER = "1" * 16


class Collector:
    """A receiver of OTLP over HTTP that keeps what it gets."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, str]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                content = self.rfile.read(int(self.headers["Content-Length"]))
                collector.take(ExportTraceServiceRequest.FromString(content))
                body = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def take(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            attributes = {
                each.key: each.value.string_value for each in resource.resource.attributes
            }
            self.resources.append(attributes)
            for scope in resource.scope_spans:
                self.spans += scope.spans

    def trace(self, trace_id: str) -> dict[str, Span]:
        """Return the spans of a trace by their names."""
        found = [span for span in self.spans if span.trace_id.hex() == trace_id]
        assert len({span.name for span in found}) == len(found)
        return {span.name: span for span in found}

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector that the standard variables name."""
    made = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.url)
    yield made
    made.close()


@pytest.fixture
def tracing(collector: Collector) -> Iterator[OpenTelemetryTracing]:
    made = OpenTelemetryTracing()
    yield made
    made.close()


@pytest.fixture
async def engine(
    settings: Settings, metrics: Metrics, tracing: OpenTelemetryTracing
) -> AsyncIterator[Engine]:
    """An engine with one worker, whose requests are traced."""
    built = build_engine(settings.model_copy(update={"workers": 1}), metrics, tracing)
    await built.load_default_models()
    yield built
    await built.drain()


@pytest.fixture
def gated(engine: Engine) -> Iterator[GatedSession]:
    """The session of toy-gan's decoder, which waits at the gate."""
    model = engine.models.find("toy-gan")
    session = GatedSession(model.graphs["decode"].session)
    model.graphs["decode"] = replace(model.graphs["decode"], session=session)
    yield session
    session.gate.set()


def traceparent(trace_id: str) -> str:
    return f"00-{trace_id}-{CALLER}-01"


def links(span: Span) -> set[bytes]:
    return {link.span_id for link in span.links}


def attributes(span: Span) -> dict[str, Any]:
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_trace_shows_its_own_queue_time_and_the_batch_it_shared(
    client: httpx.AsyncClient,
    stub: GenerationServiceStub,
    metrics: Metrics,
    gated: GatedSession,
    tracing: OpenTelemetryTracing,
    collector: Collector,
) -> None:
    def rest(trace_id: str) -> Any:
        body = {"latents": [[0.0] * LATENT], "class_label": 1}
        return client.post("/decode", json=body, headers={"traceparent": traceparent(trace_id)})

    running = asyncio.create_task(rest(FIRST))
    await until(gated.started.is_set)
    waiting = asyncio.create_task(rest(SECOND))
    await until(lambda: metrics.registry.get_sample_value("genserve_queued_rows") == 1)
    message = pb.DecodeRequest(
        latents=pb.Latents(count=2, size=LATENT, values=[0.0] * (2 * LATENT)), class_label=[1]
    )
    call = stub.Decode(message, metadata=[("traceparent", traceparent(THIRD))])
    calling = asyncio.create_task(call.code())
    await until(lambda: metrics.registry.get_sample_value("genserve_queued_rows") == 3)
    gated.gate.set()
    assert (await running).status_code == (await waiting).status_code == 200
    assert await calling is grpc.StatusCode.OK
    assert gated.batches == [1, 3]
    await asyncio.to_thread(tracing.close)

    second, third = collector.trace(SECOND), collector.trace(THIRD)
    assert set(second) == {"POST /decode", "queue", "compute"}
    assert set(third) == {"genserve.v1.GenerationService/Decode", "queue", "compute"}
    for spans in (second, third):
        (request,) = [span for span in spans.values() if span.kind == Span.SPAN_KIND_SERVER]
        assert request.parent_span_id.hex() == CALLER
        assert spans["queue"].parent_span_id == spans["compute"].parent_span_id == request.span_id
        assert request.start_time_unix_nano <= spans["queue"].start_time_unix_nano
        assert spans["queue"].end_time_unix_nano <= spans["compute"].start_time_unix_nano
        assert spans["compute"].end_time_unix_nano <= request.end_time_unix_nano
    assert attributes(second["POST /decode"])["http.response.status_code"] == 200
    assert second["queue"].start_time_unix_nano < third["queue"].start_time_unix_nano

    batches = [span for span in collector.spans if span.name == "batch"]
    (shared,) = [span for span in batches if attributes(span)["genserve.rows"] == 3]
    assert links(shared) == {second["queue"].span_id, third["queue"].span_id}
    assert links(second["compute"]) == links(third["compute"]) == {shared.span_id}
    assert attributes(shared)["genserve.release_reason"] == "drained"
    (run,) = [span for span in collector.spans if span.parent_span_id == shared.span_id]
    assert run.name == "session.run"
    assert shared.start_time_unix_nano <= run.start_time_unix_nano < run.end_time_unix_nano
    assert run.end_time_unix_nano <= shared.end_time_unix_nano
    assert {resource["service.name"] for resource in collector.resources} == {"genserve"}


def ask(server: LiveServer, path: str, trace_id: str) -> None:
    request = urllib.request.Request(
        server.url + path,
        json.dumps({"model": "toy-raster", "count": 3}).encode(),
        {"Content-Type": "application/json", "traceparent": traceparent(trace_id)},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        answer.read()


def call(server: LiveServer, unary: str, stream: str) -> None:
    """Make a call and a stream over gRPC, each in a trace."""
    request = pb.SampleRequest(model="toy-raster")
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = GenerationServiceStub(channel)
        stub.Sample(request, metadata=(("traceparent", traceparent(unary)),))
        whole = pb.StreamSampleRequest(request=request)
        list(stub.StreamSample(whole, metadata=(("traceparent", traceparent(stream)),)))


def test_a_server_sends_traces_and_its_log_names_them(
    repository: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "digits")
    with LiveServer(repository, default_models="toy-gan", traces="otlp") as server:
        server.wait_until_ready()
        ask(server, "/sample", FIRST)
        ask(server, "/sample/stream", SECOND)
        call(server, THIRD, FOURTH)
        assert server.stop() == 0
    for trace_id, path in ((FIRST, "/sample"), (SECOND, "/sample/stream")):
        spans = collector.trace(trace_id)
        assert set(spans) == {f"POST {path}", "queue", "paint"}
        assert attributes(spans["paint"])["genserve.count"] == 3
        (line,) = [entry for entry in server.log if entry.get("path") == path]
        assert line["trace_id"] == trace_id
        assert line["span_id"] == spans[f"POST {path}"].span_id.hex()
        assert line["request_id"] == attributes(spans[f"POST {path}"])["request_id"]
    for trace_id, method in ((THIRD, "Sample"), (FOURTH, "StreamSample")):
        (line,) = [entry for entry in server.log if entry.get("method") == method]
        span = collector.trace(trace_id)[f"genserve.v1.GenerationService/{method}"]
        assert (line["trace_id"], line["span_id"]) == (trace_id, span.span_id.hex())
        assert line["request_id"] == attributes(span)["request_id"]
    assert {resource["service.name"] for resource in collector.resources} == {"digits"}


def test_a_server_without_traces_does_not_load_what_sends_them() -> None:
    code = "import sys, service.__main__; print([n for n in sys.modules if 'telemetry.sdk' in n])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_traces_that_are_not_installed_are_one_sentence() -> None:
    code = (
        "import sys; sys.modules['opentelemetry.sdk'] = None; import service.__main__; "
        "sys.exit(service.__main__.main(['serve', '--traces', 'otlp']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "pip install 'genserve[otel]'" in line
