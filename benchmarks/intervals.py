"""Figures from repeats: percentiles of what was seen, and intervals over the rounds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
_RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A median over rounds, and the interval in which it lies with 95 % confidence."""

    value: float
    low: float
    high: float

    def format(self, digits: int = 2) -> str:
        """Return the median and, in brackets, the interval."""
        return f"{self.value:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def estimate(rounds: Sequence[float]) -> Estimate:
    """Return the median of one figure a round, with its bootstrap interval (Efron 1979).

    Rounds are drawn again with replacement, the same way each time, and the interval holds the
    middle 95 % of the medians of these draws. Of few rounds it can't be wider than they are.
    """
    values = np.asarray(rounds, float)
    drawn = np.random.default_rng(1).integers(len(values), size=(_RESAMPLES, len(values)))
    medians = np.sort(np.median(values[drawn], axis=1))
    outside = round(_RESAMPLES * (1 - CONFIDENCE) / 2)
    return Estimate(float(np.median(values)), float(medians[outside]), float(medians[-1 - outside]))


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of the values don't exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
