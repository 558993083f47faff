"""Toy models with calibrations, and images that are normal to them."""

from pathlib import Path

import numpy as np

from service.core.artifact import load_artifact
from service.core.manifest import read_manifest
from service.core.manifest_parts import Split
from service.core.requests import LikelihoodRequest, Limits
from service.core.scoring.calibration import Calibration, Data, make_calibration, save_calibration
from service.core.scoring.likelihood import measure
from tests.fakes import SIDE
from tests.test_models import open_session

MODELS = ("toy-flow", "toy-raster")
"""The toys that have a calibration, each of 200 images."""

_LIMITS = Limits(count=1000, draws=100, rows=100_000)


def normal_images(count: int, levels: int, seed: int = 0) -> np.ndarray:
    """Images between black and middle grey, each of its own brightness."""
    rng = np.random.default_rng(seed)
    brightness = rng.uniform(0.1, 0.5, (count, 1, 1, 1))
    noise = rng.uniform(0.0, 1.0, (count, SIDE, SIDE, 1))
    return (brightness * noise * levels).astype(np.int64)


def calibrate(folder: Path, request: LikelihoodRequest, count: int = 400) -> Calibration:
    """Calibrate an artifact with half of a request's images, after the other half was fitted."""
    manifest, graphs = load_artifact(folder, open_session)
    steps, outputs = measure(manifest, request, _LIMITS), None
    while True:
        try:
            call = next(steps) if outputs is None else steps.send(outputs)
            outputs = graphs[call.graph].session.run(call.inputs)
        except StopIteration as end:
            protocol, statistics = end.value
            break
    half = Split(count=count // 2, sha256="sha256:" + "0" * 64)
    made = make_calibration(
        artifact_digest=manifest.artifact_digest,
        protocol=protocol,
        data=Data(source="toys", score_fit=half, calibrate=half),
        score_fit={name: column[: count // 2] for name, column in statistics.items()},
        calibrate={name: column[count // 2 :] for name, column in statistics.items()},
    )
    save_calibration(folder.parent / "calibrations", made)
    return made


def calibrate_toys(repository: Path) -> dict[str, Calibration]:
    """Calibrate `MODELS` in a repository."""
    made = {}
    for name in MODELS:
        folder = repository / name / "1"
        images = normal_images(400, read_manifest(folder).event.levels)
        made[name] = calibrate(folder, LikelihoodRequest(images=images))
    return made
