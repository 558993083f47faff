"""What the REST operations are asked: strict schemas that become the core's requests.

OpenAPI is made of them, so every field says its meaning, range and unit. A schema checks what JSON
can get wrong; what depends on the model or on the server's limits (counts, classes, controls,
shapes) is checked by the core, for every transport alike.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, PrivateAttr, model_validator
from pydantic_core import PydanticCustomError

from service.api.arrays import Booleans, Numbers, Picture, Pictures
from service.api.fields import (
    Arithmetic,
    Classes,
    Condition,
    EncodeParts,
    GenerationParts,
    LikelihoodParts,
    Point,
    Seed,
    Strict,
    Timeout,
)
from service.core import requests as core

Upload = Literal["images", "latents"]

# The example of an image: a PNG of 28 rows of 28 black pixels.
_BLANK = (
    "iVBORw0KGgoAAAANSUhEUgAAABwAAAAcCAAAAABXZoBIAAAAE0lEQVR4AWNgGAWjITAaAsSEAAADLAABz+b8bgAAAABJR"
    "U5ErkJggg=="
)
_SEED = "0 to 2^53 - 1; drawn and returned where left out"


class Body(Strict):
    """What every request may say."""

    upload: ClassVar[Upload | None] = None  # what a raw body holds

    model: str | None = Field(None, min_length=1, max_length=200)
    """`name` (its newest version) or `name@version`; left out, the first default model that
    offers the operation."""
    timeout_ms: Timeout | None = None
    """Deadline in milliseconds, 1 to 600000; the server's default where left out."""

    @property
    def timeout_seconds(self) -> float | None:
        """The deadline in seconds."""
        return None if self.timeout_ms is None else self.timeout_ms / 1000

    @property
    def answer_parts(self) -> Sequence[str]:
        """The arrays that the answer holds."""
        raise NotImplementedError

    def to_core(self) -> core.Request:
        """Return the core's request."""
        raise NotImplementedError


class ConditionedBody(Body):
    """A request that may say what its images are conditioned on."""

    class_label: Classes | None = None
    """Shorthand for `condition.class`: one class for all images, or one for each."""
    condition: Condition | None = None
    """What to condition on; left out, nothing where the model was trained to do without, else a
    class drawn from its prior."""

    @model_validator(mode="after")
    def _one_condition(self) -> Self:
        if self.class_label is not None and self.condition is not None:
            raise PydanticCustomError(
                "two_conditions", "give class_label or condition, not both", {}
            )
        return self

    def core_condition(self) -> core.ConditionRequest:
        """Return the core's condition."""
        if self.condition is not None:
            return self.condition.to_core()
        return core.ConditionRequest(classes=self.class_label)


class EventsBody(Body):
    """A request about images or vectors: those which the model is one of."""

    upload: ClassVar[Upload | None] = "images"

    images: Pictures | None = None
    """Images, for models of these: nested arrays [count, height, width, channels], base64 PNG
    strings, or one such string. Nothing is resized."""
    vectors: Numbers | None = None
    """Vectors, [count, size], in place of images: for models of vectors."""


class GenerationBody(ConditionedBody):
    """A request that is answered with images or vectors."""

    seed: Seed | None = Field(None, description=f"Seed of all that is drawn, {_SEED}.")
    scale: core.Scale = "levels"
    """`levels`: whole numbers from 0; `unit`: floats in [0, 1], in and out, as arrays only."""
    parts: GenerationParts | None = Field(
        None,
        alias="return",
        description="What to answer: the images or vectors, the latents or codes that they were "
        "decoded from, the log-likelihood of each, and of its late known pixels, where the model "
        "has them. Left out: the images or vectors.",
    )
    image_format: Literal["png", "array"] = "png"
    """Images in JSON: base64 PNG strings, or nested arrays [count, height, width, channels]."""

    @property
    def answer_parts(self) -> Sequence[str]:
        """The arrays that the answer holds; where none is named, one in any case."""
        return self.parts or ["images"]

    @property
    def wants_png(self) -> bool:
        """Whether PNG files are asked for, and not only left to be the default."""
        return self.image_format == "png" and "image_format" in self.model_fields_set

    def parts_of(self, result: core.GenerationResult) -> Sequence[core.GenerationPart]:
        """Return what is answered of a result."""
        return self.parts or [result.made]


