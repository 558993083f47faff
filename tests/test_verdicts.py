"""Scores, p-values, verdicts and maps over REST and gRPC: the same numbers, the same refusals."""

import asyncio
import base64
import io
import json
import shutil
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from service import client as command
from service.core.engine import Engine
from service.core.scoring.calibration import Calibration
from service.core.scoring.scores import UNITS
from service.images import heat_map, levels_to_png
from service.rpc.pb import generation_service_pb2 as pb
from service.rpc.pb.generation_service_pb2_grpc import GenerationServiceStub
from service.rpc.words import to_word
from service.settings import Settings
from tests.both_transports import to_proto
from tests.calibrated import normal_images
from tests.fakes import RASTER_LEVELS, SIDE

FLOW, RASTER = "toy-flow", "toy-raster"
LEVELS = {FLOW: 256, RASTER: RASTER_LEVELS}
PNG, NPY = "image/png", "application/x-npy"
COLUMNS = ("log_likelihood", "p_value", "percentile", "q_value", "anomalous")


@pytest.fixture
def settings(settings: Settings, calibrated: tuple[Path, Any]) -> Settings:
    """The calibrated toys; a request may hold more images than a calibration has."""
    return settings.model_copy(update={"model_repository": calibrated[0], "maximum_count": 256})


def body_of(model: str, count: int = 3, seed: int = 1, **fields: Any) -> dict[str, Any]:
    images = normal_images(count, LEVELS.get(model, 2), seed)
    return {"model": model, "images": images.tolist(), **fields}


async def over_rest(
    client: httpx.AsyncClient, body: dict[str, Any], accept: str = "application/json"
) -> httpx.Response:
    answer = await client.post("/likelihood", json=body, headers={"Accept": accept})
    assert answer.status_code == 200, answer.text
    return answer


def message_of(body: dict[str, Any]) -> pb.LikelihoodRequest:
    """The same request over gRPC: words of choices become their numbers."""
    fields = to_proto(body)
    parts = fields.pop("return", [])
    parts = [parts] if isinstance(parts, str) else parts
    for name in ("estimator", "image_format"):
        if name in fields:
            fields[name] = f"{name}_{fields[name]}".upper()
    if "condition" in fields:
        fields["condition"] = pb.Condition(classes=[fields["condition"]["class"]])
    returns = [f"LIKELIHOOD_PART_{part.upper()}" for part in parts]
    return pb.LikelihoodRequest(**fields, returns=returns)


def assert_same(in_json: dict[str, Any], message: pb.LikelihoodResponse) -> None:
    """Every number of an answer is the same over both; null in JSON is what it can't hold."""

    def listed(values: Any) -> list[Any]:
        return [value if np.isfinite(value) else None for value in values]

    rows = in_json["results"]
    for name in COLUMNS:
        in_rows = [row.get(name) for row in rows]
        assert in_rows == (listed(getattr(message, name)) or [None] * len(rows)), name
    assert message.HasField("calibration") == bool(in_json.get("calibration"))
    for row in rows if message.HasField("calibration") else ():
        assert row["scores"].keys() == message.scores.keys()
    for name, score in message.scores.items():
        column = [row["scores"][name] for row in rows]
        assert [entry["value"] for entry in column] == listed(score.value)
        assert [entry["p_value"] for entry in column] == list(score.p_value)
        unit = score.unit if score.HasField("unit") else None
        assert {entry["unit"] for entry in column} == {unit} == {UNITS[name]}
    if message.HasField("calibration"):
        applied = message.calibration
        said = {field.name: getattr(applied, field.name) for field, _ in applied.ListFields()}
        said["realised_rate"] = list(said["realised_rate"])
        assert in_json["calibration"] == said
    group = message.group_p_value if message.HasField("group_p_value") else None
    assert in_json.get("group_p_value") == group
    if message.HasField("log_likelihood_map"):
        found = message.log_likelihood_map
        nats = np.array(found.values).reshape(found.count, found.height, found.width)
        assert [row["log_likelihood_map"] for row in rows] == nats.tolist()


# Answers


@pytest.mark.parametrize("model", [FLOW, RASTER])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"return": "scores", "false_positive_rate": 0.05},
        {"return": ["log_likelihood", "scores"], "group": True},
        {"return": ["log_likelihood"]},
        {"samples": 1},
    ],
    ids=str,
)
async def test_both_transports_answer_the_same_numbers(
    client: httpx.AsyncClient, stub: GenerationServiceStub, model: str, fields: dict[str, Any]
) -> None:
    if model == RASTER and "samples" in fields:
        fields = {"condition": {"class": 1}}
    body = body_of(model, count=5, **fields)
    in_json = (await over_rest(client, body)).json()
    assert_same(in_json, await stub.Likelihood(message_of(body)))


