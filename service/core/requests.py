"""What the operations are asked and what they answer, in arrays, for every transport alike.

Arrays are rows first. Latents are flat vectors [N, D], float32. Images are levels, uint8
[N, height, width, channels], or float32 in [0, 1] where the scale is `unit`. Vectors are float32
[N, D]; a model has either images or vectors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, get_args

import numpy as np
from numpy.typing import NDArray

from service.core.scoring.scores import Score
from service.errors import InvalidRequest, OutOfRange

Array = NDArray[Any]
Scale = Literal["levels", "unit"]
Mode = Literal["slerp", "lerp"]
BinarisationRule = Literal["threshold", "stochastic"]
Estimator = Literal["monte_carlo"]
LikelihoodPart = Literal["log_likelihood", "scores", "log_likelihood_map"]
EncodePart = Literal["latents", "codes", "deviations", "draws"]
EventPart = Literal["images", "vectors"]
GenerationPart = Literal["images", "vectors", "latents", "codes", "log_likelihood", "log_weight"]
Show = Literal["rows", "preview"]
HigherMeans = Literal["more_real", "less_real"]
Images = Array | Sequence[bytes]
"""Whole levels, or floats in [0, 1] where the scale is `unit`, [N, H, W, C]; or a PNG each."""

MAXIMUM_TIMEOUT_MS = 600_000
"""The longest time, in milliseconds, that a request may give its answer."""
MAXIMUM_LISTED = 4096
"""The most entries of one list in a request, be they of JSON or of a message."""
MAXIMUM_PARTS = 8
"""The most parts that an answer is asked for."""
MAXIMUM_POINTS = 64
"""The most points that arithmetic adds, and that it subtracts."""


EventRows = NDArray[Any]
"""Levels of images, uint8 [N, H, W, C], or vectors, float32 [N, D]."""


class DeferredRows(Protocol):
    """Rows that become an array where they are needed, at best together with those of others."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice) -> Self: ...

    def join(self, others: Sequence[Self]) -> Array:
        """Return these rows, and then those of the others, as one array."""
        ...


def as_array(rows: Array | DeferredRows) -> Array:
    """Return rows as an array."""
    return rows if isinstance(rows, np.ndarray) else rows.join([])


@dataclass(frozen=True)
class Limits:
    """Bounds that hold for every request."""

    count: int  # images in one request
    draws: int  # noise draws for one image
    rows: int  # images times draws in one request


@dataclass(frozen=True, kw_only=True)
class ConditionRequest:
    """What to condition on: one class for all or one each, or weights [K] or [N, K]."""

    classes: Sequence[int] | None = None
    class_weights: Array | None = None


@dataclass(frozen=True, kw_only=True)
class EventsRequest:
    """What is asked of images or of vectors: those are given which the model is one of."""

    images: Images | None = None
    vectors: Array | None = None
    scale: Scale = "levels"  # of images

    @property
    def rows(self) -> int:
        """The number of images or vectors, before anything is checked."""
        given = self.images if self.vectors is None else self.vectors
        return 0 if given is None else len(given)


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """Draw `count` images or vectors. Without a seed, one is drawn and returned."""

    count: int = 1
    seed: int | None = None
    condition: ConditionRequest = ConditionRequest()
    temperature: float | None = None
    truncation: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    greedy: bool | None = None
    burn_in: int | None = None
    thinning: int | None = None
    chains: int | None = None
    scale: Scale = "levels"


@dataclass(frozen=True, kw_only=True)
class EncodeRequest(EventsRequest):
    """Map images to codes, or to latents: the posterior mean, its deviation, a draw where asked."""

    binarisation: BinarisationRule | None = None
    draw: bool = False
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class DecodeRequest:
    """Map latents or codes [N, D] to images: exactly one of the two is given."""

    latents: Array | None = None
    codes: Array | None = None
    latent_space: str | None = None
    condition: ConditionRequest = ConditionRequest()
    seed: int | None = None
    scale: Scale = "levels"

    @property
    def given(self) -> str:
        """What is given, by the name of its field."""
        return "codes" if self.latents is None else "latents"

    @property
    def rows(self) -> int:
        """The number of latents or codes, before anything is checked."""
        given = self.codes if self.latents is None else self.latents
        return 0 if given is None else len(given)


@dataclass(frozen=True, kw_only=True)
class ReconstructRequest(EventsRequest):
    """Encode images to their posterior mean and decode that. Both use the same scale."""

    binarisation: BinarisationRule | None = None
    condition: ConditionRequest = ConditionRequest()
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class CompleteRequest(SampleRequest):
    """Draw the rest of one image, `count` times: its first rows or any other pixels are known.

    Completion i has the noise of sample i, so the first rows of a sample are completed to it. A
    model of binary images takes known pixels of 0 and the highest level only. With `candidates`, so
    many are drawn, and the `count` with the highest `log_weight` are the answer.
    """

    image: Array | bytes  # levels [H, W, C] or a PNG; what it holds at unknown pixels is ignored
    prefix_rows: int | None = None  # how many of its first rows are known
    known: Array | None = None  # bool [H, W], true where it is known
    candidates: int | None = None  # completions to choose from, `count` or more

    @property
    def drawn(self) -> int:
        """How many completions are drawn."""
        return self.count if self.candidates is None else self.candidates


