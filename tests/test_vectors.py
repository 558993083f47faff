"""Models of vectors: what is read, refused and answered, over both transports alike."""

import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from export import export_artifact
from model_zoo.flows.vector_ffjord import VectorFFJORD
from service.__main__ import main
from service.core.engine import Engine
from service.core.manifest import Manifest, read_manifest
from service.core.manifest_parts import check_part
from service.core.operations import begin
from service.core.requests import (
    EncodeRequest,
    EventsRequest,
    LikelihoodRequest,
    SampleRequest,
)
from service.errors import ArtifactError, GenserveError, InvalidRequest, InvalidVector
from service.metrics import Metrics
from service.rpc.pb import generation_service_pb2 as pb
from service.rpc.pb.generation_service_pb2_grpc import GenerationServiceStub
from service.settings import Settings
from tests.both_transports import ask_grpc, ask_rest
from tests.contract import check_operation
from tests.fakes import SIDE
from tests.test_anomaly import open_engine
from tests.test_flows import shake
from tests.test_raster_models import reason_of

MODEL, SIZE = "plane-flow", 2
VECTORS = np.random.default_rng(0).normal(size=(3, SIZE)).round(3)
NPY = "application/x-npy"


@pytest.fixture(scope="module")
def flow() -> VectorFFJORD:
    torch.manual_seed(0)
    model = shake(VectorFFJORD(SIZE, width=16, steps=8), size=0.4)
    assert isinstance(model, VectorFFJORD)
    return model.eval()


