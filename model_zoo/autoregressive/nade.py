"""Neural autoregressive distribution estimator: a tractable cousin of the Boltzmann machine.

Hugo Larochelle and Iain Murray, "The Neural Autoregressive Distribution Estimator", AISTATS 2011;
Benigno Uria, Marc-Alexandre Côté, Karol Gregor, Iain Murray and Hugo Larochelle, "Neural
Autoregressive Distribution Estimation", 2016, arXiv:1605.02226. One hidden layer for every pixel,
all with the same weights (2016, equations 2 to 4):

    p(x_d = 1 | x_<d) = sigmoid(V_d h_d + b_d),   h_d = sigmoid(W_,<d x_<d + c)

The activation before the sigmoid grows from pixel to pixel, a_d+1 = a_d + W_,d x_d (equation 5), so
that all of p(x) costs O(D H). Where x_d is 0 it does not even change: what training computes are
the hidden layers after pixels that are on and at the start of a row: of digits, a sixth of all.

Difference: pixels go in reading order, where the papers shuffle them once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from model_zoo.autoregressive.binary_pixels import BinaryPixels
from model_zoo.autoregressive.draw import Recurrence

AT_A_TIME = 16  # numbers that an instruction takes, on the widest processors
INITIAL_DEVIATION = 0.01  # of W and V: all hidden layers start alike


class NADE(BinaryPixels):
    """Hidden layers of all pixels with weights in common."""

    family = "neural autoregressive distribution estimator"
    published: ClassVar[Mapping[str, Any]] = {
        "dataset": "mnist",
        "value": -85.65,
        "source": "NADE of 500 hidden units, dynamic binarisation, pytorch-generative README",
    }

    def __init__(self, image_shape: tuple[int, int, int] = (1, 28, 28), hidden_units: int = 500):
        """Build for grey images [1, height, width]."""
        super().__init__(image_shape)
        self.weight = nn.Parameter(INITIAL_DEVIATION * torch.randn(self.pixels, hidden_units))  # W
        self.output_weight = nn.Parameter(
            INITIAL_DEVIATION * torch.randn(self.pixels, hidden_units)
        )  # V
        self.bias = nn.Parameter(torch.zeros(hidden_units))  # c
        self.output_bias = nn.Parameter(torch.zeros(self.pixels))  # b

    def logits(self, x: Tensor) -> Tensor:
        """Map x [N, D] in {0, 1} to the log odds of x_d = 1 given x_<d, [N, D].

        Row after row of the image, each from the activation after those above.
        """
        width = self.image_shape[2]
        activation = self.bias.expand(x.shape[0], -1)
        parts = []
        for row, weight, output_weight in zip(
            x.split(width, dim=1),
            self.weight.split(width),
            self.output_weight.split(width),
            strict=True,
        ):
            parts.append(row_logits(row, activation, weight, output_weight))
            activation = activation + row @ weight
        return torch.cat(parts, dim=1) + self.output_bias

    def recurrence(self) -> Recurrence:
        """Return the steps by which pixels are drawn."""
        return HiddenLayers(self)


class HiddenLayers(Recurrence):
    """The activation a_d of the hidden layer, from pixel to pixel (2016, equation 5).

    Hidden layers are filled up with units that do nothing: where one ends inside of what an
    instruction takes, the last bits of its sigmoids depend on what else is in a batch.
    """

    def __init__(self, model: NADE):
        """Take the weights of a model."""
        super().__init__()
        self.model = model

    def start(self) -> Tensor:
        """Return a_1 = c, [H]."""
        return fill_up(self.model.bias)

    def slices(self) -> tuple[Tensor, ...]:
        """Return W, V and b."""
        weight, output_weight = fill_up(self.model.weight), fill_up(self.model.output_weight)
        return weight, output_weight, self.model.output_bias

    def logit(self, state: Tensor, *slices: Tensor) -> Tensor:
        """Map activations [B, H] to V_d h_d + b_d, [B]."""
        _, output_weight, output_bias = slices
        return (torch.sigmoid(state) * output_weight).sum(dim=1) + output_bias

    def move_on(self, state: Tensor, value: Tensor, *slices: Tensor) -> Tensor:
        """Add W_,d x_d to activations [B, H]."""
        return state + slices[0] * value


def fill_up(weights: Tensor) -> Tensor:
    """Append zeros to the last axis, to a multiple of AT_A_TIME."""
    return pad(weights, (0, -weights.shape[-1] % AT_A_TIME))


def row_logits(row: Tensor, activation: Tensor, weight: Tensor, output_weight: Tensor) -> Tensor:
    """Return V_d h_d of the pixels of a row [N, R], given the activation before it [N, H].

    Both weights are those of the row's pixels, [R, H]. A hidden layer is computed at the start of
    the row and after each pixel that is on: in between it is the same.
    """
    changed = torch.cat([torch.ones_like(row[:, :1]), row[:, :-1]], dim=1) > 0
    image, column = changed.nonzero(as_tuple=True)
    before = row[image] * (torch.arange(row.shape[1], device=row.device) < column[:, None])
    hidden = torch.sigmoid(activation[image] + before @ weight)  # [changes, H]
    layer = changed.flatten().cumsum(0).view_as(row) - 1  # the one that each pixel sees
    return (hidden @ output_weight.T).gather(0, layer)  # [changes, R] -> [N, R]
