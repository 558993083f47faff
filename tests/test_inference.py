"""The Open Inference Protocol on both transports: its shapes, its tensors, its refusals."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from service.core.engine import Engine
from service.core.preprocess import to_images, to_values
from service.metrics import Metrics
from service.rpc.pb import inference_service_pb2 as pb
from service.rpc.pb.inference_service_pb2_grpc import GRPCInferenceServiceStub
from tests.both_transports import ask_rest, counts
from tests.fakes import CLASSES, LATENT, PIXELS, SIDE

LENGTH = "Inference-Header-Content-Length"
LATENTS = np.random.default_rng(0).normal(size=(3, LATENT)).astype(np.float32)
LEVELS = np.random.default_rng(1).integers(0, 256, (2, SIDE, SIDE, 1), np.uint8)
NUMPY = {"FP32": np.float32, "INT64": np.int64, "UINT8": np.uint8}


@pytest.fixture
def inference(channel: grpc.aio.Channel) -> GRPCInferenceServiceStub:
    return GRPCInferenceServiceStub(channel)


def tensor(name: str, array: np.ndarray, **changes: object) -> dict[str, Any]:
    return {
        "name": name,
        "shape": list(array.shape),
        "datatype": "FP32",
        "data": array.ravel().tolist(),
        **changes,
    }


def body_of(name: str, array: np.ndarray, **fields: object) -> dict[str, Any]:
    return {"inputs": [tensor(name, array)], **fields}


def as_bytes(arrays: dict[str, np.ndarray], **fields: object) -> tuple[bytes, dict[str, str]]:
    """A body whose tensors are bytes behind the JSON, and its header."""
    inputs = [
        {
            "name": name,
            "shape": list(array.shape),
            "datatype": "FP32",
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in arrays.items()
    ]
    header = json.dumps({"inputs": inputs, **fields}).encode()
    content = b"".join([header, *(array.tobytes() for array in arrays.values())])
    return content, {LENGTH: str(len(header)), "Content-Type": "application/octet-stream"}


def tensors_of(answer: httpx.Response) -> dict[str, np.ndarray]:
    """The outputs of an answer, be they JSON or bytes."""
    assert answer.status_code == 200, answer.text
    length = int(answer.headers.get(LENGTH, len(answer.content)))
    header, rest = json.loads(answer.content[:length]), answer.content[length:]
    found = {}
    for output in header["outputs"]:
        dtype, size = NUMPY[output["datatype"]], output.get("parameters", {})
        if size:
            values = np.frombuffer(rest[: size["binary_data_size"]], dtype)
            rest = rest[size["binary_data_size"] :]
        else:
            values = np.array(output["data"], dtype)
        found[output["name"]] = values.reshape(output["shape"])
    assert not rest
    return found


def message_of(model: str, *, typed: bool = False, **arrays: np.ndarray) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name=model)
    for name, array in arrays.items():
        part = message.inputs.add(name=name, datatype="FP32", shape=array.shape)
        if typed:
            part.contents.fp32_contents.extend(array.ravel().tolist())
        else:
            message.raw_input_contents.append(array.tobytes())
    return message


def outputs_of(message: pb.ModelInferResponse) -> dict[str, np.ndarray]:
    return {
        output.name: np.frombuffer(content, NUMPY[output.datatype]).reshape(output.shape)
        for output, content in zip(message.outputs, message.raw_output_contents, strict=True)
    }


async def decode_everyhow(
    client: httpx.AsyncClient, inference: GRPCInferenceServiceStub
) -> AsyncIterator[dict[str, np.ndarray]]:
    path = "/v2/models/toy-vae.decode/infer"
    yield tensors_of(await client.post(path, json=body_of("latent", LATENTS)))
    nested = {"inputs": [tensor("latent", LATENTS, data=LATENTS.tolist())]}
    yield tensors_of(await client.post(path, json=nested))
    wanted = {"parameters": {"binary_data_output": True}}
    content, headers = as_bytes({"latent": LATENTS}, **wanted)
    yield tensors_of(await client.post(path, content=content, headers=headers))
    for typed in (False, True):
        message = message_of("toy-vae.decode", typed=typed, latent=LATENTS)
        yield outputs_of(await inference.ModelInfer(message))


# The same tensors as the operations


async def test_a_graph_gives_what_its_operation_shows(
    engine: Engine, client: httpx.AsyncClient, inference: GRPCInferenceServiceStub
) -> None:
    body = {"model": "toy-vae", "latents": LATENTS.tolist()}
    images = await ask_rest(client, "decode", body)
    manifest = engine.models.find("toy-vae").manifest
    first = None
    async for outputs in decode_everyhow(client, inference):
        (values,) = outputs.values()
        assert outputs.keys() == {"data"} and values.dtype == np.float32
        np.testing.assert_array_equal(to_images(manifest, values, "levels"), images)
        first = values if first is None else first
        np.testing.assert_array_equal(values, first)  # bit for bit, however they travelled


async def test_log_likelihoods_are_those_of_the_operation(
    engine: Engine, client: httpx.AsyncClient, inference: GRPCInferenceServiceStub
) -> None:
    levels = LEVELS // 32 * 32  # as of the model, which has eight
    body = {"model": "toy-raster", "images": (levels // 32).tolist(), "class_label": 1}
    expected = await ask_rest(client, "likelihood", body)
    manifest = engine.models.find("toy-raster").manifest
    data = to_values(manifest, levels // 32)
    weights = np.eye(CLASSES, dtype=np.float32)[[1, 1]]
    inputs = {"data": data, "class_weights": weights}
    content, headers = as_bytes(inputs, outputs=[{"name": "log_likelihood"}])
    path = "/v2/models/toy-raster.log_likelihood/infer"
    over_rest = tensors_of(await client.post(path, content=content, headers=headers))
    np.testing.assert_allclose(over_rest["log_likelihood"], expected, rtol=1e-6)
    assert over_rest.keys() == {"log_likelihood"}
    over_grpc = await inference.ModelInfer(message_of("toy-raster.log_likelihood", **inputs))
    found = outputs_of(over_grpc)
    np.testing.assert_array_equal(found["log_likelihood"], over_rest["log_likelihood"])
    assert found.keys() > {"log_likelihood"}


async def test_an_output_is_bytes_or_numbers_as_it_is_asked_for(client: httpx.AsyncClient) -> None:
    data = to_data(LEVELS)
    wanted = [
        {"name": "latent_deviation", "parameters": {"binary_data": True}},
        {"name": "latent", "parameters": {"binary_data": False}},
    ]
    fields = {"outputs": wanted, "id": "mine"}
    body = body_of("data", data, **fields)
    answer = await client.post("/v2/models/toy-vae.encode/versions/1/infer", json=body)
    length = int(answer.headers[LENGTH])
    header = json.loads(answer.content[:length])
    assert (header["model_name"], header["model_version"]) == ("toy-vae.encode", "1")
    assert header["id"] == "mine"
    assert [output["name"] for output in header["outputs"]] == ["latent_deviation", "latent"]
    assert ["data" in output for output in header["outputs"]] == [False, True]
    assert len(answer.content) - length == 4 * len(LEVELS) * LATENT


def to_data(levels: np.ndarray) -> np.ndarray:
    return (levels / 255.0).astype(np.float32).reshape(-1, 1, SIDE, SIDE)


async def test_requests_are_counted_by_artifact(
    client: httpx.AsyncClient, inference: GRPCInferenceServiceStub, metrics: Metrics
) -> None:
    await client.post("/v2/models/toy-vae.decode/infer", json=body_of("latent", LATENTS))
    await client.post("/v2/models/toy-vae.decode/infer", json=body_of("other", LATENTS))
    await client.post("/v2/models/nothing.decode/infer", json=body_of("latent", LATENTS))
    await inference.ModelInfer(message_of("toy-vae.decode", latent=LATENTS))
    assert counts(metrics) == {
        ("toy-vae", "infer", "OK"): 2,
        ("toy-vae", "infer", "INVALID_REQUEST"): 1,
        ("", "infer", "MODEL_NOT_FOUND"): 1,
    }


# What there is


async def test_health_and_metadata_have_json_bodies(client: httpx.AsyncClient) -> None:
    async def get(path: str) -> Any:
        answer = await client.get(path)
        assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
        return answer.json()

    assert await get("/v2/health/live") == {"live": True}
    assert await get("/v2/health/ready") == {"ready": True}
    assert await get("/v2/models/toy-gan.decode/ready") == {
        "name": "toy-gan.decode",
        "ready": True,
    }
    server = await get("/v2")
    assert (server["name"], server["version"]) == ("genserve", "1.2.3")
    assert "binary_tensor_data" in server["extensions"]
    assert await get("/v2/models/toy-gan.decode/versions/1") == {
        "name": "toy-gan.decode",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": "latent", "datatype": "FP32", "shape": [-1, LATENT]},
            {"name": "class_weights", "datatype": "FP32", "shape": [-1, CLASSES]},
        ],
        "outputs": [{"name": "data", "datatype": "FP32", "shape": [-1, 1, SIDE, SIDE]}],
    }
    configuration = await get("/v2/models/toy-gan.decode/config")
    assert configuration["max_batch_size"] > 1
    assert configuration["output"] == [
        {"name": "data", "data_type": "TYPE_FP32", "dims": [1, SIDE, SIDE]}
    ]
    assert not configuration["model_transaction_policy"]["decoupled"]


async def test_both_transports_say_the_same(
    client: httpx.AsyncClient, inference: GRPCInferenceServiceStub
) -> None:
    assert (await inference.ServerLive(pb.ServerLiveRequest())).live
    assert (await inference.ServerReady(pb.ServerReadyRequest())).ready
    assert (await inference.ServerMetadata(pb.ServerMetadataRequest())).version == "1.2.3"
    index = (await client.post("/v2/repository/index")).json()
    listed = await inference.RepositoryIndex(pb.RepositoryIndexRequest())
    assert [entry.name for entry in listed.models] == [entry["name"] for entry in index]
    assert {"toy-flow.encode", "toy-raster.sample"} <= {entry["name"] for entry in index}
    for name in {entry["name"] for entry in index}:
        in_json = (await client.get(f"/v2/models/{name}")).json()
        message = await inference.ModelMetadata(pb.ModelMetadataRequest(name=name, version="1"))
        for kind in ("inputs", "outputs"):
            shown = [
                {"name": part.name, "datatype": part.datatype, "shape": list(part.shape)}
                for part in getattr(message, kind)
            ]
            assert shown == in_json[kind]
        config = (await inference.ModelConfig(pb.ModelConfigRequest(name=name))).config
        in_json = (await client.get(f"/v2/models/{name}/config")).json()
        assert config.max_batch_size == in_json["max_batch_size"]
        assert [list(part.dims) for part in config.output] == [
            part["dims"] for part in in_json["output"]
        ]
        decoupled = in_json["model_transaction_policy"]["decoupled"]
        assert (
            config.model_transaction_policy.decoupled == decoupled == (name == "toy-raster.sample")
        )


async def test_the_steps_of_a_program_are_no_model(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v2/models/toy-raster.row_step")
    assert answer.status_code == 404 and "toy-raster.sample" in answer.json()["error"]


async def test_a_model_that_is_not_loaded_is_not_ready_until_it_is_asked(
    client: httpx.AsyncClient, inference: GRPCInferenceServiceStub
) -> None:
    name, request = "toy-raster.sample", pb.ModelReadyRequest(name="toy-raster.sample")
    assert (await client.get(f"/v2/models/{name}/ready")).status_code == 503
    assert not (await inference.ModelReady(request)).ready
    (entry,) = [
        entry
        for entry in (await client.post("/v2/repository/index")).json()
        if entry["name"] == name
    ]
    assert entry["state"] == "UNAVAILABLE" and entry["reason"]
    listed = (await client.post("/v2/repository/index", json={"ready": True})).json()
    assert listed and name not in {entry["name"] for entry in listed}
    answer = await client.post(f"/v2/models/{name}/infer", json={"inputs": []})
    assert answer.status_code == 200
    assert (await client.get(f"/v2/models/{name}/ready")).json()["ready"]
    assert (await inference.ModelReady(request)).ready


async def test_statistics_count_requests_rows_and_batches(
    client: httpx.AsyncClient, inference: GRPCInferenceServiceStub
) -> None:
    async def of(name: str) -> dict[str, Any]:
        answer = await client.get(f"/v2/models/{name}/stats")
        (entry,) = answer.json()["model_stats"]
        request = pb.ModelStatisticsRequest(name=name, version="1")
        (message,) = (await inference.ModelStatistics(request)).model_stats
        assert message.inference_count == entry["inference_count"]
        for kind in ("success", "fail", "queue", "compute_infer"):
            duration = getattr(message.inference_stats, kind)
            assert {"count": duration.count, "ns": duration.ns} == entry["inference_stats"][kind]
        return entry

    name = "toy-vae.decode"
    before = await of(name)
    assert before["inference_count"] == before["inference_stats"]["success"]["count"] == 0
    await client.post(f"/v2/models/{name}/infer", json=body_of("latent", LATENTS))
    await client.post(f"/v2/models/{name}/infer", json=body_of("latents", LATENTS))
    await client.post("/decode", json={"model": "toy-vae", "latents": LATENTS.tolist()})
    after = await of(name)
    assert after["inference_count"] == 2 * len(LATENTS)
    stats = after["inference_stats"]
    assert (stats["success"]["count"], stats["fail"]["count"]) == (1, 1)
    assert after["execution_count"] == stats["compute_infer"]["count"] >= 2
    assert stats["success"]["ns"] > 0 and stats["compute_infer"]["ns"] > 0
    assert before["inference_stats"]["queue"] == {"count": 0, "ns": 0}
    assert stats["queue"]["count"] >= 2 and stats["queue"]["ns"] > 0
    await streamed(inference, sample_message(seed=1))
    assert (await of("toy-raster.sample"))["inference_stats"]["success"]["count"] == 1
    listed = (await client.get("/v2/models/stats")).json()["model_stats"]
    messages = (await inference.ModelStatistics(pb.ModelStatisticsRequest())).model_stats
    assert [entry["name"] for entry in listed] == [entry.name for entry in messages]
    assert name in {entry["name"] for entry in listed}


# Sampling, and streams


def sample_message(**parameters: int) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="toy-raster.sample", id="mine")
    for name, value in parameters.items():
        message.parameters[name].int64_param = value
    return message


async def streamed(
    inference: GRPCInferenceServiceStub, *messages: pb.ModelInferRequest
) -> list[pb.ModelStreamInferResponse]:
    return [answer async for answer in inference.ModelStreamInfer(iter(messages))]


async def test_sample_is_a_model_with_parameters(
    client: httpx.AsyncClient, inference: GRPCInferenceServiceStub
) -> None:
    asked = {"seed": 7, "count": 3, "class": 1}
    body = {"model": "toy-raster", "seed": 7, "count": 3, "class_label": 1}
    expected = await ask_rest(client, "sample", body)
    path = "/v2/models/toy-raster.sample/infer"
    answer = await client.post(path, json={"inputs": [], "parameters": asked})
    assert answer.json()["parameters"] == {"seed": 7}
    np.testing.assert_array_equal(tensors_of(answer)["images"], expected)
    over_grpc = await inference.ModelInfer(sample_message(**asked))
    np.testing.assert_array_equal(outputs_of(over_grpc)["images"], expected)
    unseeded = await client.post(path, json={"inputs": []})
    body = {"model": "toy-raster", "seed": unseeded.json()["parameters"]["seed"]}
    np.testing.assert_array_equal(
        tensors_of(unseeded)["images"], await ask_rest(client, "sample", body)
    )


async def test_a_stream_shows_rows_and_then_the_images(
    client: httpx.AsyncClient, inference: GRPCInferenceServiceStub
) -> None:
    answers = await streamed(inference, sample_message(seed=7, count=2))
    assert not any(answer.error_message for answer in answers)
    *steps, last = [answer.infer_response for answer in answers]
    assert {response.id for response in (*steps, last)} == {"mine"}
    final = [step.parameters["triton_final_response"].bool_param for step in (*steps, last)]
    assert final == [False] * len(steps) + [True] and steps
    images = outputs_of(last)["images"]
    painted = np.zeros_like(images)
    for step in steps:
        parts = outputs_of(step)
        first, rows = int(parts["first_row"][0]), parts["rows"]
        painted[parts["image"][0], first : first + len(rows)] = rows
    np.testing.assert_array_equal(painted, images)
    body = {"model": "toy-raster", "seed": 7, "count": 2}
    np.testing.assert_array_equal(images, await ask_rest(client, "sample", body))


async def test_a_stream_answers_each_request_and_goes_on_after_an_error(
    inference: GRPCInferenceServiceStub,
) -> None:
    good = message_of("toy-vae.decode", latent=LATENTS)
    good.id = "good"
    good.parameters["triton_enable_empty_final_response"].bool_param = True
    bad = message_of("toy-vae.decode", latent=LATENTS[:, 1:])
    bad.id = "bad"
    answers = await streamed(inference, bad, good, sample_message(seed=1))
    by_id: dict[str, list[pb.ModelStreamInferResponse]] = {}
    for answer in answers:
        by_id.setdefault(answer.infer_response.id, []).append(answer)
    (refused,) = by_id["bad"]
    assert "shape" in refused.error_message and not refused.infer_response.outputs
    (answered,) = by_id["good"]
    assert answered.infer_response.parameters["triton_final_response"].bool_param
    assert outputs_of(answered.infer_response)["data"].shape == (3, 1, SIDE, SIDE)
    assert len(by_id["mine"]) > 1


async def test_a_stream_sends_only_the_outputs_that_are_asked_for(
    inference: GRPCInferenceServiceStub,
) -> None:
    message = sample_message(seed=1)
    message.outputs.add(name="images")
    (only,) = await streamed(inference, message)
    assert [output.name for output in only.infer_response.outputs] == ["images"]


async def test_bytes_that_are_no_message_end_no_stream(channel: grpc.aio.Channel) -> None:
    call = channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        response_deserializer=pb.ModelStreamInferResponse.FromString,
    )
    good = message_of("toy-vae.decode", latent=LATENTS).SerializeToString()
    answers = [answer async for answer in call(iter([b"\xff\xff", good]))]
    assert sorted(bool(answer.error_message) for answer in answers) == [False, True]


async def test_a_client_that_leaves_ends_what_it_asked_for(
    inference: GRPCInferenceServiceStub, metrics: Metrics
) -> None:
    call = inference.ModelStreamInfer()
    for seed in range(8):
        await call.write(sample_message(seed=seed, count=32))
    assert (await call.read()).infer_response.outputs
    call.cancel()
    async with asyncio.timeout(20):
        while counts(metrics).get(("toy-raster", "sample", "REQUEST_CANCELLED")) is None:
            await asyncio.sleep(0.01)
        while metrics.registry.get_sample_value("genserve_requests_in_flight"):
            await asyncio.sleep(0.01)


async def test_a_stream_ends_when_the_server_drains(
    engine: Engine, inference: GRPCInferenceServiceStub
) -> None:
    call = inference.ModelStreamInfer()
    await call.write(message_of("toy-vae.decode", latent=LATENTS))
    assert outputs_of((await call.read()).infer_response)
    await engine.drain()
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await call.read()
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE


# Refusals

GOOD = tensor("latent", LATENTS)
REFUSED = {
    "wrong name": ({"inputs": [tensor("latents", LATENTS)]}, "latents"),
    "missing": ({"inputs": []}, "missing"),
    "twice": ({"inputs": [GOOD, GOOD]}, "twice"),
    "rank": ({"inputs": [tensor("latent", LATENTS, shape=[12])]}, "shape"),
    "wrong size": ({"inputs": [tensor("latent", LATENTS, shape=[4, 3])]}, "shape"),
    "negative size": ({"inputs": [tensor("latent", LATENTS, shape=[-3, LATENT])]}, "shape"),
    "huge size": ({"inputs": [tensor("latent", LATENTS, shape=[10**30, LATENT])]}, "elements"),
    "no rows": ({"inputs": [tensor("latent", LATENTS[:0], data=[])]}, "rows"),
    "datatype": ({"inputs": [tensor("latent", LATENTS, datatype="FP64")]}, "FP64"),
    "unknown datatype": ({"inputs": [tensor("latent", LATENTS, datatype="BYTES")]}, "BYTES"),
    "too few": ({"inputs": [tensor("latent", LATENTS, data=[1.0])]}, "elements"),
    "nested wrongly": (
        {"inputs": [tensor("latent", LATENTS, data=LATENTS.reshape(2, 6).tolist())]},
        "nested",
    ),
    "text": ({"inputs": [tensor("latent", LATENTS, data=["a"] * 12)]}, "numbers"),
    "too large": ({"inputs": [tensor("latent", LATENTS, data=[1e300] * 12)]}, "beyond"),
    "no data": ({"inputs": [{"name": "latent", "shape": [1, 4], "datatype": "FP32"}]}, "data"),
    "unknown field": ({"inputs": [{**GOOD, "extra": 1}]}, "extra"),
    "input parameter": (
        {"inputs": [{**GOOD, "parameters": {"shared_memory_region": "a"}}]},
        "shared_memory_region",
    ),
    "output": ({"inputs": [GOOD], "outputs": [{"name": "nothing"}]}, "nothing"),
    "classification": (
        {"inputs": [GOOD], "outputs": [{"name": "data", "parameters": {"classification": 2}}]},
        "classification",
    ),
    "parameter": ({"inputs": [GOOD], "parameters": {"seed": 1}}, "seed"),
    "sequence": ({"inputs": [GOOD], "parameters": {"sequence_id": 1}}, "sequence"),
    "reserved": ({"inputs": [GOOD], "parameters": {"triton_x": 1}}, "triton_x"),
    "timeout": ({"inputs": [GOOD], "parameters": {"timeout": "soon"}}, "timeout"),
    "long timeout": ({"inputs": [GOOD], "parameters": {"timeout": 10**12}}, "timeout"),
    "negative priority": ({"inputs": [GOOD], "parameters": {"priority": -1}}, "priority"),
    "flag": ({"inputs": [GOOD], "parameters": {"binary_data_output": 1}}, "binary_data_output"),
    "bytes missing": (
        {"inputs": [tensor("latent", LATENTS, data=None, parameters={"binary_data_size": 48})]},
        "behind",
    ),
    "bytes and data": ({"inputs": [{**GOOD, "parameters": {"binary_data_size": 48}}]}, "data"),
    "no object": ([], "the body"),
}


@pytest.mark.parametrize(("body", "word"), REFUSED.values(), ids=REFUSED)
async def test_bad_json_is_refused_in_words(
    client: httpx.AsyncClient, body: object, word: str
) -> None:
    answer = await client.post("/v2/models/toy-vae.decode/infer", json=body)
    assert 400 <= answer.status_code < 500
    assert answer.json().keys() == {"error"} and word in answer.json()["error"]


@pytest.mark.parametrize(
    ("length", "size"),
    [("9999", 48), ("x", 48), ("9" * 5000, 48), ("0", 48), ("-1", 48), (None, 47), (None, -4)],
)
async def test_bad_bytes_are_refused_in_words(
    client: httpx.AsyncClient, length: str | None, size: int
) -> None:
    part = tensor("latent", LATENTS, parameters={"binary_data_size": size})
    del part["data"]
    header = json.dumps({"inputs": [part]}).encode()
    answer = await client.post(
        "/v2/models/toy-vae.decode/infer",
        content=header + LATENTS.tobytes(),
        headers={LENGTH: length or str(len(header))},
    )
    assert 400 <= answer.status_code < 500 and answer.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v2/models/toy-vae.decode/versions/9/infer", 404),
        ("POST", "/v2/models/toy-vae.decode/versions/latest/infer", 404),
        ("POST", "/v2/models/toy-vae/infer", 404),
        ("POST", "/v2/models/toy-vae@1.decode/infer", 404),
        ("POST", "/v2/models/toy-vae.nothing/infer", 404),
        ("POST", "/v2/models/nothing.decode/infer", 404),
        ("GET", "/v2/models/toy-vae.decode/infer", 404),
        ("GET", "/v2/models/nothing.decode/config", 404),
        ("GET", "/v2/repository/models/toy-vae/load", 404),
        ("POST", "/v2/repository/models/toy-vae.nothing/load", 404),
        ("GET", "/v2/nothing", 404),
        ("PUT", "/v2/health/live", 404),
    ],
)
async def test_what_is_not_there_is_refused_in_the_protocols_shape(
    client: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    body = {} if "repository" in path else body_of("latent", LATENTS)
    answer = await client.request(method, path, json=body)
    assert answer.status_code == status and answer.json().keys() == {"error"}


async def test_a_body_that_is_compressed_or_too_large_or_no_json_is_refused(
    client: httpx.AsyncClient,
) -> None:
    path = "/v2/models/toy-vae.decode/infer"
    answer = await client.post(path, content=b"x", headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 415 and "compressed" in answer.json()["error"]
    answer = await client.post(path, content=b"0" * 70_000)
    assert answer.status_code == 413 and answer.json().keys() == {"error"}
    answer = await client.post(path, content=b"\xff{")
    assert answer.status_code == 400 and answer.json().keys() == {"error"}


async def test_outputs_that_are_not_finite_need_bytes(client: httpx.AsyncClient) -> None:
    path = "/v2/models/toy-flow.decode/infer"
    latents = np.full((1, PIXELS), 3e38, np.float32)
    answer = await client.post(path, json=body_of("latent", latents))
    assert answer.status_code == 422 and "binary_data" in answer.json()["error"]
    content, headers = as_bytes({"latent": latents}, parameters={"binary_data_output": True})
    answer = await client.post(path, content=content, headers=headers)
    assert not np.isfinite(tensors_of(answer)["data"]).any()


async def test_inputs_with_different_numbers_of_rows_are_refused(
    client: httpx.AsyncClient,
) -> None:
    weights = np.eye(CLASSES, dtype=np.float32)[[0, 1]]
    inputs = [tensor("latent", LATENTS), tensor("class_weights", weights)]
    answer = await client.post("/v2/models/toy-gan.decode/infer", json={"inputs": inputs})
    assert answer.status_code == 422 and "rows" in answer.json()["error"]


async def test_a_timeout_in_microseconds_is_kept(
    client: httpx.AsyncClient, inference: GRPCInferenceServiceStub
) -> None:
    path = "/v2/models/toy-vae.decode/infer"
    answer = await client.post(path, json=body_of("latent", LATENTS, parameters={"timeout": 1}))
    assert answer.status_code == 504 and answer.json().keys() == {"error"}
    message = message_of("toy-vae.decode", latent=LATENTS)
    message.parameters["timeout"].int64_param = 1
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await inference.ModelInfer(message)
    assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    fields = {"parameters": {"timeout": 0, "priority": 3}}
    answer = await client.post(path, json=body_of("latent", LATENTS, **fields))
    assert answer.status_code == 200


def broken(change: str) -> pb.ModelInferRequest:
    message = message_of("toy-vae.decode", latent=LATENTS)
    (part,) = message.inputs
    match change:
        case "short":
            message.raw_input_contents[0] = LATENTS.tobytes()[:-1]
        case "no input for it":
            message.raw_input_contents.append(b"")
        case "given twice":
            part.contents.fp32_contents.append(1.0)
        case "nothing given":
            del message.raw_input_contents[:]
        case "wrong field":
            del message.raw_input_contents[:]
            part.contents.int64_contents.extend([1] * LATENTS.size)
        case "datatype":
            part.datatype = "BYTES"
        case "shape":
            part.shape[1] = 3
        case "name":
            part.name = "latents"
        case "another size":
            part.parameters["binary_data_size"].int64_param = 3
        case "input parameter":
            part.parameters["shared_memory_region"].string_param = "a"
        case "output":
            message.outputs.add(name="nothing")
        case "output parameter":
            message.outputs.add(name="data").parameters["classification"].int64_param = 2
        case "parameter without value":
            message.parameters["timeout"].SetInParent()
        case "unknown parameter":
            message.parameters["seed"].int64_param = 1
        case "fraction":
            message.parameters["timeout"].double_param = 1.5
    return message


@pytest.mark.parametrize(
    "change",
    [
        "short", "no input for it", "given twice", "nothing given", "wrong field", "datatype",
        "shape", "name", "another size", "input parameter", "output", "output parameter",
        "parameter without value", "unknown parameter", "fraction",
    ],
)  # fmt: skip
async def test_bad_messages_are_refused(inference: GRPCInferenceServiceStub, change: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await inference.ModelInfer(broken(change))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details()


@pytest.mark.parametrize(
    ("name", "version"), [("toy-vae.decode", "9"), ("toy-vae.x", ""), ("", "")]
)
async def test_what_is_not_there_is_not_found(
    inference: GRPCInferenceServiceStub, name: str, version: str
) -> None:
    calls = [
        inference.ModelInfer(pb.ModelInferRequest(model_name=name, model_version=version)),
        inference.ModelReady(pb.ModelReadyRequest(name=name, version=version)),
        inference.ModelMetadata(pb.ModelMetadataRequest(name=name, version=version)),
        inference.ModelConfig(pb.ModelConfigRequest(name=name, version=version)),
    ]
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_sample_takes_its_parameters_only_and_no_tensors(client: httpx.AsyncClient) -> None:
    path = "/v2/models/toy-raster.sample/infer"
    for body, word in (
        ({"inputs": [GOOD]}, "latent"),
        ({"inputs": [], "parameters": {"temperature": 1}}, "temperature"),
        ({"inputs": [], "parameters": {"count": 0}}, "count"),
        ({"inputs": [], "parameters": {"count": True}}, "count"),
        ({"inputs": [], "parameters": {"class": 99}}, "class"),
        ({"inputs": [], "parameters": {"seed": -1}}, "seed"),
    ):
        answer = await client.post(path, json=body)
        assert answer.status_code == 422 and word in answer.json()["error"]
