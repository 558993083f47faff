"""How well a score parts anomalies from normal images, and images that are equally complex."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Places = NDArray[np.intp]


class Area(NamedTuple):
    """An area under the ROC curve, and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.error:.3f}"


def auroc(normal: Floats, anomalous: Floats) -> Area:
    """Return the probability that an anomaly scores higher than a normal image; ties count half.

    That is the area under the ROC curve (Hanley & McNeil 1982). The standard error is that of
    DeLong, DeLong & Clarke-Pearson (1988): it assumes no distribution, but that no image is in both
    sets or made from one of the other. Scores [M] and [N], at least two each; they may be infinite.
    """
    below = _placements(anomalous, normal)
    above = 1.0 - _placements(normal, anomalous)
    variance = below.var(ddof=1) / len(below) + above.var(ddof=1) / len(above)
    return Area(float(below.mean()), float(np.sqrt(variance)))


def _placements(scores: Floats, others: Floats) -> Floats:
    """Return the share of the others that lie below each score; ties count half."""
    ordered = np.sort(others)
    below = np.searchsorted(ordered, scores, side="left")
    not_above = np.searchsorted(ordered, scores, side="right")
    shares: Floats = (below + not_above) / (2.0 * len(others))
    return shares


def false_positive_rate(normal: Floats, anomalous: Floats, true_positive_rate: float) -> float:
    """Return the share of normal images called anomalous where the threshold finds that share.

    The threshold is the highest at which at least `true_positive_rate` of the anomalies reach it.
    """
    found = int(np.ceil(true_positive_rate * len(anomalous)))
    threshold = np.sort(anomalous)[len(anomalous) - found]
    return float((normal >= threshold).mean())


def matched(first: Floats, second: Floats) -> tuple[Places, Places]:
    """Return places in both of pairs that have the same value, as many pairs as there are.

    Of each value, the earliest are taken; each is in one pair at most.
    """
    places: tuple[list[int], list[int]] = [], []
    for value in np.intersect1d(first, second):
        equal = [np.flatnonzero(values == value) for values in (first, second)]
        pairs = min(map(len, equal))
        for taken, found in zip(places, equal, strict=True):
            taken.extend(found[:pairs].tolist())
    return np.array(places[0], np.intp), np.array(places[1], np.intp)
