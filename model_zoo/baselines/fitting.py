"""What baselines have in common: parameters without gradients, and the error of what comes back."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from model_zoo.data import in_chunks
from model_zoo.family import Batch, Figure
from model_zoo.layers import standard_error

CHUNK = 1000  # images measured at a time


def fitted(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    """Return a parameter that no gradient moves; zero until `conclude` fits it."""
    return nn.Parameter(torch.zeros(shape, dtype=dtype), requires_grad=False)


def seed_of(generator: torch.Generator) -> int:
    """Draw the seed of a fit that keeps its own generator."""
    return int(torch.randint(2**31, (), generator=generator, device=generator.device))


def deviations(levels: Tensor) -> Tensor:
    """Return the deviation, [D], of every pixel of images [N, D] with its dequantisation."""
    return (levels.var(dim=0, unbiased=False) + 1 / 12).sqrt()


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
