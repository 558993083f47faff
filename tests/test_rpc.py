"""The gRPC transport, over a real server on a free port and really exported toy models."""

import asyncio
import io
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from grpc_status import rpc_status
from PIL import Image

from service import errors
from service.core.engine import Engine
from service.core.noise import SCHEME
from service.images import levels_to_png
from service.metrics import Metrics
from service.rpc import reading
from service.rpc.pb import generation_service_pb2 as pb
from service.rpc.pb.generation_service_pb2_grpc import GenerationServiceStub
from service.rpc.server import SERVICE, Rpc, create_server
from service.rpc.status import STATUS_CODES, to_status
from service.server import build_engine
from service.settings import Settings
from tests.fakes import CLASSES, LATENT, PIXELS, SIDE, GatedSession

PROTO = Path(__file__).parents[1] / "proto/genserve/v1/generation_service.proto"
GAN, FLOW = "toy-gan", "toy-flow"


def pictures(*greys: int) -> pb.Images:
    """An image of each grey."""
    shape = {"count": len(greys), "height": SIDE, "width": SIDE, "channels": 1}
    return pb.Images(levels=np.repeat(np.array(greys, np.uint8), PIXELS).tobytes(), **shape)


def png_files(*greys: int) -> pb.Images:
    squares = [np.full((SIDE, SIDE, 1), grey, np.uint8) for grey in greys]
    return pb.Images(png=pb.PngFiles(files=[levels_to_png(square, 256) for square in squares]))


def levels(images: pb.Images) -> np.ndarray:
    shape = images.count, images.height, images.width, images.channels
    return np.frombuffer(images.levels, np.uint8).reshape(shape)


def rows(message: pb.Latents | pb.ClassWeights) -> np.ndarray:
    return np.array(message.values, np.float32).reshape(message.count, message.size)


