"""Bad input over gRPC: each is refused by status and reason, and the next good call works."""

import io
import logging
import struct
import zlib

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status
from PIL import Image

from service.metrics import Metrics
from service.rpc.pb import generation_service_pb2 as pb
from service.rpc.pb.generation_service_pb2_grpc import GenerationServiceStub
from service.rpc.server import SERVICE
from service.settings import Settings
from tests.both_transports import counts
from tests.fakes import LATENT, PIXELS, SIDE

INVALID = grpc.StatusCode.INVALID_ARGUMENT


def levels(count: int, height: int, width: int, channels: int, content: bytes) -> pb.Images:
    return pb.Images(count=count, height=height, width=width, channels=channels, levels=content)


def pictures(count: int = 1, level: int = 0) -> pb.Images:
    return levels(count, SIDE, SIDE, 1, bytes([level]) * (count * PIXELS))


def unit_picture(*values: float) -> pb.Images:
    values = (*values, *[0.0] * (PIXELS - len(values)))
    content = np.array(values, "<f4").tobytes()
    return pb.Images(count=1, height=SIDE, width=SIDE, channels=1, unit_values=content)


def files(*contents: bytes) -> pb.Images:
    return pb.Images(png=pb.PngFiles(files=contents))


def png(height: int = SIDE, width: int = SIDE, level: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height), level).save(buffer, format="PNG")
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of 50,000 x 50,000 pixels in its header and some bytes of nothing in its data."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def latents(count: int, size: int, values: list[float]) -> pb.Latents:
    return pb.Latents(count=count, size=size, values=values)


def weights(count: int, size: int, values: list[float]) -> pb.Condition:
    return pb.Condition(class_weights=pb.ClassWeights(count=count, size=size, values=values))


def path_from(**point: pb.Latents | pb.Images) -> pb.InterpolateRequest:
    return pb.InterpolateRequest(model=FLOW, start=pb.Endpoint(**point), end=pb.Endpoint(seed=1))


NAN, INFINITY = float("nan"), float("inf")
GAN, FLOW, VAE = "toy-gan", "toy-flow", "toy-vae"
ONE_LATENT = latents(1, LATENT, [0.0] * LATENT)