@pytest.fixture(scope="module")
def repository(
    flow: VectorFFJORD, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A repository of a flow over the plane, and of models of images."""
    folder = shutil.copytree(repository, tmp_path_factory.mktemp("vectors") / "repository")
    export_artifact(
        folder,
        name=MODEL,
        version="1",
        card=flow.card(),
        graphs=flow.graphs(),
        licence="Apache-2.0",
    )
    return folder


@pytest.fixture(name="settings")
def settings_of_vectors(repository: Path) -> Settings:
    return Settings(
        model_repository=repository, default_models=(MODEL,), workers=2, maximum_count=32
    )


def rows_of(vectors: np.ndarray) -> pb.Vectors:
    count, size = vectors.shape
    return pb.Vectors(count=count, size=size, values=vectors.ravel().tolist())


# What is answered


@pytest.mark.parametrize(
    "operation", ["sample", "encode", "decode", "reconstruct", "likelihood", "interpolate"]
)
async def test_both_transports_answer_alike(
    operation: str, repository: Path, client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    await check_operation(read_manifest(repository / MODEL / "1"), operation, client, stub)


async def test_json_has_the_vectors_and_what_they_were_decoded_from(
    client: httpx.AsyncClient, flow: VectorFFJORD
) -> None:
    body = {"count": 4, "seed": 7, "return": ["vectors", "latents"]}
    answer = (await client.post("/sample", json=body)).json()
    assert set(answer) >= {"vectors", "latents", "latent_space"} and "images" not in answer
    with torch.no_grad():
        expected = flow.decode(torch.tensor(answer["latents"]))
    np.testing.assert_allclose(answer["vectors"], expected, atol=1e-5)


async def test_a_likelihood_is_a_density_in_nats_and_no_number_of_bits(
    client: httpx.AsyncClient, stub: GenerationServiceStub, flow: VectorFFJORD
) -> None:
    answer = await client.post("/likelihood", json={"vectors": VECTORS.tolist()})
    results = answer.json()["results"]
    with torch.no_grad():
        expected = flow.log_density(torch.tensor(VECTORS, dtype=torch.float32))
    found = [result["log_likelihood"] for result in results]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    said = {(result["quantity"], result["kind"], result["base_measure"]) for result in results}
    assert said == {("density", "estimate", "lebesgue")}
    assert all(result["bits_per_dim"] is None for result in results)
    over_grpc = await stub.Likelihood(pb.LikelihoodRequest(vectors=rows_of(VECTORS)))
    assert list(over_grpc.log_likelihood) == found and not over_grpc.bits_per_dim


async def test_npy_goes_in_and_out(client: httpx.AsyncClient) -> None:
    """What npy answers can be sent on as it is."""
    drawn = await client.post("/sample", json={"count": 5, "seed": 1}, headers={"Accept": NPY})
    vectors = np.load(io.BytesIO(drawn.content))
    assert vectors.dtype == np.float32 and vectors.shape == (5, SIZE)
    headers = {"Content-Type": NPY, "Accept": NPY}
    returned = await client.post("/reconstruct", content=drawn.content, headers=headers)
    np.testing.assert_allclose(np.load(io.BytesIO(returned.content)), vectors, atol=1e-3)


async def test_a_path_goes_from_vector_to_vector(
    client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    ends = VECTORS.tolist()
    body = {"start": {"vector": ends[0]}, "end": {"vector": ends[1]}, "steps": 5, "mode": "lerp"}
    path = await ask_rest(client, "interpolate", body)
    np.testing.assert_allclose(path[[0, -1]], VECTORS[:2], atol=1e-3)
    request = pb.InterpolateRequest(
        start=pb.Endpoint(vector=rows_of(VECTORS[:1])),
        end=pb.Endpoint(vector=rows_of(VECTORS[1:2])),
        steps=5,
        mode=pb.INTERPOLATION_MODE_LERP,
    )
    over_grpc = await stub.Interpolate(request)
    assert np.array_equal(np.array(over_grpc.vectors.values, np.float32), path.ravel())


async def test_a_stream_of_what_is_not_painted_is_its_result_alone(
    stub: GenerationServiceStub,
) -> None:
    message = pb.StreamSampleRequest(request=pb.SampleRequest(count=2, seed=3))
    (step,) = [step async for step in stub.StreamSample(message)]
    assert (step.result.vectors.count, step.result.vectors.size) == (2, SIZE)


async def test_the_open_inference_protocol_samples_vectors(client: httpx.AsyncClient) -> None:
    described = (await client.get(f"/v2/models/{MODEL}.sample")).json()
    (output,) = described["outputs"]
    assert output == {"name": "vectors", "datatype": "FP32", "shape": [-1, SIZE]}
    body = {"inputs": [], "parameters": {"count": 3, "seed": 5}}
    answer = (await client.post(f"/v2/models/{MODEL}.sample/infer", json=body)).json()
    (output,) = answer["outputs"]
    drawn = await ask_rest(client, "sample", {"count": 3, "seed": 5})
    assert np.array_equal(np.array(output["data"], np.float32).reshape(output["shape"]), drawn)
    tensor = {"name": "data", "datatype": "FP32", "shape": [3, SIZE], "data": VECTORS.tolist()}
    path = f"/v2/models/{MODEL}.log_likelihood/infer"
    scored = (await client.post(path, json={"inputs": [tensor]})).json()
    assert scored["outputs"][0]["shape"] == [3]


async def test_both_transports_say_what_it_is_a_model_of(
    client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    event = (await client.get(f"/models/{MODEL}")).json()["event"]
    assert event == {"kind": "vector", "shape": [SIZE], "base_measure": "lebesgue"}
    models = (await client.get("/models")).json()["models"]
    listed = {each["name"]: each["event"] for each in models}
    assert (listed[MODEL], listed["toy-flow"]) == ("vector", "image")
    said = (await stub.GetModel(pb.GetModelRequest(model=MODEL))).model.event
    assert (said.kind, said.size, said.height) == ("vector", SIZE, 0)
    assert said.base_measure == pb.BASE_MEASURE_LEBESGUE


async def test_vectors_are_counted_as_such(client: httpx.AsyncClient, metrics: Metrics) -> None:
    await client.post("/sample", json={"count": 3})
    labels = {"model": MODEL, "operation": "sample"}
    assert metrics.registry.get_sample_value("genserve_vectors_total", labels) == 3
    assert metrics.registry.get_sample_value("genserve_images_total", labels) is None


async def test_the_sign_of_zero_changes_nothing(client: httpx.AsyncClient) -> None:
    found = await ask_rest(client, "encode", {"vectors": [[0.0, 1.0], [-0.0, 1.0]]})
    assert np.array_equal(found[0], found[1])


async def test_a_model_of_vectors_can_be_calibrated(
    flow: VectorFFJORD, repository: Path, tmp_path: Path
) -> None:
    """Vectors that are normal have p-values over the whole range, one far away the lowest."""
    models = shutil.copytree(repository, tmp_path / "models")
    with torch.no_grad():
        drawn = flow.decode(torch.randn(500, SIZE, generator=torch.Generator().manual_seed(0)))
    np.save(tmp_path / "normal.npy", drawn.numpy()[:400])
    files = str(tmp_path / "normal.npy"), "--model-repository", str(models)
    assert main(["calibrate", MODEL, *files]) == 0
    asked = LikelihoodRequest(vectors=np.vstack([drawn.numpy()[400:420], [[40.0, -40.0]]]))
    async for engine in open_engine(models, Metrics(CollectorRegistry())):
        found = (await engine.run("likelihood", asked, model=MODEL)).result.anomaly
    assert found is not None and set(found.scores) == {"typicality", "combined"}
    assert found.p_value[-1] == pytest.approx(1 / 201) and found.p_value[:-1].max() > 0.3


# What a manifest may say of them

DENSITY = {
    "quantity": "density",
    "kind": "exact",
    "base_measure": "lebesgue",
    "estimator": "exact",
    "conditioning": "none",
}
MAP = {"name": "map", "role": "log_likelihood_map", "dtype": "float32", "shape": ["batch", 2]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preprocess": {"range": [0.0, 1.0]}}, "vectors have none"),
        ({"event": {"kind": "points", "shape": [2], "base_measure": "lebesgue"}}, "kind"),
        ({"event": {"kind": "vector", "shape": [2], "base_measure": "counting"}}, "base_measure"),
        ({"event": {"kind": "vector", "shape": [0], "base_measure": "lebesgue"}}, "shape"),
        ({"event": {"kind": "vector", "shape": [3], "base_measure": "lebesgue"}}, "port 'data'"),
        (
            {
                "event": {
                    "kind": "image",
                    "shape": [1, 2, 1],
                    "levels": 256,
                    "base_measure": "counting",
                }
            },
            "images have a preprocess",
        ),
        ({"program": "ancestral"}, "goes over pixels"),
        ({"operations": {"likelihood": {**DENSITY, "quantity": "probability"}}}, "is a density"),
        ({"graphs": {"log_likelihood": MAP}}, "a vector has no log_likelihood_map"),
    ],
)
def test_a_manifest_that_contradicts_its_vectors_is_refused(
    repository: Path, changes: dict[str, Any], message: str
) -> None:
    content = json.loads((repository / MODEL / "1" / "manifest.json").read_text())
    if "graphs" in changes:
        content["graphs"]["log_likelihood"]["outputs"].append(MAP)
    else:
        content |= changes
    with pytest.raises(ArtifactError, match=message):
        check_part("manifest.json", json.dumps(content).encode(), Manifest)


# What is refused

PICTURE = [[[0]] * SIDE] * SIDE
REFUSED: dict[str, tuple[str, dict[str, Any], int, str, str]] = {
    "images": ("likelihood", {"images": [PICTURE]}, 422, "INVALID_REQUEST", f"[count, {SIZE}]"),
    "neither": ("encode", {}, 422, "INVALID_REQUEST", "give images, or vectors"),
    "both": (
        "encode",
        {"vectors": [[0, 0]], "images": [PICTURE]},
        422,
        "INVALID_REQUEST",
        "not both",
    ),
    "three coordinates": ("likelihood", {"vectors": [[1, 2, 3]]}, 422, "INVALID_VECTOR", "[1, 3]"),
    "one vector without its list": ("encode", {"vectors": [1, 2]}, 422, "INVALID_VECTOR", "[2]"),
    "too large for float32": ("encode", {"vectors": [[1e39, 0]]}, 422, "INVALID_VECTOR", "3.4e38"),
    "too many": ("encode", {"vectors": [[0, 0]] * 33}, 422, "OUT_OF_RANGE", "1 to 32"),
    "none": ("encode", {"vectors": []}, 422, "INVALID_VECTOR", "[0]"),
    "a scale": (
        "sample",
        {"scale": "unit", "image_format": "array"},
        422,
        "INVALID_REQUEST",
        "leave out scale",
    ),
    "a scale of what is given": (
        "likelihood",
        {"vectors": [[0, 0]], "scale": "unit"},
        422,
        "INVALID_REQUEST",
        "leave out scale",
    ),
    "binarisation": (
        "likelihood",
        {"vectors": [[0, 0]], "binarisation": "threshold"},
        422,
        "INVALID_REQUEST",
        "leave out binarisation",
    ),
    "a control of pixels": ("sample", {"top_k": 3}, 422, "CONTROL_NOT_OFFERED", "top_k"),
    "images asked for": ("sample", {"return": "images"}, 422, "INVALID_REQUEST", "only vectors"),
    "a map": (
        "likelihood",
        {"vectors": [[0, 0]], "return": "log_likelihood_map"},
        422,
        "INVALID_REQUEST",
        "log_likelihood_map",
    ),
    "PNG files": ("sample", {"image_format": "png"}, 406, "NOT_ACCEPTABLE", "makes vectors"),
    "an image as the end of a path": (
        "interpolate",
        {"start": {"image": PICTURE}, "end": {"seed": 1}},
        422,
        "INVALID_REQUEST",
        "model of vectors",
    ),
    "completion": (
        "complete",
        {"image": PICTURE, "prefix_rows": 1},
        422,
        "OPERATION_NOT_OFFERED",
        MODEL,
    ),
    "vectors for a model of images": (
        "encode",
        {"vectors": [[0, 0]], "model": "toy-flow"},
        422,
        "INVALID_REQUEST",
        "model of images",
    ),
}


async def test_latents_that_are_not_finite_are_refused(engine: Engine) -> None:
    """As a generator: an operation is sent what its graph gave."""
    manifest = engine.models.find(MODEL).manifest
    assert manifest is not None
    steps = begin("encode", manifest, (), EncodeRequest(vectors=VECTORS), engine.limits)
    next(steps)
    with pytest.raises(InvalidVector, match="not finite"):
        steps.send({"latent": np.full((3, SIZE), np.nan, np.float32)})


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
async def test_what_does_not_fit_is_refused_by_reason(
    case: tuple[str, dict[str, Any], int, str, str], client: httpx.AsyncClient
) -> None:
    operation, body, status, reason, allowed = case
    answer = await client.post(f"/{operation}", json={"model": MODEL, **body})
    assert (answer.status_code, answer.json()["reason"]) == (status, reason), answer.text
    assert allowed in answer.json()["detail"]


async def test_one_png_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post("/sample", json={}, headers={"Accept": "image/png"})
    assert (answer.status_code, answer.json()["reason"]) == (406, "NOT_ACCEPTABLE")
    assert "application/json or application/x-npy" in answer.json()["detail"]


OVER_GRPC: dict[str, tuple[str, Any, str]] = {
    "images": (
        "Likelihood",
        pb.LikelihoodRequest(
            images=pb.Images(count=1, height=1, width=1, channels=1, levels=b"\0")
        ),
        "INVALID_REQUEST",
    ),
    "nothing": ("Encode", pb.EncodeRequest(), "INVALID_REQUEST"),
    "three coordinates": (
        "Encode",
        pb.EncodeRequest(vectors=pb.Vectors(count=1, size=3, values=[1, 2, 3])),
        "INVALID_VECTOR",
    ),
    "fewer than stated": (
        "Encode",
        pb.EncodeRequest(vectors=pb.Vectors(count=2, size=2, values=[1, 2])),
        "INVALID_VECTOR",
    ),
    "not a number": (
        "Likelihood",
        pb.LikelihoodRequest(vectors=pb.Vectors(count=1, size=2, values=[math.nan, 0])),
        "INVALID_VECTOR",
    ),
    "infinity": (
        "Reconstruct",
        pb.ReconstructRequest(vectors=pb.Vectors(count=1, size=2, values=[math.inf, 0])),
        "INVALID_VECTOR",
    ),
    "too many": (
        "Encode",
        pb.EncodeRequest(vectors=pb.Vectors(count=33, size=2, values=[0] * 66)),
        "OUT_OF_RANGE",
    ),
    "two at the end of a path": (
        "Interpolate",
        pb.InterpolateRequest(
            start=pb.Endpoint(vector=pb.Vectors(count=2, size=2, values=[0] * 4)),
            end=pb.Endpoint(seed=1),
        ),
        "INVALID_VECTOR",
    ),
    "PNG files": ("Sample", pb.SampleRequest(image_format=pb.IMAGE_FORMAT_PNG), "NOT_ACCEPTABLE"),
    "a scale": ("Sample", pb.SampleRequest(scale=pb.SCALE_UNIT), "INVALID_REQUEST"),
    "binarisation": (
        "Encode",
        pb.EncodeRequest(vectors=rows_of(VECTORS), binarisation=pb.BINARISATION_THRESHOLD),
        "INVALID_REQUEST",
    ),
}


@pytest.mark.parametrize("case", OVER_GRPC.values(), ids=OVER_GRPC.keys())
async def test_grpc_refuses_it_too(case: tuple[str, Any, str], stub: GenerationServiceStub) -> None:
    method, request, reason = case
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await getattr(stub, method)(request)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of(refused.value) == reason


NUMBERS = st.one_of(
    st.floats(width=64), st.integers(-(2**70), 2**70), st.booleans(), st.none(), st.text(max_size=3)
)
ANYTHING = st.one_of(
    st.lists(st.lists(NUMBERS, max_size=4), max_size=4),
    st.lists(st.lists(st.floats(width=32), min_size=2, max_size=2), min_size=1, max_size=40),
    st.lists(st.lists(st.lists(NUMBERS, max_size=3), max_size=3), max_size=3),
    NUMBERS,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(vectors=ANYTHING)
async def test_whatever_is_sent_is_answered_or_refused_alike(
    vectors: Any, client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    """Numbers that both transports can carry get the same answer; nothing is a server's fault."""
    content = json.dumps({"vectors": vectors})
    headers = {"Content-Type": "application/json", "Accept": NPY}
    answer = await client.post("/likelihood", content=content, headers=headers)
    assert answer.status_code in (200, 400, 422), answer.text
    try:
        with np.errstate(over="ignore"):
            array = np.array(vectors, np.float32)
    except (ValueError, TypeError, OverflowError):
        assert answer.status_code != 200
        return
    if array.ndim != 2 or not array.size:
        assert answer.status_code != 200
    if answer.status_code == 200:
        nats = await ask_grpc(stub, "likelihood", {"vectors": vectors})
        assert np.array_equal(np.load(io.BytesIO(answer.content)), nats)


async def test_requests_that_give_nothing_have_no_rows(engine: Engine) -> None:
    assert EventsRequest().rows == 0
    with pytest.raises(InvalidRequest):
        await engine.run("encode", EncodeRequest())
    with pytest.raises(GenserveError):
        await engine.run("sample", SampleRequest(count=33))
