"""The Open Inference Protocol over an engine, for both transports alike."""

import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from prometheus_client import Histogram, Summary

from service.core.engine import INFER, Answer, Engine
from service.core.models import Model
from service.core.open_inference.models import SAMPLE, InferenceModel, models_of
from service.core.open_inference.tensors import (
    DATATYPES,
    Tensor,
    check_names,
    datatype_of,
)
from service.core.painting.streaming import Rows
from service.core.requests import (
    MAXIMUM_TIMEOUT_MS,
    Array,
    ConditionRequest,
    GenerationResult,
    SampleRequest,
    check_range,
)
from service.errors import InvalidRequest, ModelNotFound, ModelUnavailable
from service.metrics import Metrics

EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
)
FINAL_RESPONSE = "triton_final_response"
"""The parameter that tells the last response to a request of a stream."""

_UNLOAD_DEPENDENTS = "unload_dependents"
_SAMPLE_PARAMETERS = ("seed", "count", "class")
_EMPTY_FINAL_RESPONSE = "triton_enable_empty_final_response"
_SEQUENCE = "sequence_"
_MICROSECONDS = 1e-6

Parameters = Mapping[str, object]


class _Counted(NamedTuple):
    events: int = 0
    sum: float = 0.0


@dataclass(frozen=True, kw_only=True)
class InferenceRequest:
    """One request, as either transport read it."""

    model_name: str
    model_version: str = ""  # empty: the newest that is not refused
    id: str = ""
    parameters: Parameters = field(default_factory=dict)
    tensors: Sequence[Tensor] = ()
    outputs: Sequence[str] = ()  # names; none: all


@dataclass(frozen=True, kw_only=True)
class InferenceResponse:
    """Outputs by name, of which a stream sends several."""

    model_name: str
    model_version: str
    id: str
    parameters: dict[str, bool | int]
    outputs: dict[str, Array]


