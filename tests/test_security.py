"""What docs/security.md claims and no other test proves: keys, TLS, limits, no way to files."""

import ast
import asyncio
import gzip
import io
import os
import re
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from grpc_status import rpc_status
from PIL import Image

from service.__main__ import main
from service.admission import Admission
from service.api.app import create_app
from service.api.guard import OPEN, PROBES
from service.core.engine import Engine
from service.errors import StartupError, Unauthenticated
from service.keys import Keys, create_key, read_keys
from service.metrics import Metrics
from service.rpc.pb import generation_service_pb2 as pb
from service.rpc.pb.generation_service_pb2_grpc import GenerationServiceStub
from service.rpc.server import INFERENCE_SERVICE, SERVICE, Rpc, create_server
from service.tls import find_identity
from tests.fakes import PIXELS, SIDE
from tests.http2 import Connection, message
from tests.live import ROOT, LiveServer

KEY, LINE = create_key("tests")
OTHER_KEY, OTHER_LINE = create_key("others")
BEARER = {"Authorization": f"Bearer {KEY}"}
METHODS = pb.DESCRIPTOR.services_by_name["GenerationService"].methods
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED

Client = Callable[..., httpx.AsyncClient]


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    path = tmp_path / "keys"
    path.write_text(f"# who may call\n\n{OTHER_LINE}\n{LINE}  # with a comment\n")
    return read_keys(path)


@pytest.fixture
async def client_of(engine: Engine, metrics: Metrics) -> AsyncIterator[Client]:
    """Makes clients of an app with other bounds, or with keys."""
    opened = []

    def make(*, admission: Admission | None = None, keys: Keys | None = None) -> httpx.AsyncClient:
        app = create_app(
            engine,
            metrics=metrics,
            maximum_body_bytes=64 * 1024,
            cors_origins=("https://a.example",),
            version="1",
            admission=admission,
            keys=keys,
        )
        transport = httpx.ASGITransport(app)
        opened.append(httpx.AsyncClient(transport=transport, base_url="http://genserve"))
        return opened[-1]

    yield make
    for client in opened:
        await client.aclose()


@pytest.fixture
async def channel_of(engine: Engine, metrics: Metrics) -> AsyncIterator[Callable[..., object]]:
    """Makes channels to a server with other bounds, or with keys."""
    started: list[tuple[Rpc, grpc.aio.Channel]] = []

    async def make(
        *, admission: Admission | None = None, keys: Keys | None = None
    ) -> grpc.aio.Channel:
        rpc = create_server(
            engine,
            metrics=metrics,
            maximum_message_bytes=2**20,
            version="1.2.3",
            admission=admission,
            keys=keys,
        )
        port = rpc.server.add_insecure_port("127.0.0.1:0")
        await rpc.start()
        started.append((rpc, grpc.aio.insecure_channel(f"127.0.0.1:{port}")))
        return started[-1][1]

    yield make
    for rpc, channel in started:
        await channel.close()
        await rpc.server.stop(0)


def reason_of(error: grpc.aio.AioRpcError) -> tuple[str, bool]:
    """The reason of a refusal, and whether it says when to try again."""
    info, hint = ErrorInfo(), False
    for detail in rpc_status.from_call(error).details:
        detail.Unpack(info)
        hint = hint or detail.Is(RetryInfo.DESCRIPTOR)
    return info.reason, hint


# Keys


def test_the_command_prints_a_key_and_the_line_that_lets_it_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["key", "ci"]) == 0
    printed = capsys.readouterr()
    (tmp_path / "keys").write_text(printed.out)
    key = printed.err.strip().partition("=")[2]
    keys = read_keys(tmp_path / "keys")
    keys.check(f"Bearer {key}")
    assert key not in printed.out and len(key) > 43, "256 bits, and the file holds the hash alone"
    digest = printed.out.split()[0].removeprefix("sha256:")
    for wrong in (None, "", "Bearer", f"Bearer {digest}", f"Basic {key}", f"Bearer {key}x", "é"):
        with pytest.raises(Unauthenticated) as refusal:
            keys.check(wrong)
        assert key not in refusal.value.message


