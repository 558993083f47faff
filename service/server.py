"""The composition root: builds every part, starts both transports, drains and stops them."""

import asyncio
import contextlib
import json
import logging
import signal
import socket
import sys
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from typing import Any

import grpc
import uvicorn
from prometheus_client import CollectorRegistry

from service.api.app import create_app
from service.api.protocol import HttpProtocol
from service.core.batcher import Batcher
from service.core.engine import Engine
from service.core.models import Models
from service.core.requests import Limits
from service.core.rows import RowScheduler
from service.errors import ModelNotFound, StartupError
from service.metrics import Metrics
from service.rpc.server import Rpc, create_server
from service.runtime.onnx_session import OnnxSession, check_installation
from service.settings import Settings

_LAST_ANSWERS_SECONDS = 1.0  # for the refusals of aborted requests to reach their clients

_ENCODER = json.JSONEncoder(default=str)

log = logging.getLogger(__name__)


def build_engine(settings: Settings, metrics: Metrics, *, administrable: bool = False) -> Engine:
    """Build the engine over the settings' model repository; nothing is loaded yet.

    Clients may load and unload models where it is `administrable`.
    Raises StartupError where the repository is missing or holds no model of a default name.
    """
    if not settings.model_repository.is_dir():
        raise StartupError(
            f"the model repository '{settings.model_repository}' is not a folder; "
            "set GENSERVE_MODEL_REPOSITORY"
        )
    rows = RowScheduler(
        workers=settings.workers,
        slots=settings.row_slots,
        bulk_limit=max(1, settings.row_slots * 3 // 4),
        maximum_waiting_images=settings.maximum_waiting_images,
        metrics=metrics,
    )
    models = Models(
        settings.model_repository,
        partial(OnnxSession, provider=settings.provider),
        metrics,
        pinned=settings.default_models,
        free=rows.forget,
    )
    _check_default_models(settings, models)
    return Engine(
        models=models,
        batcher=Batcher(
            workers=settings.workers,
            maximum_batch_rows=settings.maximum_batch_rows,
            maximum_queued_rows=settings.maximum_queued_rows,
            metrics=metrics,
        ),
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
        administrable=administrable,
    )


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal cuts the draining short.

    Raises StartupError where a port is taken or the settings don't fit what is installed.
    """
    check_installation()
    metrics = Metrics(CollectorRegistry())
    engine = build_engine(settings, metrics)
    listener = _listen(settings.host, settings.http_port)
    rest = _HttpServer(_http_config(settings, engine, metrics))
    rpc = create_server(engine, metrics=metrics, maximum_message_bytes=settings.maximum_body_bytes)
    grpc_port = _bind(rpc.server, settings.host, settings.grpc_port)
    stopping, hurrying = _catch_signals()

    serving = asyncio.create_task(rest.serve(sockets=[listener]))
    await rpc.start()
    http_port = listener.getsockname()[1]
    log.info("listening", extra={"http_port": http_port, "grpc_port": grpc_port})
    background = asyncio.gather(_load(engine, rpc), _rescan(engine, settings.rescan_seconds))
    await stopping.wait()

    log.info("draining", extra={"drain_seconds": settings.drain_seconds})
    background.cancel()
    await rpc.set_serving(False)
    rest.should_exit = True
    drained = asyncio.gather(serving, rpc.server.stop(settings.drain_seconds), engine.drain())
    hurried = asyncio.ensure_future(hurrying.wait())
    both: set[asyncio.Future[Any]] = {drained, hurried}
    await asyncio.wait(both, timeout=settings.drain_seconds, return_when=asyncio.FIRST_COMPLETED)
    if not drained.done():
        log.warning("draining cut short")
        engine.abort()  # whoever still waits is answered
        await asyncio.wait([drained], timeout=_LAST_ANSWERS_SECONDS)
        rest.force_exit = True
        await rpc.server.stop(0)
    await drained
    log.info("stopped")


def configure_logging(level: str) -> None:
    """Write log records as one JSON object a line, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    # No record says these, so they need not be found out for each of them.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # its news are in our own records


class _HttpServer(uvicorn.Server):
    """Uvicorn without its signal handlers: one handler stops both transports."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _JsonFormatter(logging.Formatter):
    """One JSON object a record: time, level, logger, message, and whatever `extra` holds."""

    _STANDARD = frozenset(vars(logging.makeLogRecord({})) | {"message": 0, "asctime": 0})

    def format(self, record: logging.LogRecord) -> str:
        extra = {name: value for name, value in vars(record).items() if name not in self._STANDARD}
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **extra,
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return _ENCODER.encode(entry)


def _check_default_models(settings: Settings, models: Models) -> None:
    for name in settings.default_models:
        try:
            models.find(name)
        except ModelNotFound as error:
            raise StartupError(f"{error.message}; set GENSERVE_DEFAULT_MODELS") from error


async def _load(engine: Engine, rpc: Rpc) -> None:
    await engine.load_default_models()
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


def _http_config(settings: Settings, engine: Engine, metrics: Metrics) -> uvicorn.Config:
    app = create_app(
        engine,
        metrics=metrics,
        maximum_body_bytes=settings.maximum_body_bytes,
        cors_origins=settings.cors_origins,
        version=version("genserve"),
    )
    return uvicorn.Config(
        app,
        http=HttpProtocol,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=int(settings.drain_seconds),
    )


def _listen(host: str, port: int) -> socket.socket:
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
            f"REST can't listen on {host}:{port}: {error.strerror}; set GENSERVE_HTTP_PORT"
        ) from error
    return listener


def _bind(server: grpc.aio.Server, host: str, port: int) -> int:
    try:
        return int(
            server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        )
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
