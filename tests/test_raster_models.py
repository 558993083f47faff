"""A model that is painted row by row, over both transports and really exported."""

from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status

from service.rpc.pb import generation_service_pb2 as pb
from service.rpc.pb.generation_service_pb2_grpc import GenerationServiceStub
from tests.fakes import RASTER_LEVELS, SIDE

MODEL = "toy-raster"
BOTH = ["images", "log_likelihood"]


async def post(client: httpx.AsyncClient, operation: str, **fields: Any) -> dict[str, Any]:
    """Return the JSON answer, images as arrays."""
    body = {"model": MODEL, "image_format": "array", **fields}
    answer = await client.post(f"/{operation}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def sample(client: httpx.AsyncClient, **fields: Any) -> np.ndarray:
    return np.array((await post(client, "sample", **fields))["images"], np.uint8)


def levels_of(images: pb.Images) -> np.ndarray:
    shape = images.count, images.height, images.width, images.channels
    return np.frombuffer(images.levels, np.uint8).reshape(shape)


def message_of(images: np.ndarray) -> pb.Images:
    sizes = dict(zip(("count", "height", "width", "channels"), images.shape, strict=True))
    return pb.Images(**sizes, levels=images.astype(np.uint8).tobytes())


def reason_of(error: grpc.aio.AioRpcError) -> str:
    info = ErrorInfo()
    assert rpc_status.from_call(error).details[0].Unpack(info)
    return info.reason


# Sample and likelihood


CONTROLS = [
    {},
    {"temperature": 0.5},
    {"top_k": 2},
    {"top_p": 0.6, "class_label": [0, 1, 2]},
    {"top_k": 3, "top_p": 0.9, "temperature": 2.0},
    {"greedy": True},
    {"greedy": False, "temperature": 2.0},
]


@pytest.mark.parametrize("controls", CONTROLS, ids=str)
async def test_samples_and_their_log_likelihoods_are_the_same_over_both_transports(
    controls: dict[str, Any], client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    over_rest = await post(client, "sample", count=3, seed=4, **controls, **{"return": BOTH})
    message = {"class_label": [], **controls}
    request = pb.SampleRequest(model=MODEL, count=3, seed=4, **message)
    request.returns.extend([pb.GENERATION_PART_IMAGES, pb.GENERATION_PART_LOG_LIKELIHOOD])
    over_grpc = await stub.Sample(request)
    assert np.array_equal(over_rest["images"], levels_of(over_grpc.images))
    assert over_rest["log_likelihood"] == list(over_grpc.log_likelihood)
    assert over_rest.get("class_label", []) == list(over_grpc.class_label)
    assert all(-SIDE * SIDE * 10 < nats < 0 for nats in over_rest["log_likelihood"])


async def test_the_controls_narrow_what_is_drawn(client: httpx.AsyncClient) -> None:
    free = await sample(client, count=8, seed=1)
    greedy = await sample(client, count=8, seed=1, greedy=True)
    assert len(np.unique(free, axis=0)) > 1 == len(np.unique(greedy, axis=0))
    for narrow in ({"top_k": 1}, {"top_p": 0.01}, {"temperature": 0.01}):
        assert np.array_equal(await sample(client, count=8, seed=1, **narrow), greedy), narrow
    for wide in ({"top_k": RASTER_LEVELS}, {"top_p": 1.0}, {"temperature": 1.0}):
        assert np.array_equal(await sample(client, count=8, seed=1, **wide), free), wide


async def test_an_image_without_a_class_has_no_class_label(client: httpx.AsyncClient) -> None:
    said = await post(client, "sample", seed=1)
    assert said["class_weights"] == [[0, 0, 0]] and "class_label" not in said


async def test_the_likelihood_of_a_sample_is_the_one_that_came_with_it(
    client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    for condition in ({}, {"class_label": 1}, {"condition": {"class_weights": [0.5, 0.5, 0]}}):
        drawn = await post(
            client, "sample", count=4, seed=3, top_k=5, **condition, **{"return": BOTH}
        )
        body = {"model": MODEL, "images": drawn["images"], **condition}
        scored = (await client.post("/likelihood", json=body)).json()["results"]
        scores = [score["log_likelihood"] for score in scored]
        assert scores == pytest.approx(drawn["log_likelihood"], abs=1e-3)
        assert scored[0]["conditioning"] == ("given" if condition else "none")
    request = pb.LikelihoodRequest(model=MODEL, images=message_of(np.array(drawn["images"])))
    plain = await stub.Likelihood(request)
    request.condition.class_weights.CopyFrom(pb.ClassWeights(count=1, size=3, values=[0.5, 0.5, 0]))
    given = await stub.Likelihood(request)
    assert list(given.log_likelihood) == scores != list(plain.log_likelihood)
    assert given.conditioning == pb.CONDITIONING_GIVEN


async def test_png_and_npy_answers_hold_rows_too(client: httpx.AsyncClient) -> None:
    for accept in ("image/png", "application/x-npy"):
        body = {"model": MODEL, "class_label": 2}
        answer = await client.post("/sample", json=body, headers={"Accept": accept})
        assert answer.status_code == 200 and answer.headers["x-genserve-class-label"] == "2"
        assert "x-genserve-latent-space" not in answer.headers


REFUSED = {
    "top_k of 0": ({"top_k": 0}, "OUT_OF_RANGE", "top_k is 0; allowed is 1"),
    "top_k beyond the levels": ({"top_k": 9}, "OUT_OF_RANGE", "allowed is 1"),
    "top_p of 0": ({"top_p": 0.0}, "OUT_OF_RANGE", "allowed is 0.01"),
    "temperature 0": ({"temperature": 0.0}, "OUT_OF_RANGE", "allowed is 0.01"),
    "a temperature below": ({"temperature": -1.0}, "OUT_OF_RANGE", "allowed is 0.01"),
    "greedy with temperature": (
        {"greedy": True, "temperature": 1.0},
        "INVALID_REQUEST",
        "leave out temperature",
    ),
    "truncation": ({"truncation": 1.0}, "CONTROL_NOT_OFFERED", "it has ['greedy'"),
    "no such class": ({"class_label": [3]}, "OUT_OF_RANGE", "allowed is 0 to 2"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_bad_control_is_refused_with_what_is_allowed(
    name: str, client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    fields, reason, allowed = REFUSED[name]
    over_rest = await client.post("/sample", json={"model": MODEL, **fields})
    assert over_rest.status_code == 422
    assert over_rest.json()["reason"] == reason and allowed in over_rest.json()["detail"]
    with pytest.raises(grpc.aio.AioRpcError, match="INVALID_ARGUMENT") as refused:
        await stub.Sample(pb.SampleRequest(model=MODEL, **fields))
    assert reason_of(refused.value) == reason and allowed in refused.value.details()


async def test_numbers_that_are_none_are_refused(
    client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    for name in ("temperature", "top_p"):
        content = f'{{"model": "{MODEL}", "{name}": NaN}}'
        headers = {"Content-Type": "application/json"}
        over_rest = await client.post("/sample", content=content, headers=headers)
        assert over_rest.json()["reason"] == "MALFORMED_REQUEST", "NaN is not JSON"
        for number in (np.nan, np.inf):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.Sample(pb.SampleRequest(model=MODEL, **{name: number}))
            assert reason_of(refused.value) == "OUT_OF_RANGE"


@pytest.mark.parametrize(
    ("model", "part", "there"),
    [
        (MODEL, "latents", "images, log_likelihood"),
        ("toy-gan", "log_likelihood", "images, latents"),
    ],
)
async def test_a_part_that_there_is_none_of_is_refused_with_those_there_are(
    model: str, part: str, there: str, client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    for accept in ("application/json", "application/x-npy"):
        body = {"model": model, "return": part}
        over_rest = await client.post("/sample", json=body, headers={"Accept": accept})
        assert over_rest.json()["reason"] == "INVALID_REQUEST"
        assert there in over_rest.json()["detail"]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        request = pb.SampleRequest(model=model, returns=[f"GENERATION_PART_{part.upper()}"])
        await stub.Sample(request)
    assert reason_of(refused.value) == "INVALID_REQUEST" and there in refused.value.details()


async def test_a_model_without_levels_to_draw_from_has_no_such_controls(
    client: httpx.AsyncClient,
) -> None:
    for field in ({"top_k": 2}, {"top_p": 0.5}, {"greedy": True}):
        answer = await client.post("/sample", json={"model": "toy-gan", **field})
        assert answer.json()["reason"] == "CONTROL_NOT_OFFERED"
        assert answer.json()["controls"] == ["temperature", "truncation"]


async def test_a_model_says_that_its_condition_is_optional(stub: GenerationServiceStub) -> None:
    described = (await stub.GetModel(pb.GetModelRequest(model=MODEL))).model
    assert described.condition.optional and not described.HasField("latent")
    assert set(described.controls) == {"temperature", "top_k", "top_p", "greedy"}
    assert not (await stub.GetModel(pb.GetModelRequest(model="toy-gan"))).model.condition.optional
