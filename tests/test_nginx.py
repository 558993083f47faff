"""deploy/nginx in Debian's nginx, between real clients and the real server, over TLS."""

import asyncio
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import uvicorn
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from service.api.app import create_app
from service.core.engine import Engine
from service.keys import create_key
from service.metrics import Metrics
from service.rpc.pb import generation_service_pb2 as pb
from service.rpc.pb import inference_service_pb2 as inference_pb
from service.rpc.pb.generation_service_pb2_grpc import GenerationServiceStub
from service.rpc.pb.inference_service_pb2_grpc import GRPCInferenceServiceStub
from service.rpc.server import SERVICE, Rpc
from service.settings import Settings
from tests.fakes import SIDE
from tests.http2 import Connection
from tests.live import ROOT, LiveServer
from tests.test_streams import MODEL, SECONDS, metered  # noqa: F401  # the latter is a fixture

CONFIGURATION = (ROOT / "deploy" / "nginx" / "genserve.conf").read_text()
# What Debian's nginx.conf has around it, with all files in one folder.
AROUND = """
{user}
daemon off;
pid {folder}/pid;
error_log {folder}/error.log info;
events {{ worker_connections 768; }}
http {{
    access_log off;
    gzip on;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/genserve.conf;
}}
"""

pytestmark = pytest.mark.skipif(
    not shutil.which("nginx"), reason="nginx comes with Debian's package of it"
)


@dataclass(frozen=True)
class Proxy:
    """A running nginx."""

    port: int
    folder: Path
    authority: str

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    @property
    def trust(self) -> ssl.SSLContext:
        """What its clients trust."""
        return ssl.create_default_context(cafile=self.authority)

    def client(self, **options: Any) -> httpx.Client:
        """A client of REST."""
        url = f"https://{self.address}"
        return httpx.Client(base_url=url, verify=self.trust, timeout=SECONDS, **options)

    def credentials(self) -> grpc.ChannelCredentials:
        """What its clients over gRPC trust."""
        return grpc.ssl_channel_credentials(Path(self.authority).read_bytes())

    def log(self) -> list[dict[str, Any]]:
        """Return its access log, by request."""
        return list(map(json.loads, (self.folder / "genserve.log").read_text().splitlines()))


@contextmanager
def nginx(
    folder: Path, identity: tuple[str, str], http_port: int, grpc_port: int
) -> Iterator[Proxy]:
    """Run the documented configuration: only ports and files are others."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    certificate, private_key = identity
    text = CONFIGURATION
    for documented, actual in {
        "listen 443 ssl http2": f"listen 127.0.0.1:{port} ssl http2",
        "127.0.0.1:8000": f"127.0.0.1:{http_port}",
        "127.0.0.1:8001": f"127.0.0.1:{grpc_port}",
        "/etc/ssl/genserve/chain.pem": certificate,
        "/etc/ssl/genserve/key.pem": private_key,
        "/var/log/nginx": str(folder),
    }.items():
        assert text.count(documented) == 1
        text = text.replace(documented, actual)
    (folder / "genserve.conf").write_text(text)
    user = "" if os.geteuid() else "user root;"  # the folder of a test is its owner's alone
    (folder / "nginx.conf").write_text(AROUND.format(folder=folder, user=user))
    command = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0 and "[warn]" not in checked.stderr, checked.stderr
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        while True:
            assert process.poll() is None, (folder / "error.log").read_text()
            try:
                socket.create_connection(("127.0.0.1", port), timeout=SECONDS).close()
                break
            except ConnectionRefusedError:
                continue
        yield Proxy(port, folder, certificate)
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A key, and the file that lets it in."""
    made, line = create_key("nginx")
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(line)
    return made, path


@pytest.fixture(scope="module")
def server(repository: Path, key: tuple[str, Path]) -> Iterator[LiveServer]:
    names = "toy-gan,toy-flow,toy-raster"
    with LiveServer(repository, default_models=names, api_key_hashes=str(key[1])) as live:
        live.wait_until_ready()
        yield live


