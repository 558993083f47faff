"""Versions come and go while requests are answered, and no request notices but by its answer."""

import asyncio
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest

from service.core.engine import Answer, Engine
from service.core.models import Change
from service.core.requests import LikelihoodRequest, ReconstructRequest, SampleRequest
from service.core.scoring.calibration import Calibration
from service.errors import ArtifactRefused, ModelNotFound, ModelUnloaded
from service.inference_metrics import InferenceMetrics
from service.metrics import Metrics
from service.rpc.pb import generation_service_pb2 as pb
from service.rpc.pb import inference_service_pb2 as inference_pb
from service.rpc.pb.generation_service_pb2_grpc import GenerationServiceStub
from service.rpc.pb.inference_service_pb2_grpc import GRPCInferenceServiceStub
from service.server import build_engine
from service.settings import Settings
from tests.calibrated import calibrate, normal_images
from tests.fakes import CLASSES, LATENT, SIDE, GatedSession
from tests.repository import add_version, flip_a_byte, rewrite_manifest

FLOW = "toy-flow"
GAN = "toy-gan"
RASTER = "toy-raster"
VAE = "toy-vae"


@pytest.fixture
def settings(repository: Path, tmp_path: Path) -> Settings:
    """Settings over a copy of the repository that a test may change."""
    copy = shutil.copytree(repository, tmp_path / "repository")
    return Settings(
        model_repository=copy,
        default_models=(GAN, RASTER),
        workers=2,
        api_key_hashes=tmp_path / "keys",
    )


@pytest.fixture
def gan(settings: Settings) -> Path:
    return settings.model_repository / GAN


async def sample(engine: Engine, model: str = GAN) -> Answer:
    return await engine.run("sample", SampleRequest(seed=1), model=model)


def hold(engine: Engine, model: str = GAN, graph: str = "decode") -> GatedSession:
    """Put a gate before a graph of the version that serves."""
    graphs = engine.models.find(model).graphs
    gated = GatedSession(graphs[graph].session)
    graphs[graph] = replace(graphs[graph], session=gated)
    return gated


def states(engine: Engine, name: str = GAN) -> dict[str, str]:
    return {str(model): model.state for model in engine.models.all() if model.name == name}


async def test_a_new_version_takes_over_and_what_is_in_flight_ends_on_the_old(
    engine: Engine, gan: Path
) -> None:
    held = hold(engine)
    begun = asyncio.create_task(sample(engine))
    await asyncio.to_thread(held.started.wait)
    add_version(gan, "2")
    assert await engine.rescan() == [Change("toy-gan@2", "loaded")]
    assert (await sample(engine)).model == "toy-gan@2"
    assert not begun.done()
    held.gate.set()
    assert (await begun).model == "toy-gan@1"
    assert states(engine) == {"toy-gan@1": "available", "toy-gan@2": "ready"}
    assert (await sample(engine, "toy-gan@1")).model == "toy-gan@1", "it loads again when asked for"
    assert await engine.rescan() == []


async def test_the_second_run_of_a_request_is_on_the_version_of_the_first(
    engine: Engine, settings: Settings
) -> None:
    await sample(engine, VAE)
    held = hold(engine, VAE, "encode")
    images = ReconstructRequest(images=np.zeros((2, SIDE, SIDE, 1), np.uint8))
    begun = asyncio.create_task(engine.run("reconstruct", images, model=VAE))
    await asyncio.to_thread(held.started.wait)
    add_version(settings.model_repository / VAE, "2")
    await engine.rescan()
    await asyncio.sleep(0.05)  # for whatever would be freed too early
    held.gate.set()
    assert (await begun).model == "toy-vae@1"


async def test_what_was_superseded_is_freed_with_its_last_request(
    engine: Engine, gan: Path
) -> None:
    held = hold(engine)
    session = weakref.ref(held)
    begun = asyncio.create_task(sample(engine))
    await asyncio.to_thread(held.started.wait)
    add_version(gan, "2")
    await engine.rescan()
    held.gate.set()
    del held
    assert session() is not None
    await begun
    del begun
    await until(lambda: session() is None)


