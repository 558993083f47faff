"""The command `genserve`, end to end."""

import csv
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.__main__ import main
from service.images import levels_to_png
from tests.calibrated import normal_images
from tests.conftest import TOYS
from tests.fakes import SIDE
from tests.live import ROOT, LiveServer


@pytest.fixture(scope="module")
def server(repository: Path):
    with LiveServer(repository, default_models=",".join(TOYS)) as live:
        live.wait_until_ready()
        yield live


def address(server: LiveServer) -> list[str]:
    return ["--address", f"127.0.0.1:{server.grpc_port}"]


def test_models_shows_what_each_can_do(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "--model-repository", str(repository)]) == 0
    header, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert header[:3] == ["MODEL", "FAMILY", "sample"]
    names = [row[0] for row in rows]
    assert names == ["toy-flow@1", "toy-gan@1", "toy-raster@1", "toy-vae@1"]
    assert rows[1][-9:] == ["yes", "-", "yes", "-", "-", "yes", "-", "-", "-"]


def test_verify_accepts_a_sound_artifact_and_names_a_spoilt_file(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(repository / "toy-gan" / "1", tmp_path / "toy-gan")
    assert main(["verify", str(folder)]) == 0
    assert "toy-gan@1 is sound" in capsys.readouterr().out
    with (folder / "decode.onnx").open("ab") as file:
        file.write(b"\0")
    assert main(["verify", str(folder)]) == 1
    assert "decode.onnx" in capsys.readouterr().err


def test_sample_writes_a_png_and_score_reads_it(
    server: LiveServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "grid.png"
    arguments = ["sample", *address(server), "--model", "toy-flow", "--seed", "3"]
    assert main([*arguments, "--count", "4", "--out", str(picture)]) == 0
    assert Image.open(io.BytesIO(picture.read_bytes())).size == (8, 8)
    assert main([*arguments, "--out", str(picture)]) == 0
    capsys.readouterr()
    assert main(["score", *address(server), "--model", "toy-flow", str(picture)]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["image"], row["kind"], row["error"]) == (str(picture), "lower_bound", "")
    assert float(row["log_likelihood"]) < 0 < float(row["bits_per_dim"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of 71 images, so of several requests, each of its own grey."""
    folder = tmp_path / "images" / "below"
    folder.mkdir(parents=True)
    for level in range(71):
        image = np.full((SIDE, SIDE, 1), level, np.uint8)
        (folder / f"{level:03}.png").write_bytes(levels_to_png(image, 256))
    return folder.parent


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_score_writes_a_folder_in_order(server: LiveServer, folder: Path, tmp_path: Path) -> None:
    out, arguments = tmp_path / "scores.csv", [*address(server), "--model", "toy-flow"]
    assert main(["score", str(folder), *arguments, "--out", str(out)]) == 0
    rows = read_csv(out)
    paths = [folder / "below" / f"{level:03}.png" for level in range(71)]
    assert [row["image"] for row in rows] == list(map(str, paths))
    assert len({row["log_likelihood"] for row in rows}) == 71
    assert not any(row["error"] for row in rows)

    one = tmp_path / "one.csv"
    assert main(["score", str(paths[40]), *arguments, "--out", str(one)]) == 0
    (alone,) = read_csv(one)
    expected = pytest.approx(float(rows[40]["log_likelihood"]), rel=1e-5)
    assert float(alone["log_likelihood"]) == expected


def test_score_asks_for_a_false_positive_rate(
    calibrated: tuple[Path, object], tmp_path: Path
) -> None:
    for index, image in enumerate(normal_images(40, 256)):
        picture = levels_to_png(image.astype(np.uint8), 256)
        (tmp_path / f"{index:02}.png").write_bytes(picture)

    def anomalous(rate: str) -> int:
        out = tmp_path / "scores.csv"
        asked = ["score", str(tmp_path), *address(live), "--model", "toy-flow", "--out", str(out)]
        assert main([*asked, "--false-positive-rate", rate]) == 0
        return sum(row["anomalous"] == "true" for row in read_csv(out))

    with LiveServer(calibrated[0], default_models="toy-flow") as live:
        live.wait_until_ready()
        assert anomalous("0.05") < 20 < anomalous("0.9")


def test_score_goes_on_after_a_file_that_is_no_image(
    server: LiveServer, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "below" / "003.png").write_bytes(b"no picture")
    (folder / "below" / "050.png").unlink()
    (folder / "below" / "050.png").mkdir()  # a folder can't be read as a file
    out, arguments = tmp_path / "scores.csv", [*address(server), "--model", "toy-flow"]
    assert main(["score", str(folder), *arguments, "--out", str(out)]) == 1
    assert "2 of 71 images have no score" in capsys.readouterr().err
    rows = read_csv(out)
    assert "not a readable PNG" in rows[3]["error"]
    assert "Is a directory" in rows[50]["error"]
    assert [index for index, row in enumerate(rows) if not row["log_likelihood"]] == [3, 50]


def test_score_keeps_what_was_answered_before_a_refusal(
    server: LiveServer, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A grey image needs a decision for all of them: it is no fault of its file."""
    for path in (folder / "below").glob("00*.png"):
        path.unlink()
    for index in range(40):
        image = np.zeros((SIDE, SIDE, 1), np.uint8)
        (folder / f"{index:03}.png").write_bytes(levels_to_png(image, 256))
    (folder / "below").rename(folder / "later")
    out, arguments = tmp_path / "scores.csv", [*address(server), "--model", "toy-vae"]
    assert main(["score", str(folder), *arguments, "--out", str(out)]) == 1
    assert "BINARISATION_REQUIRED" in capsys.readouterr().err
    assert [row["image"] for row in read_csv(out)] == [
        str(folder / f"{index:03}.png") for index in range(32)
    ]


def test_complete_keeps_what_is_known_of_a_png(server: LiveServer, tmp_path: Path) -> None:
    sample, mask, out = (tmp_path / f"{name}.png" for name in ("sample", "mask", "out"))
    generation = [*address(server), "--model", "toy-raster", "--seed", "5", "--top-k", "3"]
    assert main(["sample", *generation, "--out", str(sample)]) == 0
    known = ["--prefix-rows", "2"]
    assert main(["complete", str(sample), *known, *generation, "--out", str(out)]) == 0
    assert out.read_bytes() == sample.read_bytes(), "the same seed completes it to the same"

    pixels = np.zeros((SIDE, SIDE), np.uint8)
    pixels[-1] = 255
    Image.fromarray(pixels).save(mask)
    best = ["--known", str(mask), "--candidates", "8", "--count", "4"]
    assert main(["complete", str(sample), *best, *generation, "--out", str(out)]) == 0
    last_row = np.asarray(Image.open(sample))[-1]
    grid = np.asarray(Image.open(out))
    assert np.array_equal(grid[SIDE - 1], np.tile(last_row, 2))


def test_greedy_reaches_the_service(server: LiveServer, tmp_path: Path) -> None:
    pictures = []
    for seed in ("1", "2"):
        out = tmp_path / f"{seed}.png"
        arguments = [*address(server), "--model", "toy-raster", "--seed", seed, "--greedy"]
        assert main(["sample", *arguments, "--class-label", "1", "--out", str(out)]) == 0
        pictures.append(out.read_bytes())
    assert pictures[0] == pictures[1], "nothing is drawn"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "--model", "toy-nothing", "--out", "x.png"], "MODEL_NOT_FOUND"),
        (["sample", "--count", "0", "--out", "x.png"], "OUT_OF_RANGE"),
        (["score", "nothing.png"], "nothing.png can't be read"),
        (["score", __file__, "--model", "toy-nothing"], "MODEL_NOT_FOUND"),
        (["score", __file__, "--out", "/no/folder/scores.csv"], "scores.csv can't be written"),
        (["score", __file__, "--out", "/dev/full"], "/dev/full can't be written: No space left"),
        (["sample", "--out", "/dev/full"], "/dev/full can't be written: No space left"),
        (["complete", __file__, "--known", __file__, "--out", "x.png"], "not a readable PNG"),
    ],
)
def test_a_mistake_is_one_sentence(
    server: LiveServer, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *rest = arguments
    assert main([command, *address(server), *rest]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def run(command: str, repository: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of a shell, in which $GENSERVE is the command."""
    environment = {
        **os.environ,
        "GENSERVE": f"{sys.executable} -m service",
        "GENSERVE_MODEL_REPOSITORY": str(repository),
    }
    return subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("$GENSERVE models > /dev/full", "No space left on device"),
        ("$GENSERVE models > >(exec true)", "Broken pipe"),
        ("$GENSERVE verify nowhere", "nowhere: manifest.json can't be read"),
        ("$GENSERVE calibrate nobody nowhere", "there is no model 'nobody'"),
    ],
)
def test_a_full_disk_and_a_missing_artifact_are_one_sentence(
    repository: Path, command: str, message: str
) -> None:
    done = run(command, repository)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_calibration_that_finds_the_disk_full_leaves_nothing(
    repository: Path, tmp_path: Path
) -> None:
    """Files may have 1024 bytes, which is what a disk is like that is nearly full."""
    copy, images = tmp_path / "repository", tmp_path / "images.npy"
    shutil.copytree(repository / "toy-flow", copy / "toy-flow")
    levels = np.random.default_rng(0).integers(0, 256, (200, SIDE, SIDE, 1), np.uint8)
    np.save(images, levels)
    done = run(f"ulimit -f 1; $GENSERVE calibrate toy-flow {images}", copy)
    assert done.returncode == 1
    assert "calibrations can't be written: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((copy / "toy-flow" / "calibrations").iterdir())


def test_a_server_that_is_not_there_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "--address", "127.0.0.1:1", "--out", "x.png"]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
