import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import httpx
import pytest
from prometheus_client import CollectorRegistry

from service.api.app import OPERATIONS, create_app
from service.api.bodies import JSON
from service.core.engine import Engine
from service.core.scoring.calibration import Calibration
from service.metrics import Metrics
from service.rpc.pb.generation_service_pb2_grpc import GenerationServiceStub
from service.rpc.server import Rpc, create_server
from service.server import build_engine
from service.settings import Settings
from tests.calibrated import calibrate_toys
from tests.fakes import write_toy_raster, write_toys

TOYS = ("toy-gan", "toy-flow", "toy-vae")


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with the toy models, really exported."""
    folder = tmp_path_factory.mktemp("repository")
    write_toys(folder)
    write_toy_raster(folder)
    return folder


@pytest.fixture(scope="session")
def calibrated(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Calibration]]:
    """A repository of the toy models in which two have a calibration, and those, by model."""
    copy = shutil.copytree(repository, tmp_path_factory.mktemp("calibrated") / "repository")
    return copy, calibrate_toys(copy)


@pytest.fixture(scope="session")
def identity(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Files of a certificate for this machine, signed by itself, and of its key."""
    folder = tmp_path_factory.mktemp("identity")
    arguments = (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost "
        "-addext subjectAltName=IP:127.0.0.1,DNS:localhost "
        f"-keyout {folder}/key.pem -out {folder}/ca.pem"
    )
    subprocess.run(["openssl", *arguments.split()], check=True, capture_output=True)
    return str(folder / "ca.pem"), str(folder / "key.pem")


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


@pytest.fixture
def settings(repository: Path) -> Settings:
    return Settings(model_repository=repository, default_models=TOYS, workers=2, maximum_count=32)


@pytest.fixture
async def engine(settings: Settings, metrics: Metrics) -> AsyncIterator[Engine]:
    """An engine with the default toy models loaded; toy-raster loads when it is asked for."""
    built = build_engine(settings, metrics)
    await built.load_default_models()
    yield built
    await built.drain()


@pytest.fixture
async def client(engine: Engine, metrics: Metrics) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the REST app over the engine; bodies are at most 64 KiB."""
    app = create_app(
        engine, metrics=metrics, maximum_body_bytes=64 * 1024, cors_origins=(), version="1.2.3"
    )
    # What the app lets out would fail the test: it must answer whatever happens.
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(
        transport=transport,
        base_url="http://genserve",
        event_hooks={"response": [check_documented]},
    ) as client:
        yield client


async def check_documented(answer: httpx.Response) -> None:
    """Whatever a test asks: a JSON answer has the fields and types that the document states."""
    schemas = {f"/{operation.name}": operation.answer for operation in OPERATIONS}
    schema = schemas.get(answer.request.url.path)
    if schema and answer.is_success and answer.headers["content-type"] == JSON:
        schema.model_validate_json(await answer.aread(), strict=True, extra="forbid")


@pytest.fixture
async def rpc(engine: Engine, metrics: Metrics, settings: Settings) -> AsyncIterator[Rpc]:
    """A gRPC server over the engine, not started yet."""
    built = create_server(
        engine,
        metrics=metrics,
        maximum_message_bytes=settings.maximum_body_bytes,
        version="1.2.3",
    )
    yield built
    await built.server.stop(0)


@pytest.fixture
async def address(rpc: Rpc) -> str:
    """Where the gRPC server listens, started, on a free port."""
    port = rpc.server.add_insecure_port("127.0.0.1:0")
    await rpc.start()
    return f"127.0.0.1:{port}"


@pytest.fixture
async def channel(address: str) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(address) as opened:
        yield opened


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> GenerationServiceStub:
    return GenerationServiceStub(channel)
