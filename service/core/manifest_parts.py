"""What a manifest is made of: parts, each checked by itself, and how a file of them is read."""

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.errors import ArtifactError

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
# A plain name: an artifact can't point outside its own folder.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
NAME = r"^[a-z0-9]+(-[a-z0-9]+)*$"
Name = Annotated[str, Field(pattern=NAME, max_length=100)]
VERSION = r"^[0-9]+(\.[0-9]+)*$"
Version = Annotated[str, Field(pattern=VERSION, max_length=40)]
Size = Annotated[int, Field(ge=1)]
Margin = Annotated[int, Field(ge=0)]


class Part(BaseModel):
    """Strict and immutable: an unknown or mistyped field is a refusal, never a guess."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


P = TypeVar("P", bound=Part)


class ImageEvent(Part):
    """An image of levels. `shape` is [height, width, channels]."""

    kind: Literal["image"]
    shape: tuple[Size, Size, Literal[1, 3]]
    levels: Annotated[int, Field(ge=2, le=256)]
    base_measure: Literal["counting", "lebesgue"]

    @property
    def dimensions(self) -> int:
        """The number of values in one image."""
        return math.prod(self.shape)


class VectorEvent(Part):
    """A vector of real coordinates, which graphs take as it is. `shape` is [size]."""

    kind: Literal["vector"]
    shape: tuple[Size]
    base_measure: Literal["lebesgue"]

    @property
    def dimensions(self) -> int:
        """The number of coordinates."""
        return self.shape[0]


Event = Annotated[ImageEvent | VectorEvent, Field(discriminator="kind")]
"""What a model generates."""


class Binarisation(Part):
    """How grey levels become the two that the model is a distribution over."""

    levels: Literal[2] = 2
    rules: tuple[Literal["threshold", "stochastic"], ...]
    required_by: tuple[str, ...] = Field(description="operations that refuse grey levels")


class Preprocess(Part):
    """Levels to graph values: (low + (high - low) * level / (levels - 1) - mean) / deviation."""

    range: tuple[float, float]
    mean: tuple[float, ...] = Field((0.0,), description="one for all channels, or one each")
    deviation: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1.0,), description="one for all channels, or one each"
    )
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    padding: tuple[Margin, Margin, Margin, Margin] = Field(
        (0, 0, 0, 0), description="rows and columns of level 0: top, bottom, left, right"
    )
    binarisation: Binarisation | None = None
    dequantisation: Literal["uniform"] | None = Field(
        None, description="noise that the likelihood graph takes as an input"
    )

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> Self:
        if self.range[0] >= self.range[1]:
            raise ValueError("range must go from a lower to a higher value")
        return self

    def row_shape(self, event: ImageEvent) -> tuple[int, ...]:
        """Return the shape of one image as graphs take it."""
        height, width, channels = event.shape
        top, bottom, left, right = self.padding
        height, width = top + height + bottom, left + width + right
        chw = self.layout == "NCHW"
        return (channels, height, width) if chw else (height, width, channels)


class Latent(Part):
    """One flat vector. Latents of different `space`s are never mixed."""

    space: str
    shape: tuple[Size]
    prior: Literal["standard_normal", "graph", "none"] = Field(
        description="what draws latents: none where they are not drawn alone, the graph `prior` "
        "where they are not of the standard normal distribution"
    )
    prior_meaning: str | None = Field(None, description="what the graph draws from, in words")


class CodeMap(Part):
    """Codes that lie beside each other, each one of so many `levels`, numbered from 0."""

    name: str
    shape: Annotated[tuple[Size, ...], Field(min_length=1)]
    levels: Annotated[int, Field(ge=2)]

    @property
    def size(self) -> int:
        """The number of codes."""
        return math.prod(self.shape)


class Codes(Part):
    """A latent of whole numbers: one flat vector, map after map, each in reading order.

    The graph `prior` draws it. Codes of different `space`s are never mixed.
    """

    space: str
    maps: Annotated[tuple[CodeMap, ...], Field(min_length=1)]
    prior_meaning: str = Field(description="what the prior is, in words")

    @property
    def size(self) -> int:
        """The number of codes of all maps together."""
        return sum(each.size for each in self.maps)


class Condition(Part):
    """What a sample may be conditioned on, and the prior from which it is drawn when not given."""

    kinds: tuple[Literal["class", "class_weights"], ...]
    names: tuple[str, ...]
    prior: tuple[Annotated[float, Field(ge=0)], ...]
    optional: bool = Field(
        False, description="weights of zero mean no class, which the model was trained to answer"
    )

    @model_validator(mode="after")
    def _prior_is_a_distribution_over_names(self) -> Self:
        if len(self.prior) != len(self.names) or not math.isclose(sum(self.prior), 1.0):
            raise ValueError("prior must hold one probability for each name and sum to 1")
        return self


ControlName = Literal[
    "temperature", "truncation", "top_k", "top_p", "greedy", "burn_in", "thinning", "chains"
]


class Control(Part):
    """A number that a client may set; what it means differs from model to model."""

    meaning: str
    minimum: float
    maximum: float
    default: float | None

    @model_validator(mode="after")
    def _default_is_in_range(self) -> Self:
        default = self.minimum if self.default is None else self.default
        if not self.minimum <= default <= self.maximum:
            raise ValueError("minimum, default and maximum must be in this order")
        return self


class Port(Part):
    """An input or output of a graph; one entry of `shape` is the free batch axis, `batch`."""

    name: str
    role: Literal[
        "data", "latent", "latent_deviation", "codes", "condition", "noise", "control",
        "cache", "forced", "steps", "features", "levels", "log_likelihood", "log_likelihood_map",
        "statistic", "score",
    ]  # fmt: skip
    dtype: Literal["float32", "float64", "int64", "int32"]
    shape: Annotated[tuple[Literal["batch"] | Size, ...], Field(min_length=1)]
    distribution: Literal["uniform", "normal"] | None = None
    purpose: str | None = None

    @model_validator(mode="after")
    def _noise_is_named(self) -> Self:
        named = self.distribution is not None and self.purpose is not None
        if (self.role == "noise") != named:
            raise ValueError("a noise input, and no other, has a distribution and a purpose")
        return self

    @model_validator(mode="after")
    def _only_the_batch_axis_is_free(self) -> Self:
        if self.shape.count("batch") != 1:
            raise ValueError("shape must hold 'batch' once and sizes elsewhere")
        return self

    @property
    def batch_axis(self) -> int:
        """The axis along which rows lie."""
        return self.shape.index("batch")

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row."""
        return tuple(size for size in self.shape if size != "batch")


