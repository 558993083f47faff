"""A model that is painted row by row, over both transports and really exported."""

import base64
import io
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status

from service.core.engine import Engine
from service.core.operations import work
from service.core.requests import CompleteRequest
from service.images import levels_to_png
from service.metrics import Metrics
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
        (MODEL, "latents", "images, log_likelihood, log_weight"),
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


# Completion


async def complete_both(
    client: httpx.AsyncClient, stub: GenerationServiceStub, image: np.ndarray, **fields: Any
) -> tuple[dict[str, Any], np.ndarray]:
    """Complete over both transports, check that they agree, and return answer and images."""
    parts = ["images", "log_likelihood", "log_weight"]
    listed = {name: np.asarray(value).tolist() for name, value in fields.items()}
    over_rest = await post(client, "complete", image=image.tolist(), **listed, **{"return": parts})
    if "known" in fields:
        fields["known"] = fields["known"].astype(np.uint8).tobytes()
    request = pb.CompleteRequest(model=MODEL, image=message_of(image[None]), **fields)
    request.returns.extend(f"GENERATION_PART_{part.upper()}" for part in parts)
    over_grpc = await stub.Complete(request)
    images = levels_of(over_grpc.images)
    assert np.array_equal(over_rest["images"], images)
    for name in ("log_likelihood", "log_weight"):
        assert over_rest[name] == list(getattr(over_grpc, name))
    assert over_rest["late_known_pixels"] == over_grpc.late_known_pixels
    assert over_rest.get("note", "") == over_grpc.note
    assert over_rest.get("candidate", []) == list(over_grpc.candidate)
    assert over_rest.get("class_label", []) == list(over_grpc.class_label)
    return over_rest, images


