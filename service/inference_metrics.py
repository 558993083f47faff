"""Triton's metrics by their own names, for dashboards and tools that look for them.

https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/metrics.html
Nothing is counted for them: they are computed from ours whenever somebody reads them.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator

from prometheus_client.core import Metric
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from service.metrics import OK, Metrics

_REASONS = {
    "QUEUE_FULL": "REJECTED",
    "DEADLINE_EXCEEDED": "REJECTED",
    "SHUTTING_DOWN": "REJECTED",
    "REQUEST_CANCELLED": "CANCELED",
    "INFERENCE_FAILED": "BACKEND",
    "MODEL_UNAVAILABLE": "BACKEND",
    "INTERNAL": "BACKEND",
}
"""Triton's reason of a failure, by our code; every other is OTHER."""

_MICROSECONDS = 1e6
_MODEL = ("model", "version")

Sums = dict[tuple[str, ...], float]
"""By the values of labels."""


class InferenceMetrics(Collector):
    """The nv_inference_ family, by model and version, computed from the service's metrics.

    Requests that were refused before it was known which model they mean are in it with empty ones.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> Iterable[Metric]:
        """Return nothing: names are only asked for to find out whether two collectors clash."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Compute the family from what is counted now."""
        success, failure = self._answers()
        yield _family("request_success", "Requests answered with a result.", success)
        yield _family("request_failure", "Other requests.", failure, (*_MODEL, "reason"))
        ours = self._metrics
        yield _family(
            "request_duration_us",
            "Time from admission to the result, of all requests, in microseconds.",
            _sums(ours.request_seconds, "_sum", _MICROSECONDS),
        )
        yield _family(
            "queue_duration_us",
            "Time that rows waited for a worker, and images for a slot, in microseconds.",
            _sums(ours.queue_seconds, "_sum", _MICROSECONDS),
        )
        yield _family(
            "compute_infer_duration_us",
            "Time that graphs ran, once for each request in the run, in microseconds.",
            _sums(ours.request_compute_seconds, "_total", _MICROSECONDS),
        )
        yield _family(
            "count",
            "Rows of inputs that ran, and rows of pixels that were painted.",
            _added(_sums(ours.batch_rows, "_sum"), _sums(ours.rows, "_total")),
        )
        yield _family("exec_count", "Runs of graphs.", _sums(ours.compute_seconds, "_count"))
        yield _family(
            "pending_request_count",
            "Requests of which nothing runs yet.",
            _sums(ours.queued_requests, ""),
            kind="gauge",
        )

    def _answers(self) -> tuple[Sums, Sums]:
        """Return successes by model, and failures by model and Triton's reason."""
        success: Sums = {}
        failure: Sums = {}
        for (model, version, code), count in _sums(
            self._metrics.requests, "_total", labels=(*_MODEL, "code")
        ).items():
            if code == OK:
                success[model, version] = count
            else:
                key = model, version, _REASONS.get(code, "OTHER")
                failure[key] = failure.get(key, 0.0) + count
        return success, failure


def _sums(
    metric: MetricWrapperBase, suffix: str, scale: float = 1.0, labels: tuple[str, ...] = _MODEL
) -> Sums:
    """Sum the samples of a metric that end in a suffix over all labels but these."""
    sums: Sums = defaultdict(float)
    for family in metric.collect():
        for sample in family.samples:
            if sample.name == family.name + suffix:
                sums[tuple(sample.labels[label] for label in labels)] += scale * sample.value
    return sums


def _added(first: Sums, second: Sums) -> Sums:
    return {key: first.get(key, 0.0) + second.get(key, 0.0) for key in first | second}


def _family(
    name: str,
    meaning: str,
    sums: Sums,
    labels: tuple[str, ...] = _MODEL,
    # The names of Triton's counters lack the ending that this format asks of a counter.
    kind: str = "unknown",
) -> Metric:
    family = Metric(f"nv_inference_{name}", meaning, kind)
    for values, value in sums.items():
        family.add_sample(family.name, dict(zip(labels, values, strict=True)), value)
    return family