BAD_INPUT = {
    "unknown model": (
        "Sample", pb.SampleRequest(model="toy-diffusion"),
        grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", "toy-gan",
    ),
    "unknown version": (
        "Sample", pb.SampleRequest(model="toy-gan@9"),
        grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", "toy-gan",
    ),
    "unknown model asked about": (
        "GetModel", pb.GetModelRequest(),
        grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", "toy-gan",
    ),
    "operation not offered": (
        "Likelihood", pb.LikelihoodRequest(model=GAN, images=pictures()),
        grpc.StatusCode.FAILED_PRECONDITION, "OPERATION_NOT_OFFERED", "sample, decode, interpolate",
    ),
    "control not offered": (
        "Sample", pb.SampleRequest(model=FLOW, truncation=1.0),
        INVALID, "CONTROL_NOT_OFFERED", "temperature",
    ),
    "condition not offered": (
        "Sample", pb.SampleRequest(model=FLOW, class_label=[1]),
        INVALID, "CONDITION_NOT_OFFERED", "leave out",
    ),
    "count of 0": ("Sample", pb.SampleRequest(count=0), INVALID, "OUT_OF_RANGE", "1 to 32"),
    "count above the limit": (
        "Sample", pb.SampleRequest(count=33), INVALID, "OUT_OF_RANGE", "1 to 32",
    ),
    "no images": (
        "Encode", pb.EncodeRequest(model=FLOW),
        INVALID, "INVALID_REQUEST", "give images, or vectors",
    ),
    "no png files": (
        "Encode", pb.EncodeRequest(model=FLOW, images=files()), INVALID, "OUT_OF_RANGE", "1 to 32",
    ),
    "too many images": (
        "Encode", pb.EncodeRequest(model=FLOW, images=pictures(33)),
        INVALID, "OUT_OF_RANGE", "1 to 32",
    ),
    "negative seed": (
        "Sample", pb.SampleRequest(seed=-1), INVALID, "OUT_OF_RANGE", f"0 to {2**53 - 1}",
    ),
    "seed of 2^53": (
        "Sample", pb.SampleRequest(seed=2**53), INVALID, "OUT_OF_RANGE", f"0 to {2**53 - 1}",
    ),
    "seed of an endpoint": (
        "Interpolate",
        pb.InterpolateRequest(start=pb.Endpoint(seed=-1), end=pb.Endpoint(seed=1)),
        INVALID, "OUT_OF_RANGE", f"0 to {2**53 - 1}",
    ),
    "class out of range": (
        "Sample", pb.SampleRequest(class_label=[3]), INVALID, "OUT_OF_RANGE", "0 to 2",
    ),
    "wrong number of classes": (
        "Sample", pb.SampleRequest(count=3, class_label=[1, 2]),
        INVALID, "INVALID_REQUEST", "1 or 3",
    ),
    "more classes than a list may have": (
        "Sample", pb.SampleRequest(class_label=[1] * 4097), INVALID, "INVALID_REQUEST", "most 4096",
    ),
    "more parts than a list may have": (
        "Sample", pb.SampleRequest(returns=[1] * 4097), INVALID, "INVALID_REQUEST", "at most 8",
    ),
    "more files than a list may have": (
        "Encode", pb.EncodeRequest(model=FLOW, images=files(*[b""] * 4097)),
        INVALID, "INVALID_REQUEST", "most 4096",
    ),
    "more corners than a list may have": (
        "Interpolate", pb.InterpolateRequest(corners=[pb.Endpoint()] * 65),
        INVALID, "INVALID_REQUEST", "corners has 65 entries; allowed are at most 64",
    ),
    "more points than arithmetic takes": (
        "Interpolate",
        pb.InterpolateRequest(arithmetic=pb.Arithmetic(plus=[pb.Endpoint(seed=1)] * 65)),
        INVALID, "INVALID_REQUEST", "plus has 65 entries; allowed are at most 64",
    ),
    "class twice": (
        "Sample", pb.SampleRequest(class_label=[1], condition=pb.Condition(classes=[1])),
        INVALID, "INVALID_REQUEST", "not both",
    ),
    "class weights of NaN": (
        "Sample",
        pb.SampleRequest(condition=weights(1, 3, [NAN, 1, 0])),
        INVALID, "OUT_OF_RANGE", "sum to 1",
    ),
    "class weights of another size": (
        "Sample", pb.SampleRequest(condition=weights(1, 2, [1, 0])),
        INVALID, "INVALID_REQUEST", "[3]",
    ),
    "fewer class weights than stated": (
        "Sample", pb.SampleRequest(count=2, condition=weights(2, 3, [1, 0, 0])),
        INVALID, "INVALID_REQUEST", "length 3; count 2, size 3 need 6",
    ),
    "class weights of no size": (
        "Sample", pb.SampleRequest(condition=weights(1, 0, [])),
        INVALID, "INVALID_REQUEST", "at least 1",
    ),
    "temperature of NaN": (
        "Sample", pb.SampleRequest(temperature=NAN), INVALID, "OUT_OF_RANGE", "0.0 to 2.0",
    ),
    "timeout of 0": (
        "Sample", pb.SampleRequest(timeout_ms=0), INVALID, "OUT_OF_RANGE", "1 to 600000",
    ),
    "timeout above the limit": (
        "Sample", pb.SampleRequest(timeout_ms=600_001), INVALID, "OUT_OF_RANGE", "1 to 600000",
    ),
    "unknown choice": (
        "Sample", pb.SampleRequest(scale=9), INVALID, "INVALID_REQUEST", "SCALE_LEVELS, SCALE_UNIT",
    ),
    "unspecified part": (
        "Sample", pb.SampleRequest(returns=[0]),
        INVALID, "INVALID_REQUEST", "GENERATION_PART_IMAGES",
    ),
    "png at the unit scale": (
        "Sample", pb.SampleRequest(scale=pb.SCALE_UNIT, image_format=pb.IMAGE_FORMAT_PNG),
        INVALID, "INVALID_REQUEST", "IMAGE_FORMAT_ARRAY",
    ),
    "latent of the wrong size": (
        "Decode", pb.DecodeRequest(model=GAN, latents=latents(1, 5, [0.0] * 5)),
        INVALID, "INVALID_LATENT", "[count, 4]",
    ),
    "no latents": (
        "Decode", pb.DecodeRequest(model=GAN),
        INVALID, "INVALID_REQUEST", "exactly one of latents and codes",
    ),
    "fewer latents than stated": (
        "Decode", pb.DecodeRequest(model=GAN, latents=latents(2, 4, [0.0] * 4)),
        INVALID, "INVALID_LATENT", "length 4; count 2, size 4 need 8",
    ),
    "more latents than stated": (
        "Decode", pb.DecodeRequest(model=GAN, latents=latents(1, 4, [0.0] * 5)),
        INVALID, "INVALID_LATENT", "length 5; count 1, size 4 need 4",
    ),
    "latents of negative numbers": (
        "Decode", pb.DecodeRequest(model=GAN, latents=latents(-1, -4, [0.0] * 4)),
        INVALID, "INVALID_LATENT", "count -1, size -4; each must be at least 1",
    ),
    "latents of 2^32 values": (
        "Decode", pb.DecodeRequest(model=GAN, latents=latents(2**16, 2**16, [])),
        INVALID, "INVALID_LATENT", f"need {2**32}",
    ),
    "latent of NaN": (
        "Decode", pb.DecodeRequest(model=GAN, latents=latents(1, 4, [NAN, 0, 0, 0])),
        INVALID, "INVALID_LATENT", "finite",
    ),
    "latent of infinity": (
        "Interpolate", path_from(latent=latents(1, PIXELS, [INFINITY] * PIXELS)),
        INVALID, "INVALID_LATENT", "finite",
    ),
    "two latents for a point": (
        "Interpolate", path_from(latent=latents(2, PIXELS, [0.0] * 2 * PIXELS)),
        INVALID, "INVALID_LATENT", "exactly 1 latent",
    ),
    "two images for a point": (
        "Interpolate", path_from(image=pictures(2)), INVALID, "INVALID_IMAGE", "2 were sent",
    ),
    "no file for a point": (
        "Interpolate", path_from(image=files()), INVALID, "INVALID_IMAGE", "0 were sent",
    ),
    "latents of another space": (
        "Decode", pb.DecodeRequest(model=GAN, latents=ONE_LATENT, latent_space="other/1"),
        INVALID, "LATENT_SPACE_MISMATCH", "toy-gan",
    ),
    "latent of another space for a point": (
        "Interpolate",
        pb.InterpolateRequest(
            start=pb.Endpoint(latent=ONE_LATENT, latent_space="other/1"), end=pb.Endpoint(seed=1)
        ),
        INVALID, "LATENT_SPACE_MISMATCH", "toy-gan",
    ),
    "images of the wrong shape": (
        "Encode", pb.EncodeRequest(model=FLOW, images=levels(1, 1, 2, 1, b"ab")),
        INVALID, "INVALID_IMAGE", "[count, 4, 4, 1]",
    ),
    "images of fewer bytes than their shape": (
        "Encode", pb.EncodeRequest(model=FLOW, images=levels(2, 4, 4, 1, bytes(31))),
        INVALID, "INVALID_IMAGE", "length 31; count 2, height 4, width 4, channels 1 need 32",
    ),
    "images of more bytes than their shape": (
        "Encode", pb.EncodeRequest(model=FLOW, images=levels(1, 4, 4, 1, bytes(32))),
        INVALID, "INVALID_IMAGE", "length 32; count 1, height 4, width 4, channels 1 need 16",
    ),
    "images of a negative shape": (
        "Encode", pb.EncodeRequest(model=FLOW, images=levels(1, -4, -4, 1, bytes(16))),
        INVALID, "INVALID_IMAGE", "each must be at least 1",
    ),
    "images of the count 0": (
        "Encode", pb.EncodeRequest(model=FLOW, images=pictures(0)),
        INVALID, "INVALID_IMAGE", "count 0, height 4",
    ),
    "images of 2^64 pixels": (  # 0 in 64 bits, as many as there are
        "Encode", pb.EncodeRequest(model=FLOW, images=levels(2**16, 2**16, 2**16, 2**16, b"")),
        INVALID, "INVALID_IMAGE", f"need {2**64}",
    ),
    "unit values of half a float": (
        "Encode",
        pb.EncodeRequest(
            model=FLOW,
            images=pb.Images(count=1, height=4, width=4, channels=1, unit_values=bytes(62)),
            scale=pb.SCALE_UNIT,
        ),
        INVALID, "INVALID_IMAGE", "length 62; count 1, height 4, width 4, channels 1 need 64",
    ),
    "unit values without their scale": (
        "Encode", pb.EncodeRequest(model=FLOW, images=unit_picture()),
        INVALID, "INVALID_REQUEST", "SCALE_UNIT",
    ),
    "unit values of NaN": (
        "Encode", pb.EncodeRequest(model=FLOW, images=unit_picture(NAN), scale=pb.SCALE_UNIT),
        INVALID, "INVALID_IMAGE", "[0, 1]",
    ),
    "unit values out of range": (
        "Encode", pb.EncodeRequest(model=FLOW, images=unit_picture(1.5), scale=pb.SCALE_UNIT),
        INVALID, "INVALID_IMAGE", "0 to 1",
    ),
    "broken png": (
        "Encode", pb.EncodeRequest(model=FLOW, images=files(png()[:40])),
        INVALID, "INVALID_IMAGE", "PNG",
    ),
    "large file that is no png": (
        "Encode", pb.EncodeRequest(model=FLOW, images=files(bytes(200_000))),
        INVALID, "INVALID_IMAGE", "PNG",
    ),
    "png of the wrong size": (
        "Encode", pb.EncodeRequest(model=FLOW, images=files(png(5, 4))),
        INVALID, "INVALID_IMAGE", "takes 4 high",
    ),
    "png of too many pixels": (
        "Encode", pb.EncodeRequest(model=FLOW, images=files(png(1001, 1000))),
        INVALID, "INVALID_IMAGE", "takes 4 high",
    ),
    "decompression bomb": (
        "Encode", pb.EncodeRequest(model=FLOW, images=files(bomb())),
        INVALID, "INVALID_IMAGE", "takes 4 high",
    ),
    "grey image of a binary model": (
        "Likelihood", pb.LikelihoodRequest(model=VAE, images=pictures(level=7)),
        INVALID, "BINARISATION_REQUIRED", "threshold",
    ),
    "too many noise draws": (
        "Likelihood", pb.LikelihoodRequest(model=VAE, images=pictures(), samples=1001),
        INVALID, "OUT_OF_RANGE", "1 to 1000",
    ),
    "one step": (
        "Interpolate",
        pb.InterpolateRequest(start=pb.Endpoint(seed=0), end=pb.Endpoint(seed=1), steps=1),
        INVALID, "OUT_OF_RANGE", "2 to 32",
    ),
    "nothing to interpolate": (
        "Interpolate", pb.InterpolateRequest(), INVALID, "INVALID_REQUEST", "exactly one of",
    ),
    "endpoint of nothing": (
        "Interpolate", pb.InterpolateRequest(start=pb.Endpoint(), end=pb.Endpoint(seed=1)),
        INVALID, "INVALID_REQUEST", "a seed, a latent, an image or a vector",
    ),
}  # fmt: skip