def test_every_hash_is_compared_wherever_the_key_is(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []

    def spy(one: str, other: str) -> bool:
        compared.append(one)
        return one == other

    monkeypatch.setattr("hmac.compare_digest", spy)
    for key in (KEY, OTHER_KEY):
        compared.clear()
        keys.check(f"Bearer {key}")
        assert len(compared) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "can't be read"),
        (b"", "holds no key"),
        (b"# nobody\n", "holds no key"),
        (f"{KEY} name".encode(), "line 1"),
        (f"{LINE}\nsha256:12 name".encode(), "line 2"),
        (b"\xff\xfe", "not text"),
    ],
)
def test_a_wrong_file_of_keys_is_one_sentence_that_holds_no_key(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StartupError, match=words) as refusal:
        read_keys(path)
    assert "GENSERVE_API_KEY_HASHES" in str(refusal.value) and KEY not in str(refusal.value)


async def test_every_path_but_the_open_ones_needs_a_key(client_of: Client, keys: Keys) -> None:
    client = client_of(keys=keys)
    document = (await client.get("/openapi.json")).json()
    schemes = document["components"]["securitySchemes"]
    assert schemes["api_key"]["type"] == "http" and schemes["api_key"]["scheme"] == "bearer"
    seen = set()
    names = {"name": "toy-gan", "id": "none"}
    for path, operations in document["paths"].items():
        for method, described in operations.items():
            answer = await client.request(method, path.format(**names))
            if path in OPEN:
                seen.add(path)
                assert answer.status_code == 200 and described["security"] == []
                continue
            assert answer.status_code == 401 and answer.json()["reason"] == "UNAUTHENTICATED"
            assert answer.headers["www-authenticate"] == "Bearer"
            assert described["security"] == [{"api_key": []}] and "4XX" in described["responses"]
            let_in = await client.request(method, path.format(**names), headers=BEARER)
            assert let_in.status_code != 401
    assert seen == set(PROBES) & set(document["paths"]), "of what the document describes"
    assert (await client.get("/docs")).status_code == 200
    assert (await client.get("/")).status_code == 200, "the page asks for the key itself"
    assert (await client.get("/studio/studio.js")).status_code == 200
    assert (await client.get("/no-such-path")).status_code == 401


async def test_the_inference_protocol_needs_a_key_and_refuses_in_its_shape(
    client_of: Client, keys: Keys
) -> None:
    client = client_of(keys=keys)
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert (await client.get(path)).status_code == 200
    for method, path in (
        ("GET", "/v2"),
        ("GET", "/v2/models/toy-gan.decode"),
        ("POST", "/v2/models/toy-gan.decode/infer"),
        ("POST", "/v2/repository/index"),
    ):
        answer = await client.request(method, path)
        assert answer.status_code == 401 and answer.json().keys() == {"error"}
        assert answer.headers["www-authenticate"] == "Bearer"
        assert (await client.request(method, path, headers=BEARER)).status_code != 401


async def test_a_wrong_key_is_refused_and_counted(
    client_of: Client, keys: Keys, metrics: Metrics
) -> None:
    client = client_of(keys=keys)
    for wrong in ("Bearer x", f"bearer {KEY[:-1]}", f"Token {KEY}", KEY, "Bearer \xff"):
        headers = {"Authorization": wrong.encode("latin-1")}
        answer = await client.post("/sample", json={"seed": 1}, headers=headers)
        assert answer.status_code == 401
        assert KEY not in answer.text
    assert (await client.post("/sample", json={"seed": 1}, headers=BEARER)).status_code == 200
    (family,) = metrics.requests.collect()
    counted = {
        sample.labels["code"]: sample.value
        for sample in family.samples
        if sample.name.endswith("_total") and sample.value
    }
    assert counted == {"UNAUTHENTICATED": 5, "OK": 1}


