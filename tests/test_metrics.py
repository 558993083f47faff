"""What the metrics say of requests and painting, and that Prometheus likes their names."""

import asyncio
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service.core.engine import Engine
from service.core.requests import ConditionRequest, DecodeRequest, SampleRequest
from service.errors import DeadlineExceeded, InferenceFailed, OutOfRange
from service.inference_metrics import InferenceMetrics
from service.metrics import Metrics
from service.settings import Settings
from tests.fakes import LATENT, SIDE, GatedSession
from tests.live import LiveServer

MODEL = "toy-raster"
SLOTS = 16
HELD = 12  # at most, by one request
SECONDS = 30  # a test that hangs fails
SNAKE_CASE = re.compile(r"[a-z]+(_[a-z]+)*")


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """One worker, with 16 slots."""
    return settings.model_copy(update={"workers": 1})


class Breakable(GatedSession):
    broken = False
    closes = False  # the gate, behind every row

    def run(self, inputs):
        outputs = super().run(inputs)
        if self.closes:
            self.gate.clear()
        if self.broken:
            raise RuntimeError("the loom is broken")
        return outputs


@pytest.fixture
async def gated(engine: Engine) -> AsyncIterator[Breakable]:
    """The session of toy-raster's row step, which waits at the gate."""
    model = engine.models.find(MODEL)
    await engine.models.load(model)
    session = Breakable(model.graphs["row_step"].session)
    model.graphs["row_step"] = replace(model.graphs["row_step"], session=session)
    yield session
    session.gate.set()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0)


def painting(metrics: Metrics) -> Mapping[str, float]:
    """Everything counted of painting with one graph; labels that no metric shows are missing."""
    labels = {"model": MODEL, "graph": "row_step"}
    names = {"slots": "", "busy_slots": "", "waiting_images": "", "joined_images": "_total"}
    values = {name: (f"genserve_{name}{suffix}", labels) for name, suffix in names.items()}
    for reason in ("cancelled", "deadline", "failed"):
        values[reason] = ("genserve_unfinished_images_total", {**labels, "reason": reason})
    found = {name: metrics.registry.get_sample_value(*where) for name, where in values.items()}
    return {name: value for name, value in found.items() if value is not None}


UNTOUCHED = {"cancelled": 0, "deadline": 0, "failed": 0}


async def begin(engine: Engine, gated: Breakable, count: int, **options: float) -> asyncio.Task:
    """Start a request that is stopped in its first row."""
    request = SampleRequest(count=count, seed=1)
    task = asyncio.create_task(engine.run("sample", request, model=MODEL, **options))
    await until(gated.started.is_set)
    return task


async def test_images_wait_join_and_finish(
    engine: Engine, metrics: Metrics, gated: Breakable
) -> None:
    task = await begin(engine, gated, 20)
    full = {"slots": SLOTS, "busy_slots": HELD, "waiting_images": 20 - HELD}
    assert painting(metrics) == {**full, "joined_images": HELD, **UNTOUCHED}
    gated.gate.set()
    await task
    await until(lambda: painting(metrics)["busy_slots"] == 0)
    done = {"slots": SLOTS, "busy_slots": 0, "waiting_images": 0, "joined_images": 20}
    assert painting(metrics) == {**done, **UNTOUCHED}
    labels = {"model": MODEL, "version": "1"}
    rows = metrics.registry.get_sample_value("genserve_rows_total", labels)
    assert rows == 20 * SIDE


async def cancel(task: asyncio.Task, gated: Breakable) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def miss_the_deadline(task: asyncio.Task, gated: Breakable) -> None:
    with pytest.raises(DeadlineExceeded):
        await task


async def fail(task: asyncio.Task, gated: Breakable) -> None:
    gated.broken = True
    gated.gate.set()
    with pytest.raises(InferenceFailed):
        await task


@pytest.mark.parametrize(
    ("reason", "end", "timeout_seconds"),
    [
        ("cancelled", cancel, SECONDS),
        ("deadline", miss_the_deadline, 0.05),
        ("failed", fail, SECONDS),
    ],
)
async def test_images_that_leave_unfinished_are_counted_by_reason(
    reason: str, end, timeout_seconds: float, engine: Engine, metrics: Metrics, gated: Breakable
) -> None:
    task = await begin(engine, gated, 20, timeout_seconds=timeout_seconds)
    await end(task, gated)
    gated.gate.set()
    await until(lambda: painting(metrics)["busy_slots"] == 0)
    left = {"slots": SLOTS, "busy_slots": 0, "waiting_images": 0, "joined_images": HELD}
    assert painting(metrics) == {**left, **UNTOUCHED, reason: HELD}


