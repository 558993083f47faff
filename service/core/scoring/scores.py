"""Anomaly scores: functions of an image's statistics and of what was fitted on normal images.

A statistic is a number that a graph or a codec computes for one image. A score is made of
statistics and is always higher for the more anomalous. Raw likelihood is no score: models give
simple images of another kind a higher likelihood than their own (Nalisnick et al. 2019,
arXiv:1810.09136).
"""

import hashlib
import zlib
from collections.abc import Mapping
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from service.core.manifest_parts import Part
from service.core.scoring.mixture import Mixture, fit_mixture
from service.errors import InvalidRequest

Floats = NDArray[np.float64]
Levels = NDArray[np.uint8]

Statistic = Literal[
    "log_likelihood",
    "predictive_entropy",
    "background_log_likelihood",
    "codec_bits",
    "reconstruction_error",
    "kl_divergence",
    "latent_norm",
]
"""Nats, but for codec_bits (bits) and latent_norm (the latent's units).

`predictive_entropy` is what an autoregressive model expects -log p(x) to be as it goes: the sum
over pixels of the entropy of p(x_i | x_1 .. x_i-1). Where the model is right, -log p(x) exceeds it
by zero on average, whatever the image: a simple one is told from one that the model knows.
"""
Statistics = Mapping[Statistic, Floats]
"""Arrays [N] by name."""

Score = Literal[
    "typicality",
    "complexity_adjusted",
    "likelihood_ratio",
    "reconstruction_error",
    "kl_divergence",
    "latent_norm",
    "combined",
]

UNITS: dict[Score, str | None] = {
    "typicality": "nats",
    "complexity_adjusted": "bits",
    "likelihood_ratio": "nats",
    "reconstruction_error": "nats",
    "kl_divergence": "nats",
    "latent_norm": "latent units",
    "combined": None,
}
"""The unit of each score; `latent units` are those of the latent's coordinates."""

_NEEDED: dict[Score, tuple[Statistic, ...]] = {
    "typicality": ("log_likelihood",),
    "complexity_adjusted": ("log_likelihood", "codec_bits"),
    "likelihood_ratio": ("log_likelihood", "background_log_likelihood"),
    "reconstruction_error": ("reconstruction_error",),
    "kl_divergence": ("kl_divergence",),
    "latent_norm": ("latent_norm",),
    "combined": (),  # whichever there are
}

_CONSTANT = 1e-6  # a deviation below this share of the largest value is float32 rounding
_POWERS = np.array([float(10**power) for power in range(23)])  # every double here is exact


def codec_bits(levels: Levels) -> Floats:
    """Return the bits [N] of each image [N, H, W, C] in the lossless codec `CODEC`.

    The bytes are filtered by PNG's filter 4, Paeth (PNG specification, section 9.4), then
    compressed as a raw deflate stream at level 9: a PNG without its headers.
    """
    return np.array([8.0 * len(_deflate(image.tobytes())) for image in _paeth(levels)])


def _paeth(levels: Levels) -> Levels:
    """Return each byte less the neighbour that is nearest to left + above - above left."""
    values = levels.astype(np.int16)
    padded = np.pad(values, ((0, 0), (1, 0), (1, 0), (0, 0)))
    left, above, corner = padded[:, 1:, :-1], padded[:, :-1, 1:], padded[:, :-1, :-1]
    to_left, to_above = np.abs(above - corner), np.abs(left - corner)
    to_corner = np.abs(left + above - 2 * corner)
    nearest = np.where(to_above <= to_corner, above, corner)
    nearest = np.where((to_left <= to_above) & (to_left <= to_corner), left, nearest)
    return (values - nearest).astype(np.uint8)  # modulo 256, as in PNG


def _deflate(content: bytes) -> bytes:
    compressor = zlib.compressobj(level=9, wbits=-15)
    return compressor.compress(content) + compressor.flush()


def _implementation() -> str:
    """Return a word for what this build of zlib makes of fixed bytes.

    Level 9 names an effort, not a result: zlib-ng and others find other matches than zlib does.
    """
    texture = (np.arange(4096, dtype=np.uint32) ** 2 >> 6).astype(np.uint8)
    return hashlib.sha256(_deflate(texture.tobytes())).hexdigest()[:8]


CODEC = f"deflate-9 after PNG filter Paeth, zlib {_implementation()}"
"""The codec, its level and filter, and a hash of what this zlib makes of fixed bytes."""


class Combination(Part):
    """The density of statistics, each less its mean and in units of its standard deviation."""

    statistics: Annotated[tuple[Statistic, ...], Field(min_length=1)]
    mean: tuple[float, ...]
    deviation: tuple[Annotated[float, Field(gt=0)], ...]
    density: Mixture

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        size = len(self.statistics)
        sizes = {len(self.mean), len(self.deviation), self.density.size, len(set(self.statistics))}
        if sizes != {size}:
            raise ValueError("mean, deviation and density must be of the named statistics")
        return self

    def score(self, statistics: Statistics) -> Floats:
        """Return minus the log density, in nats, [N]."""
        values = _columns(statistics, self.statistics)
        return -self.density.log_density((values - self.mean) / self.deviation)


