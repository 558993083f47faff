"""Data: what is read is what was written, and nothing damaged or wrong is ever accepted."""

import gzip
import hashlib
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from model_zoo import data
from model_zoo.data import DataError, Examples, IdxSource

needs_data = pytest.mark.skipif(
    not os.environ.get(data.DATA_DIRECTORY_VARIABLE),
    reason=f"set {data.DATA_DIRECTORY_VARIABLE} to a folder with mnist to run this",
)


def to_idx(array: np.ndarray) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 6, 5), dtype=np.uint8)


TINY_FILES = {
    f"{prefix}-{content}": to_idx(array)
    for prefix, count in (("train", 7), ("t10k", 3))
    for content, array in (
        ("images-idx3-ubyte", pictures(count)),
        ("labels-idx1-ubyte", np.arange(count, dtype=np.uint8)),
    )
}
CHECKSUMS = {name: hashlib.sha256(content).hexdigest() for name, content in TINY_FILES.items()}


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    folder = tmp_path / "mirror"
    folder.mkdir()
    for name, content in TINY_FILES.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    return folder


@pytest.fixture
def home(tmp_path: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a data set called tiny, still empty, with a mirror that is a folder."""
    monkeypatch.setenv(data.DATA_DIRECTORY_VARIABLE, str(tmp_path / "data"))
    use_mirrors(monkeypatch, mirror)
    return tmp_path / "data" / "tiny"


def use_mirrors(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    urls = tuple(folder.as_uri() + "/" for folder in folders)
    monkeypatch.setitem(data.IDX_SOURCES, "tiny", IdxSource(urls, CHECKSUMS))


# IDX files


@given(arrays.arrays(np.uint8, arrays.array_shapes(min_dims=3, max_dims=3, max_side=5)))
def test_idx_gives_back_what_was_written(array: np.ndarray):
    assert np.array_equal(data.parse_idx(to_idx(array), rank=3), array)


@given(st.integers(0, len(to_idx(pictures(2))) - 1))
def test_idx_cut_anywhere_is_refused(length: int):
    with pytest.raises(DataError):
        data.parse_idx(to_idx(pictures(2))[:length], rank=3)


def test_idx_with_bytes_left_over_is_refused():
    with pytest.raises(DataError, match="has 77 bytes, not 76"):
        data.parse_idx(to_idx(pictures(2)) + b"\0", rank=3)


@pytest.mark.parametrize("header", [b"\1\0\x08\3", b"\0\0\x0d\3", b"\0\0\x08\1"])
def test_idx_of_another_type_or_rank_is_refused(header: bytes):
    with pytest.raises(DataError, match="not an IDX file"):
        data.parse_idx(header + to_idx(pictures(2))[4:], rank=3)


# Files and mirrors


@pytest.mark.parametrize("packed", [False, True], ids=["raw", "gzip"])
def test_files_in_the_data_directory_are_used(home: Path, mirror: Path, packed: bool):
    home.mkdir(parents=True)
    for name, content in TINY_FILES.items():
        path = home / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(content, compresslevel=1) if packed else content)
        (mirror / f"{name}.gz").unlink()
    train = data.load("tiny", "train")
    assert torch.equal(train.images, torch.from_numpy(pictures(7))[:, None])
    assert train.labels.tolist() == list(range(7))
    assert len(data.load("tiny", "test")) == 3


def test_missing_files_are_downloaded_once(home: Path, mirror: Path):
    first = data.load("tiny", "train")
    for path in mirror.iterdir():
        path.unlink()
    assert torch.equal(data.load("tiny", "train").images, first.images)
    assert sorted(path.name for path in home.iterdir()) == [
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
    ]


def test_second_mirror_is_tried_when_the_first_is_wrong(
    home: Path, mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    liar = tmp_path / "liar"
    liar.mkdir()
    (liar / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"something else"))
    use_mirrors(monkeypatch, liar, mirror)
    assert len(data.load("tiny", "train")) == 7


def test_download_that_fails_leaves_nothing_and_says_what_to_do(home: Path, mirror: Path):
    (mirror / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(DataError, match=data.DATA_DIRECTORY_VARIABLE):
        data.load("tiny", "train")
    assert not list(home.glob("*"))


def test_file_with_another_checksum_is_refused_by_name(home: Path):
    home.mkdir(parents=True)
    (home / "train-images-idx3-ubyte").write_bytes(to_idx(pictures(7, seed=1)))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte .* expected "):
        data.load("tiny", "train")


def test_damaged_gzip_is_refused_by_name(home: Path):
    home.mkdir(parents=True)
    whole = gzip.compress(TINY_FILES["train-images-idx3-ubyte"])
    (home / "train-images-idx3-ubyte.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz is a damaged gzip"):
        data.load("tiny", "train")


def test_unknown_data_set_names_the_known_ones(home: Path):
    with pytest.raises(DataError, match=r"'nowhere' .* fashion-mnist, mnist"):
        data.load("nowhere", "train")


# Folders and zips of images


def write_image_folder(folder: Path, mode: str = "L") -> None:
    for index, name in enumerate(("cat/1.png", "cat/2.png", "dog/1.png")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (4, 3), index * 40 if mode == "L" else (index, 0, 9)).save(path)


def zip_folder(folder: Path, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.glob("*/*")):
            archive.write(file, file.relative_to(folder).as_posix())


def test_folder_and_its_zip_are_the_same_data(home: Path):
    folder = home.parent / "animals"
    write_image_folder(folder / "train")
    zip_folder(folder / "train", folder / "test.zip")
    train, test = data.load("animals", "train"), data.load("animals", "test")
    assert train.images.shape == (3, 1, 3, 4)
    assert train.images[:, 0, 0, 0].tolist() == [0, 40, 80]
    assert train.labels.tolist() == [0, 0, 1]
    assert torch.equal(train.images, test.images)
    assert torch.equal(train.labels, test.labels)


def test_colour_images_have_three_channels(tmp_path: Path):
    write_image_folder(tmp_path, mode="RGB")
    assert data.read_image_folder(tmp_path).images[2, :, 0, 0].tolist() == [2, 0, 9]


def test_images_of_two_sizes_are_refused(tmp_path: Path):
    write_image_folder(tmp_path)
    Image.new("L", (5, 5)).save(tmp_path / "cat" / "3.png")
    with pytest.raises(DataError, match="different shapes"):
        data.read_image_folder(tmp_path)


def test_file_that_is_no_image_is_refused_by_name(tmp_path: Path):
    write_image_folder(tmp_path)
    (tmp_path / "cat" / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"cat/broken.png is not a readable image"):
        data.read_image_folder(tmp_path)


def test_truncated_image_is_refused_by_name(tmp_path: Path):
    write_image_folder(tmp_path)
    whole = (tmp_path / "cat" / "1.png").read_bytes()
    (tmp_path / "cat" / "1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cat/1.png is not a readable image"):
        data.read_image_folder(tmp_path)


def test_broken_zip_and_empty_folder_are_refused(tmp_path: Path):
    (tmp_path / "train.zip").write_bytes(b"PK not really")
    with pytest.raises(DataError, match="not a whole zip"):
        data.read_image_folder(tmp_path / "train.zip")
    with pytest.raises(DataError, match="holds no class"):
        data.read_image_folder(tmp_path)


# Splits


def test_splits_of_sixty_thousand_are_pinned():
    """These hashes stand in every manifest: if they change, old figures lose their meaning."""
    assert {
        name: (len(indices), data.index_hash(indices)[:16])
        for name, indices in data.split_indices(60_000).items()
    } == {
        "fit": (48_000, "1831cf552818b838"),
        "select": (2_000, "288be3f11aeada9a"),
        "score_fit": (5_000, "29a6c644e16aca87"),
        "calibrate": (5_000, "5066f0968f3e0919"),
    }


@given(st.integers(0, 500))
def test_splits_share_nothing_and_lose_nothing(count: int):
    splits = data.split_indices(count)
    assert sorted(np.concatenate(list(splits.values()))) == list(range(count))


def test_description_of_splits_is_that_of_their_indices(home: Path):
    splits = data.load_splits("tiny")
    described = data.describe_splits(splits)
    assert {name: entry["count"] for name, entry in described.items()} == {
        name: len(examples) for name, examples in splits.items()
    }
    assert described["fit"]["sha256"] == data.index_hash(data.split_indices(7)["fit"])


def test_a_class_left_out_is_in_no_split_and_the_rest_stays_where_it_was(home: Path):
    whole, less = data.load_splits("tiny"), data.load_splits("tiny-without-1")
    for name, examples in less.items():
        assert 1 not in examples.labels
        kept = [index for index in whole[name].indices.tolist() if index != 1]  # also its label
        assert examples.indices.tolist() == kept
    described = data.describe_splits(less)
    assert described["test"] == {"count": 2, "sha256": data.index_hash(np.array([0, 2]))}
    assert described["fit"]["sha256"] == data.index_hash(less["fit"].indices.numpy())


def test_a_class_that_is_not_there_can_not_be_left_out(home: Path):
    with pytest.raises(DataError, match=r"no class 7 to leave out: there are \[0, 1, .* 6\]"):
        data.load_splits("tiny-without-7")


def test_a_data_set_in_small_holds_the_means_of_squares_about_the_middle(home: Path):
    whole, small = data.load_splits("tiny"), data.load_splits("tiny-1x2")
    *_, height, width = whole["fit"].images.shape
    side = min(height, width // 2)
    top, left = (height - side) // 2, (width - 2 * side) // 2
    for name, examples in small.items():
        assert examples.images.shape[2:] == (1, 2)
        assert torch.equal(examples.indices, whole[name].indices)
        second = whole[name].images[:, 0, top : top + side, left + side : left + 2 * side]
        mean = second.float().mean(dim=(1, 2))
        assert torch.all((examples.images[:, 0, 0, 1] - mean).abs() <= 0.5)


@pytest.mark.parametrize("size", ["0x1", "1x99"])
def test_images_can_not_be_made_smaller_than_a_pixel_or_larger(home: Path, size: str):
    with pytest.raises(DataError, match=f"have no {size} in small"):
        data.load_splits(f"tiny-{size}")


def test_batches_are_float_levels():
    images = torch.tensor([[[[0, 255]]], [[[7, 8]]]], dtype=torch.uint8)
    examples = Examples(images, torch.arange(2), torch.arange(2))
    batch = examples.batch(torch.tensor([1]))
    assert batch.images.dtype == torch.float32
    assert batch.images.flatten().tolist() == [7.0, 8.0]
    assert batch.labels.tolist() == [1]


@needs_data
@pytest.mark.parametrize(("name", "first"), [("mnist", 5), ("fashion-mnist", 9)])
def test_real_data_verifies(name: str, first: int):
    if not (data.data_directory() / name).is_dir():
        pytest.skip(f"no {name} in the data directory")
    train = data.load(name, "train")
    assert train.images.shape == (60_000, 1, 28, 28)
    assert train.labels[0] == first
    assert len(data.load(name, "test")) == 10_000


@needs_data
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_real_data_less_a_class_verifies(name: str):
    if not (data.data_directory() / name).is_dir():
        pytest.skip(f"no {name} in the data directory")
    whole, less = data.load_splits(name), data.load_splits(f"{name}-without-9")
    for split, examples in less.items():
        assert set(examples.labels.tolist()) == set(range(9))
        assert len(examples) == (whole[split].labels != 9).sum()
        places = set(whole[split].indices.tolist())
        assert set(examples.indices.tolist()) < places, "no image changes its split"