@pytest.mark.parametrize("rows", range(SIDE + 1))
async def test_the_first_rows_of_a_sample_are_completed_to_it(
    rows: int, client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    fields = {"seed": 11, "class_label": [2], "top_k": 5}
    (image,) = await sample(client, **fields)
    begun = np.where(np.arange(SIDE)[:, None, None] < rows, image, 0)
    answer, images = await complete_both(client, stub, begun, prefix_rows=rows, **fields)
    assert np.array_equal(images, [image])
    assert answer["late_known_pixels"] == 0 and answer["log_weight"] == [0.0]
    assert "note" not in answer


async def test_completions_differ_where_pixels_are_unknown_only(
    client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    (image,) = await sample(client, seed=1)
    _, images = await complete_both(client, stub, image, prefix_rows=2, count=8, seed=3)
    assert np.array_equal(images[:, :2], np.repeat(image[None, :2], 8, axis=0))
    assert len(np.unique(images[:, 2:], axis=0)) > 1


async def test_pixels_known_after_unknown_ones_are_forced_and_the_answer_says_so(
    client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    (image,) = await sample(client, seed=1)
    known = np.zeros((SIDE, SIDE), bool)
    known[0, :2] = known[2, 1:3] = True
    answer, images = await complete_both(client, stub, image, known=known, count=4, seed=3)
    assert np.array_equal(images[:, known], np.repeat(image[known][None], 4, axis=0))
    assert answer["late_known_pixels"] == 2
    assert answer["note"].startswith("2 known pixels") and "did not influence" in answer["note"]
    assert len(set(answer["log_weight"])) > 1, "late pixels fit one completion better than another"
    assert all(
        whole < late < 0
        for whole, late in zip(answer["log_likelihood"], answer["log_weight"], strict=True)
    )
    early = known & (np.arange(SIDE)[:, None] < 2)
    _, before = await complete_both(client, stub, image, known=early, count=4, seed=3)
    assert np.array_equal(images[:, :2], before[:, :2])


async def test_nothing_of_an_image_need_be_known_and_all_may_be(
    client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    (image,) = await sample(client, seed=1)
    nothing, everything = np.zeros((SIDE, SIDE), bool), np.ones((SIDE, SIDE), bool)
    _, images = await complete_both(client, stub, image, known=nothing, seed=9)
    assert np.array_equal(images, await sample(client, seed=9))
    answer, images = await complete_both(client, stub, image, known=everything, seed=9)
    assert np.array_equal(images, [image]) and answer["late_known_pixels"] == 0


async def test_a_png_and_unit_values_are_completed_like_levels(
    client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    (image,) = await sample(client, seed=1)
    fields = {"prefix_rows": 2, "seed": 3}
    plain = (await post(client, "complete", image=image.tolist(), **fields))["images"]
    png = levels_to_png(image, RASTER_LEVELS)
    text = base64.b64encode(png).decode()
    assert (await post(client, "complete", image=text, **fields))["images"] == plain
    unit = (image / (RASTER_LEVELS - 1)).tolist()
    values = (await post(client, "complete", image=unit, scale="unit", **fields))["images"]
    assert np.array_equal(np.rint(np.array(values) * (RASTER_LEVELS - 1)), plain)
    files = pb.Images(png=pb.PngFiles(files=[png]))
    known = bytes([1] * 2 * SIDE + [0] * 2 * SIDE)
    answer = await stub.Complete(pb.CompleteRequest(model=MODEL, image=files, known=known, seed=3))
    assert np.array_equal(levels_of(answer.images), plain)


async def test_completions_that_are_not_json_say_the_rest_in_headers(
    client: httpx.AsyncClient,
) -> None:
    known = np.zeros((SIDE, SIDE), bool)
    known[3, 3] = True
    image = np.zeros((SIDE, SIDE, 1), int).tolist()
    body = {"model": MODEL, "image": image, "known": known.tolist(), "return": "log_weight"}
    answer = await client.post("/complete", json=body, headers={"Accept": "application/x-npy"})
    assert answer.headers["x-genserve-note"].startswith("1 known pixels")
    assert np.load(io.BytesIO(answer.content)).shape == (1,)


LATE = np.zeros((SIDE, SIDE), bool)
LATE[0, 0] = LATE[2, 1:3] = True


@pytest.mark.parametrize("classes", [{}, {"class_label": [2]}, {"class_label": [0, 1, 2] * 3}])
@pytest.mark.parametrize("count", [1, 4, 9])
async def test_the_best_candidates_are_those_of_a_plain_run_with_as_many(
    count: int, classes: dict[str, Any], client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    (image,) = await sample(client, seed=1)
    fields = {"known": LATE, "seed": 3, **classes}
    plain, everyone = await complete_both(client, stub, image, count=9, **fields)
    ranked = sorted(range(9), key=lambda index: (-plain["log_weight"][index], index))
    best, images = await complete_both(client, stub, image, count=count, candidates=9, **fields)
    assert best["candidate"] == ranked[:count] and "candidate" not in plain
    assert np.array_equal(images, everyone[ranked[:count]])
    for name in ("log_likelihood", "log_weight", "class_weights", "class_label"):
        if name in plain:
            assert best[name] == [plain[name][index] for index in ranked[:count]], name
    assert best["late_known_pixels"] == 2


async def test_of_equally_good_candidates_the_first_are_chosen(
    client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    fields = {"known": LATE, "greedy": True, "count": 2, "candidates": 5}
    best, _ = await complete_both(client, stub, np.zeros((SIDE, SIDE, 1), int), seed=1, **fields)
    assert best["candidate"] == [0, 1] and len(set(best["log_weight"])) == 1


async def test_candidates_count_as_images_that_are_painted(
    client: httpx.AsyncClient, engine: Engine, metrics: Metrics
) -> None:
    image = np.zeros((SIDE, SIDE, 1), np.uint8)
    manifest = engine.models.find(MODEL).manifest
    assert work(manifest, CompleteRequest(image=image, known=LATE, candidates=20)) == 20
    await post(client, "complete", image=image.tolist(), known=LATE.tolist(), candidates=20)
    labels = {"model": MODEL, "version": "1"}
    assert metrics.registry.get_sample_value("genserve_rows_total", labels) == 20 * SIDE
    labels = {"model": MODEL, "operation": "complete"}
    assert metrics.registry.get_sample_value("genserve_images_total", labels) == 1


async def test_a_picture_of_the_best_names_them_in_a_header(client: httpx.AsyncClient) -> None:
    image = np.zeros((SIDE, SIDE, 1), int).tolist()
    body = {"model": MODEL, "image": image, "known": LATE.tolist(), "seed": 3}
    body |= {"count": 2, "candidates": 6}
    best = (await client.post("/complete", json=body)).json()["candidate"]
    answer = await client.post("/complete", json=body, headers={"Accept": "image/png"})
    assert answer.headers["x-genserve-candidate"] == f"{best[0]},{best[1]}"


IMAGE = np.zeros((SIDE, SIDE, 1), np.uint8)
MASK = {"known": LATE.tolist()}, {"known": LATE.tobytes()}
WRONG = {
    "both": (
        {"prefix_rows": 1, "known": np.ones((SIDE, SIDE), bool).tolist()}, None, "exactly one of"
    ),
    "neither": ({}, {}, "exactly one of"),
    "too many rows": ({"prefix_rows": 5}, {"prefix_rows": 5}, "allowed is 0 to 4"),
    "fewer rows than none": ({"prefix_rows": -1}, {"prefix_rows": -1}, "allowed is 0 to 4"),
    "known of wrong shape": ({"known": [[True]]}, {"known": b"\1"}, "4"),
    "known of numbers": (
        {"known": np.ones((SIDE, SIDE), int).tolist()}, {"known": b"\2" * 16}, "must hold"
    ),
    "levels out of range": (
        {"image": (IMAGE + 8).tolist(), "prefix_rows": 1},
        {"image": message_of(IMAGE[None] + 8), "prefix_rows": 1},
        "allowed are 0 to 7",
    ),
    "another shape": (
        {"image": [[[0]]], "prefix_rows": 1},
        {"image": message_of(IMAGE[None, :1]), "prefix_rows": 1},
        "takes [count, 4, 4, 1]",
    ),
    "several images": (
        {"image": [IMAGE.tolist()] * 2, "prefix_rows": 1},
        {"image": message_of(np.stack([IMAGE] * 2)), "prefix_rows": 1},
        "",
    ),
    "fewer candidates than completions": (
        {**MASK[0], "count": 3, "candidates": 2},
        {**MASK[1], "count": 3, "candidates": 2},
        "candidates is 2; allowed is 3 to 32",
    ),
    "too many candidates": (
        {**MASK[0], "candidates": 33}, {**MASK[1], "candidates": 33}, "allowed is 1 to 32"
    ),
    "candidates for nothing": (
        {**MASK[0], "count": 0, "candidates": 2},
        {**MASK[1], "count": 0, "candidates": 2},
        "count is 0; allowed is 1 to 32",
    ),
    "candidates of equal weight": (
        {"prefix_rows": 2, "candidates": 4},
        {"prefix_rows": 2, "candidates": 4},
        "there are none here; give some in known, or leave out candidates",
    ),
    "latents": (
        {"prefix_rows": 1, "return": "latents"},
        {"prefix_rows": 1, "returns": ["GENERATION_PART_LATENTS"]},
        "images, log_likelihood, log_weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
async def test_a_bad_completion_is_refused_with_what_is_allowed(
    name: str, client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    fields, message, allowed = WRONG[name]
    body = {"model": MODEL, "image": IMAGE.tolist(), **fields}
    over_rest = await client.post("/complete", json=body)
    assert over_rest.status_code == 422 and allowed in over_rest.json()["detail"]
    if message is None:
        return  # the proto can't say it
    request = pb.CompleteRequest(**{"model": MODEL, "image": message_of(IMAGE[None]), **message})
    with pytest.raises(grpc.aio.AioRpcError, match="INVALID_ARGUMENT") as refused:
        await stub.Complete(request)
    assert reason_of(refused.value) == over_rest.json()["reason"]
    assert allowed in refused.value.details()


async def test_a_model_that_can_t_complete_names_what_it_can(
    client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    body = {"model": "toy-gan", "image": IMAGE.tolist(), "prefix_rows": 1}
    over_rest = await client.post("/complete", json=body)
    assert over_rest.json()["reason"] == "OPERATION_NOT_OFFERED"
    assert over_rest.json()["operations"] == ["sample", "decode", "interpolate"]
    request = pb.CompleteRequest(model="toy-gan", image=message_of(IMAGE[None]), prefix_rows=1)
    with pytest.raises(grpc.aio.AioRpcError, match="FAILED_PRECONDITION"):
        await stub.Complete(request)
