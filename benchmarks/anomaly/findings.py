"""What was compared, and the sentences that follow from the figures by rule."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from benchmarks.anomaly.baselines import CODEC_SIZE
from benchmarks.anomaly.detection import Area, auroc, false_positive_rate
from benchmarks.anomaly.image_sets import Pair
from benchmarks.anomaly.scoring import RAW

Floats = NDArray[np.float64]

DECISION = "combined"
REACHED = 0.99
HARD = 0.9
TRUE_POSITIVE_RATE = 0.95
CODEC_HELPS = 0.1
"""How far from 0.5 the area of the two-sided codec size is where size tells something."""
SIGNIFICANT = 3.0
"""Standard errors beyond which a difference is no chance."""


@dataclass(frozen=True)
class Detector:
    """One score of one model, or one baseline: its values [N] by set."""

    model: str | None  # None for a baseline
    score: str
    values: Mapping[str, Floats]

    def area(self, pair: Pair) -> Area:
        """Return how well it tells the sets of a pair."""
        return auroc(self.values[pair.normal], self.values[pair.anomalous])

    def false_positives(self, pair: Pair) -> float:
        """Return the share of normal images called anomalous where 95 % of the others are found."""
        return false_positive_rate(
            self.values[pair.normal], self.values[pair.anomalous], TRUE_POSITIVE_RATE
        )


@dataclass(frozen=True)
class Section:
    """A data set with what was compared on it, and how many images each set has."""

    title: str
    pairs: Sequence[Pair]
    counts: Mapping[str, int]
    detectors: Sequence[Detector]

    @property
    def anomalies(self) -> list[Pair]:
        """The pairs that a score should tell: all but that of the training images."""
        return [pair for pair in self.pairs if pair.anomalous != "train"]

    def of(self, model: str | None) -> list[Detector]:
        """Return the detectors of a model, or the baselines."""
        return [detector for detector in self.detectors if detector.model == model]

    @property
    def models(self) -> list[str]:
        """The models, in order."""
        return list(dict.fromkeys(each.model for each in self.detectors if each.model))


@dataclass(frozen=True)
class Validity:
    """P-values [N] by score of normal images that nothing was fitted on: are they too small?"""

    model: str
    calibrated: int  # images that they were compared with
    select: Mapping[str, Floats]
    test: Mapping[str, Floats]

    def bound(self, rate: float, family: int = 1) -> float:
        """Return what the share of p <= rate of the select images should not exceed.

        Three standard errors above the rate, of the share and of the calibration; for a family of
        scores, as many as keep the chance that any exceeds its bound (Bonferroni).
        """
        normal, count = NormalDist(), len(next(iter(self.select.values())))
        errors = normal.inv_cdf(1.0 - normal.cdf(-SIGNIFICANT) / family)
        return rate + errors * math.sqrt(
            rate * (1.0 - rate) * (1.0 / self.calibrated + 1.0 / count)
        )


def findings(section: Section) -> Iterator[str]:
    """Yield what a reader should know of each model: what is reached, what stays hard, and why."""
    for model in section.models:
        by_score = {detector.score: detector for detector in section.of(model)}
        lines = list(_of_decision(section, by_score[DECISION]))
        lines += _of_averages(section, by_score[DECISION])
        lines += _of_rivals(section, by_score[DECISION], section.of(model) + section.of(None))
        lines += _of_raw(section, by_score[RAW])
        yield "\n".join([f"`{model}`:\n", *(f"- {line}" for line in lines)])


def _of_decision(section: Section, decision: Detector) -> Iterator[str]:
    areas = {pair.title: decision.area(pair).value for pair in section.anomalies}
    grades = (
        (f"reaches {REACHED}", REACHED, math.inf),
        (f"falls short of {REACHED}", HARD, REACHED),
        (f"stays below {HARD}, so these stay hard", 0.0, HARD),
    )
    for words, low, high in grades:
        named = [f"{title} ({area:.3f})" for title, area in areas.items() if low <= area < high]
        if named:
            yield f"`{decision.score}` {words}: {', '.join(named)}."
    for pair in set(section.pairs) - set(section.anomalies):
        area = decision.area(pair)
        told = abs(area.value - 0.5) > SIGNIFICANT * area.error
        verb = "tells" if told else "does not tell"
        yield f"It {verb} training images from new ones ({area})."


def _of_averages(section: Section, decision: Detector) -> Iterator[str]:
    """Yield how the decision score and the baselines compare where codec size tells little."""
    rivals = {detector.score: detector for detector in section.of(None)}
    if CODEC_SIZE not in rivals:
        return
    pairs = [
        pair
        for pair in section.anomalies
        if abs(rivals[CODEC_SIZE].area(pair).value - 0.5) < CODEC_HELPS
    ]
    if pairs:
        averages = ", ".join(
            f"{detector.score} {np.mean([detector.area(pair).value for pair in pairs]):.3f}"
            for detector in (decision, *rivals.values())
        )
        titles = "; ".join(pair.title for pair in pairs)
        yield f"On average where codec size tells little ({titles}): {averages}."


def _of_rivals(
    section: Section, decision: Detector, detectors: Sequence[Detector]
) -> Iterator[str]:
    """Yield which detector does better than the decision score, and where."""
    for rival in detectors:
        better = [
            f"{pair.title} ({rival.area(pair).value:.3f})"
            for pair in section.anomalies
            if _is_better(rival.area(pair), decision.area(pair))
        ]
        if better and rival.score != RAW:
            name = f"`{rival.score}`" if rival.model else f"Without a model, {rival.score}"
            yield f"{name} alone does better on: {', '.join(better)}."


def _is_better(one: Area, other: Area) -> bool:
    return one.value - other.value > SIGNIFICANT * math.hypot(one.error, other.error)


def _of_raw(section: Section, raw: Detector) -> Iterator[str]:
    wrong = [
        f"{pair.title} ({area.value:.3f})"
        for pair in section.anomalies
        if (area := raw.area(pair)).value < 0.5 - SIGNIFICANT * area.error
    ]
    if wrong:
        yield f"Raw likelihood fails, it finds the anomalies more normal: {', '.join(wrong)}."
