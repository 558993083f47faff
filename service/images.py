"""Images as arrays, PNG, npy and zip: levels uint8 [N, H, W, C] in memory, files at the edges."""

import io
import math
import struct
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from service.errors import InvalidImage, MalformedRequest, OutOfRange, PayloadTooLarge

Levels = NDArray[np.uint8]

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_COLOURS = {1: 0, 3: 2}  # the colour types grey and RGB, by channels
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_READABLE_MODES = ("1", "L", "RGB")


def png_files(folder: Path) -> list[Path]:
    """Return the PNG files in a folder and in those below it, sorted; hidden ones are left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() == ".png"
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def png_size(content: bytes) -> tuple[int, int]:
    """Return height and width from a PNG's header, which the format puts first.

    Raises InvalidImage for bytes that do not start as a PNG. A caller that knows what to expect
    asks this before anything is decompressed.
    """
    if not content.startswith(_PNG_SIGNATURE) or content[12:16] != b"IHDR" or len(content) < 24:
        raise InvalidImage("not a readable PNG: it does not start as one")
    width, height = struct.unpack(">II", content[16:24])
    return height, width


def png_to_levels(content: bytes, levels: int) -> Levels:
    """Decode one PNG, whose size was checked, to levels 0 .. levels - 1, uint8 [H, W, C].

    Level k is the PNG value round(k * 255 / (levels - 1)); other values are refused. Raises
    InvalidImage for anything but a sound 8-bit grey or RGB PNG.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
            _check_mode(picture)
            values = np.asarray(picture.convert("L") if picture.mode == "1" else picture)
    except UnidentifiedImageError as error:
        raise InvalidImage("not a readable PNG: its header is broken") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidImage(f"not a readable PNG: {error}") from error
    return _values_to_levels(values.reshape(values.shape[0], values.shape[1], -1), levels)


def levels_to_png(image: Levels, levels: int) -> bytes:
    """Encode one image, uint8 [H, W, 1 or 3], as PNG; the top level becomes 255."""
    height, width, channels = image.shape
    # A byte before each row says how it is filtered: not at all, which suits levels that repeat.
    rows = np.zeros((height, 1 + width * channels), np.uint8)
    rows[:, 1:] = _levels_to_values(image, levels).reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, _PNG_COLOURS[channels], 0, 0, 0)
    pixels = zlib.compress(rows.tobytes(), level=1)  # level 6 costs four times as much
    chunks = _png_chunk(b"IHDR", header), _png_chunk(b"IDAT", pixels), _png_chunk(b"IEND", b"")
    return b"".join((_PNG_SIGNATURE, *chunks))


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(content, zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(content)), kind, content, struct.pack(">I", checksum)))


def heat_map(log_likelihood_map: NDArray[np.float64], levels: int) -> Levels:
    """Show log-likelihoods of pixels [N, H, W], in nats, as grey values [N, H, W, 1].

    The scale is fixed, so that pictures can be compared. 0 nats (certain) and more is black; a
    pixel as likely as a guess among all `levels`, -ln(levels), is middle grey; twice that and less
    is white, 255, and so is what is not a number.
    """
    shares = -log_likelihood_map / (2.0 * math.log(levels))
    values = np.rint(255.0 * np.nan_to_num(np.clip(shares, 0.0, 1.0), nan=1.0))
    return values.astype(np.uint8)[..., None]


def grid(images: Levels, columns: int | None = None) -> Levels:
    """Lay images [N, H, W, C] out row by row as one [rows * H, columns * W, C]; gaps are 0.

    Without columns, it is about as many images wide as high.
    """
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    cells = np.zeros((rows * columns, height, width, channels), np.uint8)
    cells[:count] = images
    # [rows, columns, H, W, C] -> [rows, H, columns, W, C] -> [rows * H, columns * W, C]
    cells = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return cells.reshape(rows * height, columns * width, channels)


def array_to_npy(array: NDArray[np.generic]) -> bytes:
    """Encode an array in numpy's npy format, version 1.0."""
    return _npy_header_of(array.shape, array.dtype) + array.tobytes()


