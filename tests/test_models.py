"""Artifacts prove themselves, or they do not serve; the others do not notice."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from service.core.manifest import artifact_digest
from service.core.models import load_artifact
from service.core.requests import SampleRequest
from service.errors import ArtifactError, ModelUnavailable
from service.metrics import Metrics
from service.runtime.onnx_session import open_onnx_session
from service.server import build_engine
from service.settings import Settings

open_session = partial(open_onnx_session, provider="cpu")


@pytest.fixture
def copy(repository: Path, tmp_path: Path) -> Path:
    """A copy of the repository that a test may spoil."""
    return shutil.copytree(repository, tmp_path / "repository")


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def rewrite_manifest(folder: Path, **changes: object) -> None:
    """Change a manifest and give it the digest of what it now says."""
    path = folder / "manifest.json"
    content = {**json.loads(path.read_text()), **changes}
    content["artifact_digest"] = artifact_digest(content)
    path.write_text(json.dumps(content))


def test_a_sound_artifact_loads(repository: Path) -> None:
    manifest, graphs = load_artifact(repository / "toy-vae" / "1", open_session)
    assert manifest.name == "toy-vae"
    assert set(graphs) == {"encode", "decode", "log_likelihood"}


@pytest.mark.parametrize("name", ["decode.onnx", "weights.bin", "vectors.npz", "manifest.json"])
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
    from hashlib import sha256

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
    ],
)
def test_a_manifest_that_says_something_else_is_refused(
    copy: Path, changes: dict[str, object], message: str
) -> None:
    folder = copy / "toy-gan" / "1"
    rewrite_manifest(folder, **changes)
    with pytest.raises(ArtifactError, match=message):
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
