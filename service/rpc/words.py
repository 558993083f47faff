"""Enum values as the words that the core and REST use: SCALE_LEVELS is `levels`."""

from google.protobuf.descriptor import EnumDescriptor

from service.errors import InvalidRequest


def to_word(enum: EnumDescriptor, number: int) -> str:
    """Return the word of a value; raises InvalidRequest for the unspecified and the unknown."""
    value = enum.values_by_number.get(number)
    if not number or value is None:
        allowed = ", ".join(value.name for value in enum.values if value.number)
        raise InvalidRequest(f"{enum.name} {number} is not a choice; allowed are {allowed}")
    return str(value.name).removeprefix(_prefix(enum)).lower()


def to_name(enum: EnumDescriptor, word: str | None) -> str:
    """Return the name of a word's value; that of the unspecified for None and unknown words."""
    name = _prefix(enum) + str(word).upper()
    return name if name in enum.values_by_name else _prefix(enum) + "UNSPECIFIED"


def _prefix(enum: EnumDescriptor) -> str:
    return str(enum.values_by_number[0].name).removesuffix("UNSPECIFIED")