@dataclass(frozen=True, kw_only=True)
class StreamRequest:
    """How a stream shows what is being painted: rows of an image, or one picture of all images.

    Rows come once there are `every_rows` new ones of an image, a picture once there are as many for
    each image on average; the last ones come in any case. The `resume_token` of a stream that was
    cut goes on after the step that carried it, for the same request.
    """

    show: Show = "rows"
    every_rows: int = 1
    resume_token: str | None = None


@dataclass(frozen=True, kw_only=True)
class LikelihoodRequest(EventsRequest):
    """Score images. `samples` asks for the importance-weighted bound with that many draws.

    The estimator `monte_carlo` draws latents from the prior instead, few of which explain an image:
    a looser bound, with a larger error, which shows what the posterior is good for.
    """

    binarisation: BinarisationRule | None = None
    samples: int | None = None
    estimator: Estimator | None = None  # None: the one that the model offers
    seed: int = 0
    condition: ConditionRequest = ConditionRequest()
    parts: Sequence[LikelihoodPart] | None = None  # None: all but the map, scores if calibrated
    false_positive_rate: float | None = None  # at which `anomalous` is decided
    calibration: str | None = None  # id of the one to compare with, where several apply
    group: bool = False  # whether to test the images as one group too


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A point in latent space: exactly one of a seed, a latent [D], and an event to encode.

    That is an image, [H, W, C] or a PNG, or a vector [D].
    """

    seed: int | None = None
    latent: Array | None = None
    latent_space: str | None = None  # that the latent is of, where it shall be checked
    image: Array | bytes | None = None
    vector: Array | None = None


@dataclass(frozen=True, kw_only=True)
class InterpolateRequest:
    """A path from start to end, a grid between four corners, or arithmetic plus - minus.

    Corners are top left, top right, bottom left, bottom right. Exactly one of the three is given.
    """

    start: Endpoint | None = None
    end: Endpoint | None = None
    corners: Sequence[Endpoint] = ()
    plus: Sequence[Endpoint] = ()
    minus: Sequence[Endpoint] = ()
    steps: int = 8
    mode: Mode = "slerp"
    condition: ConditionRequest = ConditionRequest()
    seed: int | None = None
    scale: Scale = "levels"


@dataclass(frozen=True, kw_only=True)
class ScoreRequest(EventsRequest):
    """Ask a discriminator or critic how real images look."""

    condition: ConditionRequest = ConditionRequest()


@dataclass(frozen=True, kw_only=True)
class ClassifyRequest(EventsRequest):
    """Ask which class images are of; noise is drawn as for their likelihoods."""

    binarisation: BinarisationRule | None = None
    samples: int | None = None
    seed: int = 0


Request = (
    SampleRequest
    | EncodeRequest
    | DecodeRequest
    | ReconstructRequest
    | LikelihoodRequest
    | CompleteRequest
    | InterpolateRequest
    | ScoreRequest
    | ClassifyRequest
)


@dataclass(frozen=True, kw_only=True)
class GenerationResult:
    """Images or vectors, with what they were made from where there is such a thing."""

    images: Array | None = None  # uint8 or float32 [N, H, W, C]
    vectors: Array | None = None  # float32 [N, D], instead of images
    latents: Array | DeferredRows | None  # float32 [N, D]
    class_weights: Array | None  # float32 [N, K]
    seed: int  # of whatever was drawn
    codes: Array | None = None  # int64 [N, D], instead of latents
    log_likelihood: Array | None = None  # float64 [N], nats, of images that were drawn exactly
    log_weight: Array | None = None  # float64 [N], of known pixels after the first unknown one
    late_known_pixels: int = 0  # known pixels after an unknown one: they influenced none before
    candidate: list[int] | None = None  # which of the candidates each image is, where there are any
    columns: int | None = None  # of the picture that shows them all; None for about a square

    @property
    def made(self) -> EventPart:
        """What was made."""
        return "images" if self.vectors is None else "vectors"

    @property
    def count(self) -> int:
        """The number of images or vectors."""
        return len(self.part(self.made))

    @property
    def note(self) -> str | None:
        """What a reader of these images must know, or None."""
        if not self.late_known_pixels:
            return None
        return (
            f"{self.late_known_pixels} known pixels come after unknown ones in raster order: they "
            "were forced, and did not influence the pixels before them; log_weight says how well "
            "they fit"
        )

    @property
    def class_label(self) -> list[int] | None:
        """The class of each image, where each has weights of a single one."""
        weights = self.class_weights
        if weights is None:
            return None
        ones = weights == 1
        if np.count_nonzero(weights) != len(weights) or not np.all(ones.sum(axis=1) == 1):
            return None
        labels: list[int] = ones.argmax(axis=1).tolist()
        return labels

    def part(self, name: str) -> Array:
        """Return one array; raises InvalidRequest that names those there are."""
        array: Array | DeferredRows | None = getattr(self, name)
        if array is None:
            there = [part for part in get_args(GenerationPart) if getattr(self, part) is not None]
            raise InvalidRequest(f"{name} can't be returned here: there is only {', '.join(there)}")
        return as_array(array)


@dataclass(frozen=True, kw_only=True)
class EncodeResult:
    """Latents or codes of images; `draws` are posterior samples, where asked."""

    latents: Array | None  # float32 [N, D], the posterior mean
    codes: Array | None = None  # int64 [N, D], instead of latents
    deviations: Array | None  # float32 [N, D]
    draws: Array | None  # float32 [N, D]
    seed: int

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self.part(self.encoded))

    @property
    def encoded(self) -> EncodePart:
        """What an image is mapped to."""
        return "codes" if self.latents is None else "latents"

    def part(self, name: EncodePart) -> Array:
        """Return one array; raises InvalidRequest where the model has no such thing."""
        array: Array | None = getattr(self, name)
        if array is None:
            raise InvalidRequest(f"{name} can't be returned here: ask for {self.encoded}")
        return array


@dataclass(frozen=True, kw_only=True)
class Anomaly:
    """Scores of N images, and what they mean beside those of n calibration images.

    All but `scores` and `p_values`, which are by score, is of the decision score.
    """

    calibration: str  # its id
    count: int  # n
    decision: Score  # the score that decides
    scores: Mapping[Score, NDArray[np.float64]]  # [N], higher for the more anomalous
    p_values: Mapping[Score, NDArray[np.float64]]  # [N]
    percentile: NDArray[np.float64]  # [N], percentage of calibration scores that lie below
    q_value: NDArray[np.float64]  # [N], lowest false discovery rate that would reject, of these N
    anomalous: NDArray[np.bool_]  # [N], whether p <= false_positive_rate
    false_positive_rate: float
    realised_rate: tuple[float, float]  # holds what the rate really is, with probability 0.95
    group_p_value: float | None  # of the N images as one group, where asked

    @property
    def p_value(self) -> NDArray[np.float64]:
        """The p-values of the decision score, [N]."""
        return self.p_values[self.decision]


@dataclass(frozen=True, kw_only=True)
class LikelihoodResult:
    """Log-likelihoods in nats, one for each image, with what they mean."""

    log_likelihood: NDArray[np.float64]  # [N]
    standard_error: NDArray[np.float64] | None  # [N], of the Monte Carlo draws; None for one draw
    bits_per_dim: NDArray[np.float64] | None  # [N]
    quantity: str
    kind: str
    base_measure: str
    estimator: str
    conditioning: str
    draws: int
    binarisation: str | None
    seed: int
    log_likelihood_map: NDArray[np.float64] | None = None  # [N, H, W], nats
    anomaly: Anomaly | None = None  # None where no calibration applies

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self.log_likelihood)


@dataclass(frozen=True, kw_only=True)
class ScoreResult:
    """What a discriminator or critic says of each image, and what that means."""

    score: NDArray[np.float64]  # [N], in `unit`
    higher_means: HigherMeans
    unit: str
    meaning: str
    conditioning: str  # given or none
    seed: int = 0  # nothing is drawn

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self.score)


@dataclass(frozen=True, kw_only=True)
class ClassifyResult:
    """The class of each image by its likelihoods given each class, and how that was computed."""

    posterior: NDArray[np.float64]  # [N, K], p(y|x), rows that sum to 1
    log_likelihood: NDArray[np.float64]  # [N], nats, log of the sum over y of p(y) p(x|y)
    class_names: Sequence[str]  # K
    kind: str
    estimator: str
    draws: int
    binarisation: str | None
    seed: int

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self.posterior)

    @property
    def class_label(self) -> list[int]:
        """The most probable class of each image; of equals the first."""
        labels: list[int] = self.posterior.argmax(axis=1).tolist()
        return labels


Result = GenerationResult | EncodeResult | LikelihoodResult | ScoreResult | ClassifyResult


def check_range(name: str, value: float, minimum: float, maximum: float) -> None:
    """Raise OutOfRange unless minimum <= value <= maximum; NaN is out of every range."""
    if not minimum <= value <= maximum:
        raise OutOfRange(f"{name} is {value}; allowed is {minimum} to {maximum}")
