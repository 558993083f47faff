"""Arrays to PNG and npy and back, and what is refused on the way."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from service.errors import InvalidImage, PayloadTooLarge
from service.images import (
    array_to_npy,
    grid,
    levels_to_png,
    npy_to_array,
    png_size,
    png_to_levels,
)

LIMIT = 10_000


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its few bytes do not hold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@given(st.data(), st.sampled_from([2, 8, 17, 256]), st.sampled_from([1, 3]))
def test_levels_survive_a_png(data: st.DataObject, levels: int, channels: int) -> None:
    image = data.draw(
        arrays.arrays(np.uint8, (5, 7, channels), elements=st.integers(0, levels - 1))
    )
    assert np.array_equal(png_to_levels(levels_to_png(image, levels), levels), image)


@given(arrays.arrays(st.sampled_from([np.uint8, np.float32, np.int64]), (2, 3, 4)))
def test_arrays_survive_npy(array: np.ndarray) -> None:
    restored = npy_to_array(array_to_npy(array), LIMIT)
    assert restored.dtype == array.dtype
    assert np.array_equal(restored, array, equal_nan=array.dtype.kind == "f")


def test_a_grid_reads_row_by_row() -> None:
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((5, 2, 2, 1), np.uint8)
    picture = grid(images, 3)
    assert picture.shape == (4, 6, 1)
    assert picture[::2, ::2, 0].tolist() == [[0, 1, 2], [3, 4, 0]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable PNG"),
        (b"GIF89a not a png", "not a readable PNG"),
        (png(Image.effect_noise((32, 32), 50))[:-200], "not a readable PNG"),
        (png(Image.new("RGBA", (4, 4))), "mode RGBA"),
        (png(Image.new("I;16", (4, 4))), "mode I;16"),
        (png(Image.new("P", (4, 4))), "mode P"),
        (png_claiming(60_000, 60_000), "not a readable PNG"),
        (png_claiming(50, 50), "not a readable PNG"),
    ],
    ids=["empty", "gif", "truncated", "rgba", "16-bit", "palette", "bomb", "short"],
)
def test_png_files_that_can_not_be_trusted_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(InvalidImage, match=message):
        png_to_levels(content, 256)


def test_the_size_is_read_without_decompressing_anything() -> None:
    assert png_size(png(Image.new("L", (7, 5)))) == (5, 7)
    assert png_size(png_claiming(60_000, 50_000)) == (50_000, 60_000)
    disguised = png_claiming(7, 5).replace(b"IHDR", b"tEXt", 1)
    for content in (b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", disguised):
        with pytest.raises(InvalidImage, match="does not start as one"):
            png_size(content)


def test_values_between_levels_are_refused() -> None:
    with pytest.raises(InvalidImage, match="2 levels"):
        png_to_levels(png(Image.new("L", (2, 2), 7)), 2)


def test_bilevel_pngs_are_black_and_white() -> None:
    image = png_to_levels(png(Image.new("1", (2, 2), 1)), 256)
    assert image.tolist() == [[[255], [255]], [[255], [255]]]


def test_npy_files_of_objects_and_false_claims_are_refused() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InvalidImage, match="holds object"):
        npy_to_array(buffer.getvalue(), LIMIT)
    honest = array_to_npy(np.zeros(10))
    with pytest.raises(PayloadTooLarge, match="8000000000000 bytes"):
        npy_to_array(honest.replace(b"(10,)", b"(1000000000000,)"), LIMIT)
    for broken in (b"", b"\x93NUMPY", honest[:-8], honest[:40]):
        with pytest.raises(InvalidImage, match="not a readable npy"):
            npy_to_array(broken, LIMIT)
