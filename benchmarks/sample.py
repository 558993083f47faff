"""`make bench TARGET=sample`: what serving images costs, beside bare ONNX Runtime and FastAPI.

It writes benchmarks/results/sample.md in under four minutes, and refuses to run beside other load.
"""

import io
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import machine, pages
from benchmarks.floor import Floor
from benchmarks.generators import MEDIUM, SIDE, SMALL, Generator, export_generators
from benchmarks.load import (
    JSON,
    NPY,
    GrpcRequest,
    RestRequest,
    describe_clients,
    load_grpc,
    load_rest,
    post,
)
from benchmarks.pages import Target, table
from benchmarks.plain import VARIANTS, Plain, running_plain
from benchmarks.processes import ServerFailed
from benchmarks.server import Server, running_server
from benchmarks.side_by_side import (
    OVER_PLAIN,
    SHARE,
    Case,
    Comparison,
    case_table,
    compare,
    explain,
    floor_table,
    grpc_case,
    over_plain,
    rest_case,
    tail,
)
from service.rpc.pb import generation_service_pb2 as pb

IMAGES = 4
"""Images a request."""

ROUNDS = 3
CONNECTIONS = (1, 8, 32)
REST, PNG, ARRAYS, GRPC = "REST, npy", "REST, JSON with PNG", "REST, JSON with arrays", "gRPC"

_LATENCY_SECONDS = 0.3


@dataclass(frozen=True)
class Servers:
    """What is compared, all of it running."""

    service: Server
    plain: Sequence[Plain]


@dataclass(frozen=True)
class Latency:
    """Median milliseconds for one image on one connection, in one round."""

    bare: float
    rest: float
    grpc: float


def measure() -> None:
    """Run everything and write it down. Raises OtherLoad, writing nothing, if others joined."""
    work, clients = machine.OtherWork(), describe_clients()
    repository = export_generators()
    floors = {one: Floor(one.folder(repository), "decode") for one in (SMALL, MEDIUM)}
    with running_servers(repository) as servers:
        small = compare(floors[SMALL], cases(servers, SMALL), IMAGES, ROUNDS)
        medium = compare(floors[MEDIUM], cases(servers, MEDIUM), IMAGES, ROUNDS)
        latencies = compare_latencies(floors[SMALL], servers.service)
        memory = describe_memory(servers)
    parts = [
        f"# What serving images costs\n\n{pages.head('sample')}",
        f"{IMAGES} images a request, drawn with a seed; npy and gRPC answer uint8.\n"
        f"{explain(clients, ROUNDS)}",
        f"## Targets\n\n{pages.target_table(targets(small, medium, latencies))}",
        f"## Small: {SMALL.size}\n\n{floor_table(small)}\n{case_table(small)}",
        f"## Medium: {MEDIUM.size}\n\n{floor_table(medium)}\n{case_table(medium)}",
        f"## One image on one connection, small\n\n{describe_latencies(latencies)}",
        f"## Memory after the load\n\n{memory}",
        f"Other processes: {machine.refuse_other_work(work):.2f} cores meanwhile.\n",
    ]
    pages.write("sample", "\n".join(parts))


@contextmanager
def running_servers(repository: Path) -> Iterator[Servers]:
    """Start the service and every plain one, and look at an answer of each."""
    generators = (SMALL, MEDIUM)
    names = ",".join(generator.name for generator in generators)
    folders = [generator.folder(repository) for generator in generators]
    with ExitStack() as stack:
        service = stack.enter_context(
            running_server(model_repository=repository, default_models=names)
        )
        plain = [stack.enter_context(running_plain(variant, folders)) for variant in VARIANTS]
        for generator in generators:
            for port in (service.http_port, *(one.http_port for one in plain)):
                check_answer(port, rest_request(generator, NPY))
        yield Servers(service, plain)


def check_answer(port: int, request: RestRequest) -> None:
    """Ask once and look at the answer, so that nothing wrong is timed. Raises ServerFailed."""
    content = post(port, request)
    images = np.load(io.BytesIO(content))
    if images.shape != (IMAGES, SIDE, SIDE, 1) or images.dtype != np.uint8:
        raise ServerFailed(f"/sample answered {images.dtype} {images.shape} for {IMAGES} images")


def rest_request(
    generator: Generator, accept: str, count: int = IMAGES, **fields: object
) -> RestRequest:
    """Return a request for images."""
    body = json.dumps({"model": generator.name, "count": count, "seed": 1, **fields})
    return RestRequest("/sample", body.encode(), accept)