async def until(condition: Callable[[], object]) -> None:
    """Let the event loop run until the condition holds."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0)


def gate(engine: Engine, model: str, graph: str) -> GatedSession:
    """Make the runs of a graph wait for the gate that is returned."""
    graphs = engine.models.find(model).graphs
    session = GatedSession(graphs[graph].session)
    graphs[graph] = replace(graphs[graph], session=session)
    return session


def error_info(error: grpc.aio.AioRpcError) -> ErrorInfo:
    info = ErrorInfo()
    assert rpc_status.from_call(error).details[0].Unpack(info)
    assert info.domain == "genserve"
    return info


# What each method answers


async def test_sample_answers_with_levels_and_where_they_are_from(
    stub: GenerationServiceStub, engine: Engine
) -> None:
    answer = await stub.Sample(pb.SampleRequest(count=3, seed=5, class_label=[2]))
    assert answer.model == "toy-gan@1"
    assert answer.artifact_digest == engine.models.find("toy-gan").manifest.artifact_digest
    assert answer.noise_scheme == SCHEME and answer.seed == 5
    assert answer.reproducible == pb.REPRODUCIBILITY_BITWISE
    assert levels(answer.images).shape == (3, SIDE, SIDE, 1)
    assert list(answer.class_label) == [2, 2, 2]
    assert rows(answer.class_weights).tolist() == [[0, 0, 1]] * 3
    assert not answer.HasField("latents") and not answer.HasField("latent_space")


async def test_an_answer_holds_the_parts_that_were_asked_for(stub: GenerationServiceStub) -> None:
    only = [pb.GENERATION_PART_LATENTS]
    both = [pb.GENERATION_PART_LATENTS, pb.GENERATION_PART_IMAGES]
    answer = await stub.Sample(pb.SampleRequest(seed=5, returns=only))
    assert rows(answer.latents).shape == (1, LATENT) and not answer.HasField("images")
    answer = await stub.Sample(pb.SampleRequest(seed=5, returns=both))
    assert answer.latents.count == 1 and answer.images.count == 1 and answer.latent_space


async def test_images_come_in_three_forms_of_the_same_levels(stub: GenerationServiceStub) -> None:
    plain = await stub.Sample(pb.SampleRequest(count=2, seed=5))
    unit = await stub.Sample(pb.SampleRequest(count=2, seed=5, scale=pb.SCALE_UNIT))
    files = await stub.Sample(pb.SampleRequest(count=2, seed=5, image_format=pb.IMAGE_FORMAT_PNG))
    values = np.frombuffer(unit.images.unit_values, "<f4").reshape(2, SIDE, SIDE, 1)
    read = [np.asarray(Image.open(io.BytesIO(file))) for file in files.images.png.files]
    assert np.array_equal(np.rint(values * 255), levels(plain.images))
    assert np.array_equal(np.stack(read)[..., None], levels(plain.images))
    for images in (unit.images, files.images):
        shape = images.count, images.height, images.width, images.channels
        assert shape == levels(plain.images).shape


async def test_the_shape_beside_png_files_is_not_read(stub: GenerationServiceStub) -> None:
    images = png_files(40, 60)
    images.count, images.height = 9, -1
    answer = await stub.Reconstruct(pb.ReconstructRequest(model=FLOW, images=images))
    assert answer.images == pictures(40, 60)


async def test_mixed_class_weights_have_no_class_label(stub: GenerationServiceStub) -> None:
    weights = pb.ClassWeights(count=1, size=CLASSES, values=[0.5, 0.5, 0.0])
    mixed = pb.Condition(class_weights=weights)
    answer = await stub.Sample(pb.SampleRequest(count=2, condition=mixed))
    assert rows(answer.class_weights).tolist() == [[0.5, 0.5, 0.0]] * 2
    assert not answer.class_label


async def test_a_condition_and_its_shorthand_mean_the_same(stub: GenerationServiceStub) -> None:
    short = await stub.Sample(pb.SampleRequest(count=2, seed=1, class_label=[0, 2]))
    classes = pb.Condition(classes=[0, 2])
    long = await stub.Sample(pb.SampleRequest(count=2, seed=1, condition=classes))
    weights = pb.ClassWeights(count=2, size=CLASSES, values=[1, 0, 0, 0, 0, 1])
    whole = await stub.Sample(
        pb.SampleRequest(count=2, seed=1, condition=pb.Condition(class_weights=weights))
    )
    assert short.images == long.images == whole.images


async def test_temperature_0_makes_all_images_of_a_class_one(stub: GenerationServiceStub) -> None:
    answer = await stub.Sample(pb.SampleRequest(count=2, class_label=[1], temperature=0.0))
    first, second = levels(answer.images)
    assert np.array_equal(first, second)


async def test_encode_answers_with_means_and_on_request_deviations_and_draws(
    stub: GenerationServiceStub,
) -> None:
    request = pb.EncodeRequest(model="toy-vae", images=pictures(0, 255), seed=1)
    answer = await stub.Encode(request)
    assert rows(answer.latents).shape == (2, LATENT) and answer.latent_space
    assert not answer.HasField("deviations") and not answer.HasField("draws")
    request.returns.extend([pb.ENCODING_PART_DEVIATIONS, pb.ENCODING_PART_DRAWS])
    answer = await stub.Encode(request)
    assert not answer.HasField("latents")
    assert rows(answer.deviations).min() > 0
    assert rows(answer.draws).shape == (2, LATENT)


async def test_decode_takes_the_latents_that_encode_answers(stub: GenerationServiceStub) -> None:
    images = pictures(100, 150)
    there = await stub.Encode(pb.EncodeRequest(model="toy-flow", images=images))
    back = await stub.Decode(
        pb.DecodeRequest(model="toy-flow", latents=there.latents, latent_space=there.latent_space)
    )
    assert back.images == images


async def test_reconstruct_of_an_exact_model_is_the_image(stub: GenerationServiceStub) -> None:
    images = pictures(40, 60)
    answer = await stub.Reconstruct(pb.ReconstructRequest(model="toy-flow", images=images))
    assert answer.images == images


async def test_likelihood_says_what_its_numbers_mean(stub: GenerationServiceStub) -> None:
    request = pb.LikelihoodRequest(model="toy-vae", images=pictures(0, 255))
    answer = await stub.Likelihood(request)
    assert len(answer.log_likelihood) == 2 and answer.seed == 0
    assert answer.quantity == pb.QUANTITY_PROBABILITY
    assert answer.kind == pb.LIKELIHOOD_KIND_LOWER_BOUND
    assert answer.base_measure == pb.BASE_MEASURE_COUNTING
    assert answer.conditioning == pb.CONDITIONING_NONE
    assert (answer.estimator, answer.draws) == ("elbo", 4)
    bits = -np.array(answer.log_likelihood) / (PIXELS * np.log(2))
    assert list(answer.bits_per_dim) == pytest.approx(bits)
    assert len(answer.standard_error) == 2 and min(answer.standard_error) > 0


async def test_one_draw_has_no_standard_error(stub: GenerationServiceStub) -> None:
    request = pb.LikelihoodRequest(
        model="toy-vae",
        images=pictures(90),
        samples=1,
        binarisation=pb.BINARISATION_STOCHASTIC,
    )
    answer = await stub.Likelihood(request)
    assert len(answer.log_likelihood) == 1 and not answer.standard_error
    assert answer.estimator == "iwae"
    assert answer.binarisation == pb.BINARISATION_STOCHASTIC


async def test_interpolate_goes_from_seed_to_latent_to_image(stub: GenerationServiceStub) -> None:
    image = pb.Endpoint(image=pictures(128))
    seed = pb.Endpoint(seed=3)
    path = await stub.Interpolate(
        pb.InterpolateRequest(
            model="toy-flow", start=seed, end=image, steps=5, mode=pb.INTERPOLATION_MODE_LERP,
            returns=[pb.GENERATION_PART_LATENTS, pb.GENERATION_PART_IMAGES],
        )
    )  # fmt: skip
    assert path.images.count == 5
    assert np.array_equal(levels(path.images)[-1:], levels(pictures(128)))
    size, values = path.latents.size, path.latents.values
    first = pb.Endpoint(latent=pb.Latents(count=1, size=size, values=values[:size]))
    again = await stub.Interpolate(pb.InterpolateRequest(model="toy-flow", start=first, end=image))
    assert again.images.count == 8
    assert np.array_equal(levels(again.images)[0], levels(path.images)[0])


async def test_interpolate_fills_grids_and_does_arithmetic(stub: GenerationServiceStub) -> None:
    points = [pb.Endpoint(seed=seed) for seed in range(4)]
    grid = await stub.Interpolate(pb.InterpolateRequest(corners=points, steps=3))
    assert grid.images.count == 9
    terms = pb.Arithmetic(plus=points[:2], minus=[points[1]])
    answer = await stub.Interpolate(
        pb.InterpolateRequest(
            model="toy-flow", arithmetic=terms, returns=[pb.GENERATION_PART_LATENTS]
        )
    )
    alone = await stub.Sample(
        pb.SampleRequest(model="toy-flow", seed=0, returns=[pb.GENERATION_PART_LATENTS])
    )
    assert rows(answer.latents) == pytest.approx(rows(alone.latents), abs=1e-5)


async def test_models_say_what_they_are_and_offer(stub: GenerationServiceStub) -> None:
    listed = await stub.ListModels(pb.ListModelsRequest())
    names = [model.name for model in listed.models]
    assert names == ["toy-flow", "toy-gan", "toy-raster", "toy-vae"]
    model = (await stub.GetModel(pb.GetModelRequest(model="toy-gan@1"))).model
    assert model == listed.models[1]
    assert model.state == pb.MODEL_STATE_READY and not model.HasField("reason")
    assert list(model.operations) == ["sample", "decode", "interpolate"]
    assert list(model.default_for) == ["sample", "decode", "interpolate"]
    assert (model.event.height, model.event.levels, model.latent.size) == (SIDE, 256, LATENT)
    assert len(model.condition.names) == CLASSES
    assert model.controls["temperature"].default_value == 1.0
    assert not model.controls["truncation"].HasField("default_value")
    vae = listed.models[3]
    assert list(vae.binarisations) == [pb.BINARISATION_THRESHOLD, pb.BINARISATION_STOCHASTIC]
    assert list(vae.binarisation_required_by) == ["likelihood"]


# Statuses


async def test_the_details_of_a_refusal_are_metadata(stub: GenerationServiceStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Encode(pb.EncodeRequest(model=GAN, images=pictures(0)))
    assert dict(error_info(refused.value).metadata) == {
        "operations": '["sample", "decode", "interpolate"]'
    }


async def test_a_refusal_that_quotes_much_still_fits_into_headers(
    stub: GenerationServiceStub,
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Sample(pb.SampleRequest(model="x" * 50_000))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


def subclasses(kind: type) -> set[type]:
    return {kind}.union(*(subclasses(child) for child in kind.__subclasses__()))


def test_every_error_has_a_status() -> None:
    assert set(STATUS_CODES) == subclasses(errors.GenserveError) - {errors.GenserveError}


def test_every_reason_is_documented_in_the_proto() -> None:
    prose, _, _ = PROTO.read_text(encoding="utf-8").partition("syntax =")
    words = set(re.findall(r"[A-Z_]+", prose))
    for error, code in STATUS_CODES.items():
        if error is not errors.PayloadTooLarge:  # gRPC refuses large messages itself
            assert {error.reason, code.name} <= words


def test_a_full_queue_says_when_to_come_back() -> None:
    status = to_status(errors.QueueFull("full", retry_after_seconds=1.5))
    unpacked = rpc_status.status_pb2.Status.FromString(status.trailing_metadata[0][1])
    retry = RetryInfo()
    assert unpacked.details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 1500


async def test_a_crowd_is_turned_away_before_anything_is_made_of_it(
    settings: Settings, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "genserve.access")
    engine = build_engine(settings.model_copy(update={"maximum_queued_rows": 4}), metrics)
    await engine.load_default_models()
    gated = gate(engine, GAN, "decode")
    rpc = create_server(engine, metrics=metrics, maximum_message_bytes=4096, version="1")
    port = rpc.server.add_insecure_port("127.0.0.1:0")
    await rpc.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = GenerationServiceStub(channel)
        accepted = [stub.Sample(pb.SampleRequest(count=2))]  # runs, on both workers
        await until(lambda: len(gated.batches) == 2)
        accepted.append(stub.Sample(pb.SampleRequest(count=4)))
        await until(lambda: queued_rows(metrics) == 4)

        async def refusal(**fields: object) -> grpc.aio.AioRpcError:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.Sample(pb.SampleRequest(**fields), metadata=(("x-request-id", "a"),))
            return refused.value

        refused, at_once = await refusal(), await refusal(temperature=-1.0)
        assert error_info(at_once) == error_info(refused) != ErrorInfo()
        assert error_info(at_once).reason == "QUEUE_FULL"
        assert at_once.code() is refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert at_once.details() == refused.details()
        assert rpc_status.from_call(at_once).details[1].Is(RetryInfo.DESCRIPTOR)
        assert dict(at_once.trailing_metadata())["x-request-id"] == "a"
        assert error_info(await refusal(model="nothing")).reason == "MODEL_NOT_FOUND"
        lines = [each.status for each in caplog.records if each.name == "genserve.access"]
        assert lines == ["RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED", "NOT_FOUND"]
        raster = await stub.Sample(pb.SampleRequest(model="toy-raster"))
        assert raster.images.count == 1, "what needs no place in the queue"
        gated.gate.set()
        assert [answer.images.count for answer in await asyncio.gather(*accepted)] == [2, 4]
        assert error_info(await refusal(temperature=-1.0)).reason == "OUT_OF_RANGE"
    await rpc.server.stop(0)
    await engine.drain()
    assert counted(metrics, "QUEUE_FULL") == 2


async def test_a_draining_server_is_unavailable(
    stub: GenerationServiceStub, engine: Engine
) -> None:
    await engine.drain()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Sample(pb.SampleRequest())
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert error_info(refused.value).reason == "SHUTTING_DOWN"


async def test_an_unforeseen_error_is_internal_and_stays_in_the_log(
    stub: GenerationServiceStub, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.models.find(GAN).graphs.clear()  # a fault that no operation expects
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await stub.Sample(pb.SampleRequest(), metadata=(("x-request-id", "call-7"),))
    assert failed.value.code() is grpc.StatusCode.INTERNAL
    assert error_info(failed.value).reason == "INTERNAL"
    assert "call-7" in failed.value.details() and "KeyError" not in failed.value.details()
    logged = [record for record in caplog.records if record.exc_info]
    assert [record.request_id for record in logged] == ["call-7"]
    assert (await stub.Sample(pb.SampleRequest(model=FLOW))).images.count == 1


# Request ids and the log


async def test_a_request_id_comes_back_and_names_the_call_in_the_log(
    stub: GenerationServiceStub, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "genserve.access")
    call = stub.Sample(pb.SampleRequest(), metadata=(("x-request-id", "a.B-9_"),))
    assert (await call).request_id == "a.B-9_"
    assert dict(await call.trailing_metadata())["x-request-id"] == "a.B-9_"
    (line,) = [record for record in caplog.records if record.name == "genserve.access"]
    assert (line.request_id, line.method, line.status) == ("a.B-9_", "Sample", "OK")
    assert line.seconds >= 0


@pytest.mark.parametrize("strange", ["a b", "x" * 129, "line;drop"])
async def test_a_strange_request_id_is_replaced(stub: GenerationServiceStub, strange: str) -> None:
    answer = await stub.ListModels(pb.ListModelsRequest(), metadata=(("x-request-id", strange),))
    assert len(answer.request_id) == 32 and answer.request_id != strange


async def test_a_refusal_has_an_id_and_a_line_in_the_log_too(
    stub: GenerationServiceStub, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "genserve.access")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Sample(pb.SampleRequest(count=0))
    (line,) = [record for record in caplog.records if record.name == "genserve.access"]
    assert line.status == "INVALID_ARGUMENT"
    assert refused.value.trailing_metadata()["x-request-id"] == line.request_id


# Deadlines and cancellation


def counted(metrics: Metrics, code: str) -> float:
    labels = {"model": GAN, "version": "1", "operation": "sample", "code": code}
    return metrics.registry.get_sample_value("genserve_requests_total", labels) or 0.0


def queued_rows(metrics: Metrics) -> float:
    return metrics.registry.get_sample_value("genserve_queued_rows") or 0.0


async def test_a_cancelled_call_drops_its_work_and_harms_no_other(
    stub: GenerationServiceStub, engine: Engine, metrics: Metrics
) -> None:
    session = gate(engine, GAN, "decode")
    try:
        neighbour = asyncio.ensure_future(stub.Sample(pb.SampleRequest(count=4, seed=1)))
        await until(lambda: sum(session.batches) == 4)  # both workers are busy
        call = stub.Sample(pb.SampleRequest(count=3))
        await until(lambda: queued_rows(metrics) == 3)
        call.cancel()
        await until(lambda: counted(metrics, "REQUEST_CANCELLED") == 1)
    finally:
        session.gate.set()
    assert (await neighbour).images.count == 4
    assert sum(session.batches) == 4, "the cancelled rows never ran"
    assert (await stub.Sample(pb.SampleRequest(count=2))).images.count == 2


async def test_the_timeout_of_a_request_travels_to_the_queue(
    stub: GenerationServiceStub, engine: Engine, metrics: Metrics
) -> None:
    session = gate(engine, GAN, "decode")
    try:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            # The deadline of the call ends the test where the timeout is lost on its way.
            await stub.Sample(pb.SampleRequest(timeout_ms=1), timeout=20)
    finally:
        session.gate.set()
    assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert error_info(refused.value).reason == "DEADLINE_EXCEEDED"
    assert counted(metrics, "DEADLINE_EXCEEDED") == 1


@pytest.mark.parametrize(
    ("timeout_ms", "remaining_seconds", "expected"),
    [(None, None, None), (500, None, 0.5), (None, 2.0, 2.0), (500, 2.0, 0.5), (5000, 2.0, 2.0)],
)
def test_the_shorter_of_timeout_and_deadline_wins(
    timeout_ms: int | None, remaining_seconds: float | None, expected: float | None
) -> None:
    request = pb.SampleRequest(timeout_ms=timeout_ms)
    assert reading.timeout_seconds(request, remaining_seconds) == expected


# Health and reflection


async def test_health_says_not_serving_until_told(rpc: Rpc, channel: grpc.aio.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", SERVICE):
        request = health_pb2.HealthCheckRequest(service=service)
        expected = health_pb2.HealthCheckResponse
        assert (await health.Check(request)).status == expected.NOT_SERVING
        await rpc.set_serving(True)
        assert (await health.Check(request)).status == expected.SERVING
        await rpc.set_serving(False)
        assert (await health.Check(request)).status == expected.NOT_SERVING


async def test_reflection_lists_the_service_and_describes_it(channel: grpc.aio.Channel) -> None:
    requests = [
        ServerReflectionRequest(list_services=""),
        ServerReflectionRequest(file_containing_symbol=SERVICE),
    ]
    call = ServerReflectionStub(channel).ServerReflectionInfo(iter(requests))
    listed, described = [answer async for answer in call]
    names = [service.name for service in listed.list_services_response.service]
    assert SERVICE in names and "grpc.health.v1.Health" in names
    assert described.file_descriptor_response.file_descriptor_proto
