"""The one figure of baselines that compress: how far an image is from what comes back."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from model_zoo.data import in_chunks
from model_zoo.family import Batch, Figure
from model_zoo.layers import standard_error

CHUNK = 1000  # images measured at a time


def squared_error(data: Batch, reconstruct: Callable[[Tensor], Tensor]) -> Figure:
    """Measure the mean squared error of images and what `reconstruct` makes of their levels."""
    errors = [
        ((chunk.images - reconstruct(chunk.images)) / 255).square().flatten(1).mean(dim=1)
        for chunk in in_chunks(data, CHUNK)
    ]
    error = torch.cat(errors)
    protocol = "mean squared error of reconstructions over pixels, black 0 and white 1"
    return Figure(
        "reconstruction_error", error.mean().item(), "squared intensity", protocol,
        standard_error(error),
    )  # fmt: skip
