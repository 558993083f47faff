"""The engine: the one object that both transports call."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar, TypeVarTuple

from service.core.batcher import Batcher
from service.core.calls import Call, Outputs
from service.core.events import events_of
from service.core.feed import Feed
from service.core.manifest import Manifest
from service.core.models import Change, Model, Models
from service.core.open_inference.tensors import Tensor, read_inputs
from service.core.operations import begin, paints, work
from service.core.painting.lanes import PaintJob
from service.core.painting.paint import Paint
from service.core.painting.rows import RowScheduler
from service.core.painting.streaming import Progress, Reader
from service.core.requests import (
    Array,
    LikelihoodResult,
    Limits,
    Request,
    Result,
    SampleRequest,
    StreamRequest,
)
from service.errors import (
    AdministrationOff,
    DeadlineExceeded,
    GenserveError,
    ModelUnavailable,
    OperationNotOffered,
    QueueFull,
    RequestCancelled,
    ShuttingDown,
)
from service.metrics import INTERNAL, OK, Metrics
from service.tracing import OFF, Tracing

Reproducible = Literal["bitwise", "numeric"]

Arguments = TypeVarTuple("Arguments")
Returned = TypeVar("Returned")

Steps = Generator[Call | Paint, Outputs, Result]

INFER = "infer"
"""What running one graph on named tensors is counted as, beside the operations."""

_EVERY_ROW = StreamRequest()
_LARGE_VALUES = 50_000  # more array elements than this take milliseconds

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
        rows: RowScheduler,
        metrics: Metrics,
        limits: Limits,
        default_models: Sequence[str],
        default_timeout_seconds: float,
        reproducible: Reproducible,
        administrable: bool = False,
        tracing: Tracing = OFF,
    ) -> None:
        """Run on `models`; clients may load and unload them where it is `administrable`."""
        self.models = models
        self.limits = limits
        self.tracing = tracing
        self._batcher = batcher
        self._rows = rows
        self._metrics = metrics
        self._default_models = list(default_models)
        self.default_timeout_seconds = default_timeout_seconds
        self._reproducible = reproducible
        self._administrable = administrable
        self._administering: set[asyncio.Task[Any]] = set()
        self._administered = asyncio.Event()
        self._draining = asyncio.Event()
        self.admitted = 0  # requests, since the start
        self.answered = 0  # of those admitted, with a result or an error; of others the client left
        self._in_flight = 0
        self._feeds = 0
        self._quiet = asyncio.Event()  # set whenever the last request in flight or feed ends
        metrics.requests_in_flight.set_function(lambda: self._in_flight)

    async def load_default_models(self) -> None:
        """Load the default set; a model that is refused does not keep the others from loading."""
        for name in self._default_models:
            # Where the newest version is refused, the name means the one before it.
            while (model := self.models.find(name)).state == "available":
                with suppress(ModelUnavailable):  # the refusal has been logged
                    await self.models.load(model)

    def readiness(self) -> dict[str, str]:
        """Return the state of each default model; the server is ready when all are `ready`."""
        return {name: self.models.find(name).state for name in self._default_models}

    @property
    def ready(self) -> bool:
        """Whether every default model has passed its test vectors and work is taken.

        One that was unloaded is missing by order, which is no reason to send all work elsewhere.
        """
        return not self._draining.is_set() and all(
            state in ("ready", "unloaded") for state in self.readiness().values()
        )

    def default_for(self, model: Model) -> list[str]:
        """Return the operations that run on this model where a request names none."""
        operations = []
        for operation in model.manifest.operations if model.manifest else ():
            with suppress(GenserveError):  # no default model offers it
                if self._default_model(operation) is model:
                    operations.append(operation)
        return operations

    async def load_model(self, name: str) -> Model:
        """Load a model anew from the repository, as an administrator asks; see `Models.reload`."""
        self._check_administrable()
        return await self._administer(self.models.reload(name))

    async def unload_model(self, name: str) -> list[Model]:
        """Unload a model, as an administrator asks; see `Models.unload`."""
        self._check_administrable()
        return await self._administer(self.models.unload(name))

    async def rescan_models(self) -> list[Change]:
        """Rescan the repository, as an administrator asks; see `Models.rescan`."""
        self._check_administrable()
        return await self.rescan()

    async def rescan(self) -> list[Change]:
        """Rescan the repository; see `Models.rescan`."""
        return await self._administer(self.models.rescan())

    async def until_administered(self) -> None:
        """Return once models were loaded or unloaded since this last returned; for one caller."""
        await self._administered.wait()
        self._administered.clear()

    def _check_administrable(self) -> None:
        if not self._administrable:
            raise AdministrationOff(
                "models are not loaded or unloaded by requests to this server: it has no API keys, "
                "so anybody could; set GENSERVE_API_KEY_HASHES to allow it to those who have one"
            )

    async def _administer(self, work: Coroutine[Any, Any, Returned]) -> Returned:
        """Run what changes the models to its end, also where who asked for it leaves."""
        task = asyncio.get_running_loop().create_task(work)
        self._administering.add(task)  # the loop itself keeps only a weak reference
        task.add_done_callback(self._end_administering)
        return await asyncio.shield(task)

    def _end_administering(self, task: asyncio.Task[Any]) -> None:
        self._administering.discard(task)
        self._administered.set()

    async def until_draining(self) -> None:
        """Return once new requests are refused."""
        await self._draining.wait()

    async def drain(self) -> None:
        """Stop being ready, refuse new requests, and finish those that were accepted."""
        self._draining.set()
        if self._in_flight or self._feeds:
            await self._quiet.wait()
        await self._batcher.close()
        await self._rows.close()

    def abort(self) -> None:
        """Fail the requests in flight with ShuttingDown: the time for draining is over."""
        self._draining.set()
        self._batcher.abort()
        self._rows.abort()
        self._quiet.set()  # a stream whose client does not read would keep `drain` for ever

    @contextmanager
    def feed(self) -> Iterator[Feed]:
        """Keep `drain` waiting until this block ends: what it has read is to be answered."""
        self._feeds += 1
        self._quiet.clear()
        try:
            yield Feed()
        finally:
            self._feeds -= 1
            self._rest()

    @property
    def crowded(self) -> bool:
        """Whether requests were refused lately; if so, `check_room` is worth asking."""
        return self._batcher.crowded and not self._draining.is_set()

    def check_room(
        self,
        operation: str,
        *,
        model: str | None = None,
        rows: int = 1,
        timeout_seconds: float | None = None,
    ) -> None:
        """Raise QueueFull where `run` would for a request of at least so many rows.

        It is refused, and counted, before anything else is made of it: whether it is sound, nobody
        has looked. A request that passes is not admitted yet, whatever else may be wrong with it.
        """
        try:
            found = self.models.find(model) if model else self._default_model(operation)
        except GenserveError:
            return
        if found.state != "ready" or not found.manifest or paints(found.manifest, operation):
            return
        if timeout_seconds is None:
            timeout_seconds = self.default_timeout_seconds
        try:
            deadline = time.monotonic() + timeout_seconds
            self._batcher.check_room(found.graphs.values(), rows, deadline)
        except QueueFull as error:
            with self._admitted(operation, model, timeout_seconds):
                raise error
        except GenserveError:
            return

    async def run(
        self,
        operation: str,
        request: Request,
        *,
        model: str | None = None,
        timeout_seconds: float | None = None,
        feed: Feed | None = None,
    ) -> Answer:
        """Run an operation on a model, or on the first default model that offers it.

        What a `feed` has read is run while the engine drains, too, and is not refused for what the
        feed itself has in the queue. Raises a GenserveError; whatever it is, other requests are
        untouched by it.
        """
        if feed is None:
            self._check_open(operation)
        with self._admitted(operation, model, timeout_seconds) as (found, deadline):
            driven = self._drive(found, operation, request, deadline, feed=feed)
            async with aclosing(driven) as steps:
                async for step in steps:
                    if isinstance(step, Answer):
                        return step
        raise AssertionError("an operation ends with its answer")

    async def stream(
        self,
        operation: str,
        request: SampleRequest,
        *,
        stream: StreamRequest = _EVERY_ROW,
        model: str | None = None,
        timeout_seconds: float | None = None,
    ) -> AsyncGenerator[Progress | Answer, None]:
        """Run an operation as `run` does, and yield what is painted meanwhile, then the answer.

        `stream` says how it is shown. Models that paint no rows yield the answer alone. Closing the
        iterator frees the slots of its images before their next row. Raises a GenserveError.
        """
        self._check_open(operation)
        counted = self._metrics.open_streams.track_inprogress()
        with counted, self._admitted(operation, model, timeout_seconds) as (found, deadline):
            reader = Reader(await self._load(found, deadline), stream)
            request = reader.seeded(request)
            async with aclosing(self._drive(found, operation, request, deadline, reader)) as steps:
                async for step in steps:
                    if isinstance(step, Answer):
                        answer = step
                        break
                    async with aclosing(self._rows.follow(step)) as changes:
                        async for _ in changes:
                            for progress in reader.news(step):
                                yield progress
        yield answer  # after the request is counted: whoever reads it slowly holds nothing up

    async def infer(
        self,
        graph: str,
        tensors: Sequence[Tensor],
        *,
        model: str,
        timeout_seconds: float | None = None,
    ) -> dict[str, Array]:
        """Run one graph of a model on named tensors, and return its outputs by name.

        Its rows share batches with those of all other requests. Raises a GenserveError.
        """
        self._check_open(INFER)
        with self._admitted(INFER, model, timeout_seconds) as (found, deadline):
            ports = (await self._load(found, deadline)).graphs[graph]
            large = sum(tensor.size for tensor in tensors) > _LARGE_VALUES
            inputs = await _prepare(large, read_inputs, ports, tensors, self.limits.rows)
            return await self._batcher.run(found.graphs[graph], inputs, deadline)

    def _check_open(self, operation: str) -> None:
        if self._draining.is_set():
            with self._metrics.counting_refusals(operation):
                raise ShuttingDown("the server is shutting down; ask another replica")

    @contextmanager
    def _admitted(
        self, operation: str, model: str | None, timeout_seconds: float | None
    ) -> Iterator[tuple[Model, float]]:
        """Take a request, for a model and until a deadline, and count how it ends."""
        started = time.monotonic()
        name, version, code = "", "", INTERNAL
        self._enter()
        try:
            found = self.models.find(model) if model else self._default_model(operation)
            name, version = found.name, found.version
            if operation != INFER:
                found.check_offers(operation)
            if timeout_seconds is None:
                timeout_seconds = self.default_timeout_seconds
            with found.in_use():
                yield found, started + timeout_seconds
            code = OK
        except GenserveError as error:
            code = error.reason
            raise
        except (asyncio.CancelledError, GeneratorExit):
            code = RequestCancelled.reason
            raise
        finally:
            self._leave(answered=code != RequestCancelled.reason)
            self._metrics.requests.labels(name, version, operation, code).inc()
            seconds = time.monotonic() - started
            self._metrics.request_seconds.labels(name, version, operation).observe(seconds)

    def _enter(self) -> None:
        self.admitted += 1
        self._in_flight += 1
        self._quiet.clear()

    def _leave(self, answered: bool) -> None:
        self.answered += answered
        self._in_flight -= 1
        self._rest()

    def _rest(self) -> None:
        if not self._in_flight and not self._feeds:
            self._quiet.set()

    async def _drive(
        self,
        model: Model,
        operation: str,
        request: Request,
        deadline: float,
        reader: Reader | None = None,
        feed: Feed | None = None,
    ) -> AsyncGenerator[PaintJob | Answer, None]:
        """Run the steps of an operation; yields what is being painted meanwhile, then the answer.

        A reader takes note of what is to be painted, and may refuse it. The arrays of a large
        request take milliseconds to prepare: that happens on a thread, so that others are answered
        meanwhile.
        """
        manifest = await self._load(model, deadline)
        calibrations = list(model.calibrations.values())
        steps: Steps = begin(operation, manifest, calibrations, request, self.limits)
        large = work(manifest, request) * manifest.event.dimensions > _LARGE_VALUES
        outputs: Outputs | None = None
        while True:
            step = await _prepare(large, _advance, steps, outputs)
            if isinstance(step, Paint):
                if reader is not None:
                    await _prepare(large, reader.begin, step)
                ports = manifest.graphs[step.graph]
                job = self._rows.submit(model.graphs[step.graph], ports, step.canvas, deadline)
                try:
                    yield job
                    await self._rows.finish(job)
                finally:
                    job.future.cancel()  # frees the slots, if nobody waits for the rest
                outputs = {"levels": job.levels, "log_probability": job.log_probability}
            elif isinstance(step, Call):
                run = partial(self._batcher.run, model.graphs[step.graph], step.inputs, deadline)
                outputs = await (run() if feed is None else feed.run(run, deadline))
            else:
                events = self._metrics.events(events_of(manifest).part)
                events.labels(model.name, operation).inc(step.count)
                if isinstance(step, LikelihoodResult) and step.anomaly:
                    model.watches[step.anomaly.calibration].record(step.anomaly)
                yield Answer(manifest, step, self._reproducible)
                return

    async def _load(self, model: Model, deadline: float) -> Manifest:
        """Make a model ready, if it is not, and return its manifest."""
        if model.state != "ready":
            try:
                # Shielded: a client that gives up must not stop the loading that others wait for.
                async with asyncio.timeout(deadline - time.monotonic()):
                    await asyncio.shield(self.models.load(model))
            except TimeoutError:
                raise DeadlineExceeded(
                    f"the deadline passed while {model.name} was loading"
                ) from None
        assert model.manifest is not None, "a model that is ready has a manifest"
        return model.manifest

    def _default_model(self, operation: str) -> Model:
        """Return the first default model that offers the operation."""
        for name in self._default_models:
            model = self.models.find(name)
            if model.manifest and operation in model.manifest.operations:
                return model
        raise OperationNotOffered(
            f"no default model offers {operation}; name one in the field model", operations=[]
        )


async def _prepare(
    large: bool, function: Callable[[*Arguments], Returned], *arguments: *Arguments
) -> Returned:
    """Call a function, on a thread of its own where it takes longer than the way there."""
    return await asyncio.to_thread(function, *arguments) if large else function(*arguments)


def _advance(steps: Steps, outputs: Outputs | None) -> Call | Paint | Result:
    """Go on to the next graph call of an operation, or to its result.

    StopIteration can't cross from a thread to a coroutine, so it ends here.
    """
    try:
        return next(steps) if outputs is None else steps.send(outputs)
    except StopIteration as end:
        result: Result = end.value
        return result
