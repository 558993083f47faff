"""The layers of a PixelCNN++: two shifted streams of residual blocks with short-cuts.

Tim Salimans, Andrej Karpathy, Xi Chen and Diederik P. Kingma, "PixelCNN++", 2017, arXiv:1701.05517,
section 2. One stream is shifted down, so that it knows the rows above a pixel; the other down and
to the right, so that it also knows what is to the pixel's left.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn.functional import pad, relu

from model_zoo.autoregressive.masked_layers import Pointwise

FIRST_CHANGE = 0.3  # of a fresh block, relative to what it is added to


class ShiftedConvolution(nn.Conv2d):
    """Convolution over zero padding of its own on each side; negative padding takes away."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int],
        padding: tuple[int, int, int, int],
        bias: bool = True,
    ):
        """Take the `padding` as left, right, top, bottom."""
        super().__init__(inputs, outputs, kernel, bias=bias)
        self.sides = padding
        nn.init.normal_(self.weight, std=math.sqrt(2 / self.weight[0].numel()))  # behind a ReLU

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, outputs, H, W]."""
        return super().forward(pad(x, self.sides))


class Residual(nn.Module):
    """What a block adds to one stream, but for where it looks: all of it is 1x1."""

    def __init__(self, channels: int, has_shortcut: bool):
        """A block with a short-cut takes in an earlier block of the same stream."""
        super().__init__()
        self.shortcut = Pointwise(channels, channels, bias=False) if has_shortcut else None
        self.content = Pointwise(channels, channels)
        self.openness = Pointwise(channels, channels)
        nn.init.normal_(self.content.weight, std=FIRST_CHANGE / math.sqrt(channels))

    def forward(self, x: Tensor, seen: Tensor, earlier: Tensor | None) -> Tensor:
        """Add to x what follows from `seen` and an earlier block, all of them of one shape.

        That is pictures [N, channels, H, W] or pixels [.., channels].
        """
        if self.shortcut is not None and earlier is not None:
            seen = seen + self.shortcut(relu(earlier))
        seen = relu(seen)
        return x + self.content(seen) * self.openness(seen).sigmoid()


class ShiftedBlock(nn.Module):
    """One residual block of both streams (figure 2)."""

    def __init__(self, channels: int, has_shortcut: bool):
        """Keep `channels`. One row up in the one stream, one column left in the other."""
        super().__init__()
        self.has_shortcut = has_shortcut
        self.up = ShiftedConvolution(channels, channels, (2, 3), (1, 1, 1, 0))
        self.left = ShiftedConvolution(channels, channels, (1, 2), (1, 0, 0, 0))
        self.across = Pointwise(channels, channels, bias=False)
        self.above = Residual(channels, has_shortcut)
        self.beside = Residual(channels, has_shortcut)

    def forward(
        self, v: Tensor, h: Tensor, earlier: tuple[Tensor, Tensor] | tuple[None, None]
    ) -> tuple[Tensor, Tensor]:
        """Map both streams to both streams, [N, channels, H, W], given those of a short-cut."""
        v = self.above(v, self.up(relu(v)), earlier[0])
        h = self.beside(h, self.left(relu(h)) + self.across(relu(v)), earlier[1])
        return v, h
