"""The REST app: one route for each operation, the models, and what operators watch."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from prometheus_client import generate_latest
from pydantic import BaseModel
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from service.admission import Admission
from service.api import formats, openapi
from service.api.answers import (
    ClassifyAnswer,
    CompleteAnswer,
    EncodeAnswer,
    GenerationAnswer,
    LikelihoodAnswer,
    ScoreAnswer,
)
from service.api.bodies import JSON, BodyLimits, read_body
from service.api.catalogue import (
    ChangeList,
    ModelList,
    describe_manifest,
    find_calibration,
    list_changes,
    list_models,
    list_versions,
)
from service.api.connection import while_connected
from service.api.envelope import Envelope
from service.api.guard import Guard, describe_keys
from service.api.inference import inference_routes
from service.api.negotiation import choose
from service.api.problems import add_problem_handlers
from service.api.schemas import (
    Body,
    ClassifyBody,
    CompleteBody,
    DecodeBody,
    EncodeBody,
    InterpolateBody,
    LikelihoodBody,
    ReconstructBody,
    SampleBody,
    ScoreBody,
    StreamCompleteBody,
    StreamSampleBody,
)
from service.api.streams import EVENT_STREAM, EventStream, write_events
from service.api.studio import studio_routes
from service.api.turnstile import Turnstile
from service.core.engine import Engine
from service.core.open_inference.inference import Inference
from service.core.scoring.calibration import Calibration
from service.keys import Keys
from service.metrics import Metrics

_DESCRIPTION = """Trained generative models: sample, encode, decode, likelihood, interpolate,
complete, score, classify.