async def until(condition) -> None:
    """Wait for what happens soon; a test that waits in vain is ended by the limit."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_lanes_of_rows_are_freed_with_their_version(
    engine: Engine, metrics: Metrics, settings: Settings
) -> None:
    await sample(engine, RASTER)
    slots = metrics.slots.labels(RASTER, "row_step")._value.get
    session = weakref.ref(engine.models.find(RASTER).graphs["row_step"].session)
    given_up = engine.stream("sample", SampleRequest(count=64, seed=1), model=RASTER)
    await anext(given_up)
    add_version(settings.model_repository / RASTER, "2")
    before = slots()
    await engine.rescan()
    await given_up.aclose()
    await until(lambda: session() is None)
    assert slots() == 0 < before
    assert (await sample(engine, RASTER)).model == "toy-raster@2"
    assert slots() == before


async def test_a_version_that_is_refused_changes_nothing_but_what_is_said(
    engine: Engine, gan: Path
) -> None:
    flip_a_byte(add_version(gan, "2") / "decode.onnx")
    (change,) = await engine.rescan()
    assert change.kind == "refused" and "decode.onnx" in change.reason
    assert (await sample(engine)).model == "toy-gan@1"
    assert "decode.onnx" in engine.models.find("toy-gan@2").reason
    assert engine.ready
    assert await engine.rescan() == [], "it is not verified again until it changes"
    shutil.rmtree(gan / "2")
    add_version(gan, "2")
    assert await engine.rescan() == [Change("toy-gan@2", "loaded")]
    assert (await sample(engine)).model == "toy-gan@2"


async def test_what_serves_goes_on_where_its_own_folder_is_spoilt(
    engine: Engine, gan: Path
) -> None:
    whole = (gan / "1" / "decode.onnx").read_bytes()
    flip_a_byte(gan / "1" / "decode.onnx")
    (change,) = await engine.rescan()
    assert change.kind == "refused"
    model = engine.models.find(GAN)
    assert model.state == "ready" and "decode.onnx" in model.reason
    assert (await sample(engine)).model == "toy-gan@1"
    with pytest.raises(ArtifactRefused, match=r"decode\.onnx"):
        await engine.load_model(GAN)
    (gan / "1" / "decode.onnx").write_bytes(whole)
    assert await engine.rescan() == [Change("toy-gan@1", "loaded")]
    assert engine.models.find(GAN).reason is None


async def test_another_artifact_of_the_same_version_takes_over(engine: Engine, gan: Path) -> None:
    before = await sample(engine)
    rewrite_manifest(gan / "1", family="another toy")
    assert await engine.rescan() == [Change("toy-gan@1", "loaded")]
    after = await sample(engine)
    assert after.model == before.model
    assert after.manifest.artifact_digest != before.manifest.artifact_digest
    assert engine.models.find(GAN).compatibility.artifact_digest == before.manifest.artifact_digest


async def test_a_version_that_goes_hands_its_name_back(engine: Engine, gan: Path) -> None:
    add_version(gan, "2")
    await engine.rescan()
    shutil.rmtree(gan / "2")
    assert await engine.rescan() == [Change("toy-gan@2", "removed")]
    assert states(engine) == {"toy-gan@1": "ready"}, "it was loaded before the name meant it"
    with pytest.raises(ModelNotFound):
        await sample(engine, "toy-gan@2")
    shutil.rmtree(gan / "1")
    (change,) = await engine.rescan()
    assert change.kind == "kept"
    assert (await sample(engine)).model == "toy-gan@1", "nothing else answers to its name"
    assert engine.ready


async def test_an_older_or_an_unused_version_waits_for_its_first_use(
    engine: Engine, gan: Path
) -> None:
    add_version(gan, "0.5")
    add_version(gan.parent / "toy-vae", "2")
    changes = await engine.rescan()
    assert set(changes) == {Change("toy-gan@0.5", "found"), Change("toy-vae@2", "found")}
    assert (await sample(engine)).model == "toy-gan@1"
    assert (await sample(engine, "toy-gan@0.5")).model == "toy-gan@0.5"
    assert (await sample(engine, "toy-vae")).model == "toy-vae@2"


async def test_of_several_new_versions_the_newest_sound_one_takes_over(
    engine: Engine, gan: Path
) -> None:
    for version in ("2", "3", "4"):
        add_version(gan, version)
    (gan / "4" / "decode.onnx").unlink()
    await engine.rescan()
    assert states(engine) == {
        "toy-gan@1": "available",
        "toy-gan@2": "available",
        "toy-gan@3": "ready",
        "toy-gan@4": "refused",
    }


async def test_a_default_model_by_its_version_stays_loaded(
    settings: Settings, metrics: Metrics, gan: Path
) -> None:
    pinned = settings.model_copy(update={"default_models": ("toy-gan@1",)})
    engine = build_engine(pinned, metrics)
    await engine.load_default_models()
    add_version(gan, "2")
    await engine.rescan()
    shutil.rmtree(gan / "1")
    await engine.rescan()
    assert engine.ready and (await engine.run("sample", SampleRequest())).model == "toy-gan@1"
    assert (await sample(engine)).model == "toy-gan@2"
    await engine.drain()


async def test_unloading_waits_for_what_is_in_flight_and_refuses_what_comes(
    engine: Engine, gan: Path
) -> None:
    held = hold(engine)
    session = weakref.ref(held)
    begun = asyncio.create_task(sample(engine))
    await asyncio.to_thread(held.started.wait)
    unloading = asyncio.create_task(engine.unload_model(GAN))
    await until(lambda: states(engine) == {"toy-gan@1": "unloaded"})
    with pytest.raises(ModelUnloaded, match="load it again"):
        await sample(engine)
    assert not unloading.done()
    held.gate.set()
    del held
    assert (await begun).model == "toy-gan@1"
    del begun
    (unloaded,) = await unloading
    assert unloaded.state == "unloaded" and engine.ready, "that is as it was asked for"
    await until(lambda: session() is None)
    assert await engine.rescan() == [], "it stays unloaded"
    assert (await engine.load_model(GAN)).state == "ready"
    assert (await sample(engine)).model == "toy-gan@1"


async def test_unloading_a_version_hands_its_name_to_the_one_before(
    engine: Engine, gan: Path
) -> None:
    add_version(gan, "2")
    await engine.rescan()
    await engine.unload_model("toy-gan@2")
    assert states(engine) == {"toy-gan@1": "ready", "toy-gan@2": "unloaded"}
    assert (await sample(engine)).model == "toy-gan@1"
    with pytest.raises(ModelUnloaded):
        await sample(engine, "toy-gan@2")


async def test_who_gives_up_does_not_stop_what_was_begun(engine: Engine, gan: Path) -> None:
    add_version(gan, "2")
    loading = asyncio.create_task(engine.load_model(GAN))
    await asyncio.sleep(0)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    await until(lambda: states(engine).get("toy-gan@2") == "ready")


async def test_versions_say_what_holds_of_the_one_before(
    engine: Engine, gan: Path, client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    first = engine.models.find(GAN).manifest
    add_version(gan, "2")
    await engine.rescan()
    same = (await client.get("/models/toy-gan")).json()["compatibility"]
    assert same == {
        "model": "toy-gan@1",
        "artifact_digest": first.artifact_digest,
        "latents": True,
        "conditions": True,
        "calibrations": None,
        "differences": [],
    }
    latent = first.latent.model_dump() | {"space": "toy-gan/other"}
    condition = first.condition.model_dump(mode="json") | {"names": ["2", "1", "0"]}
    add_version(gan, "3", latent=latent, condition=condition)
    await engine.rescan()
    other = (await client.get("/models/toy-gan@3")).json()["compatibility"]
    assert (other["latents"], other["conditions"]) == (False, False)
    assert "toy-gan/other" in other["differences"][0] and "2, 1, 0" in other["differences"][1]
    over_grpc = (await stub.GetModel(pb.GetModelRequest(model=GAN))).model.compatibility
    assert list(over_grpc.differences) == other["differences"]
    assert not over_grpc.HasField("calibrations") and over_grpc.HasField("latents")
    assert (await client.get("/models/toy-vae")).json()["compatibility"] is None


async def test_calibrations_hold_where_the_next_version_has_some_that_were_made_alike(
    calibrated: tuple[Path, dict[str, Calibration]], settings: Settings, metrics: Metrics
) -> None:
    flow = settings.model_repository / FLOW
    shutil.copytree(calibrated[0] / FLOW, flow, dirs_exist_ok=True)
    engine = build_engine(settings.model_copy(update={"default_models": (FLOW,)}), metrics)
    await engine.load_default_models()
    folder = add_version(flow, "2")
    await engine.rescan()
    without = engine.models.find(FLOW).compatibility
    assert without.calibrations is False and "calibrate this version" in without.differences[0]
    calibrate(folder, LikelihoodRequest(images=normal_images(400, 256)))
    assert await engine.rescan() == [Change("toy-flow@2", "loaded"), Change("toy-flow@1", "found")]
    assert engine.models.find(FLOW).compatibility.calibrations is True
    await engine.drain()


async def test_models_are_administered_over_rest(client: httpx.AsyncClient, gan: Path) -> None:
    add_version(gan, "2")
    answer = await client.post("/models/rescan")
    assert answer.json() == {"changes": [{"model": "toy-gan@2", "kind": "loaded", "reason": None}]}
    unloaded = await client.post("/models/toy-gan/unload")
    assert [model["state"] for model in unloaded.json()["models"]] == ["unloaded", "unloaded"]
    refused = await client.post("/sample", json={"model": GAN})
    assert (refused.status_code, refused.json()["reason"]) == (503, "MODEL_UNLOADED")
    loaded = (await client.post("/models/toy-gan@1/load")).json()
    assert (loaded["version"], loaded["state"]) == ("1", "ready")
    answer = await client.post("/sample", json={"model": GAN})
    assert answer.json()["model"] == "toy-gan@1"
    for name, status in (("typo", 404), ("toy-gan@7", 404)):
        assert (await client.post(f"/models/{name}/load")).status_code == status
        assert (await client.post(f"/models/{name}/unload")).status_code == status
    flip_a_byte(gan / "2" / "decode.onnx")
    refused = await client.post("/models/toy-gan/load")
    assert (refused.status_code, refused.json()["reason"]) == (422, "ARTIFACT_REFUSED")
    assert "decode.onnx" in refused.json()["detail"]


async def test_models_are_administered_over_grpc(stub: GenerationServiceStub, gan: Path) -> None:
    flip_a_byte(add_version(gan, "2") / "decode.onnx")
    (change,) = (await stub.RescanModels(pb.RescanModelsRequest())).changes
    assert (change.model, change.kind) == ("toy-gan@2", pb.MODEL_CHANGE_KIND_REFUSED)
    assert "decode.onnx" in change.reason
    answer = await stub.UnloadModel(pb.UnloadModelRequest(model="toy-gan@1"))
    assert [model.state for model in answer.models] == [pb.MODEL_STATE_UNLOADED]
    loaded = await stub.LoadModel(pb.LoadModelRequest(model="toy-gan@1"))
    assert loaded.model.state == pb.MODEL_STATE_READY and loaded.request_id
    for call, code in (
        (stub.LoadModel(pb.LoadModelRequest(model=GAN)), grpc.StatusCode.FAILED_PRECONDITION),
        (stub.LoadModel(pb.LoadModelRequest(model="typo")), grpc.StatusCode.NOT_FOUND),
        (stub.UnloadModel(pb.UnloadModelRequest()), grpc.StatusCode.NOT_FOUND),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() is code


async def test_models_are_loaded_and_unloaded_over_rest_of_the_protocol(
    client: httpx.AsyncClient, engine: Engine, gan: Path
) -> None:
    async def ask(name: str, doing: str, **parameters: object) -> httpx.Response:
        body = {"parameters": parameters} if parameters else None
        return await client.post(f"/v2/repository/models/{name}/{doing}", json=body)

    add_version(gan, "2")
    assert (await ask(GAN, "load")).json() == {}
    assert states(engine) == {"toy-gan@1": "available", "toy-gan@2": "ready"}
    assert (await ask("toy-gan@2", "unload", unload_dependents=False)).status_code == 200
    assert states(engine) == {"toy-gan@1": "ready", "toy-gan@2": "unloaded"}
    assert (await ask(GAN, "unload", unload_dependents=True)).status_code == 200
    assert (await client.get("/v2/models/toy-gan.decode/ready")).status_code == 503
    assert (await ask("toy-gan.decode", "load")).status_code == 200
    assert (await client.get("/v2/models/toy-gan.decode/versions/2/ready")).status_code == 200
    for name, doing, parameters, status, word in (
        ("toy-gan.decode", "unload", {}, 422, "unload toy-gan"),
        ("toy-gan.nothing", "load", {}, 404, "toy-gan.nothing"),
        ("toy-gan.nothing", "unload", {}, 404, "toy-gan.nothing"),
        ("typo", "load", {}, 404, "typo"),
        ("typo", "unload", {}, 404, "typo"),
        ("toy-gan@7", "load", {}, 404, "toy-gan@7"),
        (GAN, "load", {"config": "{}"}, 422, "config"),
        (GAN, "load", {"file:1/model.onnx": "AAAA"}, 422, "file:1/model.onnx"),
        (GAN, "unload", {"unload_dependents": 1}, 422, "unload_dependents"),
        (GAN, "unload", {"force": True}, 422, "force"),
    ):
        refused = await ask(name, doing, **parameters)
        assert refused.status_code == status, (name, doing)
        assert refused.json().keys() == {"error"} and word in refused.json()["error"]
    flip_a_byte(gan / "2" / "decode.onnx")
    refused = await ask("toy-gan.decode", "load")
    assert refused.status_code == 422 and "decode.onnx" in refused.json()["error"]
    assert states(engine)["toy-gan@2"] == "ready", "what served before serves on"
    refused = await client.post("/v2/repository/models/toy-gan/load", json={"other": 1})
    assert refused.status_code == 422 and "other" in refused.json()["error"]


async def test_models_are_loaded_and_unloaded_over_grpc_of_the_protocol(
    channel: grpc.aio.Channel, engine: Engine
) -> None:
    stub = GRPCInferenceServiceStub(channel)
    unload = inference_pb.RepositoryModelUnloadRequest(model_name=GAN)
    unload.parameters["unload_dependents"].bool_param = False
    await stub.RepositoryModelUnload(unload)
    assert states(engine) == {"toy-gan@1": "unloaded"}
    load = inference_pb.RepositoryModelLoadRequest(model_name="toy-gan.decode")
    await stub.RepositoryModelLoad(load)
    assert states(engine) == {"toy-gan@1": "ready"}
    unload.model_name = "toy-gan.decode"
    configured = inference_pb.RepositoryModelLoadRequest(model_name=GAN)
    configured.parameters["config"].string_param = "{}"
    valueless = inference_pb.RepositoryModelLoadRequest(model_name=GAN)
    valueless.parameters["config"].SetInParent()
    elsewhere = inference_pb.RepositoryModelLoadRequest(model_name=GAN, repository_name="other")
    typo = inference_pb.RepositoryModelLoadRequest(model_name="typo")
    for call, code in (
        (stub.RepositoryModelUnload(unload), grpc.StatusCode.INVALID_ARGUMENT),
        (stub.RepositoryModelLoad(configured), grpc.StatusCode.INVALID_ARGUMENT),
        (stub.RepositoryModelLoad(valueless), grpc.StatusCode.INVALID_ARGUMENT),
        (stub.RepositoryModelLoad(elsewhere), grpc.StatusCode.NOT_FOUND),
        (stub.RepositoryModelLoad(typo), grpc.StatusCode.NOT_FOUND),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() is code


async def test_requests_are_counted_by_version(
    client: httpx.AsyncClient, engine: Engine, metrics: Metrics, gan: Path
) -> None:
    add_version(gan, "2")
    await engine.rescan_models()
    latents = {"name": "latent", "shape": [1, LATENT], "datatype": "FP32", "data": [0.0] * LATENT}
    weights = {
        "name": "class_weights", "shape": [1, CLASSES], "datatype": "FP32", "data": [0.0] * CLASSES
    }  # fmt: skip
    for version, inputs in (("1", [latents]), ("2", [latents, weights]), ("2", [latents, weights])):
        path = f"/v2/models/toy-gan.decode/versions/{version}/infer"
        await client.post(path, json={"inputs": inputs})
    counted = {}
    for version in ("1", "2"):
        answer = await client.get(f"/v2/models/toy-gan.decode/versions/{version}/stats")
        (entry,) = answer.json()["model_stats"]
        stats = entry["inference_stats"]
        counted[entry["version"]] = [
            stats[kind]["count"] for kind in ("success", "fail", "queue", "compute_infer")
        ]
    assert counted == {"1": [0, 1, 0, 0], "2": [2, 0, 2, 2]}
    metrics.registry.register(InferenceMetrics(metrics))
    labels = {"model": GAN, "version": "2"}
    assert metrics.registry.get_sample_value("nv_inference_request_success", labels) == 2
    assert metrics.registry.get_sample_value("nv_inference_exec_count", labels) == 2
    labels = {"model": GAN, "version": "1", "reason": "OTHER"}
    assert metrics.registry.get_sample_value("nv_inference_request_failure", labels) == 1


class TestWithoutKeys:
    """Whoever reaches a server without keys could load and unload: nobody may."""

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"api_key_hashes": None})

    async def test_rest_refuses(self, client: httpx.AsyncClient) -> None:
        for path in ("rescan", "toy-gan/load", "toy-gan/unload"):
            refused = await client.post(f"/models/{path}")
            assert (refused.status_code, refused.json()["reason"]) == (403, "ADMINISTRATION_OFF")
            assert "GENSERVE_API_KEY_HASHES" in refused.json()["detail"]

    async def test_rest_of_the_protocol_refuses(self, client: httpx.AsyncClient) -> None:
        for doing in ("load", "unload"):
            refused = await client.post(f"/v2/repository/models/{GAN}/{doing}")
            assert refused.status_code == 403 and refused.json().keys() == {"error"}
            assert "GENSERVE_API_KEY_HASHES" in refused.json()["error"]

    async def test_grpc_of_the_protocol_refuses(self, channel: grpc.aio.Channel) -> None:
        stub = GRPCInferenceServiceStub(channel)
        for call in (
            stub.RepositoryModelLoad(inference_pb.RepositoryModelLoadRequest(model_name=GAN)),
            stub.RepositoryModelUnload(inference_pb.RepositoryModelUnloadRequest(model_name=GAN)),
        ):
            with pytest.raises(grpc.aio.AioRpcError, match="API keys") as refused:
                await call
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED

    async def test_grpc_refuses(self, stub: GenerationServiceStub) -> None:
        for call in (
            stub.RescanModels(pb.RescanModelsRequest()),
            stub.LoadModel(pb.LoadModelRequest(model=GAN)),
            stub.UnloadModel(pb.UnloadModelRequest(model=GAN)),
        ):
            with pytest.raises(grpc.aio.AioRpcError, match="API keys") as refused:
                await call
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