@lru_cache(maxsize=1000)
def _npy_header_of(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    buffer = io.BytesIO()
    description = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": description, "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


def npy_to_array(content: bytes, maximum_bytes: int) -> NDArray[np.generic]:
    """Decode an npy file of integers or floats. Raises InvalidImage for all others and for broken
    files, PayloadTooLarge for a header that claims more than `maximum_bytes`, before anything is
    allocated."""
    shape, dtype = _npy_header(content)
    if dtype.kind not in "iuf":
        raise InvalidImage(f"the npy file holds {dtype}; send integers or floats")
    claimed = math.prod(shape) * dtype.itemsize
    if claimed > maximum_bytes:
        raise PayloadTooLarge(
            f"the npy header claims {claimed} bytes; the limit is {maximum_bytes}"
        )
    try:
        return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError, OverflowError) as error:
        raise InvalidImage(f"not a readable npy file: {error}") from error


def zip_to_files(
    content: bytes, *, maximum_files: int, maximum_bytes: int
) -> list[tuple[str, bytes]]:
    """Return the files of a zip archive with their names, in its order.

    Folders and hidden files are passed over, and so is what macOS adds. All bounds are checked
    before anything is decompressed, and of no entry more than it claims is. Raises MalformedRequest
    for an archive that can't be read (stored and deflated entries are, encrypted ones are not),
    OutOfRange for more than `maximum_files`, and PayloadTooLarge for more than `maximum_bytes` of
    contents.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = [entry for entry in archive.infolist() if _is_shown(entry)]
            _check_entries(entries, maximum_files, maximum_bytes)
            return [(entry.filename, _read_entry(archive, entry)) for entry in entries]
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError) as error:
        raise MalformedRequest(f"not a readable zip archive: {error}") from error
    except (NotImplementedError, struct.error, OverflowError) as error:
        raise MalformedRequest("not a readable zip archive: write it anew") from error


def _is_shown(entry: zipfile.ZipInfo) -> bool:
    *folders, name = entry.filename.split("/")  # a folder's own name ends with a slash
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in (*folders, name))
    return bool(name) and not hidden


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    # ZipFile.read would decompress up to a gigabyte and then cut it to what the entry claims.
    with archive.open(entry) as file:
        return file.read(entry.file_size)


def _check_entries(entries: list[zipfile.ZipInfo], maximum_files: int, maximum_bytes: int) -> None:
    if len(entries) > maximum_files:
        raise OutOfRange(
            f"the archive holds {len(entries)} files; allowed are 1 to {maximum_files}"
        )
    claimed = sum(entry.file_size for entry in entries)
    if claimed > maximum_bytes:
        raise PayloadTooLarge(
            f"the archive's files claim {claimed} bytes; the limit is {maximum_bytes}"
        )
    for entry in entries:
        if entry.flag_bits & 1 or entry.compress_type not in _ZIP_METHODS:
            raise MalformedRequest(
                f"'{entry.filename[:100]}' is encrypted or compressed in an unusual way; archive "
                "it by deflate, without a password"
            )


def _npy_header(content: bytes) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    except Exception as error:  # numpy parses a Python literal, and lets out whatever that raises
        raise InvalidImage("not a readable npy file: its header is broken") from error
    return shape, dtype


def _check_mode(picture: Image.Image) -> None:
    if picture.mode not in _READABLE_MODES:
        raise InvalidImage(
            f"the PNG has mode {picture.mode}; 8-bit grey (L) and RGB are read. "
            "Convert it first: nothing is converted silently"
        )


def _values_to_levels(values: Levels, levels: int) -> Levels:
    image = np.rint(values.astype(np.float64) * (levels - 1) / 255).astype(np.uint8)
    if np.any(_levels_to_values(image, levels) != values):
        raise InvalidImage(
            f"the PNG holds values between the model's {levels} levels; "
            f"level k is written as round(k * 255 / {levels - 1})"
        )
    return image


def _levels_to_values(image: Levels, levels: int) -> Levels:
    if levels == 256:
        return image
    return np.rint(image.astype(np.float64) * 255 / (levels - 1)).astype(np.uint8)
