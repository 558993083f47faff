"""Thousands of generated bad requests on either transport, against a real server.

None is answered with a fault of the server, none waits for ever, and afterwards the server is as it
was. A short run is a part of `make test`, the whole one of `make test-full`.
"""

import json
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
import schemathesis
from grpc_status import rpc_status
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode, Response

from service.rpc.pb import generation_service_pb2 as pb
from service.rpc.pb.generation_service_pb2_grpc import GenerationServiceStub
from service.rpc.server import SERVICE
from tests.conftest import TOYS
from tests.hostile import FILES, NPYS, PNGS, ZIPS, messages, mutated
from tests.http2 import message, opening, request
from tests.live import LiveServer

SECONDS = 30  # for an answer; a request that takes longer hangs
BODY_BYTES = 2**18

REFUSED = "application/problem+json"
OUT_OF_CAPACITY = {503: {"SHUTTING_DOWN", "MODEL_UNAVAILABLE"}, 504: {"DEADLINE_EXCEEDED"}}
FAULTS = {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL}

short_and_whole = pytest.mark.parametrize(
    "requests_each",
    [pytest.param(30, id="short"), pytest.param(2300, id="whole", marks=pytest.mark.slow)],
)


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[LiveServer]:
    started = LiveServer(
        repository,
        default_models=",".join((*TOYS, "toy-raster")),
        workers="2",
        maximum_count="8",
        maximum_body_bytes=str(BODY_BYTES),
        maximum_draws="8",
        default_timeout_ms="10000",
    )
    with started:
        started.wait_until_ready()
        yield started


@pytest.fixture(autouse=True)
def _unharmed(server: LiveServer) -> Iterator[None]:
    """After all of it a good request is answered as before, and nothing is left or logged."""
    good = {"model": "toy-raster", "seed": 1, "image_format": "array"}

    def ask() -> object:
        answer = requests.post(f"{server.url}/sample", json=good, timeout=SECONDS)
        return answer.json()["images"]

    before = ask()
    yield
    assert ask() == before
    deadline = time.monotonic() + SECONDS
    while re.findall(
        r"^genserve_(?:requests_in_flight|open_streams) [^0]", server.get("/metrics")[1], re.M
    ):
        assert time.monotonic() < deadline, "a request is still in flight"
        time.sleep(0.1)
    errors = [entry for entry in server.log if entry["level"] == "error"]
    # A path that is no text breaks gRPC's server, which is replaced: that is worth an error.
    errors = [entry for entry in errors if "can't decode byte" not in json.dumps(entry)]
    assert not errors, json.dumps(errors[0], indent=1)


def for_each(
    strategy: st.SearchStrategy, send: Callable[[Any], None], count: int, number: int
) -> None:
    """Send so many examples, which are the same each time; a failure is not shrunk."""
    run = settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )

    @seed(number)
    @run
    @given(strategy)
    def test(example: Any) -> None:
        send(example)

    test()


# REST

schemathesis.openapi.media_type("image/png", mutated(st.sampled_from(PNGS)))
schemathesis.openapi.media_type("application/x-npy", mutated(st.sampled_from(NPYS)))
schemathesis.openapi.media_type("application/zip", mutated(st.sampled_from(ZIPS)))