@pytest.fixture(scope="module")
def proxy(
    server: LiveServer, identity: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("nginx")
    with nginx(folder, identity, server.http_port, server.grpc_port) as running:
        yield running


@pytest.fixture
def client(proxy: Proxy, key: tuple[str, Path]) -> Iterator[httpx.Client]:
    with proxy.client(headers={"Authorization": f"Bearer {key[0]}"}) as opened:
        yield opened


@pytest.fixture
def call_credentials(proxy: Proxy, key: tuple[str, Path]) -> grpc.ChannelCredentials:
    """TLS, and the key for each call."""
    token = grpc.access_token_call_credentials(key[0])
    return grpc.composite_channel_credentials(proxy.credentials(), token)


@pytest.fixture
def channel(proxy: Proxy, call_credentials: grpc.ChannelCredentials) -> Iterator[grpc.Channel]:
    with grpc.secure_channel(proxy.address, call_credentials) as opened:
        yield opened


def test_both_transports_answer_the_same_on_one_port(
    client: httpx.Client, channel: grpc.Channel
) -> None:
    body = {"model": "toy-gan", "count": 2, "seed": 7, "image_format": "array"}
    rest = client.post("/sample", json=body)
    assert rest.status_code == 200, rest.text
    request = pb.SampleRequest(model="toy-gan", count=2, seed=7)
    rpc = GenerationServiceStub(channel).Sample(request, timeout=SECONDS)
    assert np.asarray(rest.json()["images"], np.uint8).tobytes() == rpc.images.levels != b""


def test_who_has_no_key_is_refused_by_the_server(proxy: Proxy, client: httpx.Client) -> None:
    assert client.get("/models").status_code == 200
    with proxy.client() as stranger:
        refused = stranger.get("/models")
    assert (refused.status_code, refused.json()["reason"]) == (401, "UNAUTHENTICATED")
    with (
        grpc.secure_channel(proxy.address, proxy.credentials()) as channel,
        pytest.raises(grpc.RpcError) as refusal,
    ):
        GenerationServiceStub(channel).ListModels(pb.ListModelsRequest(), timeout=SECONDS)
    assert refusal.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_every_service_of_grpc_is_reached(channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    answer = health.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    inference = GRPCInferenceServiceStub(channel)
    assert inference.ServerLive(inference_pb.ServerLiveRequest(), timeout=SECONDS).live
    question = iter([ServerReflectionRequest(list_services="")])
    (listed,) = ServerReflectionStub(channel).ServerReflectionInfo(question, timeout=SECONDS)
    names = {service.name for service in listed.list_services_response.service}
    assert SERVICE in names and len(names) == 4
    assert all(name.replace(".", r"\.") in CONFIGURATION for name in names)


async def test_a_feed_is_answered_message_by_message(
    proxy: Proxy, call_credentials: grpc.ChannelCredentials
) -> None:
    """Each is sent when the one before is answered; together they are more than a body may be."""
    image = pb.Images(count=1, height=1, width=1, channels=1, levels=bytes(10_000_000))
    request = pb.LikelihoodRequest(model="toy-flow", images=image)
    async with grpc.aio.secure_channel(proxy.address, call_credentials) as channel:
        call = GenerationServiceStub(channel).StreamLikelihood(timeout=SECONDS)
        for _ in range(3):
            await call.write(pb.StreamLikelihoodRequest(request=request))
            assert (await call.read()).error.reason == "INVALID_IMAGE"
        await call.done_writing()
        assert await call.code() == grpc.StatusCode.OK


def test_a_body_over_the_limit_is_refused_by_the_server_and_far_over_it_by_nginx(
    client: httpx.Client,
) -> None:
    limit = Settings().maximum_body_bytes
    headers = {"Content-Type": "application/json"}
    refused = client.post("/likelihood", content=bytes(limit + 1), headers=headers)
    assert (refused.status_code, refused.json()["reason"]) == (413, "PAYLOAD_TOO_LARGE")
    refused = client.post("/likelihood", content=bytes(18 * 2**20), headers=headers)
    assert refused.status_code == 413 and "nginx" in refused.text


def test_both_logs_say_one_request_by_its_id_and_nginx_its_address(
    proxy: Proxy, server: LiveServer, client: httpx.Client, channel: grpc.Channel
) -> None:
    client.get("/models/nobody", headers={"X-Request-Id": "over-rest"})
    metadata = (("x-request-id", "over-grpc"),)
    stub = GenerationServiceStub(channel)
    with pytest.raises(grpc.RpcError):
        stub.GetModel(pb.GetModelRequest(model="nobody"), metadata=metadata, timeout=SECONDS)
    metadata = (("x-request-id", "answered"),)
    stub.ListModels(pb.ListModelsRequest(), metadata=metadata, timeout=SECONDS)
    named = client.get("/healthz").headers["x-request-id"]
    ids = {"over-rest", "over-grpc", "answered", named}
    for log in (proxy.log, lambda: server.log):  # a line follows the answer
        wait_for(lambda log=log: ids <= {entry.get("request_id") for entry in log()})
    seen = {line["request_id"]: line for line in proxy.log()}
    assert seen["over-rest"]["client"] == seen["over-grpc"]["client"] == "127.0.0.1"
    assert (seen["over-rest"]["path"], seen["over-rest"]["status"]) == ("/models/nobody", 404)
    not_found = str(grpc.StatusCode.NOT_FOUND.value[0])
    assert seen["over-grpc"]["grpc_status"] == not_found
    assert seen["answered"]["grpc_status"] == "0"
    assert seen[named]["path"] == "/healthz", "an id that the server made"


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_strangers_see_no_metrics(client: httpx.Client) -> None:
    assert client.get("/metrics").status_code == 403
    assert client.get("/%6Detrics").status_code == 403


@pytest.mark.parametrize("path", [f"/{SERVICE}/\xff", f"/{SERVICE}/%FF", "/\xff/Sample"])
def test_a_path_that_is_no_text_does_not_reach_grpc(
    path: str, proxy: Proxy, server: LiveServer, channel: grpc.Channel
) -> None:
    """It would break the server's gRPC (`test_security`), and every call in flight with it."""
    tls = proxy.trust
    tls.set_alpn_protocols(["h2"])
    with Connection(proxy.port, tls=tls) as connection:
        connection.call(path, b"")
        assert connection.status() is None
    answer = GenerationServiceStub(channel).Sample(pb.SampleRequest(seed=1), timeout=SECONDS)
    assert answer.images.count == 1
    assert not [entry for entry in server.log if entry["level"] in ("error", "not JSON")]


def test_times_fit_those_of_the_server() -> None:
    """Nginx must be the first to let go of an idle connection, and the last to give up waiting."""
    times = dict(re.findall(r"(\w+_(?:timeout)) (\d+)s;", CONFIGURATION))
    assert int(times["keepalive_timeout"]) < uvicorn.Config("service").timeout_keep_alive
    for name in ("proxy_read_timeout", "grpc_read_timeout", "client_body_timeout"):
        assert int(times[name]) > Settings().default_timeout_ms / 1000


@pytest.fixture
async def metered_proxy(
    engine: Engine,
    metrics: Metrics,
    rpc: Rpc,
    metered: Any,  # noqa: F811
    identity: tuple[str, str],
    tmp_path: Path,
) -> AsyncIterator[Proxy]:
    """Nginx before both transports, as they are served, of an engine that paints when it may."""
    app = create_app(
        engine, metrics=metrics, maximum_body_bytes=2**20, cors_origins=(), version="1.2.3"
    )
    grpc_port = rpc.server.add_insecure_port("127.0.0.1:0")
    await rpc.start()
    rest = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", ws="none"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(rest.serve([listener]))
        with nginx(tmp_path, identity, listener.getsockname()[1], grpc_port) as running:
            yield running
        rest.should_exit = True
        await serving


async def test_events_pass_before_the_next_are_made(
    metered_proxy: Proxy,
    metered: Any,  # noqa: F811
) -> None:
    metered.allowed.release()  # it paints one row, and then waits
    async with (
        httpx.AsyncClient(verify=metered_proxy.trust, timeout=SECONDS) as client,
        client.stream(
            "POST", f"https://{metered_proxy.address}/sample/stream", json={"model": MODEL}
        ) as answer,
    ):
        lines = answer.aiter_lines()
        for row in range(SIDE):
            assert await anext(lines) == "event: rows"
            assert json.loads((await anext(lines)).removeprefix("data: "))["rows_done"] == row + 1
            assert await anext(lines) == ""
            metered.allowed.release()
        assert await anext(lines) == "event: result"


async def test_messages_of_a_stream_pass_before_the_next_are_made(
    metered_proxy: Proxy,
    metered: Any,  # noqa: F811
) -> None:
    request = pb.StreamSampleRequest(request=pb.SampleRequest(model=MODEL))
    credentials = metered_proxy.credentials()
    async with grpc.aio.secure_channel(metered_proxy.address, credentials) as channel:
        call = GenerationServiceStub(channel).StreamSample(request, timeout=SECONDS)
        for row in range(SIDE):
            metered.allowed.release()
            assert (await call.read()).rows.rows_done == row + 1
        assert (await call.read()).result.images.count == 1