class SampleBody(GenerationBody):
    """Draw images or vectors. Image i of a seed is the same picture whatever `count` is."""

    count: Annotated[int, Field(json_schema_extra={"minimum": 1})] = 1
    """Number of images, 1 to the server's limit (256 unless set otherwise)."""
    temperature: float | None = None
    """Only where the model's controls list it; its meaning and range are in `/models/{name}`."""
    truncation: float | None = None
    """Only where the model's controls list it; its meaning and range are in `/models/{name}`."""
    top_k: int | None = None
    """Draw each pixel from so many of its most likely levels, 1 or more; where the model's
    controls list it."""
    top_p: float | None = None
    """Draw each pixel from the fewest levels that have this share of its probability, above 0 to
    1, after `top_k`; where the model's controls list it."""
    greedy: bool | None = None
    """Take the most likely level of each pixel; where the model's controls list it, and without
    `temperature`."""
    burn_in: int | None = None
    """Steps that a chain makes before its first image; where the model's controls list it."""
    thinning: int | None = None
    """Steps between images of one chain, 1 or more; where the model's controls list it."""
    chains: int | None = None
    """Take the images from so many chains in turn, 1 or more; where the model's controls list it.
    Left out, each image has a chain of its own, and images are independent."""

    def to_core(self) -> core.SampleRequest:
        """Return the core's request."""
        return core.SampleRequest(
            count=self.count,
            seed=self.seed,
            condition=self.core_condition(),
            temperature=self.temperature,
            truncation=self.truncation,
            top_k=self.top_k,
            top_p=self.top_p,
            greedy=self.greedy,
            burn_in=self.burn_in,
            thinning=self.thinning,
            chains=self.chains,
            scale=self.scale,
        )


class CompleteBody(SampleBody):
    """Draw the rest of one image, of which some pixels are known."""

    image: Picture
    """One image, nested arrays [height, width, channels] or a base64 PNG; what it holds at unknown
    pixels is not read, but must be levels. Known pixels of a model of binary images are 0 or the
    highest level."""
    prefix_rows: Annotated[int, Field(json_schema_extra={"minimum": 0})] | None = None
    """So many of its first rows are known, 0 to its height; give this or `known`."""
    known: Booleans | None = None
    """Which of its pixels are known, [height, width], true where they are kept. A known pixel
    influences only pixels that come after it in raster order, unless the model runs chains."""
    candidates: Annotated[int, Field(json_schema_extra={"minimum": 1})] | None = None
    """Draw so many completions, `count` to the server's limit of images, and answer the `count`
    with the highest log_weight, best first. Where `known` has pixels after unknown ones; else all
    have the same weight. A class, where each has one, is given for each candidate."""

    def to_core(self) -> core.CompleteRequest:
        """Return the core's request."""
        return core.CompleteRequest(
            **vars(super().to_core()),
            image=self.image,
            prefix_rows=self.prefix_rows,
            known=self.known,
            candidates=self.candidates,
        )


class StreamSampleBody(SampleBody):
    """Draw images, and show them while they are painted."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "mnist-pixelcnn", "seed": 7},
                {"model": "mnist-pixelcnn", "count": 16, "show": "preview", "every_rows": 4},
            ]
        }
    )

    show: core.Show = "rows"
    """`rows`: the levels of new rows, one image at a time; `preview`: one PNG of all images as far
    as they are painted, laid out as the PNG of an answer, its unpainted pixels of level 0."""
    every_rows: Annotated[int, Field(json_schema_extra={"minimum": 1})] = 1
    """So many new rows of an image, 1 to its height, make an event; in a preview, so many for each
    image on average. The last rows come in any case."""
    resume_token: str | None = None
    """Of the last event that was read of a stream that was cut: the same request goes on after it,
    on any replica with the same artifact. `seed` may be left out; how it is shown and what is
    answered may change, what is painted may not."""

    def core_stream(self) -> core.StreamRequest:
        """Return how the core shall stream it."""
        return core.StreamRequest(
            show=self.show, every_rows=self.every_rows, resume_token=self.resume_token
        )


class StreamCompleteBody(CompleteBody, StreamSampleBody):
    """Draw the rest of one image, and show it while it is painted."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "mnist-pixelcnn",
                    "image": _BLANK,
                    "prefix_rows": 10,
                    "show": "preview",
                    "every_rows": 7,
                }
            ]
        }
    )


