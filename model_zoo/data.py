"""Data sets on disk or from their official mirrors, verified, and the splits taken from them.

A data set lives in a folder of its own below the data directory: $GENSERVE_DATA_DIR, or `data/`
in the checkout. Three layouts are read: the IDX files of MNIST, gzipped or not; `train` and `test`
folders of `class/name.png` (or jpg); the same folders as `train.zip` and `test.zip`.

`<data set>-without-<label>` is a data set less one class: its splits are those of the whole, less
the images of that label. To a model trained on it they are anomalies like none that it has seen.

`<data set>-<height>x<width>` is a data set in small: mnist-8x8 holds the means of the squares of
3x3 pixels about the middle, which leaves out a rim of two.

The data sets of `densities.py` are drawn: their examples are vectors, all of the label 0.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import struct
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import avg_pool2d

from model_zoo.densities import DENSITIES, PlaneDensity
from model_zoo.family import Batch

DATA_DIRECTORY_VARIABLE = "GENSERVE_DATA_DIR"
SPLITS = ("fit", "select", "score_fit", "calibrate", "test")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg"}
DOWNLOAD_TIMEOUT_SECONDS = 60
WITHOUT_A_CLASS = re.compile(r"(.+)-without-(\d+)")
IN_SMALL = re.compile(r"(.+)-(\d+)x(\d+)")
PERMUTATION_KEY = 20_131_220  # any constant will do; this one must never change
IDX_UNSIGNED_BYTE = 0x08


class DataError(Exception):
    """A data set that is missing, damaged or not what it claims to be."""


@dataclass(frozen=True)
class IdxSource:
    """Where a data set of IDX files comes from; `sha256` is that of the unpacked bytes.

    Hashing what is inside lets a copy pass that was compressed again with other settings.
    """

    mirrors: tuple[str, ...]
    sha256: Mapping[str, str]


IDX_SOURCES = {
    "mnist": IdxSource(
        mirrors=("https://ossci-datasets.s3.amazonaws.com/mnist/",),
        sha256={
            "train-images-idx3-ubyte": (
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
            ),
            "train-labels-idx1-ubyte": (
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
            ),
            "t10k-images-idx3-ubyte": (
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
            ),
            "t10k-labels-idx1-ubyte": (
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
            ),
        },
    ),
    "fashion-mnist": IdxSource(
        mirrors=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        sha256={
            "train-images-idx3-ubyte": (
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
            ),
            "train-labels-idx1-ubyte": (
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
            ),
            "t10k-images-idx3-ubyte": (
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
            ),
            "t10k-labels-idx1-ubyte": (
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
            ),
        },
    ),
}
IDX_PREFIXES = {"train": "train", "test": "t10k"}


@dataclass(frozen=True)
class Examples:
    """A data set in memory: `images` uint8 [N, C, H, W], `labels` and `indices` int64 [N].

    An index is the place of an image in what was read from disk. A data set of vectors has them in
    place of images, float32 [N, D].
    """

    images: Tensor
    labels: Tensor
    indices: Tensor

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.labels)

    def batch(self, indices: Tensor | slice = slice(None)) -> Batch:
        """Return the chosen examples as a family takes them, on the device of the images."""
        return Batch(self.images[indices].float(), self.labels[indices])

    def at(self, places: Tensor) -> Examples:
        """Return the examples at some places among these, which know where they came from."""
        return Examples(self.images[places], self.labels[places], self.indices[places])

    def to(self, device: torch.device) -> Examples:
        """Return the same examples on another device."""
        return Examples(self.images.to(device), self.labels.to(device), self.indices.to(device))


def in_chunks(data: Batch, size: int) -> Iterator[Batch]:
    """Yield consecutive parts of at most `size` examples, so that memory stays bounded."""
    for images, labels in zip(data.images.split(size), data.labels.split(size), strict=True):
        yield Batch(images, labels)


# Splits


def split_indices(count: int) -> dict[str, np.ndarray]:
    """Divide `count` training examples by one fixed permutation; int64 indices by split name.

    Of 60,000 examples 48,000 go to `fit`, 2,000 to `select`, 5,000 to `score_fit` and 5,000 to
    `calibrate`; other counts are divided in the same proportions. The permutation sorts the raw
    words of a Philox generator, the one thing that numpy promises never to change.
    """
    words = np.random.Philox(key=PERMUTATION_KEY).random_raw(count)
    order = np.argsort(words, kind="stable").astype(np.int64)
    sizes = {"select": count // 30, "score_fit": count // 12, "calibrate": count // 12}
    ends = np.cumsum([count - sum(sizes.values()), *sizes.values()])
    return dict(zip(SPLITS[:4], np.split(order, ends[:-1]), strict=True))


def index_hash(indices: np.ndarray) -> str:
    """Return the sha256 of the indices as little-endian int64, which pins a split."""
    return hashlib.sha256(np.ascontiguousarray(indices, dtype="<i8").tobytes()).hexdigest()


def load_splits(dataset: str) -> dict[str, Examples]:
    """Load a data set and return its splits by name; `test` is the official test set.

    Raises DataError where a file is missing, damaged or cannot be downloaded, or where there is no
    such class to leave out, or no such size.
    """
    if in_small := IN_SMALL.fullmatch(dataset):
        whole, height, width = in_small.groups()
        splits = load_splits(whole)
        return {name: _shrink(splits[name], int(height), int(width)) for name in splits}
    if less_one_class := WITHOUT_A_CLASS.fullmatch(dataset):
        whole, label = less_one_class.groups()
        return _leave_out(int(label), load_splits(whole))
    train = load(dataset, "train")
    splits = {
        name: train.at(torch.from_numpy(indices))
        for name, indices in split_indices(len(train)).items()
    }
    return splits | {"test": load(dataset, "test")}


def _leave_out(label: int, splits: Mapping[str, Examples]) -> dict[str, Examples]:
    kept = {name: examples.labels != label for name, examples in splits.items()}
    if all(mask.all() for mask in kept.values()):
        labels = sorted(set(splits["fit"].labels.tolist()))
        raise DataError(f"there is no class {label} to leave out: there are {labels}")
    return {name: splits[name].at(mask.nonzero().flatten()) for name, mask in kept.items()}


def _shrink(examples: Examples, height: int, width: int) -> Examples:
    """Average squares of the largest whole size about the middle, to the nearest level."""
    *_, whole_height, whole_width = examples.images.shape
    side = min(whole_height // max(height, 1), whole_width // max(width, 1))
    if not (height and width and side):
        raise DataError(f"images of {whole_height}x{whole_width} have no {height}x{width} in small")
    top, left = (whole_height - side * height) // 2, (whole_width - side * width) // 2
    middle = examples.images[..., top : top + side * height, left : left + side * width]
    images = avg_pool2d(middle.float(), side).round().to(torch.uint8)
    return Examples(images, examples.labels, examples.indices)


def describe_splits(splits: Mapping[str, Examples]) -> dict[str, dict[str, int | str]]:
    """Return count and index hash of every split, for the model's record."""
    return {
        name: {"count": len(examples), "sha256": index_hash(examples.indices.cpu().numpy())}
        for name, examples in splits.items()
    }


