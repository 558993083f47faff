"""What REST requests are made of: strict field types, conditions, and points in latent space."""

from functools import cache
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)
from pydantic_core import PydanticCustomError

from service.api.arrays import Numbers, Picture
from service.core import requests as core
from service.core.requests import MAXIMUM_LISTED, MAXIMUM_PARTS, MAXIMUM_POINTS, check_range


def _listed(value: object) -> object:
    """Return one value as a list of one, so that a field takes one or several."""
    return value if isinstance(value, list) else [value]


def _check_timeout(milliseconds: int) -> int:
    check_range("timeout_ms", milliseconds, 1, core.MAXIMUM_TIMEOUT_MS)
    return milliseconds


Timeout = Annotated[
    int,
    AfterValidator(_check_timeout),
    Field(json_schema_extra={"minimum": 1, "maximum": core.MAXIMUM_TIMEOUT_MS}),
]
Seed = Annotated[int, Field(json_schema_extra={"minimum": 0, "maximum": 2**53 - 1})]
# Lists are bounded, and checked to the first mistake only: a report of each mistake in a body of
# millions of them would take longer than all other requests together.
Classes = Annotated[
    list[int],
    Field(max_length=MAXIMUM_LISTED, fail_fast=True),
    BeforeValidator(_listed, json_schema_input_type=int | list[int]),
]
GenerationParts = Annotated[
    list[core.GenerationPart],
    Field(min_length=1, max_length=MAXIMUM_PARTS, fail_fast=True),
    BeforeValidator(
        _listed, json_schema_input_type=core.GenerationPart | list[core.GenerationPart]
    ),
]
EncodeParts = Annotated[
    list[core.EncodePart],
    Field(min_length=1, max_length=MAXIMUM_PARTS, fail_fast=True),
    BeforeValidator(_listed, json_schema_input_type=core.EncodePart | list[core.EncodePart]),
]
LikelihoodParts = Annotated[
    list[core.LikelihoodPart],
    Field(min_length=1, max_length=MAXIMUM_PARTS, fail_fast=True),
    BeforeValidator(
        _listed, json_schema_input_type=core.LikelihoodPart | list[core.LikelihoodPart]
    ),
]


class Strict(BaseModel):
    """No guesses: `"4"` and `true` are not integers, and unknown fields are refused by name."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    @classmethod
    @cache
    def field_names(cls) -> list[str]:
        """Return the names that clients use."""
        return [field.alias or name for name, field in cls.model_fields.items()]

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_fields(cls, fields: object) -> object:
        # Before pydantic's own checks, whose messages do not name what is allowed.
        allowed = cls.field_names()
        if not isinstance(fields, dict):
            raise PydanticCustomError(
                "not_an_object", "must be an object of {allowed}", {"allowed": ", ".join(allowed)}
            )
        for name in fields:
            if name not in allowed:
                raise PydanticCustomError(
                    "unknown_field",
                    "unknown field '{name}'; allowed are {allowed}",
                    {"name": name[:100], "allowed": ", ".join(allowed)},
                )
        return fields


class Condition(Strict):
    """What to condition on: classes or class weights, not both."""

    classes: Classes | None = Field(None, alias="class")
    """One class for all images, or one for each; numbered from 0."""
    class_weights: Numbers | None = None
    """Weights of the classes, [classes] for all images or [count, classes]; each row sums to 1."""

    def to_core(self) -> core.ConditionRequest:
        """Return the core's request."""
        return core.ConditionRequest(classes=self.classes, class_weights=self.class_weights)


class Point(Strict):
    """A point in latent space: exactly one of a seed, a latent, and an image or a vector."""

    seed: Seed | None = None
    """The latent that the first image of this seed is decoded from; 0 to 2^53 - 1."""
    latent: Numbers | None = None
    """A latent, [size]."""
    latent_space: str | None = Field(None, max_length=200)
    """The space that the latent is of, as an answer named it; refused where it is another."""
    image: Picture | None = None
    """An image to encode: nested arrays [height, width, channels] or a base64 PNG."""
    vector: Numbers | None = None
    """A vector to encode, [size]: for models of vectors."""

    def to_core(self) -> core.Endpoint:
        """Return the core's endpoint."""
        return core.Endpoint(
            seed=self.seed,
            latent=self.latent,
            latent_space=self.latent_space,
            image=self.image,
            vector=self.vector,
        )


Points = Annotated[list[Point], Field(max_length=MAXIMUM_POINTS, fail_fast=True)]


class Arithmetic(Strict):
    """The sum of the points `plus`, less those of `minus`."""

    plus: Points
    """Points to add, at most 64."""
    minus: Points = Field(default_factory=list)
    """Points to subtract, at most 64."""
