"""Masked autoencoder for distribution estimation: one pass of a network, all conditionals at once.

Mathieu Germain, Karol Gregor, Iain Murray and Hugo Larochelle, "MADE: Masked Autoencoder for
Distribution Estimation", 2015, arXiv:1502.03509. Every hidden unit k has a degree m(k): it sees the
pixels x_1 .. x_m(k), and the log odds of x_d see the units with m(k) < d (equations 8 and 9):

    h = relu(W x + c),   p(x_d = 1 | x_<d) = sigmoid(V_d h + b_d)

What a mask leaves of W and of V is D weights a unit: those of its input up to its degree, and those
of its output from there on. They lie in one matrix.

While drawing, the units' activations grow from pixel to pixel, and a unit is read only when all
that it sees is known: a whole image costs one pass through the network.

Differences: one hidden layer; the order of pixels is that of reading, and one set of masks is kept,
its degrees spread evenly instead of drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from model_zoo.autoregressive.binary_pixels import BinaryPixels
from model_zoo.autoregressive.draw import Recurrence

INITIAL_DEVIATION = 0.05  # of weights: about 1 / sqrt(D / 2), as a unit sees half of the pixels


class MADE(BinaryPixels):
    """An autoencoder of one hidden layer, masked so that no pixel sees itself or those behind."""

    family = "masked autoencoder"
    published: ClassVar[Mapping[str, Any]] = {
        "dataset": "mnist",
        "value": -84.87,
        "source": "MADE of 8000 hidden units, dynamic binarisation, pytorch-generative README",
    }

    def __init__(self, image_shape: tuple[int, int, int] = (1, 28, 28), hidden_units: int = 500):
        """Build for grey images [1, height, width]."""
        super().__init__(image_shape)
        self.weight = nn.Parameter(INITIAL_DEVIATION * torch.randn(self.pixels, hidden_units))
        self.bias = nn.Parameter(torch.zeros(hidden_units))  # c
        self.output_bias = nn.Parameter(torch.zeros(self.pixels))  # b
        degrees = torch.linspace(1, self.pixels - 1, hidden_units).round().long()
        self.register_buffer("degrees", degrees, persistent=False)
        self.degrees: Tensor

    def masked_weights(self) -> tuple[Tensor, Tensor]:
        """Return W^T and V, [D, H] each."""
        # Row d of the triangle is 1 from column d on. A comparison of places and degrees is the
        # same, but an exporter computes it, and stores a mask half as large as the weights.
        triangle = self.weight.new_ones(self.pixels, self.pixels).triu()
        seen = triangle[:, self.degrees - 1]
        return self.weight * seen, self.weight * (1 - seen)

    def logits(self, x: Tensor) -> Tensor:
        """Map x [N, D] in {0, 1} to the log odds of x_d = 1 given x_<d, [N, D]."""
        weight, output_weight = self.masked_weights()
        hidden = torch.relu(x @ weight + self.bias)
        return hidden @ output_weight.T + self.output_bias

    def recurrence(self) -> Recurrence:
        """Return the steps by which pixels are drawn."""
        return GrowingActivations(self)


class GrowingActivations(Recurrence):
    """What each hidden unit has seen so far; it is read when it has seen all that it ever does."""

    def __init__(self, model: MADE):
        """Take the weights of a model."""
        super().__init__()
        self.model = model

    def start(self) -> Tensor:
        """Return c, [H]."""
        return self.model.bias

    def slices(self) -> tuple[Tensor, ...]:
        """Return W^T, V and b."""
        return *self.model.masked_weights(), self.model.output_bias

    def logit(self, state: Tensor, *slices: Tensor) -> Tensor:
        """Map activations [B, H] to V_d h + b_d, [B]."""
        _, output_weight, output_bias = slices
        return (torch.relu(state) * output_weight).sum(dim=1) + output_bias

    def move_on(self, state: Tensor, value: Tensor, *slices: Tensor) -> Tensor:
        """Add W_,d x_d to activations [B, H]."""
        return state + slices[0] * value
