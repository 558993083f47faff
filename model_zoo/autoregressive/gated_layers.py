"""The layers of a Gated PixelCNN: two stacks of convolutions that never see what comes later.

Aaron van den Oord et al., "Conditional Image Generation with PixelCNN Decoders", 2016,
arXiv:1606.05328, figure 2. The vertical stack knows the rows above a pixel; the horizontal stack
what is left of it and, through a 1x1 convolution, the vertical one.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn.functional import pad

GATE_GAIN = 2.5  # a gate passes on about an eighth of its variance; this gives it back


class CausalConvolution(nn.Conv2d):
    """Convolution over zero padding of its own on each side; negative padding takes away."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int],
        padding: tuple[int, int, int, int],
        bias: bool,
    ):
        """Take the `padding` as left, right, top, bottom."""
        super().__init__(inputs, outputs, kernel, bias=bias)
        self.sides = padding
        nn.init.normal_(self.weight, std=GATE_GAIN / math.sqrt(self.weight[0].numel()))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, outputs, H, W]."""
        return super().forward(pad(x, self.sides))


class GatedLayer(nn.Module):
    """Both stacks of one layer (figure 2): two convolutions, two gates, the way between them."""

    def __init__(
        self,
        channels: int,
        classes: int,
        vertical: CausalConvolution,
        horizontal: CausalConvolution,
        has_shortcut: bool,
    ):
        """Take both convolutions to 2 * `channels`.

        The first layer must have no shortcut: it would lead from a pixel to itself.
        """
        super().__init__()
        self.vertical, self.horizontal = vertical, horizontal
        self.across = nn.Conv2d(2 * channels, 2 * channels, 1)  # vertical to horizontal
        self.residual = nn.Conv2d(channels, channels, 1, bias=False)
        self.condition = nn.Linear(classes, 4 * channels, bias=False)  # V of equation 4
        self.has_shortcut = has_shortcut

    def forward(self, v: Tensor, h: Tensor, class_weights: Tensor) -> tuple[Tensor, Tensor]:
        """Map both stacks [N, *, H, W] to [N, channels, H, W], given [N, classes].

        Or given a condition for each position, [N, H, W, classes].
        """
        shift_v, shift_h = spread(self.condition(class_weights)).chunk(2, dim=1)
        above = self.vertical(v) + shift_v
        left = self.horizontal(h) + self.across(above) + shift_h
        change = self.residual(gate(left))
        return gate(above), h + change if self.has_shortcut else change


def spread(shift: Tensor) -> Tensor:
    """Return a shift [N, C] for all positions, or a map of them [N, H, W, C], as [N, C, *, *]."""
    return shift[:, :, None, None] if shift.dim() == 2 else shift.permute(0, 3, 1, 2)


def gate(x: Tensor) -> Tensor:
    """Map [N, 2C, H, W] to tanh of one half times the sigmoid of the other (equation 2)."""
    content, openness = x.chunk(2, dim=1)
    return content.tanh() * openness.sigmoid()


def first_layer(inputs: int, channels: int, classes: int, reach: int) -> GatedLayer:
    """Return the masked layer: rows strictly above, and pixels strictly to the left."""
    up = CausalConvolution(
        inputs, 2 * channels, (reach, 2 * reach + 1), (reach, reach, reach, -1), bias=True
    )
    left = CausalConvolution(inputs, 2 * channels, (1, reach), (reach, -1, 0, 0), bias=False)
    return GatedLayer(channels, classes, up, left, has_shortcut=False)


def later_layer(channels: int, classes: int) -> GatedLayer:
    """Return a layer that sees its own position too, since the first layer hid the pixel."""
    up = CausalConvolution(channels, 2 * channels, (2, 3), (1, 1, 1, 0), bias=True)
    left = CausalConvolution(channels, 2 * channels, (1, 2), (1, 0, 0, 0), bias=False)
    return GatedLayer(channels, classes, up, left, has_shortcut=True)