async def test_browsers_may_ask_first_and_read_a_refusal(client_of: Client, keys: Keys) -> None:
    client = client_of(keys=keys)
    origin = {"Origin": "https://a.example"}
    asked = {"Access-Control-Request-Method": "POST"}
    asked["Access-Control-Request-Headers"] = "authorization,content-type"
    preflight = await client.options("/sample", headers=origin | asked)
    assert preflight.status_code == 200
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    refused = await client.post("/sample", json={}, headers=origin)
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://a.example"


async def test_every_method_but_health_needs_a_key(
    channel_of: Callable[..., object], keys: Keys
) -> None:
    channel = await channel_of(keys=keys)
    paths = [f"/{SERVICE}/{method.name}" for method in METHODS]
    paths += [f"/{INFERENCE_SERVICE}/{method}" for method in ("ModelInfer", "ModelStreamInfer")]
    paths += ["/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "/no.such/Method"]
    for path in paths:
        for metadata in (None, (("authorization", "Bearer x"),)):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.unary_unary(path)(b"", metadata=metadata, timeout=20)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert reason_of(refused.value) == ("UNAUTHENTICATED", False)
            assert dict(refused.value.trailing_metadata())["x-request-id"]
    waiting = channel.stream_stream(f"/{SERVICE}/StreamLikelihood")(timeout=20)
    with pytest.raises(grpc.aio.AioRpcError):  # although it has not sent a message
        await waiting.read()
    assert await waiting.code() is grpc.StatusCode.UNAUTHENTICATED
    stub = health_pb2_grpc.HealthStub(channel)
    assert (await stub.Check(health_pb2.HealthCheckRequest())).status
    watching = stub.Watch(health_pb2.HealthCheckRequest(), timeout=20)
    assert (await watching.read()).status
    watching.cancel()


async def test_a_key_lets_calls_and_streams_in(
    channel_of: Callable[..., object], keys: Keys
) -> None:
    channel = await channel_of(keys=keys)
    stub, metadata = GenerationServiceStub(channel), (("authorization", f"Bearer {KEY}"),)
    answer = await stub.Sample(pb.SampleRequest(seed=1), metadata=metadata)
    assert answer.images.count == 1
    asked = pb.StreamSampleRequest(request=pb.SampleRequest(seed=1))
    steps = [step async for step in stub.StreamSample(asked, metadata=metadata)]
    assert steps[-1].result.images == answer.images
    reflected = ServerReflectionStub(channel).ServerReflectionInfo(
        iter([ServerReflectionRequest(list_services="")]), metadata=metadata
    )
    assert [each async for each in reflected]


# TLS


def openssl(arguments: str) -> None:
    subprocess.run(["openssl", *arguments.split()], check=True, capture_output=True)


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_both_transports_speak_tls_and_the_client_brings_its_key(
    repository: Path, identity: tuple[str, str], tmp_path: Path
) -> None:
    certificate, private_key = identity
    (tmp_path / "keys").write_text(LINE)
    settings = {
        "default_models": "toy-gan",
        "tls_certificate": certificate,
        "tls_private_key": private_key,
        "api_key_hashes": str(tmp_path / "keys"),
    }
    with LiveServer(repository, **settings) as server:
        trusting = ssl.create_default_context(cafile=certificate)
        url = f"https://127.0.0.1:{server.http_port}"
        with urllib.request.urlopen(url + "/healthz", timeout=10, context=trusting) as answer:
            assert answer.status == 200
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            urllib.request.urlopen(url + "/healthz", timeout=10)
        with pytest.raises(OSError):
            urllib.request.urlopen(server.url + "/healthz", timeout=10)
        picture = str(tmp_path / "picture.png")
        address = ("--address", f"127.0.0.1:{server.grpc_port}")
        sample = ("sample", *address, "--seed", "1", "--out", picture)
        done = command(*sample, "--ca-file", certificate, GENSERVE_API_KEY=KEY)
        assert done.returncode == 0, done.stderr
        assert Path(picture).read_bytes().startswith(b"\x89PNG")
        refused = command(*sample, "--ca-file", certificate)
        assert refused.returncode == 1 and "UNAUTHENTICATED" in refused.stderr
        assert command(*sample, GENSERVE_API_KEY=KEY).returncode == 1, "no TLS, no answer"
        missing = command(*sample, "--ca-file", "nowhere.pem")
        assert missing.returncode == 1 and "nowhere.pem can't be read" in missing.stderr
        assert server.stop() == 0


def test_wrong_files_of_tls_are_one_sentence(
    identity: tuple[str, str], tmp_path: Path, repository: Path
) -> None:
    certificate, private_key = map(Path, identity)
    garbage, locked = tmp_path / "garbage.pem", tmp_path / "locked.pem"
    garbage.write_text("no certificate")
    openssl(f"rsa -aes128 -passout pass:secret -in {private_key} -out {locked}")
    for one, other, words in (
        (certificate, None, "GENSERVE_TLS_PRIVATE_KEY"),
        (None, private_key, "GENSERVE_TLS_CERTIFICATE"),
        (tmp_path / "nowhere", private_key, "can't be read"),
        (garbage, private_key, "no PEM certificate"),
        (certificate, garbage, "no PEM certificate"),
        (certificate, certificate, "no PEM certificate"),
        (certificate, locked, "unencrypted"),
    ):
        with pytest.raises(StartupError, match=words):
            find_identity(one, other)
    done = command(
        "serve", "--model-repository", str(repository), "--default-models", "toy-gan",
        "--tls-certificate", str(garbage), "--tls-private-key", str(private_key),
    )  # fmt: skip
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1


# What is held at once


async def test_requests_beyond_the_bound_are_refused_and_probes_are_not(
    client_of: Client, channel_of: Callable[..., object]
) -> None:
    full = Admission(maximum_requests=1)
    full.enter()  # a request that lasts
    client = client_of(admission=full)
    refused = await client.post("/sample", json={})
    assert refused.status_code == 429 and refused.json()["reason"] == "TOO_MANY_REQUESTS"
    assert int(refused.headers["retry-after"]) >= 1
    for path in PROBES:
        assert (await client.get(path)).status_code == 200
    channel = await channel_of(admission=full)
    stub = GenerationServiceStub(channel)
    feed = stub.StreamLikelihood(iter([pb.StreamLikelihoodRequest()]))
    for call in (stub.Sample(pb.SampleRequest()), feed.read()):
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await call
        assert refusal.value.code() is EXHAUSTED
        assert reason_of(refusal.value) == ("TOO_MANY_REQUESTS", True)
    check = health_pb2_grpc.HealthStub(channel).Check
    assert (await check(health_pb2.HealthCheckRequest())).status
    full.leave(0)
    assert (await client.post("/sample", json={})).status_code == 200
    assert (await stub.Sample(pb.SampleRequest())).images.count == 1


async def test_bytes_beyond_the_bound_are_refused_and_all_are_given_back(
    client_of: Client, channel_of: Callable[..., object]
) -> None:
    admission = Admission(maximum_bytes=30_000)
    client = client_of(admission=admission)
    stub = GenerationServiceStub(await channel_of(admission=admission))
    small = pb.SampleRequest(model="x" * 20_000)
    large = pb.SampleRequest(model="x" * 40_000)
    for _ in range(3):  # what a request held is given back however it ended
        assert (await client.post("/sample", content=bytes(20_000))).status_code == 415
        assert (await client.post("/sample", content=bytes(40_000))).status_code == 429
        for asked, code in ((small, grpc.StatusCode.NOT_FOUND), (large, EXHAUSTED)):
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await stub.Sample(asked)
            assert refusal.value.code() is code


async def test_a_feed_holds_what_is_not_answered_and_no_more(
    channel_of: Callable[..., object],
) -> None:
    images = pb.Images(count=1, height=SIDE, width=SIDE, channels=1, levels=bytes(PIXELS))
    request = pb.LikelihoodRequest(model="toy-flow", images=images)
    entry = pb.StreamLikelihoodRequest(request=request)
    enough = Admission(maximum_bytes=33 * entry.ByteSize())
    stub = GenerationServiceStub(await channel_of(admission=enough))
    answers = [answer async for answer in stub.StreamLikelihood(iter([entry] * 200))]
    assert len(answers) == 200 and all(answer.HasField("result") for answer in answers)
    little = Admission(maximum_bytes=3 * entry.ByteSize())
    stub = GenerationServiceStub(await channel_of(admission=little))
    feed = stub.StreamLikelihood()
    for _ in range(4):
        await feed.write(entry)
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        while await feed.read():
            pass
    assert reason_of(refusal.value) == ("TOO_MANY_REQUESTS", True)
    little.take(3 * entry.ByteSize())  # raises unless all was given back


# Connections and slow clients, on a real server


@pytest.fixture(scope="module")
def strict(repository: Path) -> Iterator[LiveServer]:
    """A server of few connections, that waits for a client for a second."""
    settings = {
        "default_models": "toy-gan",
        "workers": "2",
        "maximum_connections": "4",
        "default_timeout_ms": "1000",
        "drain_seconds": "5",
    }
    with LiveServer(repository, **settings) as server:
        server.wait_until_ready()
        yield server


def connected(server: LiveServer, sent: bytes = b"", receive_buffer: int = 0) -> socket.socket:
    opened = socket.socket()
    if receive_buffer:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    opened.settimeout(20)
    opened.connect(("127.0.0.1", server.http_port))
    opened.sendall(sent)
    return opened


def read_all(opened: socket.socket) -> bytes:
    """Read until the server ends the connection."""
    content = b""
    try:
        while received := opened.recv(65536):
            content += received
    except ConnectionError:
        pass
    return content


def exchange(server: LiveServer, sent: bytes) -> bytes:
    """Send this on a connection of its own, and return all that comes back."""
    with connected(server, sent) as opened:
        return read_all(opened)


def get(path: str, headers: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: genserve\r\n{headers}\r\n".encode()


def test_connections_beyond_the_bound_are_refused_and_those_beyond_twice_it_cut(
    strict: LiveServer,
) -> None:
    idle = [connected(strict) for _ in range(4)]
    try:
        models = get("/models", "Connection: close\r\n")
        refused = exchange(strict, get("/models"))  # returns, since it is closed
        assert refused.startswith(b"HTTP/1.1 429 ") and b"TOO_MANY_REQUESTS" in refused
        assert re.search(rb"\r\nretry-after: \d+\r\n", refused, re.I)
        probed = exchange(strict, get("/healthz", "Connection: close\r\n"))
        assert probed.startswith(b"HTTP/1.1 200 ")
        idle += [connected(strict) for _ in range(4)]
        assert exchange(strict, models) == b"", "cut without an answer"
        for opened in idle:  # whoever sends nothing is cut, which makes room
            assert read_all(opened) == b""
        assert exchange(strict, models).startswith(b"HTTP/1.1 200 ")
    finally:
        for opened in idle:
            opened.close()


def test_connections_of_grpc_beyond_the_bound_are_cut(strict: LiveServer) -> None:
    sample = message(pb.SampleRequest(seed=1).SerializeToString())
    with ExitStack() as opened:
        statuses = []
        for _ in range(6):
            connection = opened.enter_context(Connection(strict.grpc_port))
            with suppress(ConnectionError):  # it may be cut while it is written to
                connection.call(f"/{SERVICE}/Sample", sample)
            statuses.append(connection.status())
    assert statuses == [0] * 4 + [None] * 2


ENDLESS = b"GET /models HTTP/1.1\r\nHost: genserve" + b"e" * 400


@pytest.mark.parametrize("begun", [b"", ENDLESS[:30], get("/models")])
def test_slow_headers_end_a_connection(strict: LiveServer, begun: bytes) -> None:
    """First ones, half ones, and those of a second request, of which a byte comes now and then."""
    with connected(strict, begun) as opened:
        answers = b""
        try:
            for byte in ENDLESS[30 if begun == ENDLESS[:30] else 0 :]:
                opened.sendall(bytes([byte]))
                opened.settimeout(0.05)
                try:
                    received = opened.recv(65536)
                except TimeoutError:
                    continue
                answers += received
                if not received:
                    break
            else:
                raise AssertionError("never cut")
        except ConnectionError:
            pass
        assert answers.count(b"HTTP/1.1") == (begun == get("/models"))


def in_flight(server: LiveServer) -> float:
    found = re.search(r"^genserve_requests_in_flight (\S+)", server.get("/metrics")[1], re.M)
    assert found
    return float(found[1])


def test_who_does_not_read_answers_is_cut(strict: LiveServer) -> None:
    body = b'{"count": 256, "image_format": "array"}'
    head = b"POST /sample HTTP/1.1\r\nHost: g\r\nContent-Type: application/json\r\n"
    request = head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    with connected(strict, receive_buffer=4096) as opened:
        opened.sendall(request * 1000)
        time.sleep(3)  # the deadline, and some more
        assert read_all(opened).count(b"HTTP/1.1 200") < 1000
    assert in_flight(strict) == 0


def test_who_does_not_read_a_stream_of_grpc_frees_what_paints_it(strict: LiveServer) -> None:
    sample = pb.SampleRequest(model="toy-raster", count=8, seed=1)
    asked = pb.StreamSampleRequest(request=sample).SerializeToString()
    with Connection(strict.grpc_port, window=0) as connection:
        connection.call(f"/{SERVICE}/StreamSample", message(asked))
        wait_until(lambda: "genserve_open_streams 1.0" in strict.get("/metrics")[1])
        wait_until(lambda: "genserve_open_streams 0.0" in strict.get("/metrics")[1])
        assert in_flight(strict) == 0, "although the client is still there"
    assert not [entry for entry in strict.log if entry["level"] == "error"]


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_who_watches_the_health_and_does_not_read_holds_no_shutdown_up(
    repository: Path,
) -> None:
    settings = {"default_models": "toy-gan", "drain_seconds": "2"}
    with LiveServer(repository, **settings) as server:
        server.wait_until_ready()
        with Connection(server.grpc_port, window=0) as connection:
            connection.call("/grpc.health.v1.Health/Watch", message(b""))
            assert server.get("/healthz")[0] == 200
            assert server.stop(30) == 0


def test_who_watches_the_health_is_told_of_the_end(repository: Path) -> None:
    with LiveServer(repository, default_models="toy-gan") as server:
        server.wait_until_ready()
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            request = health_pb2.HealthCheckRequest(service=SERVICE)
            seen = health_pb2_grpc.HealthStub(channel).Watch(request, timeout=60)
            assert next(seen).status == health_pb2.HealthCheckResponse.SERVING
            server.process.terminate()
            assert next(seen).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert list(seen) == []
        assert server.process.wait(30) == 0


def test_a_path_that_is_no_text_stops_grpc_for_a_moment_only(repository: Path) -> None:
    """Grpc.aio 1.85 stops for good."""
    with LiveServer(repository, default_models="toy-gan") as server:
        server.wait_until_ready()
        for _ in range(3):
            with Connection(server.grpc_port) as connection:
                connection.call(f"/{SERVICE}/\xff", message(b""))
                connection.status()
            with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
                wait_until(partial(samples, GenerationServiceStub(channel)), seconds=60)
        assert server.stop() == 0


def samples(stub: GenerationServiceStub) -> bool:
    try:
        answer = stub.Sample(pb.SampleRequest(seed=1), timeout=20, wait_for_ready=True)
    except grpc.RpcError as error:
        # The server that broke may take the call, and drop it or cancel it when it goes.
        assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED), error
        return False
    return answer.images.count == 1


# Bytes that are more than they seem


async def test_compressed_bodies_are_refused(client_of: Client) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    content = gzip.compress(b'{"seed": 1}')
    answer = await client_of().post("/sample", content=content, headers=headers)
    assert answer.status_code == 415 and "identity" in answer.json()["detail"]


@pytest.mark.parametrize("content", [gzip.compress(bytes(10**7)), b"garbage", b""])
async def test_compressed_messages_are_refused(rpc: Rpc, content: bytes) -> None:
    port = rpc.server.add_insecure_port("127.0.0.1:0")
    await rpc.start()

    def call() -> int | None:
        with Connection(port) as connection:
            compressed = message(content, compressed=True)
            connection.call(f"/{SERVICE}/Sample", compressed, grpc_encoding="gzip")
            return connection.status()

    assert await asyncio.to_thread(call) == grpc.StatusCode.UNIMPLEMENTED.value[0]


# No pickle, no files


def test_nothing_that_is_served_can_be_unpickled() -> None:
    loaders = 0
    for path in (ROOT / "service").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [str(node.module)]
            assert not {"pickle", "marshal", "shelve", "dill", "joblib"} & set(names), path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                called = ast.unparse(node.func)
                if called.endswith((".read_array", "np.load", "numpy.load")):
                    loaders += 1
                    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                    assert given.get("allow_pickle") == "False", f"{path}: {called}"
    assert loaders


HOSTILE = (
    "../../etc/passwd",
    "/etc/passwd",
    "..\\..\\x",
    "toy-gan@../1",
    "x\0y",
    "C:\\x",
    "file:///x",
)

_opened: list[str] | None = None


def _note_opened(event: str, arguments: tuple[object, ...]) -> None:
    if _opened is not None and event in ("open", "os.listdir", "os.scandir", "subprocess.Popen"):
        _opened.append(f"{event} {arguments[0]!r}")


async def test_no_name_in_a_request_leads_to_a_file(
    client_of: Client, stub: GenerationServiceStub
) -> None:
    global _opened
    client = client_of()
    picture, archive = io.BytesIO(), io.BytesIO()
    Image.new("L", (SIDE, SIDE)).save(picture, format="PNG")
    with zipfile.ZipFile(archive, "w") as written:
        for name in HOSTILE:
            written.writestr(name, picture.getvalue())
    npy = io.BytesIO()
    np.save(npy, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    await client.post("/likelihood?model=toy-flow", content=b"")  # imports what is imported late
    await client.get("/models/none")  # FastAPI reads the source of a route that refuses, once
    sys.addaudithook(_note_opened)
    _opened = []
    try:
        for name in HOSTILE:
            answer = await client.post("/sample", json={"model": name})
            assert answer.status_code == 404, answer.text
            path = urllib.request.pathname2url(name)
            assert (await client.get(f"/models/{path}")).status_code == 404
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await stub.GetModel(pb.GetModelRequest(model=name))
            assert refusal.value.code() is grpc.StatusCode.NOT_FOUND
            files = {"images": (name, picture.getvalue(), "image/png")}
            answer = await client.post("/encode", data={"model": "toy-flow"}, files=files)
            assert answer.status_code == 200, answer.text
        zipped = {"Content-Type": "application/zip"}
        query = "/likelihood?model=toy-flow"
        answer = await client.post(query, content=archive.getvalue(), headers=zipped)
        assert answer.status_code == 200, answer.text
        pickled = {"Content-Type": "application/x-npy"}
        answer = await client.post(query, content=npy.getvalue(), headers=pickled)
        assert answer.status_code == 422
        assert _opened == []
        (ROOT / "README.md").read_bytes()
        assert len(_opened) == 1, "it would have been seen"
    finally:
        _opened = None


# The page


def test_every_claim_of_the_page_names_a_test_that_is_there() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    named = re.findall(r"`(test_\w+)::(test_\w+)`", page)
    assert len(named) > 20
    for module, name in named:
        source = (ROOT / "tests" / f"{module}.py").read_text()
        assert re.search(rf"^(async )?def {name}\(", source, re.M), f"{module}::{name}"
