"""Named tensors of the Open Inference Protocol: datatypes, and inputs checked against a graph."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from service.core.manifest_parts import Graph, Port
from service.core.requests import Array
from service.errors import InvalidRequest, OutOfRange

BATCH = -1
"""The size that stands for any number of rows in the shape of a port."""

# Little-endian, as they travel.
DATATYPES: Mapping[str, np.dtype[Any]] = {
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("u1"),
}
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}


class TensorMetadata(NamedTuple):
    """What a model says of one input or output."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An input as it came: its bytes in row-major order, or its numbers, flat or nested."""

    name: str
    datatype: str
    shape: Sequence[int]
    content: bytes | Array

    @property
    def size(self) -> int:
        """How many bytes or numbers it holds."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.size


def datatype_of(array: Array) -> str:
    """Return the protocol's name of an array's type."""
    return _NAMES[array.dtype.newbyteorder("<")]


def metadata_of(port: Port) -> TensorMetadata:
    """Return what a model says of a port."""
    shape = tuple(BATCH if size == "batch" else size for size in port.shape)
    return TensorMetadata(port.name, _NAMES[np.dtype(port.dtype).newbyteorder("<")], shape)


def read_inputs(graph: Graph, tensors: Sequence[Tensor], maximum_rows: int) -> dict[str, Array]:
    """Return the graph's inputs by name: each given once, all with the same number of rows.

    Raises InvalidRequest that names the input and what it should be, or OutOfRange for no rows or
    more than `maximum_rows`.
    """
    expected = {port.name: metadata_of(port) for port in graph.inputs}
    check_names([tensor.name for tensor in tensors], list(expected))
    inputs = {tensor.name: _read(tensor, expected[tensor.name]) for tensor in tensors}
    rows = {name: len(array) for name, array in inputs.items()}
    if len(set(rows.values())) > 1:
        raise InvalidRequest(
            f"the inputs have different numbers of rows: {rows}; give each as many"
        )
    count = next(iter(rows.values()))
    if not 1 <= count <= maximum_rows:
        raise OutOfRange(f"the inputs have {count} rows; allowed is 1 to {maximum_rows}")
    return inputs


def check_names(given: Sequence[str], expected: Sequence[str]) -> None:
    """Raise InvalidRequest unless each of the expected inputs is given exactly once."""
    takes = f"the model takes {', '.join(expected)}" if expected else "the model takes none"
    for name in given:
        if name not in expected:
            raise InvalidRequest(f"there is no input '{name[:100]}'; {takes}")
    if len(given) != len(set(given)):
        raise InvalidRequest(f"an input is given twice; {takes}, each once")
    if missing := [name for name in expected if name not in given]:
        raise InvalidRequest(f"input {', '.join(missing)} is missing; {takes}")


def _read(tensor: Tensor, expected: TensorMetadata) -> Array:
    """Return an input as an array of the port's type."""
    name, shape = tensor.name, list(tensor.shape)
    if tensor.datatype != expected.datatype:
        raise InvalidRequest(
            f"input {name} is of datatype {tensor.datatype[:100]}; it must be {expected.datatype}"
        )
    if not _fits(shape, expected.shape):
        raise InvalidRequest(
            f"input {name} has shape {shape[:10]}; it must be {list(expected.shape)}, where "
            f"{BATCH} is the number of rows"
        )
    if isinstance(tensor.content, bytes):
        return _from_bytes(name, tensor.content, DATATYPES[expected.datatype], shape)
    return _from_numbers(name, tensor.content, DATATYPES[expected.datatype], shape)


def _fits(shape: Sequence[int], expected: Sequence[int]) -> bool:
    return len(shape) == len(expected) and all(
        size >= 0 if wanted == BATCH else size == wanted
        for size, wanted in zip(shape, expected, strict=True)
    )


def _from_bytes(name: str, content: bytes, dtype: np.dtype[Any], shape: list[int]) -> Array:
    needed = math.prod(shape) * dtype.itemsize
    if len(content) != needed:
        raise InvalidRequest(
            f"input {name} has {len(content)} bytes; its shape {shape} takes {needed}"
        )
    return np.frombuffer(content, dtype).reshape(shape)


def _from_numbers(name: str, numbers: Array, dtype: np.dtype[Any], shape: list[int]) -> Array:
    """Return numbers as a type, unless it can't hold them; whole numbers become floats."""
    if numbers.size != math.prod(shape):
        raise InvalidRequest(
            f"input {name} has {numbers.size} elements; its shape {shape} takes {math.prod(shape)}"
        )
    if numbers.ndim > 1 and list(numbers.shape) != shape:
        raise InvalidRequest(
            f"the data of input {name} are nested to {list(numbers.shape)}; nest them to its "
            f"shape {shape}, or not at all"
        )
    if dtype.kind in "iu":
        if numbers.dtype.kind not in "iu":
            raise InvalidRequest(f"input {name} holds fractions; {_NAMES[dtype]} is whole")
        bounds = np.iinfo(dtype)
        if numbers.size and not bounds.min <= numbers.min() <= numbers.max() <= bounds.max:
            raise InvalidRequest(f"input {name} holds numbers beyond {_NAMES[dtype]}")
    with np.errstate(over="ignore"):
        values: Array = numbers.astype(dtype)
    if dtype.kind == "f" and np.any(np.isfinite(numbers) & ~np.isfinite(values)):
        raise InvalidRequest(f"input {name} holds numbers beyond {_NAMES[dtype]}")
    return values.reshape(shape)
