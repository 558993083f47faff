"""Artifacts prove themselves, or they do not serve; the others do not notice."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.core.artifact import load_artifact
from service.core.manifest import read_manifest
from service.core.requests import SampleRequest
from service.errors import ArtifactError, ModelUnavailable, StartupError
from service.metrics import Metrics
from service.runtime.onnx_session import OnnxSession
from service.server import build_engine
from service.settings import Settings
from tests.repository import flip_a_byte, rewrite_manifest

open_session = partial(OnnxSession, provider="cpu")


EVENT = {"kind": "image", "shape": [4, 4, 1], "levels": 256, "base_measure": "counting"}
CONTROL = {"meaning": "", "minimum": 0.0, "maximum": 2.0, "default": 1.0}
FIGURE = {
    "name": "accuracy",
    "value": 0.5,
    "unit": "share",
    "protocol": "none",
    "standard_error": None,
    "published": None,
}


@pytest.fixture
def copy(repository: Path, tmp_path: Path) -> Path:
    """A copy of the repository that a test may spoil."""
    return shutil.copytree(repository, tmp_path / "repository")


def test_a_sound_artifact_loads(repository: Path) -> None:
    manifest, graphs = load_artifact(repository / "toy-vae" / "1", open_session)
    assert manifest.name == "toy-vae"
    assert set(graphs) == {"encode", "decode", "log_likelihood"}


@pytest.mark.parametrize(
    "name", ["decode.onnx", "weights.safetensors", "vectors.npz", "manifest.json"]
)
def test_one_flipped_byte_anywhere_is_refused_by_name(copy: Path, name: str) -> None:
    folder = copy / "toy-vae" / "1"
    if not (folder / name).exists():
        pytest.skip("a toy this small keeps its weights in its graphs")
    flip_a_byte(folder / name)
    with pytest.raises(ArtifactError, match=name):
        load_artifact(folder, open_session)


def test_a_missing_file_is_refused_by_name(copy: Path) -> None:
    (copy / "toy-vae" / "1" / "decode.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"decode\.onnx"):
        load_artifact(copy / "toy-vae" / "1", open_session)


def test_a_graph_that_contradicts_its_vectors_is_refused(copy: Path) -> None:
    """Right hashes are not enough: here the vectors were changed, and hashed again."""
    folder = copy / "toy-gan" / "1"
    with np.load(folder / "vectors.npz") as archive:
        arrays = dict(archive)
    arrays["decode/outputs/data"][2, 0, 1, 1] += 0.01
    np.savez(folder / "vectors.npz", **arrays)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    files["vectors.npz"] = "sha256:" + sha256((folder / "vectors.npz").read_bytes()).hexdigest()
    rewrite_manifest(folder, files=files)
    with pytest.raises(ArtifactError, match="graph decode contradicts its test vectors"):
        load_artifact(folder, open_session)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, "schema_version"),
        ({"colour": "red"}, "colour"),
        ({"operations": {"translate": {}}}, "unknown operation 'translate'"),
        ({"operations": {"encode": {}}}, "needs a graph 'encode'"),
        ({"latent": None}, "latent"),
        ({"files": {}}, "hash"),
        ({"files": {"../secret": "sha256:" + "0" * 64}}, "files"),
        ({"program": "solver"}, "program"),
        ({"event": EVENT | {"shape": [5, 4, 1]}}, "port 'data' of graph 'decode'"),
        ({"event": EVENT | {"levels": "256"}}, "levels"),
        ({"preprocess": {"range": [0.0, 0.0]}}, "range"),
        ({"preprocess": {"range": [0.0, 1.0], "mean": [0.0, 0.0]}}, "mean"),
        ({"preprocess": {"range": [0.0, 1.0], "padding": [1, 0, 0]}}, "padding"),
        ({"preprocess": {"range": [0.0, 1.0], "padding": [1, 0, 0, 0]}}, "port 'data'"),
        ({"controls": {"temperature": CONTROL | {"default": 99.0}}}, "default"),
        ({"quality": [FIGURE | {"value": float("nan")}]}, "quality|finite|JSON"),
        ({"condition": {"kinds": ["class"], "names": ["a"], "prior": [1.0]}}, "condition"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(
    copy: Path, changes: dict[str, object], message: str
) -> None:
    folder = copy / "toy-gan" / "1"
    rewrite_manifest(folder, **changes)
    with pytest.raises(ArtifactError, match=message):
        load_artifact(folder, open_session)


def change_graphs(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    graphs = json.loads((folder / "manifest.json").read_text())["graphs"]
    change(graphs)
    rewrite_manifest(folder, graphs=graphs)


def add_statistic(graph: str, name: str, **changes: object) -> Callable[[dict[str, Any]], object]:
    port = {"name": name, "role": "statistic", "dtype": "float32", "shape": ["batch"]}
    return lambda graphs: graphs[graph]["outputs"].append(port | changes)


def copy_graph(new: str, without: str | None = None) -> Callable[[dict[str, Any]], object]:
    """Add the log_likelihood graph under another name, less an input."""

    def change(graphs: dict[str, Any]) -> None:
        graph = graphs["log_likelihood"]
        kept = [port for port in graph["inputs"] if port["role"] != without]
        graphs[new] = graph | {"inputs": kept}

    return change


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        ("toy-vae", add_statistic("log_likelihood", "colour"), "reconstruction_error, kl_diver"),
        ("toy-vae", add_statistic("encode", "latent_norm"), "outputs of 'log_likelihood'"),
        ("toy-vae", add_statistic("log_likelihood", "latent_norm", dtype="float64"), "float32"),
        ("toy-vae", add_statistic("log_likelihood", "latent_norm", shape=["batch", 4]),
         r"rows of shape \(4,\); by the manifest statistic is \(\)"),
        ("toy-vae", copy_graph("background_log_likelihood"),
         r"'background_log_likelihood' must map \['condition', 'data'\] to log_likelihood"),
        ("toy-raster", copy_graph("background_log_likelihood", without="condition"),
         "'background_log_likelihood' must take a condition if 'log_likelihood' does"),
        ("toy-gan", lambda graphs: graphs.update(background_log_likelihood={
            "file": "decode.onnx",
            "inputs": graphs["decode"]["outputs"],
            "outputs": [{"name": "score", "role": "log_likelihood", "dtype": "float32",
                         "shape": ["batch"]}]}),
         "'background_log_likelihood' needs a graph 'log_likelihood' to stand beside"),
        ("toy-vae", copy_graph("log_mass_given_latent"),
         r"'log_mass_given_latent' must map \['data', 'latent'\] to log_likelihood"),
        ("toy-vae", copy_graph("log_mass_given_latent", without="noise"),
         "'log_mass_given_latent' needs a latent"),
        ("toy-raster", copy_graph("log_mass_given_latent", without="condition"),
         "'log_mass_given_latent' must take a condition if"),
    ],
)  # fmt: skip
def test_what_stands_beside_a_likelihood_must_fit_it(
    copy: Path, model: str, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    change_graphs(copy / model / "1", change)
    with pytest.raises(ArtifactError, match=message):
        read_manifest(copy / model / "1")


def test_known_statistics_and_a_background_of_like_condition_are_accepted(copy: Path) -> None:
    change_graphs(copy / "toy-vae" / "1", add_statistic("log_likelihood", "kl_divergence"))
    change_graphs(copy / "toy-raster" / "1", copy_graph("background_log_likelihood"))
    scored = read_manifest(copy / "toy-vae" / "1").graphs["log_likelihood"]
    assert [port.name for port in scored.outputs] == ["log_likelihood", "kl_divergence"]
    assert "background_log_likelihood" in read_manifest(copy / "toy-raster" / "1").graphs


@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 200_000, b"{", b"\xff\xfe"], ids=range(5))
def test_a_manifest_that_is_no_manifest_is_refused(copy: Path, content: bytes) -> None:
    folder = copy / "toy-gan" / "1"
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        load_artifact(folder, open_session)


def test_a_file_that_no_hash_covers_is_refused(copy: Path) -> None:
    (copy / "toy-gan" / "1" / "more.bin").write_bytes(b"\0")
    with pytest.raises(ArtifactError, match=r"more\.bin"):
        load_artifact(copy / "toy-gan" / "1", open_session)


@pytest.mark.parametrize("content", [b"garbage", b"PK\x03\x04garbage", b""], ids=range(3))
def test_broken_test_vectors_are_refused_and_the_others_load(copy: Path, content: bytes) -> None:
    folder = copy / "toy-gan" / "1"
    (folder / "vectors.npz").write_bytes(content)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    files["vectors.npz"] = "sha256:" + sha256(content).hexdigest()
    rewrite_manifest(folder, files=files)
    with pytest.raises(ArtifactError, match=r"vectors\.npz"):
        load_artifact(folder, open_session)


def test_a_port_that_the_graph_does_not_have_is_refused(copy: Path) -> None:
    folder = copy / "toy-gan" / "1"
    graphs = json.loads((folder / "manifest.json").read_text())["graphs"]
    graphs["decode"]["outputs"][0]["name"] = "picture"
    rewrite_manifest(folder, graphs=graphs)
    with pytest.raises(ArtifactError, match="has no output"):
        load_artifact(folder, open_session)


def test_a_manifest_edited_by_hand_is_refused(copy: Path) -> None:
    path = copy / "toy-gan" / "1" / "manifest.json"
    path.write_text(path.read_text().replace("toy generator", "our generator"))
    with pytest.raises(ArtifactError, match="artifact_digest"):
        load_artifact(path.parent, open_session)


async def test_a_spoilt_model_is_refused_while_the_others_serve(
    copy: Path, settings: Settings, metrics: Metrics
) -> None:
    flip_a_byte(copy / "toy-vae" / "1" / "decode.onnx")
    engine = build_engine(settings.model_copy(update={"model_repository": copy}), metrics)
    assert not engine.ready, "nothing has passed its test vectors yet"
    await engine.load_default_models()
    assert not engine.ready, "one of the default set has not passed"
    assert engine.readiness() == {"toy-gan": "ready", "toy-flow": "ready", "toy-vae": "refused"}
    with pytest.raises(ModelUnavailable, match=r"decode\.onnx"):
        await engine.run("sample", SampleRequest(), model="toy-vae")
    for name in ("toy-gan", "toy-flow"):
        answer = await engine.run("sample", SampleRequest(seed=1), model=name)
        assert answer.model == f"{name}@1"
    await engine.drain()


async def test_a_folder_that_holds_another_model_is_refused(
    copy: Path, settings: Settings, metrics: Metrics
) -> None:
    shutil.move(copy / "toy-gan" / "1", copy / "toy-gan" / "2")
    engine = build_engine(settings.model_copy(update={"model_repository": copy}), metrics)
    with pytest.raises(ModelUnavailable, match="toy-gan@1"):
        await engine.run("sample", SampleRequest(), model="toy-gan")


async def test_a_name_means_the_newest_version_and_a_version_can_be_asked_for(
    copy: Path, settings: Settings, metrics: Metrics
) -> None:
    for version in ("9", "10"):
        shutil.copytree(copy / "toy-gan" / "1", copy / "toy-gan" / version)
        rewrite_manifest(copy / "toy-gan" / version, version=version)
    engine = build_engine(settings.model_copy(update={"model_repository": copy}), metrics)
    newest = await engine.run("sample", SampleRequest(seed=1), model="toy-gan")
    older = await engine.run("sample", SampleRequest(seed=1), model="toy-gan@9")
    assert (newest.model, older.model) == ("toy-gan@10", "toy-gan@9")
    await engine.drain()


async def test_a_refused_version_does_not_hide_the_one_before_it(
    copy: Path, settings: Settings, metrics: Metrics
) -> None:
    shutil.copytree(copy / "toy-gan" / "1", copy / "toy-gan" / "2")
    rewrite_manifest(copy / "toy-gan" / "2", version="2")
    flip_a_byte(copy / "toy-gan" / "2" / "decode.onnx")
    (copy / "toy-gan" / "1²").mkdir()
    shutil.copy(copy / "toy-gan" / "1" / "manifest.json", copy / "toy-gan" / "1²")
    engine = build_engine(settings.model_copy(update={"model_repository": copy}), metrics)
    await engine.load_default_models()
    assert engine.ready
    assert (await engine.run("sample", SampleRequest(seed=1))).model == "toy-gan@1"
    with pytest.raises(ModelUnavailable, match=r"decode\.onnx"):
        await engine.run("sample", SampleRequest(seed=1), model="toy-gan@2")
    await engine.drain()


def test_a_default_model_that_is_not_there_is_a_refusal_to_start(
    settings: Settings, metrics: Metrics
) -> None:
    wrong = settings.model_copy(update={"default_models": ("toy-gan", "typo")})
    with pytest.raises(StartupError, match="'typo'"):
        build_engine(wrong, metrics)