async def test_an_image_that_is_parked_waits_and_has_joined_once(
    engine: Engine, metrics: Metrics, gated: Breakable
) -> None:
    bulk = [await begin(engine, gated, SLOTS)]
    bulk.append(asyncio.create_task(engine.run("sample", SampleRequest(count=SLOTS), model=MODEL)))
    waiting = 2 * SLOTS - HELD
    await until(lambda: painting(metrics)["waiting_images"] == waiting)
    gated.closes = True
    gated.gate.set()
    await until(lambda: painting(metrics)["joined_images"] == SLOTS)
    small = asyncio.create_task(engine.run("sample", SampleRequest(), model=MODEL))
    await until(lambda: painting(metrics)["waiting_images"] == SLOTS + 1)
    gated.gate.set()
    await until(lambda: painting(metrics)["joined_images"] == SLOTS + 1)
    parked = {"slots": SLOTS, "busy_slots": SLOTS, "waiting_images": SLOTS + 1}
    assert painting(metrics) == {**parked, "joined_images": SLOTS + 1, **UNTOUCHED}
    for task in bulk:
        await cancel(task, gated)
    gated.closes = False
    gated.gate.set()
    await small
    await until(lambda: painting(metrics)["busy_slots"] == 0)
    left = {"slots": SLOTS, "busy_slots": 0, "waiting_images": 0, "joined_images": SLOTS + 1}
    assert painting(metrics) == {**left, **UNTOUCHED, "cancelled": SLOTS}


async def test_streams_are_open_until_they_end(
    engine: Engine, metrics: Metrics, gated: Breakable
) -> None:
    def open_streams() -> float | None:
        return metrics.registry.get_sample_value("genserve_open_streams")

    assert open_streams() == 0
    gated.gate.set()
    request = SampleRequest(count=2)
    async with aclosing(engine.stream("sample", request, model=MODEL)) as left:
        await anext(left)
        async with aclosing(engine.stream("sample", request, model=MODEL)) as finished:
            await anext(finished)
            assert open_streams() == 2
            assert [event async for event in finished]
        assert open_streams() == 1
    assert open_streams() == 0


async def test_names_and_units_are_as_prometheus_asks(
    engine: Engine, metrics: Metrics, gated: Breakable
) -> None:
    """The rules of `promtool check metrics`, on what a scrape gets."""
    gated.gate.set()
    await engine.run("sample", SampleRequest(), model=MODEL)
    text = generate_latest(metrics.registry).decode()
    families = [
        family
        for family in text_string_to_metric_families(text)
        if not family.name.endswith("_created")  # the client library's own
    ]
    assert len(families) == len(list(metrics.registry.collect()))
    for family in families:
        words = family.name.split("_")
        assert words[0] == "genserve" and SNAKE_CASE.fullmatch(family.name)
        assert family.documentation.endswith(".")
        assert not {"ms", "milliseconds", "minutes", "kilobytes", "percent"} & set(words)
        assert not {"gauge", "counter", "histogram", "total", "sum", "count"} & set(words)