class Graph(Part):
    """One ONNX graph; it draws no randomness, and row i out depends on row i in alone."""

    file: FileName
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def input(self, role: str) -> Port | None:
        """Return the input with a role, or None."""
        return next((port for port in self.inputs if port.role == role), None)

    def output(self, role: str) -> Port | None:
        """Return the output with a role, or None."""
        return next((port for port in self.outputs if port.role == role), None)


class Operation(Part):
    """An operation offered; the fields say what a likelihood, or a score, means."""

    quantity: Literal["probability", "density"] | None = None
    kind: Literal["exact", "lower_bound", "estimate"] | None = None
    base_measure: Literal["counting", "lebesgue"] | None = None
    estimator: str | None = Field(None, description="mean of `draws` log weights")
    draws: Size | None = None
    importance_estimator: str | None = Field(None, description="log mean of weights")
    normaliser_standard_error: Annotated[float, Field(ge=0)] | None = Field(
        None, description="nats, of an estimated log normaliser: the error that all images share"
    )
    conditioning: Literal["given", "none", "marginal"] | None = None
    higher_means: Literal["more_real", "less_real"] | None = Field(
        None, description="of a score, which way up it is"
    )
    unit: str | None = Field(None, description="of a score")
    meaning: str | None = Field(None, description="of a score, in words or as a formula")


class Figure(Part):
    """One measured number, with how it was measured and the published one beside it."""

    name: str
    value: float
    unit: str
    protocol: str
    standard_error: float | None = None
    published: dict[str, Any] | None = None


class Split(Part):
    """A set of training examples, identified by the hash of its indices."""

    count: Size
    sha256: Digest


class TestVectors(Part):
    """Inputs and outputs of every graph, as `<graph>/inputs/<name>` and `<graph>/outputs/<name>`.

    A run agrees when |actual - expected| <= absolute + relative * |expected|, everywhere.
    """

    __test__ = False  # the name is the contract's; it is no test case

    file: FileName
    absolute: Annotated[float, Field(gt=0)]
    relative: Annotated[float, Field(ge=0)]


def read_part(path: Path, kind: type[P]) -> tuple[P, dict[str, Any]]:
    """Read a JSON file of the contract; return it checked, and its content as it stands.

    Raises ArtifactError that names the file and what is wrong with it.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path.name} can't be read: {error.strerror}") from error
    return check_part(path.name, text, kind)


def check_part(file: str, text: bytes, kind: type[P]) -> tuple[P, dict[str, Any]]:
    """Return the JSON text of a file of the contract, checked, and its content as it stands.

    Raises ArtifactError that names the file and what is wrong with it.
    """
    try:
        return kind.model_validate_json(text), json.loads(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or f"the {kind.__name__.lower()}"
        raise ArtifactError(f"{file}: {where}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{file} is not JSON: {error}") from error
