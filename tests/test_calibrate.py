"""The command `calibrate`: from files of normal images to p-values that hold."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from service.__main__ import main
from service.core.manifest import read_manifest
from service.core.requests import Anomaly
from service.core.scoring.calibration import Calibration, identify, read_calibration
from service.images import levels_to_png
from service.metrics import Metrics
from tests.calibrated import normal_images
from tests.fakes import SIDE
from tests.test_anomaly import open_engine, score


@pytest.fixture
def models(repository: Path, tmp_path: Path) -> Path:
    """A model repository in which calibrations may be written."""
    return shutil.copytree(repository, tmp_path / "models")


def grey(count: int, seed: int = 0) -> np.ndarray:
    return normal_images(count, 256, seed).astype(np.uint8)


def write_pngs(folder: Path, images: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    for index, image in enumerate(images):
        (folder / f"{index:04}.png").write_bytes(levels_to_png(image, 256))
    return folder


def write_npy(path: Path, images: np.ndarray) -> Path:
    path.parent.mkdir(exist_ok=True)
    np.save(path, images)
    return path


def run(models: Path, model: str, *arguments: str | Path) -> int:
    return main(["calibrate", model, *map(str, arguments), "--model-repository", str(models)])


def written(models: Path, model: str) -> list[Calibration]:
    digest = read_manifest(models / model / "1").artifact_digest
    paths = sorted((models / model / "calibrations").iterdir())
    return [read_calibration(path, digest) for path in paths]


async def answer(models: Path, model: str, images: np.ndarray, **fields: Any) -> Anomaly:
    """Return what a server that starts now says of images."""
    async for engine in open_engine(models, Metrics(CollectorRegistry())):
        found = (await score(engine, images, model, **fields)).anomaly
    assert found is not None
    return found


# Calibrations


async def test_the_printed_request_is_answered_with_p_values(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A binary model and draws with a seed: the most that a request has to repeat."""
    folder = write_pngs(tmp_path / "normal", grey(400))
    wishes = ["--binarisation", "stochastic", "--samples", "2", "--seed", "3"]
    assert run(models, "toy-vae", folder, *wishes) == 0
    out = capsys.readouterr().out
    (made,) = written(models, "toy-vae")
    assert f"calibration {made.id} of 200 images" in out
    asked = json.loads(out[out.index("{") :])
    assert asked.pop("model") == "toy-vae@1"
    assert asked["calibration"] == made.id
    found = await answer(models, "toy-vae", grey(200, seed=1), **asked)
    rate, slack = 0.1, 3 * np.sqrt(0.1 * 0.9 * (1 / 200 + 1 / 200))
    for p in found.p_values.values():
        assert np.mean(p <= rate) <= rate + slack


def test_png_files_and_arrays_of_the_same_images_calibrate_alike(
    models: Path, tmp_path: Path
) -> None:
    images = grey(300)
    write_pngs(tmp_path / "here" / "images", images[:150])
    write_pngs(tmp_path / "here" / "images" / "below", images[150:])
    backwards = images[::-1]
    same = [
        write_npy(tmp_path / "levels" / "images.npy", backwards),
        write_npy(tmp_path / "flat" / "images.npy", backwards[..., 0].astype(np.int64)),
        write_npy(tmp_path / "unit" / "images.npy", (backwards / 255).astype(np.float32)),
    ]
    for path in [tmp_path / "here" / "images", *same]:
        assert run(models, "toy-flow", path, "--source", "toys") == 0
    (made,) = written(models, "toy-flow")
    assert made.data.source == "toys"
    assert made.data.score_fit.count == made.data.calibrate.count == 150


def test_sets_that_were_divided_before_stay_divided(models: Path, tmp_path: Path) -> None:
    fitted, compared = grey(120), grey(99, seed=1)
    paths = [write_npy(tmp_path / "a.npy", fitted), write_pngs(tmp_path / "b", compared)]
    assert run(models, "toy-flow", "--score-fit", paths[0], "--calibrate", paths[1]) == 0
    (made,) = written(models, "toy-flow")
    assert made.data.source == "a.npy and b"
    assert (made.data.score_fit, made.data.calibrate) == (identify(fitted), identify(compared))


