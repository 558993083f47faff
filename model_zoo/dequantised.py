"""Densities over reals as models of 8-bit images, by uniform dequantisation.

A level k is the interval from k to k + 1, of length 1. So the expectation over uniform noise u of
log p(x + u) is a lower bound on log P(x), the mass of that cube (Theis, van den Oord and Bethge
2015, "A note on the evaluation of generative models", arXiv:1511.01844, section 3.1). All densities
are measured alike here, so that their bits can be compared.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from model_zoo.cards import likelihood_bound
from model_zoo.data import in_chunks
from model_zoo.family import Batch, Family, Figure, Function, Graph, Port
from model_zoo.layers import standard_error, uniform_noise

LEVELS = 256
BIN_CENTRE = 0.5
CHUNK = 250  # images measured at a time
LIKELIHOOD = likelihood_bound("dequantisation", "importance_weighted_dequantisation", draws=4)
"""What the operation means for each of these."""


class DequantisedDensity(Family):
    """A family with a density over dequantised levels, x + u in (0, 256)."""

    published: Mapping[str, Any] | None = None
    """The figure to set its bits per dimension beside (see `Figure`)."""

    def __init__(self, image_shape: tuple[int, int, int]):
        """Take the shape of images, [channels, height, width]."""
        super().__init__()
        self.image_shape = tuple(image_shape)
        self.event_size = math.prod(self.image_shape)

    @abstractmethod
    def log_density(self, levels: Tensor) -> Tensor:
        """Return log p in nats, [N], with respect to Lebesgue measure on levels [N, C, H, W]."""

    def bits_per_dimension(self, levels: Tensor, generator: torch.Generator) -> Tensor:
        """Return an upper bound on -log2 P(x) / dimensions, [N], from one draw of noise each."""
        noise = uniform_noise(tuple(levels.shape), generator)
        return -self.log_density(levels + noise) / (self.event_size * math.log(2))

    @torch.no_grad()
    def evaluate(self, data: Batch, generator: torch.Generator) -> list[Figure]:
        """Measure bits per dimension."""
        bits = torch.cat(
            [self.bits_per_dimension(chunk.images, generator) for chunk in in_chunks(data, CHUNK)]
        )
        protocol = "upper bound on -log2 P(x) / dimensions, one uniform dequantisation an image"
        value, error = bits.mean().item(), standard_error(bits)
        return [Figure("bits_per_dim", value, "bits/dim", protocol, error, self.published)]

    def log_likelihood_graph(self) -> Graph:
        """Return the graph of the log density; switches the model to eval mode."""
        data = Port("data", "data", self.image_shape)
        noise = Port("noise", "noise", self.image_shape, "float32", "uniform", "dequantisation")
        log_likelihood = Port("log_likelihood", "log_likelihood", ())
        of_levels = Function(self, lambda levels, uniform: self.log_density(levels + uniform))
        return Graph("log_likelihood", of_levels.eval(), (data, noise), (log_likelihood,))
