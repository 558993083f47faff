"""The calibrations that are bundled: made by the service's own command, of a data set's splits."""

import json
import logging
import lzma
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.errors import ExportError
from model_zoo.data import DataError, Examples, describe_splits, load_splits

CHECKOUT = Path(__file__).resolve().parent.parent
UNCALIBRATED = {
    "mnist-vae-2d",  # there for its map; mnist-vae judges digits better
    "mnist-cvae",  # for its classes
    "mnist-vq-vae",  # for its codes
    "mnist-vq-vae-2",
    "checkerboard-ffjord",  # nobody has anomalies of a checkerboard
    "mnist-8x8-ffjord",  # others of their branches judge digits as well
    "mnist-glow",
    "mnist-binary-pixelcnn",
    "mnist-made",
    "mnist-pixel-rnn",
    "mnist-pixel-vae",
    "mnist-pixelcnn-plus-plus",
    "mnist-fvbn",
    "mnist-dbm",
    "mnist-gaussian-mixture",  # the baselines are there to be compared with
    "mnist-kernel-density",
    "mnist-ppca",
}
"""Models with likelihoods from which nobody would ask for anomalies; a calibration is 0.05 MB."""

logger = logging.getLogger(__name__)


def calibrate(folder: Path, dataset: str) -> None:
    """Calibrate an exported artifact with the splits `score_fit` and `calibrate` of a data set.

    Greyscale images are binarised by threshold where the model needs binary ones: then one image
    has one score, whatever the seed of a request. Earlier calibrations with the same splits, and
    those of an artifact that this one replaces, go. A model without likelihoods gets none.

    Raises DataError where there are no images, ExportError where they do not calibrate.
    """
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    if "likelihood" not in manifest["operations"] or manifest["name"] in UNCALIBRATED:
        return
    try:
        splits = load_splits(dataset)
    except DataError as error:
        logger.warning("  not calibrated: %s", error)
        return
    source = _describe(dataset, splits)
    _remove_outdated(folder.parent / "calibrations", manifest["artifact_digest"], source)
    with tempfile.TemporaryDirectory(prefix="calibrate-") as scratch:
        command = [sys.executable, "-m", "service", "calibrate", manifest["name"]]
        command += ["--model-repository", str(folder.parent.parent.resolve()), "--source", source]
        for name in ("score_fit", "calibrate"):
            path = Path(scratch) / f"{name}.npy"
            np.save(path, _events(splits[name], manifest["event"]))
            command += ["--" + name.replace("_", "-"), str(path)]
        if manifest["preprocess"] and manifest["preprocess"]["binarisation"]:
            command += ["--binarisation", "threshold"]
        # The service is not imported: what a user can do is enough.
        finished = subprocess.run(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
    if finished.returncode:
        raise ExportError(f"{manifest['name']} could not be calibrated")
    logger.info("  %s", finished.stdout.splitlines()[0])


def _describe(dataset: str, splits: Mapping[str, Examples]) -> str:
    described: Mapping[str, Any] = describe_splits(
        {name: splits[name] for name in ("score_fit", "calibrate")}
    )
    hashes = ", ".join(f"{name} sha256:{split['sha256']}" for name, split in described.items())
    return f"{dataset}, training images of these indices: {hashes}"


def _events(examples: Examples, event: Mapping[str, Any]) -> np.ndarray:
    """Return 8-bit grey values as a model's levels, uint8 [N, H, W, C], or vectors as they are."""
    if event["kind"] == "vector":
        return examples.images.numpy()
    grey = examples.images.permute(0, 2, 3, 1)  # [N, C, H, W] -> [N, H, W, C]
    return (grey.int() * event["levels"] // 256).to(torch.uint8).numpy()


def _remove_outdated(folder: Path, artifact_digest: str, source: str) -> None:
    for path in folder.glob("*.json.xz"):
        content = json.loads(lzma.decompress(path.read_bytes()))
        if content["artifact_digest"] != artifact_digest or content["data"]["source"] == source:
            path.unlink()
