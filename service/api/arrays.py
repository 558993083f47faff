"""Arrays in JSON: nested lists of numbers, and images as such lists or as base64 PNG strings.

What arrives as npy or as raw PNG files is let through as it is, so that one schema serves every
kind of body.
"""

import base64
from itertools import chain
from typing import Annotated, Any

import numpy as np
from pydantic import PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from service.core.requests import MAXIMUM_LISTED, Array, Images
from service.errors import InvalidImage

_MAXIMUM_AXES = 8
_SHAPE = "must hold numbers only, nested to one rectangular shape"


def read_numbers(value: object) -> Array:
    """Return nested lists of numbers as int64 where all are whole, else as float64."""
    if isinstance(value, np.ndarray):
        if value.ndim == 0:
            raise _refusal("must be an array, not one number")
        return value
    if not isinstance(value, list):
        raise _refusal("must be an array of numbers")
    shape, numbers = _flattened(value)
    kinds = set(map(type, numbers))
    if not kinds <= {int, float}:  # numpy would take true for 1
        raise _refusal(_SHAPE)
    try:
        return np.array(numbers, np.float64 if float in kinds else np.int64).reshape(shape)
    except OverflowError:
        raise _refusal("holds a number beyond 64 bits") from None


def read_booleans(value: object) -> Array:
    """Return nested lists of booleans as an array."""
    array = np.array(value if isinstance(value, list) else [None], dtype=object)
    if set(map(type, array.ravel().tolist())) != {bool}:
        raise _refusal("must hold true and false only, nested to one rectangular shape")
    return array.astype(np.bool_)


def read_picture(value: object) -> Array | bytes:
    """Return an image as an array or, from base64, as the bytes of a PNG."""
    return _png(value) if isinstance(value, str) else read_numbers(value)


def read_pictures(value: object) -> Images:
    """Return images as one array, or as the bytes of a PNG each."""
    if isinstance(value, str):
        return [_png(value)]
    if isinstance(value, list) and value:
        if all(isinstance(item, bytes) for item in value):
            return value
        if all(isinstance(item, str) for item in value):
            _check_length(value)
            return [_png(item) for item in value]
    return read_numbers(value)


def _flattened(value: list[Any]) -> tuple[list[int], list[Any]]:
    """Return the shape of nested lists, and what the innermost hold; raises where it is ragged.

    Numpy takes seconds for millions of short lists, in which no other request is answered.
    """
    shape, entries = [len(value)], value
    while entries and isinstance(entries[0], list):
        _check_length(value)
        lengths = set(map(len, entries)) if set(map(type, entries)) == {list} else set()
        if len(lengths) != 1 or len(shape) == _MAXIMUM_AXES:
            raise _refusal(_SHAPE)
        shape += lengths
        entries = list(chain.from_iterable(entries))
    return shape, entries


def _check_length(rows: list[Any]) -> None:
    if len(rows) > MAXIMUM_LISTED:
        raise _refusal(
            f"holds {len(rows)} items; at most {MAXIMUM_LISTED} are read, send npy for more"
        )


def _png(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise InvalidImage(f"not a base64 PNG: {error}") from None


def _refusal(message: str) -> PydanticCustomError:
    return PydanticCustomError("array", message)


def _nested(depth: int, item: dict[str, Any]) -> dict[str, Any]:
    schema = item
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


_NUMBER = {"type": "number"}
_PNG = {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/png"}

Numbers = Annotated[
    Array,
    PlainValidator(read_numbers),
    WithJsonSchema({"anyOf": [_nested(1, _NUMBER), _nested(2, _NUMBER)]}),
]
Booleans = Annotated[
    Array,
    PlainValidator(read_booleans),
    WithJsonSchema(_nested(2, {"type": "boolean"})),
]
Picture = Annotated[
    Array | bytes,
    PlainValidator(read_picture),
    WithJsonSchema({"anyOf": [_nested(3, _NUMBER), _PNG]}),
]
Pictures = Annotated[
    Images,
    PlainValidator(read_pictures),
    WithJsonSchema({"anyOf": [_nested(4, _NUMBER), _nested(1, _PNG), _PNG]}),
]
