"""Scores that need no model: what a detector must beat to be worth its arithmetic."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from service.core.scoring.scores import codec_bits

Floats = NDArray[np.float64]
Levels = NDArray[np.uint8]

CODEC_SIZE = "codec size, two-sided"


def baselines(sets: Mapping[str, Levels]) -> dict[str, dict[str, Floats]]:
    """Return scores [N] by baseline and set, fitted where need be on the set `score_fit`.

    Codec size is two-sided, the distance from the median, because whether anomalies are simpler
    or more complex is not known beforehand; its one-sided form, which knows, stands beside it.
    """
    bits = {name: codec_bits(images) for name, images in sets.items()}
    median = np.median(bits["score_fit"])
    pixels = {name: pixel_statistics(images) for name, images in sets.items()}
    normal = pixels["score_fit"]
    return {
        CODEC_SIZE: {name: np.abs(each - median) for name, each in bits.items()},
        "codec size, fewer bits": {name: -each for name, each in bits.items()},
        "pixel statistics": {name: mahalanobis(normal, each) for name, each in pixels.items()},
    }


def pixel_statistics(images: Levels) -> Floats:
    """Return mean, deviation, share of zeros and total variation of images [N, H, W, C], [N, 4].

    Total variation is the mean absolute difference between neighbours, right and below.
    """
    values = images.astype(np.float64)
    right, below = np.abs(np.diff(values, axis=2)), np.abs(np.diff(values, axis=1))
    every = (1, 2, 3)
    columns = [
        values.mean(axis=every),
        values.std(axis=every),
        (images == 0).mean(axis=every),
        right.mean(axis=every) + below.mean(axis=every),
    ]
    return np.stack(columns, axis=1)


def mahalanobis(normal: Floats, values: Floats) -> Floats:
    """Return how many standard deviations values [N, D] are from normal ones [M, D], [N]."""
    away = values - normal.mean(axis=0)
    inverse = np.linalg.inv(np.cov(normal, rowvar=False))
    distance: Floats = np.sqrt(np.einsum("nd,de,ne->n", away, inverse, away))
    return distance