# Finding data


def data_directory() -> Path:
    """Return the folder that holds one folder for each data set."""
    checkout = Path(__file__).resolve().parent.parent
    return Path(os.environ.get(DATA_DIRECTORY_VARIABLE) or checkout / "data")


def load(dataset: str, part: str) -> Examples:
    """Load the `train` or `test` part of a data set, downloading it if its source is known."""
    folder = data_directory() / dataset
    if dataset in DENSITIES:
        return _draw(DENSITIES[dataset], part)
    if dataset in IDX_SOURCES:
        return _load_idx(IDX_SOURCES[dataset], folder, IDX_PREFIXES[part])
    for path in (folder / part, folder / f"{part}.zip"):
        if path.exists():
            return read_image_folder(path)
    raise DataError(
        f"data set {dataset!r} was not found: put class/name.png files into {folder / part}, or "
        f"a zip of them at {folder / part}.zip, or set {DATA_DIRECTORY_VARIABLE}. "
        f"Known without files: {', '.join(sorted([*IDX_SOURCES, *DENSITIES]))}"
    )


def _draw(density: PlaneDensity, part: str) -> Examples:
    vectors = torch.from_numpy(density.vectors(part))
    labels = torch.zeros(len(vectors), dtype=torch.int64)
    return Examples(vectors, labels, torch.arange(len(vectors)))


def _load_idx(source: IdxSource, folder: Path, prefix: str) -> Examples:
    images = parse_idx(_verified_bytes(source, folder, f"{prefix}-images-idx3-ubyte"), rank=3)
    labels = parse_idx(_verified_bytes(source, folder, f"{prefix}-labels-idx1-ubyte"), rank=1)
    if len(images) != len(labels):
        raise DataError(f"{folder}: {len(images)} images but {len(labels)} labels")
    return Examples(
        torch.from_numpy(images[:, None]),  # [N, H, W] -> [N, 1, H, W]
        torch.from_numpy(labels.astype(np.int64)),
        torch.arange(len(labels)),
    )


