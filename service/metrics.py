"""Every Prometheus metric, on a registry that is passed in."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary

from service.errors import (
    DeadlineExceeded,
    GenserveError,
    InferenceFailed,
    ModelUnavailable,
    QueueFull,
    RequestCancelled,
    ShuttingDown,
)

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_P_VALUES = (0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

OK, INTERNAL = "OK", "INTERNAL"
"""Codes of requests that ended without a GenserveError: with their result, or by a fault."""

_SERVER_FAULTS = (
    DeadlineExceeded,
    InferenceFailed,
    ModelUnavailable,
    QueueFull,
    RequestCancelled,
    ShuttingDown,
)


class Metrics:
    """The service's metrics. Labels are few: a model, an operation, a graph, never a client."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        counter = partial(Counter, registry=registry)
        gauge = partial(Gauge, registry=registry)
        seconds = partial(Histogram, registry=registry, buckets=_SECONDS)
        rows = partial(Histogram, registry=registry, buckets=_ROWS)

        # Requests
        self.requests = counter(
            "genserve_requests",
            "Requests answered, by the reason of the error, or OK; without a model where none ran.",
            ["model", "version", "operation", "code"],
        )
        self.request_seconds = seconds(
            "genserve_request_seconds",
            "Time from admission to the result, without encoding it.",
            ["model", "version", "operation"],
        )
        self.requests_in_flight = gauge(
            "genserve_requests_in_flight", "Requests admitted and not yet answered."
        )
        self.images = counter(
            "genserve_images", "Images produced or scored.", ["model", "operation"]
        )
        self.vectors = counter(
            "genserve_vectors", "Vectors produced or scored.", ["model", "operation"]
        )

        self.inference_seconds = Summary(
            "genserve_inference_seconds",
            "Time of requests of the Open Inference Protocol, by outcome: success or fail.",
            ["model", "version", "graph", "outcome"],
            registry=registry,
        )

        # Batches: rows of inputs that share a run
        self.queue_seconds = seconds(
            "genserve_queue_seconds",
            "Time that rows waited before their batch started, and images before they got a slot.",
            ["model", "version", "graph"],
        )
        self.compute_seconds = seconds(
            "genserve_compute_seconds", "Time that one batch ran.", ["model", "version", "graph"]
        )
        self.request_compute_seconds = counter(
            "genserve_request_compute_seconds",
            "Time that batches ran, counted once for each request that had rows in them.",
            ["model", "version", "graph"],
        )
        self.batch_rows = rows(
            "genserve_batch_rows", "Rows in a batch.", ["model", "version", "graph"]
        )
        self.batches = counter(
            "genserve_batches",
            "Batches started: full, drained (all that was queued), or shared with idle workers.",
            ["model", "graph", "reason"],
        )
        self.queued_rows = gauge("genserve_queued_rows", "Rows waiting for a worker.")
        self.queued_requests = gauge(
            "genserve_queued_requests",
            "Requests of which nothing runs yet: no row has a worker, no image a slot.",
            ["model", "version", "graph"],
        )

        # Painting: rows of pixels, of images that share every step
        self.rows = counter("genserve_rows", "Rows painted.", ["model", "version"])
        self.first_row_seconds = seconds(
            "genserve_first_row_seconds",
            "Time from a request to the first row of its first image.",
            ["model"],
        )
        self.slots = gauge(
            "genserve_slots",
            "Slots of all workers; busy ones are a share of these.",
            ["model", "graph"],
        )
        self.busy_slots = gauge(
            "genserve_busy_slots", "Slots that hold an image being painted.", ["model", "graph"]
        )
        self.waiting_images = gauge(
            "genserve_waiting_images", "Images waiting for a slot.", ["model", "graph"]
        )
        self.joined_images = counter(
            "genserve_joined_images", "Images that got a slot.", ["model", "graph"]
        )
        self.unfinished_images = counter(
            "genserve_unfinished_images",
            "Images that left their slot before their last row: cancelled (their client left), "
            "deadline, or failed (the model, or the server stopped).",
            ["model", "graph", "reason"],
        )
        self.open_streams = gauge(
            "genserve_open_streams", "Streams that are open: images not all painted yet, or feeds."
        )

        # Verdicts: what likelihoods are answered with where a calibration applies
        self.p_value = Histogram(
            "genserve_p_value",
            "P-values of images by the score that decides; uniform for normal images.",
            ["model", "calibration"],
            registry=registry,
            buckets=_P_VALUES,
        )
        self.judged_images = counter(
            "genserve_judged_images",
            "Images judged anomalous or normal, at the false-positive rate of their request.",
            ["model", "calibration", "verdict"],
        )
        self.score_drift = gauge(
            "genserve_score_drift",
            "Standard deviations by which the last images score higher than normal ones; alarming "
            "beyond 4 or -4.",
            ["model", "calibration"],
        )
        self.score_drift_images = gauge(
            "genserve_score_drift_images",
            "Images that genserve_score_drift is of; at first there are few.",
            ["model", "calibration"],
        )

        # Models
        self.model_load_seconds = gauge(
            "genserve_model_load_seconds",
            "Time to load, verify and warm a model.",
            ["model", "version"],
        )
        self.model_ready = gauge(
            "genserve_model_ready",
            "1 when the model serves, 0 when it does not.",
            ["model", "version"],
        )
        self.model_refused = gauge(
            "genserve_model_refused",
            "1 when the model failed to load and does not serve; GET /models says why.",
            ["model", "version"],
        )

        self.model_loads = counter(
            "genserve_model_loads",
            "Times that a model was verified: ready, or refused.",
            ["model", "outcome"],
        )

        for metric in vars(self).values():
            # The lookup that prometheus_client makes each time costs more than what it finds.
            if isinstance(metric, Counter | Gauge | Histogram):
                metric.labels = cache(metric.labels)  # type: ignore[method-assign, assignment]

    def events(self, part: str) -> Counter:
        """Return what counts a model's events, be they called images or vectors."""
        return self.vectors if part == "vectors" else self.images

    def expect_model(
        self, model: str, version: str, operations: Iterable[str], events: Counter
    ) -> None:
        """Show what requests of a model are counted by, at zero.

        A rate needs the value before the first request: of a series that begins at 1 it misses
        that request. What a client does wrong has too many names to show them all.
        """
        codes = (OK, INTERNAL, *(error.reason for error in _SERVER_FAULTS))
        if "sample" in operations:  # which is a model of the Open Inference Protocol
            self._expect_inference(model, version, "sample")
        for operation in operations:
            events.labels(model, operation)
            self.request_seconds.labels(model, version, operation)
            for code in codes:
                self.requests.labels(model, version, operation, code)

    def expect_graph(self, model: str, version: str, graph: str) -> None:
        """Show what runs of a graph are counted by, at zero."""
        for metric in (
            self.queue_seconds,
            self.compute_seconds,
            self.request_compute_seconds,
            self.queued_requests,
        ):
            metric.labels(model, version, graph)

    def expect_batches(self, model: str, version: str, graph: str) -> None:
        """Show what batches of a graph are counted by, at zero."""
        self.expect_graph(model, version, graph)
        self._expect_inference(model, version, graph)
        self.batch_rows.labels(model, version, graph)
        for reason in ("full", "drained", "shared"):
            self.batches.labels(model, graph, reason)

    def _expect_inference(self, model: str, version: str, graph: str) -> None:
        for outcome in ("success", "fail"):
            self.inference_seconds.labels(model, version, graph, outcome)

    def expect_painting(self, model: str, version: str, graph: str) -> None:
        """Show what images that are painted by a graph are counted by, at zero."""
        self.expect_graph(model, version, graph)
        self.rows.labels(model, version)
        self.first_row_seconds.labels(model)
        for metric in (self.busy_slots, self.waiting_images, self.joined_images):
            metric.labels(model, graph)
        for reason in ("cancelled", "deadline", "failed"):
            self.unfinished_images.labels(model, graph, reason)

    def count_refusal(self, operation: str, error: GenserveError) -> None:
        """Count a request of which nobody knows yet which model it means."""
        self.requests.labels("", "", operation, error.reason).inc()

    @contextmanager
    def counting_refusals(self, operation: str) -> Iterator[None]:
        """Count a request that is refused in this block: before the engine, so of no model yet.

        The engine counts every request that reaches it; this is not to be put around that.
        """
        try:
            yield
        except GenserveError as error:
            self.count_refusal(operation, error)
            raise
