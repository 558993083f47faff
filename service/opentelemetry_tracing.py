"""Traces by OpenTelemetry. The only file that imports its SDK, the extra `otel`.

The trace of a request has a span for the request, one for each queue that its work waited in, and
one for the work itself. A batch is work for many requests, so it has a trace of its own: its span
links to those of its members, and theirs to it.

Where spans go and which are kept, the standard variables say: OTEL_EXPORTER_OTLP_*,
OTEL_TRACES_SAMPLER*, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_BSP_*.
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar, TypeVarTuple

from opentelemetry import trace
from opentelemetry.context import Context, get_current
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.tracing import BatchTrace, Headers, RequestTrace, Tracing, WorkTrace

Arguments = TypeVarTuple("Arguments")
Returned = TypeVar("Returned")

_SERVICE_NAME = "OTEL_SERVICE_NAME"
_W3C = TraceContextTextMapPropagator()


class OpenTelemetryTracing(Tracing):
    """Traces that are exported by OTLP over HTTP, by a thread of its own."""

    def __init__(self) -> None:
        named = {} if _SERVICE_NAME in os.environ else {"service.name": "genserve"}
        self._provider = TracerProvider(resource=Resource.create(named))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("genserve")

    @contextmanager
    def request(self, name: str, headers: Headers, **attributes: str) -> Iterator["_RequestSpan"]:
        """Begin the span of a request, below the client's where its headers name one."""
        with self._tracer.start_as_current_span(
            name,
            context=_W3C.extract(_carrier(headers), Context()),
            kind=SpanKind.SERVER,
            attributes=attributes,
        ) as span:
            yield _RequestSpan(span)

    def work(self, doing: str, model: str, graph: str, count: int) -> "_WorkSpan":
        """Begin the span of a queue, below that of the request."""
        attributes: dict[str, str | int] = {
            "genserve.model": model,
            "genserve.graph": graph,
            "genserve.count": count,
        }
        return _WorkSpan(self._tracer, doing, attributes)

    def batch(
        self, model: str, graph: str, rows: int, reason: str, members: Sequence[WorkTrace]
    ) -> "_BatchSpan":
        """Begin the span of a batch, and of the work on it for each member."""
        works = [member for member in members if isinstance(member, _WorkSpan)]
        batch = self._tracer.start_span(
            "batch",
            context=Context(),
            links=[Link(work.span.get_span_context()) for work in works],
            attributes={
                "genserve.model": model,
                "genserve.graph": graph,
                "genserve.rows": rows,
                "genserve.release_reason": reason,
            },
        )
        return _BatchSpan(self._tracer, batch, [work.share(batch) for work in works])

    def context(self) -> Mapping[str, str]:
        """Return the ids of the current span."""
        ids = trace.get_current_span().get_span_context()
        if not ids.is_valid:
            return {}
        return {
            "trace_id": trace.format_trace_id(ids.trace_id),
            "span_id": trace.format_span_id(ids.span_id),
        }

    def close(self) -> None:
        """Export what is left."""
        self._provider.shutdown()


class _RequestSpan(RequestTrace):
    def __init__(self, span: Span) -> None:
        self._span = span

    def answered(self, status: str | int, fault: bool) -> None:
        http = isinstance(status, int)
        name = "http.response.status_code" if http else "rpc.response.status_code"
        self._span.set_attribute(name, status)
        if fault:
            self._span.set_status(StatusCode.ERROR)


class _WorkSpan(WorkTrace):
    """The span of the queue, and then of the work. A job is queued once, however it is split."""

    def __init__(self, tracer: Tracer, doing: str, attributes: dict[str, str | int]) -> None:
        self._tracer = tracer
        self._doing = doing
        self._attributes = attributes
        self._request = get_current()
        self._begun = False
        self.span = tracer.start_span("queue", self._request, attributes=attributes)

    def begin(self) -> None:
        if not self._begun:
            self._begun = True
            self.span.end()
            self.span = self._tracer.start_span(
                self._doing, self._request, attributes=self._attributes
            )

    def share(self, batch: Span) -> Span:
        """Begin the span of what a batch does for this work."""
        if not self._begun:
            self._begun = True
            self.span.end()
        link = Link(batch.get_span_context())
        return self._tracer.start_span(
            self._doing, self._request, links=[link], attributes=self._attributes
        )

    def end(self) -> None:
        if self.span.is_recording():
            self.span.end()


class _BatchSpan(BatchTrace):
    def __init__(self, tracer: Tracer, span: Span, shares: Sequence[Span]) -> None:
        self._tracer = tracer
        self._span = span
        self._shares = shares

    def run(self, function: Callable[[*Arguments], Returned], *arguments: *Arguments) -> Returned:
        with trace.use_span(self._span), self._tracer.start_as_current_span("session.run"):
            return function(*arguments)

    def end(self) -> None:
        for span in (*self._shares, self._span):
            span.end()


def _carrier(headers: Headers) -> dict[str, str]:
    """Return the headers of W3C Trace Context, of those of either transport."""
    found = {}
    for name, value in headers:
        text = name.decode("latin-1") if isinstance(name, bytes) else name
        if text in ("traceparent", "tracestate"):
            found[text] = value.decode("latin-1") if isinstance(value, bytes) else value
    return found