def _verified_bytes(source: IdxSource, folder: Path, name: str) -> bytes:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return _verify(_unpack(path.read_bytes(), path), source.sha256[name], path)
    return _download(source, folder / f"{name}.gz", source.sha256[name])


def _unpack(content: bytes, origin: Path | str) -> bytes:
    if not content.startswith(b"\x1f\x8b"):  # the gzip magic number
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{origin} is a damaged gzip file ({error}): fetch it again") from error


def _verify(content: bytes, sha256: str, origin: Path | str) -> bytes:
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise DataError(
            f"{origin} is not the file it should be: its unpacked bytes have sha256 {found}, "
            f"expected {sha256}. Delete it and it will be downloaded again"
        )
    return content


def _download(source: IdxSource, path: Path, sha256: str) -> bytes:
    """Try each mirror in turn; only a verified file ever appears at `path`."""
    failures = []
    for mirror in source.mirrors:
        url = mirror + path.name
        try:
            with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_SECONDS) as response:
                packed = response.read()
            content = _verify(_unpack(packed, url), sha256, url)
        except (OSError, DataError) as error:
            failures.append(f"{url}: {error}")
            continue
        _write_atomically(path, packed)
        return content
    raise DataError(
        f"could not download {path.name} ({'; '.join(failures)}). Place it at {path} by hand, or "
        f"set {DATA_DIRECTORY_VARIABLE} to a folder that holds {path.parent.name}/{path.name}"
    )


def _write_atomically(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as partial:
        partial.write(content)
    os.replace(partial.name, path)


# Formats


def parse_idx(content: bytes, rank: int) -> np.ndarray:
    """Parse an IDX file of unsigned bytes into an array of the given rank.

    Layout: two zero bytes, the type code, the rank, `rank` big-endian uint32 sizes, the values.
    Raises DataError where the header or the length does not fit.
    """
    header = struct.calcsize(f">4B{rank}I")
    if len(content) < header:
        raise DataError(f"IDX file of {len(content)} bytes is shorter than its {header} of header")
    zero, zero_too, type_code, found_rank, *shape = struct.unpack_from(f">4B{rank}I", content)
    if (zero, zero_too, type_code, found_rank) != (0, 0, IDX_UNSIGNED_BYTE, rank):
        raise DataError(f"not an IDX file of unsigned bytes of rank {rank}: {content[:4].hex()}")
    expected = header + int(np.prod(shape))
    if len(content) != expected:
        raise DataError(f"IDX file of shape {shape} has {len(content)} bytes, not {expected}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()


def read_image_folder(path: Path) -> Examples:
    """Read `class/name.png` (or jpg) from a folder or a zip; labels follow the sorted classes.

    All images must have the same size and mode: grey gives one channel, colour three.
    """
    files = sorted(_image_files(path), key=lambda item: item[0])
    if not files:
        raise DataError(f"{path} holds no class/name.png or class/name.jpg")
    classes = sorted({name.parent.name for name, _ in files})
    pictures = [_decode_image(name, content) for name, content in files]
    if len(shapes := {picture.shape for picture in pictures}) > 1:
        raise DataError(f"{path} mixes images of different shapes: {sorted(shapes)[:4]}")
    labels = [classes.index(name.parent.name) for name, _ in files]
    return Examples(
        torch.from_numpy(np.stack(pictures)), torch.tensor(labels), torch.arange(len(labels))
    )


def _image_files(path: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    if path.is_dir():
        for file in path.glob("*/*"):
            if file.suffix.lower() in IMAGE_SUFFIXES:
                yield PurePosixPath(file.relative_to(path).as_posix()), file.read_bytes()
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for name in map(PurePosixPath, archive.namelist()):
                if name.suffix.lower() in IMAGE_SUFFIXES and len(name.parts) > 1:
                    yield name, archive.read(str(name))
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} is not a whole zip file: {error}") from error


def _decode_image(name: PurePosixPath, content: bytes) -> np.ndarray:
    """Return uint8 [C, H, W]."""
    try:
        image = Image.open(BytesIO(content))
        pixels = np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{name} is not a readable image: {error}") from error
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy()
