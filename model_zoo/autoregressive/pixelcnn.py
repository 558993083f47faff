"""PixelCNN, an exact distribution over binary images, one pixel after another.

Aaron van den Oord, Nal Kalchbrenner and Koray Kavukcuoglu, "Pixel Recurrent Neural Networks", 2016,
arXiv:1601.06759. p(x) is the product of p(x_i | x_1 .. x_i-1) over pixels in reading order
(equation 1), each a Bernoulli distribution. A 7x7 convolution with mask A is followed by residual
blocks with mask B and two 1x1 convolutions (table 1).

Differences: fifteen blocks of 32 channels, not of 128. Pixels are drawn afresh with their grey
value as probability whenever they are looked at (dynamic binarisation).
"""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor, nn

from model_zoo.autoregressive.binary_rows import BinaryRows
from model_zoo.autoregressive.masked_layers import (
    MaskedConvolution,
    MaskedResidualBlock,
    Pointwise,
)
from model_zoo.autoregressive.masked_row import MaskedRow
from model_zoo.autoregressive.scanned_row_step import RowNetwork


class PixelCNN(BinaryRows):
    """Autoregressive model of black and white images."""

    family = "PixelCNN"
    published: ClassVar = {
        "dataset": "mnist",
        "value": -81.45,
        "source": "PixelCNN, dynamic binarisation, pytorch-generative README",
    }

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        blocks: int = 15,
        channels: int = 32,
    ):
        """Build for grey images [1, height, width].

        A pixel sees 3 + `blocks` rows up, one column less far to the right with each of them.
        """
        super().__init__(image_shape)
        self.first = MaskedConvolution(1, channels, 7, "A")
        change = 1 / math.sqrt(blocks)  # so that all of them together change no more than one
        self.blocks = nn.ModuleList([MaskedResidualBlock(channels, change) for _ in range(blocks)])
        self.head = nn.Sequential(
            nn.ReLU(), Pointwise(channels, channels), nn.ReLU(), Pointwise(channels, 1)
        )

    def logits(self, x: Tensor) -> Tensor:
        """Map x in {0, 1}, [N, 1, H, W], to the log odds of every pixel being on."""
        h = self.first(x)
        for block in self.blocks:
            h = block(h)
        return self.head(h).float()

    def row_network(self) -> RowNetwork:
        """Return the model as a row sees it."""
        return MaskedRow(self.first, self.blocks, self.head, self.image_shape[2])