def samples(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """Return the values of one metric's samples by the values of their labels, in their order."""
    return {
        tuple(sample.labels.values()): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == name
    }


async def test_what_can_be_named_is_there_and_zero_before_the_first_request(
    engine: Engine, metrics: Metrics
) -> None:
    requests = samples(metrics, "genserve_requests_total")
    assert {
        (MODEL, "1", "complete", "OK"),
        (MODEL, "1", "sample", "QUEUE_FULL"),
        ("toy-gan", "1", "decode", "DEADLINE_EXCEEDED"),
        ("toy-vae", "1", "likelihood", "INFERENCE_FAILED"),
    } < requests.keys()
    assert (MODEL, "1", "decode", "OK") not in requests, "which it does not offer"
    asked = samples(metrics, "genserve_inference_seconds_count")
    assert {("toy-vae", "1", "encode", "fail"), (MODEL, "1", "sample", "success")} < asked.keys()
    assert (MODEL, "1", "row_step", "success") not in asked
    assert ("toy-gan", "decode", "full") in samples(metrics, "genserve_batches_total")
    assert (MODEL, "row_step") in samples(metrics, "genserve_busy_slots")
    for name in ("compute_seconds", "queue_seconds"):
        assert (MODEL, "1", "log_likelihood") in samples(metrics, f"genserve_{name}_count")
    assert (MODEL, "1", "row_step") not in samples(metrics, "genserve_batch_rows_count")
    told = {"genserve_model_ready", "genserve_model_load_seconds", "genserve_model_loads_total"}
    values = {
        sample.name: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name not in told and not sample.name.endswith("_created")
    }
    assert set(values.values()) == {0.0}


async def test_requests_are_queued_until_a_worker_has_rows_of_them(
    engine: Engine, metrics: Metrics
) -> None:
    def queued() -> float:
        return samples(metrics, "genserve_queued_requests")["toy-gan", "1", "decode"]

    model = engine.models.find("toy-gan")
    session = GatedSession(model.graphs["decode"].session)
    model.graphs["decode"] = replace(model.graphs["decode"], session=session)
    latents = np.zeros((2, LATENT), np.float32)
    request = DecodeRequest(latents=latents, condition=ConditionRequest(classes=[1]))
    running = asyncio.create_task(engine.run("decode", request, model="toy-gan"))
    await until(session.started.is_set)
    assert queued() == 0
    waiting = [
        asyncio.create_task(engine.run("decode", request, model="toy-gan")) for _ in range(3)
    ]
    await until(lambda: queued() == 3)
    waiting[0].cancel()
    await until(lambda: queued() == 2)
    session.gate.set()
    await asyncio.gather(running, *waiting[1:])
    assert queued() == 0
    assert session.batches == [2, 4]
    each = samples(metrics, "genserve_compute_seconds_sum")["toy-gan", "1", "decode"]
    shared = samples(metrics, "genserve_request_compute_seconds_total")["toy-gan", "1", "decode"]
    assert each < shared <= 2 * each, "the second batch counts for both of its requests"


async def test_triton_s_names_tell_the_same(
    engine: Engine, metrics: Metrics, gated: Breakable
) -> None:
    metrics.registry.register(InferenceMetrics(metrics))
    gated.gate.set()
    await engine.run("sample", SampleRequest(count=3), model=MODEL)
    await engine.run("sample", SampleRequest(count=5), model="toy-flow")
    with pytest.raises(OutOfRange):
        await engine.run("sample", SampleRequest(count=0), model=MODEL)
    gated.broken = True
    with pytest.raises(InferenceFailed):
        await engine.run("sample", SampleRequest(), model=MODEL)
    await until(lambda: painting(metrics)["busy_slots"] == 0)

    def triton(name: str) -> dict[tuple[str, ...], float]:
        return samples(metrics, f"nv_inference_{name}")

    success = triton("request_success")
    assert success[MODEL, "1"] == success["toy-flow", "1"] == 1 and success["toy-gan", "1"] == 0
    failures = triton("request_failure")
    assert failures[MODEL, "1", "OTHER"] == failures[MODEL, "1", "BACKEND"] == 1
    assert failures[MODEL, "1", "REJECTED"] == failures[MODEL, "1", "CANCELED"] == 0
    assert triton("count")[MODEL, "1"] == 3 * SIDE
    assert triton("count")["toy-flow", "1"] == 5
    assert (
        triton("exec_count")[MODEL, "1"]
        == samples(metrics, "genserve_compute_seconds_count")[MODEL, "1", "row_step"]
        == SIDE
    )
    assert set(triton("pending_request_count").values()) == {0.0}
    for name, ours in (
        ("queue_duration_us", "genserve_queue_seconds_sum"),
        ("compute_infer_duration_us", "genserve_request_compute_seconds_total"),
    ):
        of_step = samples(metrics, ours)[MODEL, "1", "row_step"]
        assert triton(name)[MODEL, "1"] == 1e6 * of_step > 0
    whole, computing = triton("request_duration_us"), triton("compute_infer_duration_us")
    assert whole[MODEL, "1"] > computing[MODEL, "1"]


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool comes with prometheus")
def test_promtool_finds_fault_with_triton_s_names_alone(repository: Path) -> None:
    with LiveServer(repository, default_models="toy-gan") as server:
        server.wait_until_ready()
        _, text = server.get("/metrics")
    assert "process_resident_memory_bytes" in text and "genserve_requests_total" in text
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True
    )
    assert checked.returncode in (0, 3), checked.stderr  # 3: it has something to complain of
    ours = [line for line in checked.stderr.splitlines() if not line.startswith("nv_inference_")]
    assert ours == []