def batches(metrics: Metrics) -> float:
    """The batches that have reached a model."""
    samples = [sample for family in metrics.batches.collect() for sample in family.samples]
    return sum(sample.value for sample in samples if sample.name.endswith("_total"))


def reason_of(error: grpc.aio.AioRpcError) -> str:
    info = ErrorInfo()
    assert rpc_status.from_call(error).details[0].Unpack(info)
    return info.reason


@pytest.mark.parametrize("case", BAD_INPUT.values(), ids=BAD_INPUT.keys())
async def test_bad_input_is_refused_by_reason_and_harms_nothing(
    case: tuple[str, object, grpc.StatusCode, str, str],
    stub: GenerationServiceStub,
    metrics: Metrics,
    caplog: pytest.LogCaptureFixture,
) -> None:
    method, request, code, reason, allowed = case
    caplog.set_level(logging.INFO)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await getattr(stub, method)(request)
    assert refused.value.code() is code
    assert allowed in refused.value.details()
    assert reason_of(refused.value) == reason
    assert batches(metrics) == 0, "nothing reaches a model"
    assert (await stub.Sample(pb.SampleRequest(count=2))).images.count == 2
    assert all(record.levelno < logging.WARNING for record in caplog.records)


async def test_bytes_that_are_no_message_are_malformed(
    channel: grpc.aio.Channel, stub: GenerationServiceStub, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await channel.unary_unary(f"/{SERVICE}/Sample")(b"\xff\xff\xff")
    assert refused.value.code() is INVALID
    assert reason_of(refused.value) == "MALFORMED_REQUEST"
    assert (await stub.Sample(pb.SampleRequest())).images.count == 1
    assert all(record.levelno < logging.WARNING for record in caplog.records)


@pytest.mark.parametrize(
    ("content", "model", "reason"),
    [
        (b"\xff\xff\xff", "", "MALFORMED_REQUEST"),
        (pb.SampleRequest(timeout_ms=0).SerializeToString(), "", "OUT_OF_RANGE"),
        (pb.SampleRequest(returns=[0]).SerializeToString(), "", "INVALID_REQUEST"),
        (pb.SampleRequest(count=0).SerializeToString(), GAN, "OUT_OF_RANGE"),
        (pb.SampleRequest(model="none").SerializeToString(), "", "MODEL_NOT_FOUND"),
    ],
    ids=["malformed", "timeout", "part", "count", "model"],
)
async def test_every_refusal_is_counted_once(
    channel: grpc.aio.Channel, metrics: Metrics, content: bytes, model: str, reason: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await channel.unary_unary(f"/{SERVICE}/Sample")(content)
    assert counts(metrics) == {(model, "sample", reason): 1}


async def test_an_unknown_method_is_unimplemented(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await channel.unary_unary(f"/{SERVICE}/Dream")(b"")
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_fields_of_a_newer_proto_are_ignored(channel: grpc.aio.Channel) -> None:
    unknown_field = bytes([0xF8, 0x3F, 0x01])  # the number 1 in field 1023
    content = pb.SampleRequest(seed=4).SerializeToString() + unknown_field
    answer = await channel.unary_unary(f"/{SERVICE}/Sample")(content)
    assert pb.SampleResponse.FromString(answer).seed == 4


async def test_a_message_over_the_limit_is_refused(
    stub: GenerationServiceStub, settings: Settings
) -> None:
    huge = pb.EncodeRequest(images=files(bytes(settings.maximum_body_bytes)))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Encode(huge)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in refused.value.details()
    assert (await stub.Sample(pb.SampleRequest())).images.count == 1
