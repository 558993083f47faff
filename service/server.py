"""The composition root: builds every part, starts both transports, drains and stops them."""

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from typing import Any, Literal

import grpc
import uvicorn
from prometheus_client import CollectorRegistry, ProcessCollector

from service.admission import Admission
from service.api.app import create_app
from service.api.connections import bounded_protocol
from service.core.batcher import Batcher, LoadedGraph
from service.core.engine import Engine
from service.core.models import Models
from service.core.painting.rows import RowScheduler
from service.core.requests import Limits
from service.errors import ModelNotFound, RepositoryUnavailable, StartupError
from service.inference_metrics import InferenceMetrics
from service.keys import Keys, read_keys
from service.logs import configure_logging
from service.metrics import Metrics
from service.mirror import Mirror
from service.rpc.server import Rpc, create_server
from service.runtime.onnx_session import OnnxSession, check_installation
from service.settings import Settings
from service.tls import Identity, find_identity
from service.tracing import OFF, Tracing

_LAST_ANSWERS_SECONDS = 1.0  # for the refusals of aborted requests to reach their clients
_PORT_SECONDS = 0.02  # between attempts to take a port again

log = logging.getLogger(__name__)


def build_engine(settings: Settings, metrics: Metrics, tracing: Tracing = OFF) -> Engine:
    """Build the engine over the settings' model repository; nothing is loaded yet.

    Raises StartupError where the repository is missing or holds no model of a default name.
    """
    batcher = Batcher(
        workers=settings.workers,
        maximum_batch_rows=settings.maximum_batch_rows,
        maximum_queued_rows=settings.maximum_queued_rows,
        metrics=metrics,
        turns=4 if settings.provider == "cpu" else 1,  # on a GPU, a quarter takes as long
        tracing=tracing,
    )
    rows = RowScheduler(
        workers=settings.workers,
        slots=settings.row_slots,
        bulk_limit=max(1, settings.row_slots * 3 // 4),
        maximum_waiting_images=settings.maximum_waiting_images,
        metrics=metrics,
        tracing=tracing,
    )

    def forget(graph: LoadedGraph) -> None:
        batcher.forget(graph)
        rows.forget(graph)

    models = open_repository(settings, metrics, pinned=settings.default_models, forget=forget)
    _check_default_models(settings, models)
    return Engine(
        models=models,
        batcher=batcher,
        rows=rows,
        metrics=metrics,
        limits=Limits(
            count=settings.maximum_count,
            draws=settings.maximum_draws,
            rows=settings.maximum_queued_rows,
        ),
        default_models=settings.default_models,
        default_timeout_seconds=settings.default_timeout_ms / 1000,
        reproducible="bitwise" if settings.provider == "cpu" else "numeric",
        administrable=settings.api_key_hashes is not None,
        tracing=tracing,
    )


def open_repository(settings: Settings, metrics: Metrics, **options: Any) -> Models:
    """Return the models of the settings' repository, with the `options` of `Models`.

    Raises StartupError where it is no folder, or a URL that is not allowed or can't be read.
    """
    open_session = partial(OnnxSession, provider=settings.provider)
    if isinstance(settings.model_repository, str):
        mirror = Mirror(settings.model_repository, settings.repository_cache.expanduser())
        try:
            return Models(mirror.folder, open_session, metrics, update=mirror.update, **options)
        except RepositoryUnavailable as error:
            raise StartupError(error.message) from error
    if not settings.model_repository.is_dir():
        raise StartupError(
            f"the model repository '{settings.model_repository}' is not a folder; "
            "set GENSERVE_MODEL_REPOSITORY"
        )
    return Models(settings.model_repository, open_session, metrics, **options)


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal cuts the draining short.

    Raises StartupError where a port is taken or the settings don't fit what is installed.
    """
    tracing = _find_tracing(settings.traces)
    configure_logging(settings.log_level, tracing)
    check_installation()
    metrics = _build_metrics()
    identity = find_identity(settings.tls_certificate, settings.tls_private_key)
    keys = read_keys(settings.api_key_hashes) if settings.api_key_hashes else None
    admission = Admission(
        maximum_requests=settings.maximum_requests, maximum_bytes=settings.maximum_held_bytes
    )
    engine = build_engine(settings, metrics, tracing)
    listener = _listen("REST", settings.host, settings.http_port, "GENSERVE_HTTP_PORT")
    rest = _HttpServer(_http_config(settings, engine, metrics, admission, keys, identity))
    create_rpc = partial(
        create_server,
        engine,
        metrics=metrics,
        maximum_message_bytes=settings.maximum_body_bytes,
        maximum_connections=settings.maximum_connections,
        admission=admission,
        keys=keys,
        version=version("genserve"),
    )
    rpc = _GrpcServer(create_rpc, settings.host, settings.grpc_port, identity)
    stopping, hurrying = _catch_signals()

    serving = asyncio.create_task(rest.serve(sockets=[listener]))
    await rpc.start()
    http_port = listener.getsockname()[1]
    log.info("listening", extra={"http_port": http_port, "grpc_port": rpc.port})
    loading = asyncio.create_task(_load(engine, rpc))
    rescanning = asyncio.create_task(_rescan(engine, settings.rescan_seconds))
    await stopping.wait()

    log.info("draining", extra={"drain_seconds": settings.drain_seconds})
    loading.cancel()
    rescanning.cancel()
    await rpc.set_serving(False)
    drained = asyncio.ensure_future(_drain(engine, rest, serving, rpc, settings.drain_seconds))
    hurried = asyncio.ensure_future(hurrying.wait())
    both: set[asyncio.Future[Any]] = {drained, hurried}
    await asyncio.wait(both, timeout=settings.drain_seconds, return_when=asyncio.FIRST_COMPLETED)
    if not drained.done():
        log.warning("draining cut short")
        engine.abort()  # whoever still waits is answered
        await asyncio.wait([drained], timeout=_LAST_ANSWERS_SECONDS)
        rest.force_exit = True
        await rpc.stop(0)
    await drained
    await asyncio.to_thread(tracing.close)
    log.info("stopped", extra={"admitted": engine.admitted, "answered": engine.answered})


def _spare_the_collector() -> None:
    """Take what exists now, which stays to the end, out of what the garbage collector looks at.

    Looking through it all takes 20 ms and more, in which nobody is answered, and comes the more
    often the more requests there are.
    """
    gc.collect()
    gc.freeze()


async def _drain(
    engine: Engine,
    rest: uvicorn.Server,
    serving: asyncio.Task[None],
    rpc: "_GrpcServer",
    seconds: float,
) -> None:
    """Finish what was accepted, then close. Meanwhile probes and new requests are told to leave."""
    await engine.drain()
    rest.should_exit = True
    await asyncio.gather(serving, rpc.stop(seconds))


def _find_tracing(traces: Literal["none", "otlp"]) -> Tracing:
    """Return what traces requests as it is set; raises StartupError where it is not installed."""
    if traces == "none":
        return OFF
    try:
        # Here, so that a server without traces neither needs nor loads it.
        from service.opentelemetry_tracing import OpenTelemetryTracing
    except ImportError as error:
        raise StartupError(
            f"traces need OpenTelemetry ({error}); pip install 'genserve[otel]'"
        ) from error
    return OpenTelemetryTracing()


def _build_metrics() -> Metrics:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    registry.register(InferenceMetrics(metrics))
    ProcessCollector(registry=registry)
    return metrics


class _HttpServer(uvicorn.Server):
    """Uvicorn without its signal handlers: one handler stops both transports."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _GrpcServer:
    """The gRPC server, and another in its place where it breaks.

    Grpc.aio stops for good where the path of a call is not UTF-8, which anybody can send.
    """

    def __init__(
        self, create: Callable[[], Rpc], host: str, port: int, identity: Identity | None
    ) -> None:
        """Listen; raises StartupError where that can't be."""
        self._create = create
        self._host = host
        self._identity = identity
        self._rpc = create()
        self.port = _bind(self._rpc.server, host, port, identity)
        self._serving = False
        self._stopping = False
        self._replacing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Answer calls."""
        await self._rpc.start()
        self._replacing = asyncio.create_task(self._replace_broken())

    async def set_serving(self, serving: bool) -> None:
        """Answer health checks with this."""
        self._serving = serving
        await self._rpc.set_serving(serving)

    async def stop(self, seconds: float) -> None:
        """Refuse new calls, and cancel what is not answered after so many seconds."""
        self._stopping = True
        await self._rpc.server.stop(seconds)
        if self._replacing:
            await self._replacing

    async def _replace_broken(self) -> None:
        while not self._stopping:
            try:
                await self._rpc.server.wait_for_termination()  # not to be cancelled: it would stop
                return
            except UnicodeDecodeError:
                log.exception("the gRPC server broke, and is replaced")
            await self._replace()

    async def _replace(self) -> None:
        while not self._stopping:
            self._rpc = self._create()
            try:
                _bind(self._rpc.server, self._host, self.port, self._identity)
            except StartupError:  # until the broken one has let go of the port
                await asyncio.sleep(_PORT_SECONDS)
                continue
            await self._rpc.start()
            await self._rpc.set_serving(self._serving)
            return


def _check_default_models(settings: Settings, models: Models) -> None:
    for name in settings.default_models:
        try:
            models.find(name)
        except ModelNotFound as error:
            raise StartupError(f"{error.message}; set GENSERVE_DEFAULT_MODELS") from error


async def _load(engine: Engine, rpc: _GrpcServer) -> None:
    await engine.load_default_models()
    _spare_the_collector()
    ready = None
    while True:
        if ready is not engine.ready:
            ready = engine.ready
            await rpc.set_serving(ready)
            log.info("ready" if ready else "not ready", extra={"models": engine.readiness()})
        await engine.until_administered()


async def _rescan(engine: Engine, seconds: float) -> None:
    while seconds:
        await asyncio.sleep(seconds)
        try:
            await engine.rescan()
        except Exception:  # the next look may find the repository again
            log.exception("rescanning failed")


def _http_config(
    settings: Settings,
    engine: Engine,
    metrics: Metrics,
    admission: Admission,
    keys: Keys | None,
    identity: Identity | None,
) -> uvicorn.Config:
    app = create_app(
        engine,
        metrics=metrics,
        maximum_body_bytes=settings.maximum_body_bytes,
        cors_origins=settings.cors_origins,
        version=version("genserve"),
        admission=admission,
        keys=keys,
        studio=settings.studio,
    )
    return uvicorn.Config(
        app,
        http=bounded_protocol(
            maximum=settings.maximum_connections, seconds=settings.default_timeout_ms / 1000
        ),
        ws="none",
        ssl_certfile=identity.certificate if identity else None,
        ssl_keyfile=identity.private_key if identity else None,
        log_config=None,
        access_log=False,
    )


def _listen(transport: str, host: str, port: int, setting: str) -> socket.socket:
    """Return a socket that listens; raises StartupError that names the port's setting."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is named. With it on, the second
    # write of an answer waits 40 ms for the client's delayed acknowledgement of the first.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise StartupError(
            f"{transport} can't listen on {host}:{port}: {error.strerror}; "
            f"set {setting} or GENSERVE_HOST"
        ) from error
    return listener


def _bind(server: grpc.aio.Server, host: str, port: int, identity: Identity | None) -> int:
    # gRPC says nothing of the reason but in a line of its own on standard error: ask before.
    _listen("gRPC", host, port, "GENSERVE_GRPC_PORT").close()
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if identity is None:
            return int(server.add_insecure_port(address))
        credentials = grpc.ssl_server_credentials([identity.read()])
        return int(server.add_secure_port(address, credentials))
    except RuntimeError as error:
        raise StartupError(
            f"gRPC can't listen on {host}:{port}: is the port in use? Set GENSERVE_GRPC_PORT"
        ) from error


def _catch_signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Return events that the first and the second SIGTERM or SIGINT set."""
    first, second = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (second if first.is_set() else first).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return first, second
