"""Mixed requests to a real server: nothing breaks, answers repeat, and memory does not grow."""

import urllib.request
from collections.abc import Iterator
from itertools import islice

import pytest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.server import Server, running_server
from benchmarks.soak import FIRST, GROWTH, REQUESTS, Tally, soak
from benchmarks.traffic import Behaviour, draw_visits
from service.api.app import OPERATIONS
from service.rpc.pb import generation_service_pb2 as pb

QUIET = (
    "genserve_requests_in_flight",
    "genserve_queued_rows",
    "genserve_waiting_images",
    "genserve_busy_slots",
    "genserve_open_streams",
)


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as started:
        yield started


def check(server: Server, tally: Tally, requests: int) -> None:
    assert tally.requests == requests
    assert tally.wrong == []
    assert tally.different == []
    assert tally.repeated > requests / 10
    assert server.read_errors() == []
    assert read_gauges(server) == dict.fromkeys(QUIET, 0.0)


def read_gauges(server: Server) -> dict[str, float]:
    """Return what tells that something is still under way."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.http_port}/metrics") as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {one.name: one.samples[0].value for one in families if one.name in QUIET}


def test_traffic_is_of_all_operations_methods_and_behaviours() -> None:
    visits = list(islice(draw_visits(1), 20_000))
    assert visits == list(islice(draw_visits(1), 20_000))
    assert {visit.behaviour for visit in visits} == set(Behaviour)
    good = {visit.name for visit in visits if visit.behaviour is Behaviour.GOOD}
    assert good >= {f"POST /{operation.name}" for operation in OPERATIONS}
    service = pb.DESCRIPTOR.services_by_name["GenerationService"]
    administration = {"LoadModel", "UnloadModel", "RescanModels"}  # off, without keys
    methods = {method.name for method in service.methods} - administration
    assert good >= {f"gRPC {name}" for name in methods}


async def test_mixed_requests_break_nothing(server: Server) -> None:
    tally, _ = await soak(server, requests=600, step=600)
    check(server, tally, 600)


@pytest.mark.slow
async def test_very_many_mixed_requests_break_nothing_and_memory_does_not_grow(
    server: Server,
) -> None:
    tally, memory = await soak(server, requests=REQUESTS, step=FIRST)
    check(server, tally, REQUESTS)
    assert memory[REQUESTS] <= GROWTH * memory[FIRST]
