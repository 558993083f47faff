"""Scores of many images, by the artifact and the code that serve."""

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.core.artifact import load_artifact
from service.core.batcher import LoadedGraph
from service.core.manifest import Manifest, read_manifest
from service.core.requests import BinarisationRule, LikelihoodRequest, Limits
from service.core.scoring.likelihood import measure
from service.core.scoring.scores import Fit, Statistics, codec_bits
from service.runtime.onnx_session import OnnxSession

Floats = NDArray[np.float64]
Levels = NDArray[np.uint8]
Scores = dict[str, Floats]

BATCH = 32
REPEATS = 15
LIMITS = Limits(count=BATCH, draws=1000, rows=1000 * BATCH)
COMPARED = ("pixelcnn", "realnvp", "vae")
"""The models of a data set that are compared, one of each kind of likelihood: exact, a bound on
what was dequantised, a bound by a posterior."""
RAW = "-log_likelihood"
"""No score of the service: what it would be to trust the likelihood alone."""


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to score."""

    manifest: Manifest
    graphs: Mapping[str, LoadedGraph]

    @property
    def dataset(self) -> str:
        """The data set that it was trained on."""
        return str(self.manifest.provenance["dataset"])

    def request(self, images: Levels) -> LikelihoodRequest:
        """Return the request by which images are scored: the model's own estimator and draws.

        For a model of binary images, grey ones are binarised by threshold, as for the calibrations
        that are bundled: an image has one score then.
        """
        rule: BinarisationRule | None = (
            "threshold" if self.manifest.preprocess.binarisation else None
        )
        return LikelihoodRequest(images=images, binarisation=rule)


class Cost(NamedTuple):
    """Processor seconds for 32 images: the likelihood's graph alone, all scores, the codec."""

    bare: float
    scores: float  # without the codec
    codec: float


def compared_models(*repositories: Path) -> list[Path]:
    """Return the folders of the artifacts that are compared, in the order of their names."""
    return [
        path.parent
        for repository in repositories
        for path in sorted(repository.glob("*/*/manifest.json"))
        if _is_compared(read_manifest(path.parent))
    ]


def _is_compared(manifest: Manifest) -> bool:
    dataset = manifest.provenance.get("dataset")
    return manifest.name in {f"{dataset}-{kind}" for kind in COMPARED}


def load_model(folder: Path) -> Loaded:
    """Load an artifact as the service does, test vectors and all."""
    return Loaded(*load_artifact(folder, partial(OnnxSession, provider="cpu")))


def statistics_of(model: Loaded, images: Levels) -> Statistics:
    """Return the statistics [N] of images, on all cores, in batches of 32."""
    parts = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        measured = list(threads.map(partial(_measure, model), parts))
    return {name: np.concatenate([part[name] for part in measured]) for name in measured[0]}


def _measure(model: Loaded, images: Levels) -> Statistics:
    steps = measure(model.manifest, model.request(images), LIMITS)
    outputs = None
    while True:
        try:
            call = next(steps) if outputs is None else steps.send(outputs)
        except StopIteration as end:
            statistics: Statistics = end.value[1]
            return statistics
        outputs = model.graphs[call.graph].session.run(call.inputs)


def scores_of(fitted: Fit, statistics: Statistics) -> Scores:
    """Return the scores [N] of statistics by name, and the raw likelihood for comparison."""
    raw: dict[str, Floats] = {RAW: -statistics["log_likelihood"]}
    return raw | {str(name): values for name, values in fitted.score(statistics).items()}


def cost(model: Loaded, fitted: Fit, images: Levels) -> Cost:
    """Time the scores of 32 images against a bare run of the likelihood's graph on the same.

    All of it happens on this thread, whose own processor time is what counts, so that other load
    matters little. The three take turns, and the least of each is kept.
    """
    images = images[:BATCH]
    call = next(measure(model.manifest, model.request(images), LIMITS))
    tasks: list[Callable[[], object]] = [
        lambda: model.graphs[call.graph].session.run(call.inputs),
        lambda: fitted.score(_measure(model, images)),
        lambda: codec_bits(images),
    ]
    rounds = [[_seconds(task) for task in tasks] for _ in range(REPEATS)]
    bare, scores, codec = map(min, zip(*rounds, strict=True))
    return Cost(bare, scores - codec, codec)


def _seconds(task: Callable[[], object]) -> float:
    started = time.thread_time()
    task()
    return time.thread_time() - started
