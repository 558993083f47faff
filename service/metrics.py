"""Every Prometheus metric, on a registry that is passed in."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from service.errors import GenserveError

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """The service's metrics. Labels are few: a model, an operation, a graph, never a client."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.requests = Counter(
            "genserve_requests",
            "Requests answered, by the reason of the error, or OK; without a model where none ran.",
            ["model", "operation", "code"],
            registry=registry,
        )
        self.request_seconds = Histogram(
            "genserve_request_seconds",
            "Time from admission to the result, without encoding it.",
            ["model", "operation"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.requests_in_flight = Gauge(
            "genserve_requests_in_flight",
            "Requests admitted and not yet answered.",
            registry=registry,
        )
        self.queue_seconds = Histogram(
            "genserve_queue_seconds",
            "Time that rows waited before their batch started.",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.compute_seconds = Histogram(
            "genserve_compute_seconds",
            "Time that one batch ran.",
            ["model", "graph"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_rows = Histogram(
            "genserve_batch_rows",
            "Rows in a batch.",
            ["model", "graph"],
            buckets=_ROWS,
            registry=registry,
        )
        self.batches = Counter(
            "genserve_batches",
            "Batches started: full, drained (all that was queued), or shared with idle workers.",
            ["model", "graph", "reason"],
            registry=registry,
        )
        self.queued_rows = Gauge(
            "genserve_queued_rows", "Rows waiting for a worker.", registry=registry
        )
        self.images = Counter(
            "genserve_images",
            "Images produced or scored.",
            ["model", "operation"],
            registry=registry,
        )
        self.model_load_seconds = Gauge(
            "genserve_model_load_seconds",
            "Time to load, verify and warm a model.",
            ["model", "version"],
            registry=registry,
        )
        self.model_ready = Gauge(
            "genserve_model_ready",
            "1 when the model serves, 0 when it does not.",
            ["model", "version"],
            registry=registry,
        )
        self.rows = Counter("genserve_rows", "Rows painted.", ["model"], registry=registry)
        self.first_row_seconds = Histogram(
            "genserve_first_row_seconds",
            "Time from a request to the first row of its first image.",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.busy_slots = Gauge(
            "genserve_busy_slots",
            "Slots that hold an image being painted.",
            ["model", "graph"],
            registry=registry,
        )

    @contextmanager
    def counting_refusals(self, operation: str) -> Iterator[None]:
        """Count a request that is refused in this block: before the engine, so of no model yet.

        The engine counts every request that reaches it; this is not to be put around that.
        """
        try:
            yield
        except GenserveError as error:
            self.requests.labels("", operation, error.reason).inc()
            raise