@short_and_whole
def test_no_request_over_rest_is_a_fault_of_the_server(
    server: LiveServer, requests_each: int
) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    answers: Counter[int] = Counter()
    session = requests.Session()

    def send(case: Case) -> None:
        answer = case.call(session=session, timeout=SECONDS)
        answers[answer.status_code] += 1
        check_problem(answer)

    for number, found in enumerate(schema.get_all_operations()):
        operation = found.ok()
        sound = operation.as_strategy()  # by the schema; little of it fits a model
        if operation.body:
            hostile = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
            for_each(hostile, send, requests_each * 3 // 10, number)  # these take longest to make
            for_each(sound, send, requests_each * 7 // 10, number)
        else:
            for_each(sound, send, requests_each // 10, number)
    print(f"REST: {sum(answers.values())} requests, answered {dict(answers)}")


def check_problem(answer: Response) -> None:
    if answer.status_code < 400:
        return
    assert answer.headers["content-type"] == [REFUSED], (answer.status_code, answer.text)
    reason = json.loads(answer.content)["reason"]
    if answer.status_code >= 500:
        assert reason in OUT_OF_CAPACITY.get(answer.status_code, ()), answer.text


_BODY = b'{"seed": 1}'
HTTP_REQUESTS = (
    b"GET /models HTTP/1.1\r\nHost: genserve\r\n\r\n",
    b"POST /sample HTTP/1.1\r\nHost: g\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY),
    b"POST /sample HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n"
    b"Content-Type: application/json\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(_BODY), _BODY),
    b"GET / HTTP/1.1\r\nHost: g\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
)


@short_and_whole
def test_no_bytes_over_http_are_a_fault_of_the_server(
    server: LiveServer, requests_each: int
) -> None:
    def send(content: bytes) -> None:
        answer = exchange(server.http_port, content)
        assert not re.search(rb"HTTP/1\.1 5", answer), answer

    for_each(mutated(st.sampled_from(HTTP_REQUESTS)), send, requests_each, 0)


def exchange(port: int, content: bytes) -> bytes:
    """Send bytes on a connection of their own, and return all that come back."""
    with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as opened:
        received = []
        with suppress(ConnectionError):
            opened.sendall(content)
            opened.shutdown(socket.SHUT_WR)
            while piece := opened.recv(65536):
                received.append(piece)
    return b"".join(received)


# gRPC


def paths() -> list[tuple[str, type]]:
    """Every method of the service with the message that it takes."""
    methods = pb.DESCRIPTOR.services_by_name["GenerationService"].methods
    return [(f"/{SERVICE}/{method.name}", method.input_type) for method in methods]


@short_and_whole
def test_no_call_over_grpc_is_a_fault_of_the_server(server: LiveServer, requests_each: int) -> None:
    answers: Counter[str] = Counter()
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options=options) as channel:
        for number, (path, descriptor) in enumerate(paths()):
            sound = messages(descriptor).map(lambda message: message.SerializePartialToString())
            contents = sound | mutated(sound) | FILES

            def send(case: tuple[bytes, int]) -> None:
                answers[call(channel, path, *case)] += 1  # noqa: B023  # called in this turn

            for_each(st.tuples(contents, WAYS), send, requests_each, number)
    print(f"gRPC: {sum(answers.values())} calls, answered {dict(answers)}")


WAYS = st.sampled_from(
    ("as it is",) * 20 + ("unknown", "too large", "compressed", "health", "reflection")
)


def call(channel: grpc.Channel, path: str, content: bytes, way: str) -> str:
    """Call a method with bytes, some of them in an unusual way; the name of its status."""
    compression = None
    if way == "unknown":
        path += "x"
    elif way == "too large":
        content = content + bytes(BODY_BYTES)
    elif way == "compressed":
        compression = grpc.Compression.Gzip
    elif way == "health":
        path = "/grpc.health.v1.Health/Check"
    elif way == "reflection":
        path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    contents = [content] * (1 + len(content) % 3) if "StreamL" in path else [content]
    answered = channel.stream_stream(path)(iter(contents), timeout=SECONDS, compression=compression)
    try:
        for _ in answered:
            pass
    except grpc.RpcError:
        pass
    code = answered.code()
    assert code not in FAULTS, answered.details()
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        assert rpc_status.from_call(answered), "the client's deadline passed, not the server's"
    return str(code.name)


@short_and_whole
def test_no_bytes_over_http2_are_a_fault_of_the_server(
    server: LiveServer, requests_each: int
) -> None:
    """GRPC answers most of them itself: all that matters is that the server outlives them."""
    sound = message(pb.SampleRequest(seed=1).SerializeToString())
    calls = request(1, f"/{SERVICE}/Sample", sound), request(1, f"/{SERVICE}/StreamSample", sound)

    def send(content: bytes) -> None:
        # Left open while the server works on it: at its end gRPC would drop what it has.
        with suppress(ConnectionError, TimeoutError), socket.socket() as opened:
            opened.settimeout(0.05)
            opened.connect(("127.0.0.1", server.grpc_port))
            opened.sendall(content)
            while opened.recv(65536):
                pass

    frames = mutated(st.sampled_from(calls)).map(lambda content: opening() + content)
    for_each(frames | mutated(frames), send, requests_each, 0)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        sample = GenerationServiceStub(channel).Sample
        answer = sample(pb.SampleRequest(seed=1), timeout=SECONDS, wait_for_ready=True)
        assert answer.images.count == 1
