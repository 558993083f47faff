"""Masked convolutions: a pixel sees the rows above it and, of its own row, what is to its left.

Aaron van den Oord, Nal Kalchbrenner and Koray Kavukcuoglu, "Pixel Recurrent Neural Networks", 2016,
arXiv:1601.06759, section 3.4 and figure 2. Rows below the pixel would be masked altogether, so the
kernels here have none.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, pad


class MaskedConvolution(nn.Conv2d):
    """The upper half of a square convolution; mask A hides the pixel itself, mask B shows it."""

    def __init__(self, inputs: int, outputs: int, size: int, mask: str):
        """Look `size` // 2 pixels up and to each side, where `size` is odd."""
        self.reach = size // 2
        super().__init__(inputs, outputs, (self.reach + 1, size))
        seen = torch.ones(self.reach + 1, size)
        seen[self.reach, self.reach + (mask == "B") :] = 0
        self.register_buffer("seen", seen, persistent=False)
        fan_in = inputs * int(seen.sum())
        nn.init.normal_(self.weight, std=math.sqrt(2 / fan_in))  # of inputs behind a ReLU

    def masked_weight(self) -> Tensor:
        """Return the kernel, [outputs, inputs, reach + 1, size]."""
        return self.weight * self.seen

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, outputs, H, W]; outside of the picture all is zero."""
        sides = (self.reach, self.reach, self.reach, 0)  # left, right, top, bottom
        return conv2d(pad(x, sides), self.masked_weight(), self.bias)


class Pointwise(nn.Conv2d):
    """A 1x1 convolution, which is the same function of every pixel."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True):
        """Map `inputs` channels to `outputs`."""
        super().__init__(inputs, outputs, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures [N, inputs, H, W], or pixels [.., inputs], which have no such four axes."""
        if x.dim() == 4:
            return super().forward(x)
        return linear(x, self.weight[:, :, 0, 0], self.bias)


class MaskedResidualBlock(nn.Module):
    """The residual block of figure 5, left: narrow, look around, widen, add."""

    def __init__(self, channels: int, change: float):
        """Keep `channels`, of which half look around; start as x plus a `change` of so much."""
        super().__init__()
        self.narrow = Pointwise(channels, channels // 2)
        self.around = MaskedConvolution(channels // 2, channels // 2, 3, "B")
        self.widen = Pointwise(channels // 2, channels)
        nn.init.normal_(self.narrow.weight, std=math.sqrt(2 / channels))
        nn.init.normal_(self.widen.weight, std=change * math.sqrt(4 / channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, channels, H, W] to the same shape."""
        return x + self.widen(self.around(self.narrow(x.relu()).relu_()).relu_())