class DecodeBody(GenerationBody):
    """Map latents or codes to images or vectors; exactly one of the two is given."""

    upload: ClassVar[Upload | None] = "latents"

    latents: Numbers | None = None
    """Latents, [count, size]."""
    codes: Numbers | None = None
    """Codes, for models that have them: whole numbers, [count, size]."""
    latent_space: str | None = Field(None, max_length=200)
    """The space that the latents or codes are of, as an answer named it; refused where it is
    another."""

    def to_core(self) -> core.DecodeRequest:
        """Return the core's request."""
        return core.DecodeRequest(
            latents=self.latents,
            codes=self.codes,
            latent_space=self.latent_space,
            condition=self.core_condition(),
            seed=self.seed,
            scale=self.scale,
        )


class ReconstructBody(EventsBody, GenerationBody):
    """Map images or vectors to latents or codes, and back."""

    binarisation: core.BinarisationRule | None = None
    """Make grey levels binary first: above half, or drawn with the level as probability."""

    def to_core(self) -> core.ReconstructRequest:
        """Return the core's request."""
        return core.ReconstructRequest(
            images=self.images,
            vectors=self.vectors,
            binarisation=self.binarisation,
            condition=self.core_condition(),
            seed=self.seed,
            scale=self.scale,
        )


class InterpolateBody(GenerationBody):
    """A path from start to end, a grid between four corners, or arithmetic on latents."""

    start: Point | None = None
    """Where the path begins."""
    end: Point | None = None
    """Where the path ends."""
    corners: Annotated[list[Point], Field(max_length=4, fail_fast=True)] = Field(
        default_factory=list
    )
    """Four points: top left, top right, bottom left, bottom right."""
    arithmetic: Arithmetic | None = None
    """Points to add and to subtract; one image."""
    steps: Annotated[int, Field(json_schema_extra={"minimum": 2})] = 8
    """Images along the path, both ends included; along each side of a grid."""
    mode: core.Mode = "slerp"
    """`slerp`: along the sphere, straight where that is undefined; `lerp`: straight."""

    def to_core(self) -> core.InterpolateRequest:
        """Return the core's request."""
        arithmetic = self.arithmetic or Arithmetic(plus=[])
        return core.InterpolateRequest(
            start=None if self.start is None else self.start.to_core(),
            end=None if self.end is None else self.end.to_core(),
            corners=[point.to_core() for point in self.corners],
            plus=[point.to_core() for point in arithmetic.plus],
            minus=[point.to_core() for point in arithmetic.minus],
            steps=self.steps,
            mode=self.mode,
            condition=self.core_condition(),
            seed=self.seed,
            scale=self.scale,
        )


class ScoreBody(EventsBody, ConditionedBody):
    """Ask a discriminator or critic how real images look, each by itself; this is no likelihood."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "mnist-dcgan", "images": [_BLANK], "class_label": 1}]
        }
    )

    scale: core.Scale = "levels"
    """Of image arrays: `levels`, whole numbers from 0; `unit`, floats in [0, 1]."""

    @property
    def answer_parts(self) -> Sequence[str]:
        """The arrays that the answer holds."""
        return ("score",)

    def to_core(self) -> core.ScoreRequest:
        """Return the core's request."""
        return core.ScoreRequest(
            images=self.images,
            vectors=self.vectors,
            condition=self.core_condition(),
            scale=self.scale,
        )


class ClassifyBody(EventsBody):
    """Ask which class images are of, by their likelihoods given each class and the model's prior.

    An image costs a likelihood for every class.
    """

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "mnist-pixelcnn", "images": [_BLANK]}]}
    )

    binarisation: core.BinarisationRule | None = None
    """Make grey levels binary first: above half, or drawn with the level as probability."""
    samples: Annotated[int, Field(json_schema_extra={"minimum": 1})] | None = None
    """Importance samples for one image and class, as for a likelihood."""
    seed: Seed = 0
    """Seed of the noise, 0 to 2^53 - 1."""
    scale: core.Scale = "levels"
    """Of image arrays: `levels`, whole numbers from 0; `unit`, floats in [0, 1]."""

    @property
    def answer_parts(self) -> Sequence[str]:
        """The arrays that npy holds."""
        return ("posterior",)

    def to_core(self) -> core.ClassifyRequest:
        """Return the core's request."""
        return core.ClassifyRequest(
            images=self.images,
            vectors=self.vectors,
            binarisation=self.binarisation,
            samples=self.samples,
            seed=self.seed,
            scale=self.scale,
        )