@hypothesis_settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    images=st.lists(
        st.lists(st.integers(0, RASTER_LEVELS - 1), min_size=SIDE * SIDE, max_size=SIDE * SIDE),
        min_size=1,
        max_size=4,
    ),
    rate=st.none() | st.floats(0.0, 1.0),
    group=st.booleans(),
    parts=st.none()
    | st.lists(st.sampled_from(["log_likelihood", "scores", "log_likelihood_map"]), min_size=1),
    known=st.booleans(),
)
async def test_whatever_is_asked_both_transports_agree(
    client: httpx.AsyncClient,
    stub: GenerationServiceStub,
    calibrated: tuple[Path, dict[str, Calibration]],
    images: list[list[int]],
    rate: float | None,
    group: bool,
    parts: list[str] | None,
    known: bool,
) -> None:
    levels = np.array(images).reshape(-1, SIDE, SIDE, 1)
    body: dict[str, Any] = {"model": RASTER, "images": levels.tolist(), "group": group}
    body |= {"calibration": calibrated[1][RASTER].id} if known else {}
    body |= {} if rate is None else {"false_positive_rate": rate}
    body |= {} if parts is None else {"return": parts}
    answer = await client.post("/likelihood", json=body)
    try:
        message = await stub.Likelihood(message_of(body))
    except grpc.aio.AioRpcError as error:
        assert answer.json()["reason"] == info_of(error).reason
    else:
        assert_same(answer.json(), message)


async def test_a_row_says_what_the_image_is_worth(
    client: httpx.AsyncClient, calibrated: tuple[Path, dict[str, Calibration]]
) -> None:
    answer = (await over_rest(client, body_of(RASTER, count=2, false_positive_rate=0.05))).json()
    made = calibrated[1][RASTER]
    applied = answer["calibration"]
    assert (applied["id"], applied["count"], applied["decision"]) == (made.id, 200, "combined")
    assert applied["false_positive_rate"] == 0.05 and applied["coverage"] == 0.95
    low, high = applied["realised_rate"]
    assert 0.0 < low < 0.05 < high < 0.15
    for row in answer["results"]:
        assert row["scores"]["likelihood_ratio"]["unit"] == "nats"
        assert row["scores"]["complexity_adjusted"]["unit"] == "bits"
        assert row["scores"]["combined"]["unit"] is None
        assert row["p_value"] == row["scores"]["combined"]["p_value"] <= row["q_value"]
        assert row["anomalous"] is (row["p_value"] <= 0.05)
        assert row["log_likelihood"] < 0 and row["kind"] == "exact"
    assert "group_p_value" not in answer and "log_likelihood_map" not in answer["results"][0]


