"""`make anomaly`: writes docs/anomaly.md, in about a minute for each model on two cores."""

import sys
from pathlib import Path

import numpy as np

from benchmarks.anomaly.baselines import baselines
from benchmarks.anomaly.findings import Detector, Section, Validity
from benchmarks.anomaly.image_sets import COUNT, Levels, image_sets, pairs_of, title_of
from benchmarks.anomaly.page import Scored, page
from benchmarks.anomaly.scoring import (
    RAW,
    Loaded,
    Scores,
    compared_models,
    cost,
    load_model,
    scores_of,
    statistics_of,
)
from model_zoo.data import DataError
from service.core.scoring.conformal import p_values
from service.core.scoring.scores import fit
from service.errors import ArtifactError

ROOT = Path(__file__).resolve().parent.parent.parent
REPOSITORIES = (ROOT / "artifacts", ROOT / "build" / "anomaly")
"""What is served, and what is asked here only: models that have not seen a class."""


def main() -> None:
    """Score every model, data set by data set, and write the page."""
    try:
        models = [load_model(folder) for folder in compared_models(*REPOSITORIES)]
        written = measure(models)
    except (ArtifactError, DataError) as error:
        sys.exit(f"make anomaly: {error}")
    (ROOT / "docs" / "anomaly.md").write_text(written, encoding="utf-8")


def measure(models: list[Loaded]) -> str:
    """Return the page about some models."""
    sections, scored = [], []
    for dataset in sorted({model.dataset for model in models}):
        sets = image_sets(dataset)
        detectors = []
        for model in models:
            if model.dataset == dataset:
                result, scores = score(model, sets)
                scored.append(result)
                detectors += detectors_of(model.manifest.name, scores)
        detectors += [Detector(None, *baseline) for baseline in baselines(sets).items()]
        counts = {name: len(images) for name, images in sets.items()}
        sections.append(Section(title_of(dataset), pairs_of(sets), counts, detectors))
    return page(sections, scored, COUNT)


def score(model: Loaded, sets: dict[str, Levels]) -> tuple[Scored, dict[str, Scores]]:
    """Return what is said of a model, and its scores by set, as `genserve calibrate` fits them."""
    print(model.manifest.name, flush=True)
    statistics = {name: statistics_of(model, images) for name, images in sets.items()}
    fitted = fit(statistics["score_fit"])
    scores = {name: scores_of(fitted, each) for name, each in statistics.items()}
    calibrated = {name: np.sort(scores["calibrate"][name]) for name in fitted.scores}

    def compared(split: str) -> Scores:
        return {name: p_values(calibrated[name], scores[split][name]) for name in fitted.scores}

    validity = Validity(
        model=model.manifest.name,
        calibrated=len(sets["calibrate"]),
        select=compared("select"),
        test=compared("test"),
    )
    costs = cost(model, fitted, sets["test"])
    return Scored(model, fitted.scores, costs, validity), scores


def detectors_of(model: str, scores: dict[str, Scores]) -> list[Detector]:
    """Return a detector for each score of a model, the raw likelihood first."""
    return [
        Detector(model, name, {split: each[name] for split, each in scores.items()})
        for name in (RAW, *(name for name in scores["test"] if name != RAW))
    ]


if __name__ == "__main__":
    main()
