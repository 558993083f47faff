"""What an attacker would send: names, numbers, files, and messages made of them, by hypothesis."""

import io
import math
import struct
import zipfile
import zlib
from typing import Any

import numpy as np
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st
from PIL import Image

from tests.fakes import LATENT, PIXELS, SIDE

MODELS = ("toy-gan", "toy-flow", "toy-vae", "toy-raster", "toy-gan@1")
_NAMES = ("", "../../etc/passwd", "x\0y", "toy-gan@", "@1", "toy-gan@9999999999999999999", "é" * 99)
_INTEGERS = (0, 1, 2, 3, SIDE, PIXELS, LATENT, -1, 255, 2**31 - 1, -(2**31), 2**53, 2**63 - 1)
_FLOATS = (0.0, 1.0, -1.0, 0.5, 1e-300, 1e300, math.nan, math.inf, -math.inf)
_LONG = 5000  # more entries than any list may have
_DEPTH = 4


def _png(height: int, width: int, mode: str = "L") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, format="PNG")
    return buffer.getvalue()


def _bomb() -> bytes:
    """A PNG of 50,000 x 50,000 pixels in its header, and a megabyte of nothing in its data."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(10**6))), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def _zip(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("_", "/"), content)
    return buffer.getvalue()


PNGS = (_png(SIDE, SIDE), _png(SIDE, SIDE, "RGB"), _png(1, 1), _png(SIDE, 3000), _bomb())
NPYS = (
    _npy(np.zeros((1, SIDE, SIDE, 1), np.uint8)),
    _npy(np.full((2, SIDE, SIDE, 1), math.nan)),
    _npy(np.zeros((2, LATENT), np.float32)),
    _npy(np.zeros((1, 2, 3), np.complex64)),
    _npy(np.array([{}], object)),
    _npy(np.array(1)),
)
ZIPS = (
    _zip(**{"a.png": PNGS[0], "._._etc_passwd": PNGS[0]}),
    _zip(**{"bomb.png": PNGS[4], "text.txt": b"no picture"}),
    _zip(**{"zeros.png": bytes(3 * 10**5)}),
    _zip(),
)


@st.composite
def mutated(draw: st.DrawFn, contents: st.SearchStrategy[bytes]) -> bytes:
    """Bytes of which some are cut off, changed, or doubled."""
    content = bytearray(draw(contents))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(content)))
        match draw(st.integers(0, 3)):
            case 0:
                del content[at:]
            case 1 if at < len(content):
                content[at] = draw(st.integers(0, 255))
            case 2:
                content[at:at] = draw(st.binary(max_size=8))
            case 3:
                content += content[at:]
    return bytes(content)


FILES = mutated(st.sampled_from((*PNGS, *NPYS, *ZIPS))) | st.binary(max_size=64)
TEXTS = st.sampled_from((*MODELS, *_NAMES)) | st.text(max_size=20)
_PIXELS = st.sampled_from((bytes(PIXELS), bytes([255]) * 2 * PIXELS, b"\1" * PIXELS))

_VALUES: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_STRING: TEXTS,
    FieldDescriptor.TYPE_BYTES: _PIXELS | FILES,
    FieldDescriptor.TYPE_ENUM: st.integers(-1, 9),
    FieldDescriptor.TYPE_FLOAT: st.sampled_from(_FLOATS[:4] + _FLOATS[6:]) | st.floats(width=32),
    FieldDescriptor.TYPE_DOUBLE: st.sampled_from(_FLOATS) | st.floats(),
}


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor, depth: int = 0) -> Message:
    """A message of which any fields are set to anything that they can hold."""
    message = GetMessageClass(descriptor)()
    names = sorted(descriptor.fields_by_name)
    for name in draw(st.lists(st.sampled_from(names), unique=True, max_size=6)) if names else ():
        field = descriptor.fields_by_name[name]
        if field.message_type is not None:
            if depth < _DEPTH:
                _set_messages(draw, message, field, depth)
        elif field.is_repeated:
            value = draw(_scalars(field))
            many = draw(st.sampled_from((0, 1, 2, 3, LATENT, PIXELS, 20, _LONG)))
            getattr(message, name).extend([value] * many)
        else:
            setattr(message, name, draw(_scalars(field)))
    return message


def _set_messages(draw: st.DrawFn, message: Message, field: FieldDescriptor, depth: int) -> None:
    inner = messages(field.message_type, depth + 1)
    if field.is_repeated:
        count = draw(st.sampled_from((0, 1, 2, 70)))
        getattr(message, field.name).extend([draw(inner)] * count)
    else:
        getattr(message, field.name).CopyFrom(draw(inner))


def _scalars(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.type in _VALUES:
        return _VALUES[field.type]
    bits = 64 if "64" in _TYPE_NAMES.get(field.type, "32") else 32
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    fitting = [value for value in _INTEGERS if low <= value <= high]
    return st.sampled_from(fitting) | st.integers(low, high)


_TYPE_NAMES = {
    number: name
    for name, number in vars(FieldDescriptor).items()
    if name.startswith("TYPE_") and isinstance(number, int)
}
