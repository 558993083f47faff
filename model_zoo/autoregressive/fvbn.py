"""Fully visible belief network: a logistic regression for every pixel on all those before it.

Brendan Frey, Geoffrey Hinton and Peter Dayan, "Does the wake-sleep algorithm produce good density
estimators?", NIPS 1995, section 2; Radford Neal, "Connectionist learning of belief networks",
Artificial Intelligence 56, 1992, names the network. With W strictly lower triangular,

    p(x_d = 1 | x_<d) = sigmoid(W_d x + b_d).

The log-likelihood is concave, so that there is one best set of weights and nothing to tune but the
length of the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from model_zoo.autoregressive.binary_pixels import BinaryPixels
from model_zoo.autoregressive.draw import Recurrence


class FullyVisibleBeliefNetwork(BinaryPixels):
    """One triangle of weights, and a bias a pixel."""

    family = "fully visible belief network"
    published: ClassVar[Mapping[str, Any]] = {
        "dataset": "mnist",
        "value": -96.58,
        "source": "FVSBN, dynamic binarisation, pytorch-generative README",
    }

    def __init__(self, image_shape: tuple[int, int, int] = (1, 28, 28)):
        """Build for grey images [1, height, width]."""
        super().__init__(image_shape)
        self.folded = nn.Parameter(torch.zeros((self.pixels + 1) // 2, self.pixels))
        self.bias = nn.Parameter(torch.zeros(self.pixels))  # b

    def weight(self) -> Tensor:
        """Return W, [D, D], zero where a pixel does not come before another.

        Row d of the triangle and, turned round, row D - 1 - d share a row of what is stored: both
        together have D - 1 weights.
        """
        turned = self.folded.flip(0, 1)[self.pixels % 2 :]  # of odd D, the middle is there twice
        return torch.cat([self.folded, turned]).tril(diagonal=-1)

    def logits(self, x: Tensor) -> Tensor:
        """Map x [N, D] in {0, 1} to the log odds of x_d = 1 given x_<d, [N, D]."""
        return x @ self.weight().T + self.bias

    def recurrence(self) -> Recurrence:
        """Return the steps by which pixels are drawn."""
        return PixelsSoFar(self)


class PixelsSoFar(Recurrence):
    """The pixels that are known, zeros elsewhere."""

    def __init__(self, model: FullyVisibleBeliefNetwork):
        """Take the weights of a model."""
        super().__init__()
        self.model = model
        self.register_buffer("places", torch.arange(model.pixels))
        self.places: Tensor

    def start(self) -> Tensor:
        """Return zeros, [D]."""
        return torch.zeros_like(self.model.bias)

    def slices(self) -> tuple[Tensor, ...]:
        """Return W, b, and the place of each pixel."""
        return self.model.weight(), self.model.bias, self.places

    def logit(self, state: Tensor, *slices: Tensor) -> Tensor:
        """Map pixels [B, D] to W_d x + b_d, [B]."""
        weight, bias, _ = slices
        return (state * weight).sum(dim=1) + bias

    def move_on(self, state: Tensor, value: Tensor, *slices: Tensor) -> Tensor:
        """Put x_d in its place."""
        return torch.where(self.places == slices[2], value, state)