def grpc_request(generator: Generator, count: int = IMAGES) -> GrpcRequest:
    """Return a call for images, as levels."""
    message = pb.SampleRequest(model=generator.name, count=count, seed=1)
    return GrpcRequest("Sample", message.SerializeToString())


def cases(servers: Servers, generator: Generator) -> list[Case]:
    """Return the loads on one generator, those to be compared with each other side by side."""
    service, seconds = servers.service, 1 if generator is SMALL else 3
    forms = {
        REST: rest_request(generator, NPY),
        PNG: rest_request(generator, JSON),
        ARRAYS: rest_request(generator, JSON, image_format="array"),
    }
    made: list[Case] = []
    for number in reversed(CONNECTIONS):
        if generator is SMALL or number == 32:
            made += [rest_case(name, service, forms[name], number, seconds) for name in forms]
        else:
            made.append(rest_case(REST, service, forms[REST], number, seconds))
        if number != 8:
            made.append(grpc_case(GRPC, service, grpc_request(generator), number, seconds))
        if generator is SMALL or number == 32:
            made += [
                rest_case(one.variant.name, one, forms[REST], number, seconds)
                for one in servers.plain
            ]
    return made


def compare_latencies(floor: Floor, server: Server) -> list[Latency]:
    """Measure one image on one connection, bare and served, in turns."""
    rest, call = rest_request(SMALL, NPY, count=1), grpc_request(SMALL, count=1)
    return [
        Latency(
            floor.milliseconds(_LATENCY_SECONDS),
            load_rest(server, server.http_port, rest, 1, 1).p50_ms,
            load_grpc(server, server.grpc_port, call, 1, 1).p50_ms,
        )
        for _ in range(ROUNDS)
    ]


def targets(small: Comparison, medium: Comparison, latencies: Sequence[Latency]) -> list[Target]:
    """Return what was measured beside what it is to be."""
    rest = small.case(REST, 32)
    return [
        Target(f"small, 32 connections, {SHARE}", rest.share, 0.86),
        Target(f"medium, 32 connections, {SHARE}", medium.case(REST, 32).share, 0.96),
        Target(f"small, 8 connections, {SHARE}", small.case(REST, 8).share, 0.80),
        Target(f"small, 1 connection, {SHARE}", small.case(REST, 1).share, 0.62),
        Target(f"small, 32 connections, JSON with PNG, {SHARE}", small.case(PNG, 32).share, 0.75),
        Target(f"small, 32 connections, JSON arrays, {SHARE}", small.case(ARRAYS, 32).share, 0.75),
        Target(f"small, 32 connections, {OVER_PLAIN}", over_plain(rest, small.cases), 1.2),
        Target("small, 32 connections, p99 / p50", tail(rest), 1.5, at_least=False),
        Target("medium, 32 connections, p99 / p50", tail(medium.case(REST, 32)), 1.5, False),
        Target("small, gRPC over REST at 32", small.case(GRPC, 32).share / rest.share, 0.85),
        Target("small, gRPC less REST at 1, ms", _grpc_adds(small), 0.3, at_least=False),
        Target("small, one image on one connection, less bare, ms", _adds(latencies), 1.0, False),
    ]


def _grpc_adds(comparison: Comparison) -> float:
    pairs = zip(comparison.case(GRPC, 1).loads, comparison.case(REST, 1).loads, strict=True)
    return statistics.median(grpc.p50_ms - rest.p50_ms for grpc, rest in pairs)


def _adds(latencies: Sequence[Latency]) -> float:
    return statistics.median(latency.rest - latency.bare for latency in latencies)


def describe_latencies(latencies: Sequence[Latency]) -> str:
    """Return the median of each figure as a table."""
    figures: dict[str, Callable[[Latency], float]] = {
        "bare ONNX Runtime": lambda latency: latency.bare,
        REST: lambda latency: latency.rest,
        GRPC: lambda latency: latency.grpc,
    }
    rows = [
        [name, f"{statistics.median(map(figure, latencies)):.2f}"]
        for name, figure in figures.items()
    ]
    return table(["", "median, ms"], rows)


def describe_memory(servers: Servers) -> str:
    """Return what each server holds, its processes together."""
    held = {"this service": servers.service.memory_mebibytes}
    held |= {one.variant.name: one.memory_mebibytes for one in servers.plain}
    return table(["", "MiB (PSS)"], [[name, f"{memory:.0f}"] for name, memory in held.items()])