class EncodeBody(EventsBody):
    """Map images or vectors to latents or codes."""

    binarisation: core.BinarisationRule | None = None
    """Make grey levels binary first: above half, or drawn with the level as probability."""
    seed: Seed | None = Field(None, description=f"Seed of draws and binarisation, {_SEED}.")
    scale: core.Scale = "levels"
    """Of image arrays: `levels`, whole numbers from 0; `unit`, floats in [0, 1]."""
    parts: EncodeParts | None = Field(
        None,
        alias="return",
        description="What to answer: the mean of the latents, its deviations, posterior draws; or "
        "codes. Left out: the latents, or the codes of a model that has them.",
    )

    @property
    def answer_parts(self) -> Sequence[str]:
        """The arrays that the answer holds; where none is named, one in any case."""
        return self.parts or ["latents"]

    def parts_of(self, result: core.EncodeResult) -> Sequence[core.EncodePart]:
        """Return what is answered of a result."""
        return self.parts or [result.encoded]

    def to_core(self) -> core.EncodeRequest:
        """Return the core's request."""
        return core.EncodeRequest(
            images=self.images,
            vectors=self.vectors,
            binarisation=self.binarisation,
            draw="draws" in self.answer_parts,
            seed=self.seed,
            scale=self.scale,
        )


class LikelihoodBody(EventsBody, ConditionedBody):
    """How likely images are, and how anomalous. Their places in the request change nothing."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "mnist-realnvp", "images": [_BLANK]},
                {"model": "mnist-pixelcnn", "images": [_BLANK], "return": "log_likelihood_map"},
            ]
        }
    )

    binarisation: core.BinarisationRule | None = None
    """Make grey levels binary first: above half, or drawn with the level as probability."""
    samples: Annotated[int, Field(json_schema_extra={"minimum": 1})] | None = None
    """Importance samples for one image; left out, the model's plain bound or exact value."""
    estimator: core.Estimator | None = None
    """`monte_carlo`: the mean of p(x|z) over `samples` latents of the prior, for models that have
    p(x|z): a looser bound with a larger error, to compare others with."""
    seed: Seed = 0
    """Seed of the noise, 0 to 2^53 - 1."""
    scale: core.Scale = "levels"
    """Of image arrays: `levels`, whole numbers from 0; `unit`, floats in [0, 1]."""
    parts: LikelihoodParts | None = Field(
        None,
        alias="return",
        description="What to answer: log-likelihoods; anomaly scores with their p-values; the "
        "log-likelihood of each pixel, where the model has it. Left out: the log-likelihoods, and "
        "the scores where exactly one calibration holds for them; npy holds the log-likelihoods "
        "then, a PNG the map.",
    )
    false_positive_rate: (
        Annotated[
            float, Field(json_schema_extra={"exclusiveMinimum": 0.0, "exclusiveMaximum": 1.0})
        ]
        | None
    ) = None
    """Share of normal images that may be called anomalous, 0.01 where left out; above 0, below 1,
    and at least 1 / (n + 1) for a calibration of n images."""
    calibration: str | None = Field(None, max_length=200)
    """Id of the calibration that scores are compared with, where several apply."""
    group: bool = False
    """Whether to test the images as one group too."""
    image_format: Literal["png", "array"] = "array"
    """The map in JSON: nested arrays [height, width] in nats, or a base64 PNG, for each image."""
    _names: Sequence[str] | None = PrivateAttr(None)

    @property
    def names(self) -> Sequence[str] | None:
        """The names of the images, where they came with some."""
        return self._names

    def name_images(self, names: Sequence[str]) -> None:
        """Give each image a name, for the answer."""
        self._names = names

    @property
    def answer_parts(self) -> Sequence[str]:
        """The arrays that the answer holds."""
        return self.parts or ("log_likelihood", "scores")

    def to_core(self) -> core.LikelihoodRequest:
        """Return the core's request."""
        return core.LikelihoodRequest(
            images=self.images,
            vectors=self.vectors,
            binarisation=self.binarisation,
            samples=self.samples,
            estimator=self.estimator,
            seed=self.seed,
            condition=self.core_condition(),
            scale=self.scale,
            parts=self.parts,
            false_positive_rate=self.false_positive_rate,
            calibration=self.calibration,
            group=self.group,
        )