class Inference:
    """The protocol's calls. Whatever they refuse, they raise a GenserveError."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = metrics

    @property
    def ready(self) -> bool:
        """Whether every default model serves and work is taken."""
        return self._engine.ready

    def models(self) -> list[InferenceModel]:
        """Return every model in every version, refused ones left out."""
        return [model for artifact in self._engine.models.all() for model in models_of(artifact)]

    def find(self, name: str, version: str = "") -> InferenceModel:
        """Return a model; raises ModelNotFound, or ModelUnavailable where it is refused."""
        artifact_name, _, function = name.partition(".")
        if "@" in name:
            raise ModelNotFound(
                f"there is no model '{name[:100]}'; its version goes into a field of its own"
            )
        wanted = f"{artifact_name}@{version}" if version else artifact_name
        artifact = self._engine.models.find(wanted)
        if artifact.manifest is None:
            raise ModelUnavailable(
                f"{artifact.name} was refused and does not serve: {artifact.reason}"
            )
        models = models_of(artifact)
        for model in models:
            if model.function == function:
                return model
        names = [model.name for model in models]
        raise ModelNotFound(
            f"there is no model '{name[:200]}'; of {artifact.name} there are {', '.join(names)}",
            models=names,
        )

    def metadata(self, model: InferenceModel) -> dict[str, Any]:
        """Return what the protocol calls the metadata of a model, by its names."""
        versions = [
            found.version
            for found in self._engine.models.all()
            if found.name == model.artifact.name and found.manifest is not None
        ]
        return model.metadata(versions)

    def configuration(self, model: InferenceModel) -> dict[str, Any]:
        """Return a Triton model configuration, by its names; rows of a graph are its batch."""
        return model.configuration(self._engine.limits.rows)

    def index(self, ready_only: bool) -> list[dict[str, str]]:
        """Return every model in every version and where it stands, by the protocol's names.

        Of an artifact whose manifest can't be read nobody knows the graphs: it is listed itself.
        """
        entries = [
            _indexed(artifact, name)
            for artifact in self._engine.models.all()
            for name in [model.name for model in models_of(artifact)] or [artifact.name]
        ]
        return [entry for entry in entries if entry["state"] == "READY" or not ready_only]

    async def load(self, name: str, parameters: Parameters) -> None:
        """Load an artifact anew; a model of it stands for all of it. See `Engine.load_model`.

        Raises InvalidRequest for any parameter: what is loaded is what the repository holds.
        """
        for parameter in parameters:
            raise InvalidRequest(
                f"there is no parameter '{parameter[:100]}'; an artifact is loaded as it is in the "
                "repository, with its own configuration and files"
            )
        by_artifact = "@" in name or "." not in name
        await self._engine.load_model(name if by_artifact else self.find(name).artifact.name)

    async def unload(self, name: str, parameters: Parameters) -> None:
        """Unload an artifact, by its own name only; see `Engine.unload_model`.

        Raises InvalidRequest for a model of one: the others of its artifact would go with it.
        """
        for parameter, value in parameters.items():
            # No model depends on another, so either value means the same.
            if parameter != _UNLOAD_DEPENDENTS or not isinstance(value, bool):
                raise InvalidRequest(
                    f"there is no parameter '{parameter[:100]}'; taken is {_UNLOAD_DEPENDENTS}, "
                    "true or false"
                )
        if "@" not in name and "." in name:
            artifact = self.find(name).artifact.name
            raise InvalidRequest(
                f"{name} can't be unloaded alone: the models of an artifact come and go together; "
                f"unload {artifact}"
            )
        await self._engine.unload_model(name)

    def statistics(self, models: Sequence[InferenceModel]) -> list[dict[str, Any]]:
        """Return what the protocol counts of models, since the start.

        What a graph ran is counted whoever asked for it; requests are those of the protocol.
        """
        requests = _counted(self._metrics.inference_seconds)
        waits = _counted(self._metrics.queue_seconds)
        runs, rows = _counted(self._metrics.compute_seconds), _counted(self._metrics.batch_rows)
        entries = []
        for model in models:
            name = model.artifact.name, model.version, model.function
            success, fail = requests[*name, "success"], requests[*name, "fail"]
            entries.append(
                {
                    "name": model.name,
                    "version": model.version,
                    "inference_count": success.events if model.samples else int(rows[name].sum),
                    "execution_count": success.events if model.samples else runs[name].events,
                    "inference_stats": {
                        "success": _duration(success),
                        "fail": _duration(fail),
                        "queue": _duration(waits[name]),
                        "compute_infer": _duration(runs[name]),
                    },
                }
            )
        return entries

    async def infer(
        self, request: InferenceRequest, remaining_seconds: float | None = None
    ) -> InferenceResponse:
        """Run a model; `remaining_seconds` is what is left of a deadline of the call."""
        model, asked = self._read(request, remaining_seconds)
        with self._timed(model):
            if not model.samples:
                outputs = await self._engine.infer(model.function, request.tensors, **asked)
                return _response(request, model, outputs)
            asked["request"] = _sample_request(request.parameters)
            return _sampled(request, model, await self._engine.run(SAMPLE, **asked))

    async def stream(
        self, request: InferenceRequest, remaining_seconds: float | None = None
    ) -> AsyncGenerator[InferenceResponse, None]:
        """Run a model, and yield what it shows meanwhile; the last response says that it is."""
        model, asked = self._read(request, remaining_seconds)
        if not model.streams:
            response = await self.infer(request, remaining_seconds)
            response.parameters[FINAL_RESPONSE] = True
            yield response
            return
        with self._timed(model):
            asked["request"] = _sample_request(request.parameters)
            async with aclosing(self._engine.stream(SAMPLE, **asked)) as events:
                async for event in events:
                    if isinstance(event, Rows):
                        response = _response(request, model, _rows(event))
                        response.parameters[FINAL_RESPONSE] = False
                        if response.outputs:
                            yield response
                    elif isinstance(event, Answer):
                        response = _sampled(request, model, event)
                        response.parameters[FINAL_RESPONSE] = True
                        yield response

    @contextmanager
    def _timed(self, model: InferenceModel) -> Iterator[None]:
        """Count a request for the statistics of its model."""
        started, outcome = time.monotonic(), "fail"
        try:
            yield
            outcome = "success"
        finally:
            labels = model.artifact.name, model.version, model.function, outcome
            self._metrics.inference_seconds.labels(*labels).observe(time.monotonic() - started)

    def _read(
        self, request: InferenceRequest, remaining_seconds: float | None
    ) -> tuple[InferenceModel, dict[str, Any]]:
        """Return the model, and what the engine is asked in any case."""
        with self._metrics.counting_refusals(INFER):
            model = self.find(request.model_name, request.model_version)
            timeout_seconds = _check_parameters(model, request.parameters)
            if model.samples:
                check_names([tensor.name for tensor in request.tensors], [])
            _check_outputs(model, request.outputs)
        if remaining_seconds is not None:
            timeout_seconds = min(timeout_seconds or remaining_seconds, remaining_seconds)
        exact = f"{model.artifact.name}@{model.version}"
        return model, {"model": exact, "timeout_seconds": timeout_seconds}


def _indexed(artifact: Model, name: str) -> dict[str, str]:
    states = {"ready": "READY", "loading": "LOADING"}
    reason = "it loads when it is first asked" if artifact.state == "available" else artifact.reason
    return {
        "name": name,
        "version": artifact.version,
        "state": states.get(artifact.state, "UNAVAILABLE"),
        "reason": reason or "",
    }


def _counted(metric: Histogram | Summary) -> Mapping[tuple[str, ...], _Counted]:
    """Return count and sum of a metric by the values of its labels."""
    counts, sums = {}, {}
    for family in metric.collect():
        for sample in family.samples:
            if sample.name == f"{family.name}_count":
                counts[tuple(sample.labels.values())] = int(sample.value)
            elif sample.name == f"{family.name}_sum":
                sums[tuple(sample.labels.values())] = sample.value
    return defaultdict(_Counted, {key: _Counted(counts[key], sums[key]) for key in counts})


def _duration(seconds: _Counted) -> dict[str, int]:
    return {"count": seconds.events, "ns": round(seconds.sum * 1e9)}


def _check_parameters(model: InferenceModel, parameters: Parameters) -> float | None:
    """Return the timeout in seconds, if there is one; raises InvalidRequest for what is not taken.

    The names that the protocol's clients reserve have their meaning here, or are refused.
    """
    own = _SAMPLE_PARAMETERS if model.samples else ()
    for name in parameters:
        if name.startswith(_SEQUENCE):
            raise InvalidRequest(
                f"parameter {name[:100]}: models keep no state between requests, so there are no "
                "sequences; leave it out"
            )
        if name not in ("timeout", "priority", _EMPTY_FINAL_RESPONSE, *own):
            taken = ", ".join(("timeout", "priority", *own))
            raise InvalidRequest(
                f"there is no parameter '{name[:100]}'; {model.name} takes {taken}"
            )
    if not isinstance(parameters.get(_EMPTY_FINAL_RESPONSE, False), bool):
        raise InvalidRequest(f"parameter {_EMPTY_FINAL_RESPONSE} must be true or false")
    # There is one level of priority, so any is as good; it must be one all the same.
    check_range("priority", _whole(parameters, "priority") or 0, 0, 2**64 - 1)
    timeout = _whole(parameters, "timeout")
    if not timeout:  # 0 asks for the server's own
        return None
    check_range("timeout, in microseconds,", timeout, 1, MAXIMUM_TIMEOUT_MS * 1000)
    return timeout * _MICROSECONDS


def _whole(parameters: Parameters, name: str) -> int | None:
    """Return a parameter that is a whole number, or None where it is not given."""
    value = parameters.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidRequest(f"parameter {name} must be a whole number")
    return value


def _sample_request(parameters: Parameters) -> SampleRequest:
    count, label = _whole(parameters, "count"), _whole(parameters, "class")
    return SampleRequest(
        count=1 if count is None else count,
        seed=_whole(parameters, "seed"),
        condition=ConditionRequest(classes=None if label is None else [label]),
    )


def _check_outputs(model: InferenceModel, names: Sequence[str]) -> None:
    known = [tensor.name for tensor in model.outputs]
    for name in names:
        if name not in known:
            raise InvalidRequest(
                f"there is no output '{name[:100]}'; {model.name} gives {', '.join(known)}"
            )


def _rows(event: Rows) -> dict[str, Array]:
    return {
        "rows": event.levels[:, :, None],
        "image": np.array([event.image], np.int64),
        "first_row": np.array([event.first_row], np.int64),
    }


def _sampled(request: InferenceRequest, model: InferenceModel, answer: Answer) -> InferenceResponse:
    """Return images or vectors with the seed that they are of, which may have been drawn."""
    result = answer.result
    assert isinstance(result, GenerationResult), "these are sampled"
    response = _response(request, model, {result.made: result.part(result.made)})
    response.parameters["seed"] = answer.result.seed
    return response


def _response(
    request: InferenceRequest, model: InferenceModel, outputs: Mapping[str, Array]
) -> InferenceResponse:
    """Return those outputs that the request asks for, in its order."""
    types = {tensor.name: DATATYPES[tensor.datatype] for tensor in model.outputs}
    names = [name for name in request.outputs or outputs if name in outputs]
    return InferenceResponse(
        model_name=model.name,
        model_version=model.version,
        id=request.id,
        parameters={},
        outputs={name: np.ascontiguousarray(outputs[name], types[name]) for name in names},
    )


def describe_outputs(response: InferenceResponse) -> list[dict[str, Any]]:
    """Return name, datatype and shape of each output of a response."""
    return [
        {"name": name, "datatype": datatype_of(array), "shape": list(array.shape)}
        for name, array in response.outputs.items()
    ]


def refuse_parameters(kind: str, name: str, parameters: Iterable[str]) -> None:
    """Raise InvalidRequest where an input or output has parameters: there are none to take."""
    for parameter in parameters:
        raise InvalidRequest(
            f"there is no parameter '{parameter[:100]}' of {kind} {name[:100]}; classification "
            "and shared memory are not offered"
        )
