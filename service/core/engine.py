"""The engine: the one object that both transports call."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal

from service.core.batcher import Batcher
from service.core.manifest import Manifest
from service.core.models import Model, Models
from service.core.operations import OPERATIONS, Call, Outputs
from service.core.requests import Limits, Request, Result
from service.errors import (
    DeadlineExceeded,
    GenserveError,
    ModelUnavailable,
    OperationNotOffered,
    RequestCancelled,
)
from service.metrics import Metrics

Reproducible = Literal["bitwise", "numeric"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """A result, and the exact model that it is from."""

    manifest: Manifest
    result: Result
    reproducible: Reproducible  # what a repeat of the request with its seed will equal

    @property
    def model(self) -> str:
        """The exact model, `name@version`."""
        return f"{self.manifest.name}@{self.manifest.version}"


class Engine:
    """Runs operations on models: admission, default models, deadlines, timing, failure counts."""

    def __init__(
        self,
        *,
        models: Models,
        batcher: Batcher,
        metrics: Metrics,
        limits: Limits,
        default_models: Sequence[str],
        default_timeout_seconds: float,
        reproducible: Reproducible,
    ) -> None:
        self.models = models
        self.limits = limits
        self._batcher = batcher
        self._metrics = metrics
        self._default_models = list(default_models)
        self._default_timeout_seconds = default_timeout_seconds
        self._reproducible = reproducible
        self._draining = False

    async def load_default_models(self) -> None:
        """Load the default set; a model that is refused does not keep the others from loading."""
        for name in self._default_models:
            try:
                await self.models.load(self.models.find(name))
            except GenserveError as error:
                log.error("default model unavailable", extra={"model": name, "reason": str(error)})

    def readiness(self) -> dict[str, str]:
        """Return the state of each default model; the server is ready when all are `ready`."""
        states = {model.name: model.state for model in self.models.all()}
        return {
            name: states.get(name.partition("@")[0], "missing") for name in self._default_models
        }

    @property
    def ready(self) -> bool:
        """Whether every default model has passed its test vectors and work is taken."""
        return not self._draining and all(state == "ready" for state in self.readiness().values())

    def default_for(self, model: Model) -> list[str]:
        """Return the operations that run on this model where a request names none."""
        operations = []
        for operation in model.manifest.operations if model.manifest else ():
            with contextlib.suppress(GenserveError):  # no default model offers it
                if self._default_model(operation) is model:
                    operations.append(operation)
        return operations

    async def drain(self) -> None:
        """Stop being ready, refuse new work, and finish what was accepted."""
        self._draining = True
        await self._batcher.close()

    async def run(
        self,
        operation: str,
        request: Request,
        *,
        model: str | None = None,
        timeout_seconds: float | None = None,
    ) -> Answer:
        """Run an operation on a model, or on the first default model that offers it.

        Raises a GenserveError; whatever it is, other requests are untouched by it.
        """
        started = time.monotonic()
        label, code = "", "OK"
        self._metrics.requests_in_flight.inc()
        try:
            found = self.models.find(model) if model else self._default_model(operation)
            label = found.name
            _check_offered(found, operation)
            if timeout_seconds is None:
                timeout_seconds = self._default_timeout_seconds
            deadline = started + timeout_seconds
            return await self._run(found, operation, request, deadline)
        except GenserveError as error:
            code = error.reason
            raise
        except asyncio.CancelledError:
            code = RequestCancelled.reason
            raise
        finally:
            self._metrics.requests_in_flight.dec()
            self._metrics.requests.labels(label, operation, code).inc()
            seconds = time.monotonic() - started
            self._metrics.request_seconds.labels(label, operation).observe(seconds)

    async def _run(self, model: Model, operation: str, request: Request, deadline: float) -> Answer:
        await self._load(model, deadline)
        manifest = model.manifest
        assert manifest is not None, "a model that is ready has a manifest"
        steps = OPERATIONS[operation](manifest, request, self.limits)
        result = await self._drive(model, steps, deadline)
        self._metrics.images.labels(model.name, operation).inc(result.count)
        return Answer(manifest, result, self._reproducible)

    async def _drive(
        self, model: Model, steps: Generator[Call, Outputs, Result], deadline: float
    ) -> Result:
        """Run the graph calls of an operation until it returns its result."""
        try:
            call = next(steps)
            while True:
                graph = model.graphs[call.graph]
                outputs = await self._batcher.run(graph, call.inputs, deadline)
                call = steps.send(outputs)
        except StopIteration as end:
            result: Result = end.value
            return result

    async def _load(self, model: Model, deadline: float) -> None:
        if model.state == "ready":
            return
        try:
            # Shielded: a client that gives up must not stop the loading that others wait for.
            async with asyncio.timeout(deadline - time.monotonic()):
                await asyncio.shield(self.models.load(model))
        except TimeoutError:
            raise DeadlineExceeded(f"the deadline passed while {model.name} was loading") from None

    def _default_model(self, operation: str) -> Model:
        """Return the first default model that offers the operation."""
        for name in self._default_models:
            model = self.models.find(name)
            if model.manifest and operation in model.manifest.operations:
                return model
        raise OperationNotOffered(
            f"no default model offers {operation}; name one in the field model", operations=[]
        )


def _check_offered(model: Model, operation: str) -> None:
    if model.manifest is None:
        raise ModelUnavailable(f"{model.name} was refused and does not serve: {model.reason}")
    if operation not in model.manifest.operations:
        offered = list(model.manifest.operations)
        raise OperationNotOffered(
            f"{model.name} does not offer {operation}; it offers {', '.join(offered)}",
            operations=offered,
        )
