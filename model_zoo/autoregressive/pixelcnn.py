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

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from model_zoo.autoregressive.binary_rows import BinaryRows
from model_zoo.autoregressive.masked_layers import (
    MaskedConvolution,
    MaskedResidualBlock,
    Pointwise,
)
from model_zoo.autoregressive.scanned_row_step import Pixel, RowNetwork, one_row


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
        return PixelCNNRow(self)


class PixelCNNRow(RowNetwork):
    """A PixelCNN as a row sees it; a block's narrow activations are what is looked at again."""

    def __init__(self, model: PixelCNN):
        """Share the weights of a model."""
        super().__init__()
        self.model, self.width = model, model.image_shape[2]
        self.levels, self.features, self.reach = 2, 1, model.first.reach
        self.cached = len(model.blocks), model.blocks[0].narrow.out_channels

    def pixels(self, levels: Tensor) -> Tensor:
        """Return 0 or 1, [B, 1]."""
        return levels.unsqueeze(1).to(torch.float32)

    def look_up(self, rows_above: Tensor, activations: Tensor) -> Pixel:
        """Return what each masked convolution sees above."""
        first = self.model.first
        coming = [one_row(first.masked_weight()[:, :, :-1], first.bias, rows_above)]
        for block, rows in zip(self.model.blocks, activations, strict=True):
            coming.append(one_row(block.around.weight[:, :, :-1], block.around.bias, rows))
        return tuple(coming)

    def look_left(self, before: Tensor, left: Pixel, coming: Pixel) -> tuple[Tensor, Pixel, Pixel]:
        """Run the network at one pixel; the next one and those below see the same of it."""
        first = self.model.first
        # [outputs, 1, reach] of the row itself; the mask hides the pixel and what is beyond.
        h = coming[0] + linear(before.flatten(1), first.weight[:, 0, -1, : first.reach])
        seen = []
        for block, last, above in zip(self.model.blocks, left, coming[1:], strict=True):
            narrow = block.narrow(h.relu()).relu()
            beside = torch.cat([last, narrow], dim=1)
            # [outputs, C, column] -> [outputs, column * C]: to the left, and the pixel itself.
            kernel = block.around.weight[:, :, -1, :2].transpose(1, 2).flatten(1)
            h = h + block.widen((above + linear(beside, kernel)).relu())
            seen.append(narrow)
        odds = self.model.head(h)
        return torch.cat([torch.zeros_like(odds), odds], dim=1), tuple(seen), tuple(seen)
