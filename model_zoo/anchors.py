"""What samples are set beside: images of known quality, measured by the same protocol.

A Fréchet distance says little alone. Beside it stand real images that no model has seen, the same
moved by one pixel, samples of a principal component analysis, and a few training images again and
again: what a model that only remembers would give.

Run `python -m model_zoo.anchors mnist-classifier`; the classifier's figures go to
`model_zoo/weights/mnist-classifier-anchors.json`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

import torch
from torch import Tensor

from model_zoo.data import load_splits
from model_zoo.recipe import WEIGHTS, read_recipe
from model_zoo.sample_quality import FULL_COUNT, Judge

COMPONENTS = 40
REPEATED = 500  # training images
SEED = 0


def anchors(dataset: str) -> dict[str, Tensor]:
    """Return images as levels by what they are, FULL_COUNT of each, [N, C, H, W]."""
    splits = load_splits(dataset)
    real, seen = (splits[name].batch().images for name in ("test", "fit"))
    few = seen[:REPEATED]
    return {
        "real test images": real[:FULL_COUNT],
        "real test images, one pixel to the right": shift(real[:FULL_COUNT]),
        f"samples of {COMPONENTS} principal components": principal_samples(seen, FULL_COUNT),
        f"{REPEATED} training images repeated": few.repeat(FULL_COUNT // REPEATED, 1, 1, 1),
    }


def shift(levels: Tensor) -> Tensor:
    """Move images by one pixel to the right; what enters is black."""
    moved = levels.roll(1, dims=3)
    moved[..., 0] = 0
    return moved


def principal_samples(levels: Tensor, count: int) -> Tensor:
    """Draw from the Gaussian of the largest principal components, as levels [count, C, H, W]."""
    rows = levels.flatten(1)
    mean = rows.mean(dim=0)
    variances, directions = torch.linalg.eigh((rows - mean).T.cov())
    latent = torch.randn(count, COMPONENTS, generator=torch.Generator().manual_seed(SEED))
    latent = latent * variances[-COMPONENTS:].clamp(min=0).sqrt()
    drawn = mean + latent @ directions[:, -COMPONENTS:].T
    return drawn.round().clamp(0, 255).reshape(count, *levels.shape[1:])


def main() -> None:
    """Measure the anchors of a classifier's data set and write them."""
    parser = argparse.ArgumentParser(prog="python -m model_zoo.anchors")
    parser.add_argument("judge", metavar="CLASSIFIER", help="the name of its recipe")
    name = parser.parse_args().judge
    judge, dataset = Judge(name), read_recipe(name).dataset
    measured = [
        {"images": what, "figures": [asdict(figure) for figure in judge.compare(levels)]}
        for what, levels in anchors(dataset).items()
    ]
    record = {"judge": name, "dataset": dataset, "anchors": measured}
    (WEIGHTS / f"{name}-anchors.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