Images are levels, [count, height, width, channels]; a model of vectors has `vectors`,
[count, size], in their place. Answers are JSON, `image/png` or
`application/x-npy`, by `Accept`; `/sample/stream` and `/complete/stream` answer with server-sent
events. Errors are problem details with a stable `reason`."""
_LARGE_VALUES = 50_000  # writing more than this takes milliseconds
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class Operation:
    """One operation as a route."""

    name: str
    body: type[Body]
    answer: type[BaseModel]
    stream: type[StreamSampleBody] | None = None  # where it can be seen while it is painted


OPERATIONS = (
    Operation("sample", SampleBody, GenerationAnswer, StreamSampleBody),
    Operation("encode", EncodeBody, EncodeAnswer),
    Operation("decode", DecodeBody, GenerationAnswer),
    Operation("reconstruct", ReconstructBody, GenerationAnswer),
    Operation("likelihood", LikelihoodBody, LikelihoodAnswer),
    Operation("interpolate", InterpolateBody, GenerationAnswer),
    Operation("complete", CompleteBody, CompleteAnswer, StreamCompleteBody),
    Operation("score", ScoreBody, ScoreAnswer),
    Operation("classify", ClassifyBody, ClassifyAnswer),
)


def create_app(
    engine: Engine,
    *,
    metrics: Metrics,
    maximum_body_bytes: int,
    cors_origins: Sequence[str],
    version: str,
    admission: Admission | None = None,
    keys: Keys | None = None,
    studio: bool = True,
) -> FastAPI:
    """Build the app over an engine, whose models may still be loading.

    A body over `maximum_body_bytes` is refused while it arrives, and so is one that takes longer
    than the engine's default timeout. Browsers of `cors_origins` may call; without any, there are
    no CORS headers. Where `keys` are given, requests need one. `studio` puts the page at `/`.
    """
    app = _App(
        title="genserve",
        version=version,
        description=_DESCRIPTION,
        # Tracing that nobody set up would look for itself in the environment at each request.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    add_problem_handlers(app)
    paths = {f"/{operation.name}": operation.name for operation in OPERATIONS}
    app.add_middleware(Turnstile, engine=engine, operations=paths)
    app.add_middleware(Guard, metrics=metrics, admission=admission or Admission(), keys=keys)
    if cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
    app.add_middleware(Envelope, tracing=engine.tracing)  # added last, so it is around all
    limits = BodyLimits(
        bytes=maximum_body_bytes,
        files=engine.limits.count,
        seconds=engine.default_timeout_seconds,
    )
    _add_operations(app, engine, metrics, limits)
    app.include_router(_models(engine))
    app.include_router(_watching(engine, metrics))
    app.include_router(inference_routes(Inference(engine, metrics), metrics, limits, version))
    if studio:
        app.include_router(studio_routes())
    schemas = [operation.body for operation in OPERATIONS]
    schemas += [operation.stream for operation in OPERATIONS if operation.stream is not None]

    def document() -> dict[str, Any]:
        built = openapi.build(app, schemas)
        return built if keys is None else describe_keys(built)

    app.openapi = cache(document)  # type: ignore[method-assign]
    return app


class _App(FastAPI):
    """FastAPI with our middleware outermost.

    What it would put around that (an answer to what nobody foresaw, telemetry, a bound on bodies)
    ours does itself, and every exchange would pass through it.
    """

    def build_middleware_stack(self) -> ASGIApp:
        """Return what FastAPI itself builds, without those layers."""
        app: ASGIApp = _Operations(AsyncExitStackMiddleware(self.router), self.routes)
        app = ExceptionMiddleware(app, handlers=self.exception_handlers)
        for middleware, arguments, options in reversed(self.user_middleware):
            app = middleware(app, *arguments, **options)
        return app


class _Operations:
    """Takes a request for an operation to its route at once.

    The router would ask one route after the other, and open an exit stack that none of these needs.
    What is not exactly such a request, it still has to answer.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._operations = {
            route.path: route.app for route in routes if isinstance(route, _OperationRoute)
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and scope["method"] == "POST" and not scope.get("root_path"):
            app = self._operations.get(scope["path"], app)
        await app(scope, receive, send)


class _OperationRoute(APIRoute):
    """A route whose endpoint reads the request and makes the response itself.

    FastAPI documents it like any other, but what it puts around an endpoint (dependencies, exit
    stacks) would cost each request as much as reading and checking it.
    """

    def __init__(
        self, path: str, endpoint: Callable[[Request], Awaitable[Response]], **options: Any
    ) -> None:
        super().__init__(path, endpoint, **options)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            response = await endpoint(Request(scope, receive, send))
            await response(scope, receive, send)

        self.app = app


def _add_operations(app: FastAPI, engine: Engine, metrics: Metrics, limits: BodyLimits) -> None:
    # Not by way of a router that is included: FastAPI would choose among its routes twice.
    add = partial(
        app.router.add_api_route,
        methods=["POST"],
        tags=["operations"],
        response_model=None,
        route_class_override=_OperationRoute,
    )
    for operation in OPERATIONS:
        add(
            f"/{operation.name}",
            _handler(engine, metrics, operation, limits),
            operation_id=operation.name,
            summary=(operation.body.__doc__ or "").strip(),
            responses=openapi.describe_answers(operation.body, operation.answer),
            openapi_extra=openapi.describe_request(operation.body),
        )
        if operation.stream is not None:
            add(
                f"/{operation.name}/stream",
                _streaming_handler(engine, metrics, operation.name, operation.stream, limits),
                operation_id=f"{operation.name}_stream",
                summary=(operation.stream.__doc__ or "").strip(),
                responses=openapi.describe_events(),
                openapi_extra=openapi.describe_request(operation.stream),
            )


def _handler(engine: Engine, metrics: Metrics, operation: Operation, limits: BodyLimits) -> Any:
    offered = formats.media_types(operation.body)

    async def handle(request: Request) -> Response:
        with metrics.counting_refusals(operation.name):
            media_type = choose(request.headers.get("accept"), offered)
            body = formats.settle(await read_body(request, operation.body, limits), media_type)
            formats.check_answerable(body, media_type)
            asked = body.to_core()
        run = engine.run(
            operation.name,
            asked,
            model=body.model,
            timeout_seconds=body.timeout_seconds,
        )
        answer = await while_connected(request, run)
        written = answer, body, media_type, request.state.request_id
        if answer.result.count * answer.manifest.event.dimensions > _LARGE_VALUES:
            # On a thread, so that other requests are answered meanwhile.
            return await asyncio.to_thread(formats.write, *written)
        return formats.write(*written)

    return handle


def _streaming_handler(
    engine: Engine,
    metrics: Metrics,
    operation: str,
    schema: type[StreamSampleBody],
    limits: BodyLimits,
) -> Any:
    async def handle(request: Request) -> Response:
        with metrics.counting_refusals(operation):
            choose(request.headers.get("accept"), [EVENT_STREAM])
            body = await read_body(request, schema, limits)
            formats.check_answerable(body, JSON)
            asked = body.to_core()
        events = engine.stream(
            operation,
            asked,
            stream=body.core_stream(),
            model=body.model,
            timeout_seconds=body.timeout_seconds,
        )
        texts = write_events(events, body, request.state.request_id)
        first = await while_connected(request, anext(texts))  # an error in it has a status
        return EventStream(request, first, texts)

    return handle


def _models(engine: Engine) -> APIRouter:
    router = APIRouter(tags=["models"])

    @router.get("/models", summary="What is there, and what each model can do.")
    async def models() -> ModelList:
        return list_models(engine)

    @router.get(
        "/models/{name}",
        summary="The manifest of a model, `name` or `name@version`, and its state.",
        responses=openapi.PROBLEMS,
    )
    async def model(name: str) -> dict[str, Any]:
        return describe_manifest(engine.models.find(name))

    @router.get(
        "/models/{name}/calibrations/{id}",
        summary="A calibration of a model that is ready: the scores that new ones are compared "
        "with, and what was fitted.",
        response_class=Response,
        responses={200: {"model": Calibration}, **openapi.PROBLEMS},
    )
    async def calibration(name: str, id: str) -> Response:
        # Written here: FastAPI would take it apart into Python numbers first, 20,000 of them.
        made = find_calibration(engine.models.find(name), id)
        return Response(made.model_dump_json(), media_type=JSON)

    @router.post(
        "/models/rescan",
        summary="Take over what is new or changed in the repository, and drop what is gone.",
        responses=openapi.PROBLEMS,
    )
    async def rescan() -> ChangeList:
        return list_changes(await engine.rescan_models())

    @router.post(
        "/models/{name}/load",
        summary="Load a model anew, `name@version` or the newest version of `name`; where it is "
        "refused, what served before serves on.",
        responses=openapi.PROBLEMS,
    )
    async def load(name: str) -> dict[str, Any]:
        return describe_manifest(await engine.load_model(name))

    @router.post(
        "/models/{name}/unload",
        summary="Refuse new requests to a model, `name@version` or all versions of `name`, wait "
        "for those in flight, and free it.",
        responses=openapi.PROBLEMS,
    )
    async def unload(name: str) -> ModelList:
        return list_versions(await engine.unload_model(name), engine)

    return router


def _watching(engine: Engine, metrics: Metrics) -> APIRouter:
    router = APIRouter(tags=["server"])

    @router.get("/healthz", summary="200 while the process lives.")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @router.get(
        "/readyz",
        summary="200 when every default model has passed its test vectors, else 503.",
        responses={503: {"description": "The state of each default model."}},
    )
    async def readyz() -> JSONResponse:
        content = {"ready": engine.ready, "models": engine.readiness()}
        return JSONResponse(content, 200 if engine.ready else 503)

    @router.get("/metrics", summary="Prometheus metrics.", response_class=Response)
    async def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type=_PROMETHEUS)

    return router