async def test_without_a_calibration_verdicts_are_null_and_likelihoods_there(
    client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    body = body_of("toy-vae") | {"images": np.zeros((2, SIDE, SIDE, 1), int).tolist()}
    answer = (await over_rest(client, body)).json()
    assert answer["calibration"] is None
    for row in answer["results"]:
        assert row["log_likelihood"] < 0
        assert row["scores"] is row["p_value"] is row["anomalous"] is None
    message = await stub.Likelihood(message_of(body))
    assert not message.scores and not message.p_value and not message.HasField("calibration")


async def test_what_is_not_asked_for_is_absent(
    client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    body = body_of(FLOW, **{"return": "scores"})
    (row, *_) = (await over_rest(client, body)).json()["results"]
    assert "log_likelihood" not in row and row["scores"] and row["kind"] == "lower_bound"
    message = await stub.Likelihood(message_of(body))
    assert not message.log_likelihood and not message.standard_error and message.scores
    body = body_of(FLOW, **{"return": "log_likelihood"})
    answer = (await over_rest(client, body)).json()
    assert "calibration" not in answer and "scores" not in answer["results"][0]


async def test_an_infinite_score_is_null_in_json_with_the_lowest_p_value(
    client: httpx.AsyncClient, stub: GenerationServiceStub, engine: Engine
) -> None:
    graph = engine.models.find(FLOW).graphs["log_likelihood"]

    class Hopeless:
        def run(self, inputs: Any) -> Any:
            return {**graph.session.run(inputs), "log_likelihood": -np.full(
                len(next(iter(inputs.values()))), np.inf, np.float32
            )}  # fmt: skip

    engine.models.find(FLOW).graphs["log_likelihood"] = type(graph)(
        graph.model, graph.version, graph.name, Hopeless()
    )
    body = body_of(FLOW, count=2)
    answer = await over_rest(client, body)
    strict = json.loads(answer.text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    for row in strict["results"]:
        assert row["log_likelihood"] is None and row["scores"]["combined"]["value"] is None
        assert row["p_value"] == 1 / 201 and row["percentile"] == 100.0 and row["anomalous"]
    message = await stub.Likelihood(message_of(body))
    assert list(message.scores["combined"].value) == [np.inf, np.inf]
    assert_same(strict, message)
    weighted = (await over_rest(client, {**body, "samples": 2})).json()["results"]
    assert [row["log_likelihood"] for row in weighted] == [None, None]


# Maps


async def test_the_map_is_an_array_in_nats_or_a_picture(
    client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    body = body_of(RASTER, count=3, **{"return": ["log_likelihood", "log_likelihood_map"]})
    in_json = (await over_rest(client, body)).json()
    nats = np.array([row["log_likelihood_map"] for row in in_json["results"]])
    totals = [row["log_likelihood"] for row in in_json["results"]]
    assert np.allclose(nats.sum(axis=(1, 2)), totals)
    message = await stub.Likelihood(message_of(body))
    assert_same(in_json, message)
    alone = {**body, "return": "log_likelihood_map"}
    assert np.array_equal(np.load(io.BytesIO((await over_rest(client, alone, NPY)).content)), nats)
    files = [levels_to_png(picture, 256) for picture in heat_map(nats, RASTER_LEVELS)]
    body["image_format"] = "png"
    rows = (await over_rest(client, body)).json()["results"]
    assert [base64.b64decode(row["log_likelihood_map"]) for row in rows] == files
    message = await stub.Likelihood(message_of(body))
    assert list(message.log_likelihood_map.png.files) == files
    assert not message.log_likelihood_map.values


async def test_a_png_of_the_map_is_a_grid_as_of_images(client: httpx.AsyncClient) -> None:
    body = body_of(RASTER, count=3)
    answer = await over_rest(client, body, PNG)
    assert answer.headers["content-type"] == PNG and answer.headers["x-genserve-kind"] == "exact"
    picture = np.asarray(Image.open(io.BytesIO(answer.content)))
    nats = np.load(
        io.BytesIO((await over_rest(client, {**body, "return": "log_likelihood_map"}, NPY)).content)
    )
    assert picture.shape == (2 * SIDE, 2 * SIDE)
    assert np.array_equal(picture[:SIDE, SIDE:], heat_map(nats, RASTER_LEVELS)[1, :, :, 0])
    assert not picture[SIDE:, SIDE:].any(), "there is no fourth image"


def test_in_a_heat_map_the_unlikely_shines_on_one_scale_for_all() -> None:
    guess = -np.log(256.0)
    nats = np.array([[[0.5, 0.0, guess, 2 * guess, -np.inf, np.nan]]])
    assert heat_map(nats, 256)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255, 255]
    assert heat_map(nats[:, :, 1:3], 256).tolist() == heat_map(nats, 256)[:, :, 1:3].tolist()
    fine = heat_map(np.linspace(0.0, 2 * guess, 100).reshape(1, 10, 10), 256).ravel()
    assert np.all(np.diff(fine.astype(int)) > 0)


async def test_the_scale_of_images_does_not_keep_a_map_from_being_a_picture(
    client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    images = normal_images(2, RASTER_LEVELS)
    body = {"model": RASTER, "return": "log_likelihood_map", "image_format": "png"}
    unit = {**body, "images": (images / (RASTER_LEVELS - 1)).tolist(), "scale": "unit"}
    expected = (await over_rest(client, {**body, "images": images.tolist()})).json()
    assert (await over_rest(client, unit)).json()["results"] == expected["results"]
    request = message_of({**body, "images": images.tolist()})
    values = (images / (RASTER_LEVELS - 1)).astype("<f4").tobytes()
    request.images.unit_values, request.scale = values, pb.SCALE_UNIT
    files = (await stub.Likelihood(request)).log_likelihood_map.png.files
    assert [base64.b64encode(content).decode() for content in files] == [
        row["log_likelihood_map"] for row in expected["results"]
    ]


# Refusals

REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "scores without a calibration": (
        {"model": "toy-vae", "return": "scores"}, "NOT_CALIBRATED", "genserve calibrate"
    ),
    "a rate without a calibration": (
        {"model": "toy-vae", "false_positive_rate": 0.05}, "NOT_CALIBRATED", "genserve calibrate"
    ),
    "scores of another estimator": (
        {"model": FLOW, "samples": 4, "return": "scores"}, "NOT_CALIBRATED", "is iwae, not elbo"
    ),
    "scores across conditionings": (
        {"model": RASTER, "condition": {"class": 1}, "group": True},
        "NOT_CALIBRATED", "conditioning is given, not none",
    ),
    "an unknown calibration": (
        {"model": FLOW, "calibration": "0123456789ab"}, "NOT_CALIBRATED", "no calibration 01234"
    ),
    "a rate and no scores": (
        {"model": FLOW, "false_positive_rate": 0.1, "return": "log_likelihood"},
        "INVALID_REQUEST", "add scores to return",
    ),
    "a rate of 0": ({"model": FLOW, "false_positive_rate": 0.0}, "OUT_OF_RANGE", "more than 0"),
    "a rate of 1": ({"model": FLOW, "false_positive_rate": 1.0}, "OUT_OF_RANGE", "less than 1"),
    "a rate too fine": (
        {"model": FLOW, "false_positive_rate": 0.001}, "OUT_OF_RANGE", "rates from 0.004975"
    ),
    "a group larger than the calibration": (
        {"model": FLOW, "group": True, "images": normal_images(201, 256).tolist()},
        "OUT_OF_RANGE", "1 to 200",
    ),
    "a map of a model without one": (
        {"model": FLOW, "return": "log_likelihood_map"}, "INVALID_REQUEST", "ask for log_likelihood"
    ),
    "an estimator that the model has not": (
        {"model": FLOW, "estimator": "monte_carlo", "samples": 2},
        "INVALID_REQUEST", "leave out estimator",
    ),
    "verdicts of a GAN": ({"model": "toy-gan"}, "OPERATION_NOT_OFFERED", "sample, decode"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
async def test_a_wish_that_can_not_be_met_has_the_same_reason_on_both(
    client: httpx.AsyncClient, stub: GenerationServiceStub, name: str
) -> None:
    fields, reason, words = REFUSED[name]
    black = np.zeros((2, SIDE, SIDE, 1), int).tolist()
    body = {"images": black, **fields}
    answer = await client.post("/likelihood", json=body)
    problem = answer.json()
    assert (answer.status_code, problem["reason"]) == (422, reason)
    assert words in problem["detail"]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Likelihood(message_of(body))
    assert info_of(refused.value).reason == reason
    assert refused.value.details() == problem["detail"]


async def test_a_refusal_lists_the_calibrations_there_are(
    client: httpx.AsyncClient, calibrated: tuple[Path, dict[str, Calibration]]
) -> None:
    answer = await client.post("/likelihood", json=body_of(FLOW, calibration="none"))
    assert answer.json()["calibrations"] == [calibrated[1][FLOW].id]


@pytest.mark.parametrize(
    "fields",
    [
        {"return": "likelihood"},
        {"return": []},
        {"return": ["scores"] * 9},
        {"estimator": "elbo"},
        {"false_positive_rate": "0.05"},
        {"false_positive_rate": True},
        {"calibration": 5},
        {"calibration": "x" * 201},
        {"group": 1},
        {"image_format": "jpeg"},
    ],
    ids=str,
)
async def test_a_field_of_another_kind_is_refused_by_name(
    client: httpx.AsyncClient, fields: dict[str, Any]
) -> None:
    answer = await client.post("/likelihood", json=body_of(FLOW, **fields))
    assert (answer.status_code, answer.json()["reason"]) == (422, "INVALID_REQUEST")
    (name,) = fields
    assert answer.json()["detail"].startswith(name)


async def test_an_array_alone_holds_no_verdicts(client: httpx.AsyncClient) -> None:
    body = body_of(FLOW, false_positive_rate=0.05)
    answer = await client.post("/likelihood", json=body, headers={"Accept": NPY})
    assert answer.status_code == 422 and "add scores to return" in answer.json()["detail"]


async def test_the_query_beside_raw_bytes_asks_for_verdicts_too(client: httpx.AsyncClient) -> None:
    image = normal_images(1, 256)[0].astype(np.uint8)
    answer = await client.post(
        "/likelihood?model=toy-flow&false_positive_rate=0.05&group=true&return=scores",
        content=levels_to_png(image, 256),
        headers={"Content-Type": PNG},
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["calibration"]["false_positive_rate"] == 0.05
    assert answer.json()["group_p_value"] > 0


# What a model says of its calibrations


async def test_a_model_lists_its_calibrations_on_both(
    client: httpx.AsyncClient,
    stub: GenerationServiceStub,
    calibrated: tuple[Path, dict[str, Calibration]],
) -> None:
    (listed,) = (await client.get(f"/models/{FLOW}")).json()["calibrations"]
    made = calibrated[1][FLOW]
    assert listed["id"] == made.id and listed["count"] == 200 and listed["source"] == "toys"
    assert listed["decision"] == "combined" and set(listed["scores"]) == set(made.scores)
    assert listed["protocol"] == made.protocol.model_dump()
    (message,) = (await stub.GetModel(pb.GetModelRequest(model=FLOW))).model.calibrations
    for name in ("id", "count", "source", "decision"):
        assert listed[name] == getattr(message, name)
    assert list(message.scores) == listed["scores"]
    for name in ("estimator", "draws", "seed", "codec"):
        assert listed["protocol"][name] == getattr(message.protocol, name)
    word = to_word(pb.Conditioning.DESCRIPTOR, message.protocol.conditioning)
    assert listed["protocol"]["conditioning"] == word
    assert (await client.get("/models/toy-vae")).json()["calibrations"] == []


async def test_a_calibration_can_be_read_whole(
    client: httpx.AsyncClient, calibrated: tuple[Path, dict[str, Calibration]]
) -> None:
    made = calibrated[1][FLOW]
    answer = await client.get(f"/models/{FLOW}/calibrations/{made.id}")
    assert Calibration.model_validate_json(answer.content).model_dump() == made.model_dump()
    for name in (FLOW, "toy-vae"):
        refused = await client.get(f"/models/{name}/calibrations/none")
        assert refused.status_code == 422 and refused.json()["reason"] == "NOT_CALIBRATED"
    assert "it has none" in refused.json()["detail"]


class TestRefusedCalibrations:
    @pytest.fixture
    def settings(
        self, settings: Settings, calibrated: tuple[Path, Any], tmp_path: Path
    ) -> Settings:
        folder = shutil.copytree(calibrated[0], tmp_path / "repository")
        (made,) = (folder / FLOW / "calibrations").iterdir()
        (folder / "toy-vae" / "calibrations").mkdir()
        shutil.copy(made, folder / "toy-vae" / "calibrations" / "other.json.xz")
        return settings.model_copy(update={"model_repository": folder})

    async def test_are_listed_with_the_reason(
        self, client: httpx.AsyncClient, stub: GenerationServiceStub
    ) -> None:
        described = (await client.get("/models/toy-vae")).json()
        assert described["state"] == "ready" and described["calibrations"] == []
        (refused,) = described["refused_calibrations"]
        assert refused["file"] == "other.json.xz" and "calibrate this one" in refused["reason"]
        model = (await stub.GetModel(pb.GetModelRequest(model="toy-vae"))).model
        (message,) = model.refused_calibrations
        assert (message.file, message.reason) == (refused["file"], refused["reason"])


# The command


async def test_the_client_hands_on_verdicts(address: str) -> None:
    images = [
        ("normal.png", levels_to_png(normal_images(1, 256)[0].astype(np.uint8), 256)),
        ("white.png", levels_to_png(np.full((SIDE, SIDE, 1), 255, np.uint8), 256)),
    ]
    service = command.Service(address)
    normal, white = await asyncio.to_thread(
        command.score, service, model=FLOW, images=images, false_positive_rate=0.02
    )
    assert normal.p_value is not None and white.p_value is not None
    assert white.anomalous and white.p_value == 1 / 201 < normal.p_value
    (plain,) = await asyncio.to_thread(
        command.score, service, model=FLOW, images=images[:1], samples=2
    )
    assert plain.p_value is None and plain.anomalous is None


def info_of(error: grpc.aio.AioRpcError) -> ErrorInfo:
    info = ErrorInfo()
    assert rpc_status.from_call(error).details[0].Unpack(info)
    return info