class Fit(Part):
    """What is fitted on the statistics of the score_fit images."""

    medians: dict[Statistic, float]
    combination: Combination

    @model_validator(mode="after")
    def _statistics_are_known(self) -> Self:
        if "log_likelihood" not in self.medians:
            raise ValueError("medians must hold log_likelihood")
        if unknown := set(self.combination.statistics) - self.medians.keys():
            raise ValueError(f"medians must hold {sorted(unknown)}")
        return self

    @property
    def scores(self) -> tuple[Score, ...]:
        """The scores whose statistics exist."""
        return tuple(
            score for score, needed in _NEEDED.items() if self.medians.keys() >= set(needed)
        )

    def score(self, statistics: Statistics) -> dict[Score, Floats]:
        """Return the scores [N] of statistics, which must be those of the fit.

        They are rounded to 7 significant digits, as those of a calibration are: only then do equal
        images tie. Where a statistic is not finite, the scores made of it are infinite.
        """
        with np.errstate(invalid="ignore", over="ignore"):  # they become infinite scores
            return {score: rounded(self._score(score, statistics)) for score in self.scores}

    def _score(self, score: Score, statistics: Statistics) -> Floats:
        match score:
            case "typicality":
                # Nalisnick et al. 2019, arXiv:1906.02994, for one image.
                return self._distance("log_likelihood", statistics)
            case "complexity_adjusted":
                # Serra et al. 2020, arXiv:1909.11480.
                bits: Floats = -statistics["log_likelihood"] / np.log(2.0)
                return bits - statistics["codec_bits"]
            case "likelihood_ratio":
                # Ren et al. 2019, arXiv:1906.02845.
                return statistics["background_log_likelihood"] - statistics["log_likelihood"]
            case "reconstruction_error":
                return statistics["reconstruction_error"]
            case "kl_divergence" | "latent_norm":
                return self._distance(score, statistics)
            case "combined":
                return self.combination.score(statistics)

    def _distance(self, name: Statistic, statistics: Statistics) -> Floats:
        distance: Floats = np.abs(statistics[name] - self.medians[name])
        return distance


def fit(statistics: Statistics) -> Fit:
    """Fit medians and the density of the combined statistics to those of normal images.

    A statistic that does not vary gives no unit to measure by, and is left out of the combination.
    Raises InvalidRequest where a statistic is not finite, or none varies.
    """
    for name, column in statistics.items():
        if not np.all(np.isfinite(column)):
            raise InvalidRequest(f"{name} is not finite for an image; calibrate without that image")
    names = tuple(sorted(statistics))
    return Fit(
        medians={name: float(np.median(statistics[name])) for name in names},
        combination=_combine(names, _columns(statistics, names)),
    )


def _combine(names: tuple[Statistic, ...], values: Floats) -> Combination:
    deviation = values.std(axis=0)
    varies = deviation > _CONSTANT * np.abs(values).max(axis=0)
    if not varies.any():
        raise InvalidRequest("the images are all alike; calibrate with images that differ")
    mean, deviation = values.mean(axis=0)[varies], deviation[varies]
    return Combination(
        statistics=tuple(name for name, kept in zip(names, varies, strict=True) if kept),
        mean=tuple(mean.tolist()),
        deviation=tuple(deviation.tolist()),
        density=fit_mixture((values[:, varies] - mean) / deviation),
    )


def _columns(statistics: Statistics, names: tuple[Statistic, ...]) -> Floats:
    """Return statistics side by side, [N, len(names)]."""
    return np.stack([statistics[name] for name in names], axis=1)


def rounded(scores: Floats) -> Floats:
    """Round to 7 significant digits, about those of float32; what is not finite becomes infinite.

    At most 22 digits follow the decimal point, or precede it.
    """
    finite = np.where(np.isfinite(scores), scores, 0.0)
    with np.errstate(divide="ignore"):
        exponent = np.where(finite == 0.0, 0.0, np.floor(np.log10(np.abs(finite))))
    digits = np.clip(6.0 - exponent, -22.0, 22.0).astype(np.int64)
    # Whole numbers and exact powers: the result is the double nearest to the decimal number.
    small = np.rint(finite * _POWERS[np.maximum(digits, 0)]) / _POWERS[np.maximum(digits, 0)]
    large = np.rint(finite / _POWERS[np.maximum(-digits, 0)]) * _POWERS[np.maximum(-digits, 0)]
    return np.where(np.isfinite(scores), np.where(digits >= 0, small, large), np.inf)
