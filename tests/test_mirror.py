"""A repository in an object store is served as one in a folder is, and checked like one."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.core.engine import Engine
from service.core.requests import LikelihoodRequest, SampleRequest
from service.errors import RepositoryUnavailable, StartupError
from service.metrics import Metrics
from service.server import build_engine
from service.settings import Settings, read_settings
from tests.calibrated import normal_images
from tests.repository import add_slow_version, add_version, flip_a_byte, rewrite_manifest

BUCKET = "models"
GAN = "toy-gan"
FLOW = "toy-flow"


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    """An S3 server of our own, and s3fs set up for it by the environment, as operators do."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
            environment.setenv(name, "us-east-1")
        yield pytest.importorskip("s3fs").S3FileSystem(skip_instance_cache=True)
    server.stop()


@pytest.fixture
def bucket(store: Any, calibrated: tuple[Path, dict[str, Any]]) -> str:
    """The name of a bucket that holds two of the toys, one with its calibrations."""
    store.invalidate_cache()
    if store.exists(BUCKET):
        store.rm(BUCKET, recursive=True)
    store.mkdir(BUCKET)
    for name in (GAN, FLOW):
        store.put(str(calibrated[0] / name), f"{BUCKET}/toys/{name}", recursive=True)
    store.pipe_file(f"{BUCKET}/toys/README.md", b"not a model")
    store.pipe_file(f"{BUCKET}/toys/{GAN}/latest/manifest.json", b"not a version")
    return f"s3://{BUCKET}/toys"


@pytest.fixture
def settings(bucket: str, tmp_path: Path) -> Settings:
    return read_settings(
        {
            "model_repository": bucket,
            "repository_cache": str(tmp_path / "cache"),
            "default_models": f"{GAN},{FLOW}",
            "api_key_hashes": str(tmp_path / "keys"),
        }
    )


async def sample(engine: Engine) -> str:
    return (await engine.run("sample", SampleRequest(seed=1), model=GAN)).model


def upload(store: Any, folder: Path) -> str:
    """Upload a version; return where it is in the store."""
    target = f"{BUCKET}/toys/{folder.parent.name}/{folder.name}"
    for path in folder.iterdir():
        store.put_file(str(path), f"{target}/{path.name}")
    return target


async def test_models_of_a_bucket_serve_with_their_calibrations(engine: Engine) -> None:
    assert [str(model) for model in engine.models.all()] == ["toy-flow@1", "toy-gan@1"]
    assert engine.ready and await sample(engine) == "toy-gan@1"
    images = LikelihoodRequest(images=normal_images(2, 256))
    answer = await engine.run("likelihood", images, model=FLOW)
    assert answer.result.anomaly is not None


async def test_a_version_that_comes_to_the_bucket_takes_over_and_one_that_goes_hands_back(
    engine: Engine, store: Any, repository: Path, tmp_path: Path
) -> None:
    gan = shutil.copytree(repository / GAN, tmp_path / GAN)
    there = upload(store, add_version(gan, "2"))
    assert [change.kind for change in await engine.rescan_models()] == ["loaded"]
    assert await sample(engine) == "toy-gan@2"
    assert await engine.rescan_models() == []
    store.rm(there, recursive=True)
    assert [change.kind for change in await engine.rescan_models()] == ["removed"]
    assert await sample(engine) == "toy-gan@1"


@pytest.mark.parametrize("missing", [False, True])
async def test_an_object_that_is_not_what_its_hash_says_is_refused_by_name_until_it_is(
    engine: Engine, store: Any, repository: Path, tmp_path: Path, missing: bool
) -> None:
    gan = shutil.copytree(repository / GAN, tmp_path / GAN)
    new = add_version(gan, "2")
    digest = "sha256:" + "1" * 64  # of nothing that is cached
    files = json.loads((new / "manifest.json").read_text())["files"]
    rewrite_manifest(new, files={**files, "decode.onnx": digest})
    there = upload(store, new)
    if missing:
        store.rm(f"{there}/decode.onnx")
    (change,) = await engine.rescan_models()
    assert change.kind == "refused" and "decode.onnx" in change.reason
    assert await sample(engine) == "toy-gan@1"
    shutil.rmtree(new)
    upload(store, add_version(gan, "2"))
    assert [change.kind for change in await engine.rescan_models()] == ["loaded"]


async def test_a_wrong_object_is_not_downloaded_again_until_it_is_replaced(
    engine: Engine, store: Any, settings: Settings, repository: Path, tmp_path: Path
) -> None:
    gan = shutil.copytree(repository / GAN, tmp_path / GAN)
    new = add_slow_version(gan, "2", rows=4)  # its test vectors are of its own
    good = (new / "vectors.npz").read_bytes()
    flip_a_byte(new / "vectors.npz")
    there = upload(store, new)
    (change,) = await engine.rescan_models()
    assert change.kind == "refused" and "vectors.npz is altered" in change.reason
    (mirrored,) = settings.repository_cache.glob(f"*/{GAN}/2/vectors.npz")
    before = mirrored.stat()
    assert await engine.rescan_models() == [], "nor is it verified again"
    after = mirrored.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    store.pipe_file(f"{there}/vectors.npz", good)  # of the same size
    assert [change.kind for change in await engine.rescan_models()] == ["loaded"]
    assert await sample(engine) == "toy-gan@2"


async def test_files_are_downloaded_once_and_dropped_with_their_last_version(
    engine: Engine, store: Any, settings: Settings, repository: Path, tmp_path: Path
) -> None:
    files = settings.repository_cache / "files"
    before = {path.name: path.stat().st_mtime_ns for path in files.iterdir()}
    gan = shutil.copytree(repository / GAN, tmp_path / GAN)
    there = upload(store, add_version(gan, "2"))
    await engine.rescan_models()
    assert {path.name: path.stat().st_mtime_ns for path in files.iterdir()} == before
    store.rm(there, recursive=True)
    store.rm(f"{BUCKET}/toys/{FLOW}", recursive=True)
    await engine.unload_model(FLOW)
    await engine.rescan_models()
    assert 0 < len(list(files.iterdir())) < len(before)


async def test_a_store_that_does_not_answer_changes_nothing(engine: Engine, store: Any) -> None:
    store.rm(BUCKET, recursive=True)  # and the bucket itself
    with pytest.raises(RepositoryUnavailable, match="s3://models/toys"):
        await engine.rescan_models()
    assert await sample(engine) == "toy-gan@1" and engine.ready


def test_a_bucket_that_is_not_there_is_a_refusal_to_start(
    settings: Settings, metrics: Metrics
) -> None:
    wrong = settings.model_copy(update={"model_repository": "s3://nowhere/toys"})
    with pytest.raises(StartupError, match="s3://nowhere/toys can't be read"):
        build_engine(wrong, metrics)


@pytest.mark.parametrize(
    "url", ["ftp://host/models", "file:///etc", "simplecache::s3://a", "s3://a::file:///etc", "://"]
)
def test_a_url_of_another_scheme_is_a_refusal_to_start(
    url: str, tmp_path: Path, metrics: Metrics
) -> None:
    settings = read_settings({"model_repository": url, "repository_cache": str(tmp_path)})
    with pytest.raises(StartupError, match="it is a folder, or a URL of s3, gs, abfs"):
        build_engine(settings, metrics)