def test_several_calibrations_stand_side_by_side(models: Path, tmp_path: Path) -> None:
    path = write_npy(tmp_path / "images.npy", grey(200))
    assert run(models, "toy-flow", path) == 0
    assert run(models, "toy-flow", path, "--seed", "1") == 0
    assert len(written(models, "toy-flow")) == 2


def test_copies_are_kept_and_told_of(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = grey(250)
    path = write_npy(tmp_path / "images.npy", np.concatenate([images, images[:50]]))
    assert run(models, "toy-flow", path) == 0
    assert "50 of the images are copies of others" in capsys.readouterr().err
    (made,) = written(models, "toy-flow")
    assert made.data.score_fit.count + made.data.calibrate.count == 300


# Refusals


def misfit(folder: Path) -> None:
    (folder / "0007.png").write_bytes(levels_to_png(np.zeros((SIDE, 9, 1), np.uint8), 256))


def ruin(folder: Path) -> None:
    (folder / "0007.png").write_bytes(b"no picture")


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def alike(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(levels_to_png(np.full((SIDE, SIDE, 1), 9, np.uint8), 256))


def remove_two(folder: Path) -> None:
    for name in ("0000.png", "0001.png"):
        (folder / name).unlink()


def leave(folder: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("model", "change", "arguments", "message"),
    [
        ("toy-nothing", leave, [], "there is no model 'toy-nothing'"),
        ("toy-gan", leave, [], "toy-gan does not offer likelihood; it offers sample, decode"),
        ("toy-vae", leave, [], "set binarisation to one of"),
        ("toy-flow", leave, ["--binarisation", "threshold"], "leave out binarisation"),
        ("toy-flow", leave, ["--samples", "0"], "samples is 0; allowed is 1 to 1000"),
        ("toy-flow", leave, ["--seed", "-1"], "seed is -1"),
        ("toy-flow", remove_two, [], "98 + 99 images can't calibrate; give at least 198"),
        ("toy-flow", misfit, [], "0007.png: the PNG is 4 high and 9 wide"),
        ("toy-flow", ruin, [], "0007.png: not a readable PNG"),
        ("toy-flow", empty, [], "holds no PNG files"),
        ("toy-flow", alike, [], "the images are all alike"),
        ("toy-flow", shutil.rmtree, [], "is no folder of PNG files and no .npy file"),
    ],
)
def test_what_can_not_calibrate_is_one_sentence(
    models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    model: str,
    change: Callable[[Path], None],
    arguments: list[str],
    message: str,
) -> None:
    folder = write_pngs(tmp_path / "normal", grey(199))
    change(folder)
    assert_refused(run(models, model, folder, *arguments), message, capsys)
    assert not list(models.glob("*/calibrations"))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((200, 9, 9, 1), np.uint8), r"takes [count, 4, 4, 1]"),
        (np.zeros((200, SIDE, SIDE), "datetime64[s]"), "the npy file holds datetime64"),
        (np.full((200, SIDE, SIDE), 2.0), "allowed are 0 to 1"),
        (np.zeros((0, SIDE, SIDE, 1), np.uint8), "0 images were sent"),
    ],
)
def test_an_array_that_does_not_fit_is_refused_by_name(
    models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    images: np.ndarray,
    message: str,
) -> None:
    path = write_npy(tmp_path / "images.npy", images)
    assert_refused(run(models, "toy-flow", path), message, capsys, "images.npy")


def test_images_that_were_fitted_on_are_not_compared_with(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = grey(200)
    a, b = (write_npy(tmp_path / f"{name}.npy", images) for name in "ab")
    status = run(models, "toy-flow", "--score-fit", a, "--calibrate", b)
    assert_refused(status, "b.npy is in", capsys)


@pytest.mark.parametrize("arguments", [[], ["x", "--score-fit", "y"], ["--calibrate", "y"]])
def test_images_are_given_in_one_way(
    models: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert_refused(run(models, "toy-flow", *arguments), "give one FOLDER", capsys)


def test_a_repository_that_can_not_be_written_is_one_sentence(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (models / "toy-flow" / "calibrations").write_text("in the way")
    path = write_npy(tmp_path / "images.npy", grey(200))
    assert_refused(run(models, "toy-flow", path), "calibrations can't be written", capsys)


def assert_refused(status: int, message: str, capsys: pytest.CaptureFixture[str], *more: str):
    error = capsys.readouterr().err
    assert status == 1
    assert all(words in error for words in (message, *more))
    assert len(error.strip().splitlines()) == 1
