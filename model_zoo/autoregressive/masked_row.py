"""A row of a PixelCNN of masked convolutions, in the terms of the row step."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from model_zoo.autoregressive.masked_layers import (
    MaskedConvolution,
    MaskedResidualBlock,
    Pointwise,
)
from model_zoo.autoregressive.scanned_row_step import Pixel, RowNetwork, one_row


class MaskedRow(RowNetwork):
    """A PixelCNN as a row sees it; a block's narrow activations are what is looked at again."""

    def __init__(
        self,
        first: MaskedConvolution,
        blocks: nn.ModuleList,
        head: nn.Module,
        width: int,
        looks: nn.ModuleList | None = None,
    ):
        """Share the layers of a model of rows of `width` black and white pixels.

        Where something is told of each pixel, the first layer and every block have one of `looks`
        at it, which is added to what the layer gives and to what the block is given.
        """
        super().__init__()
        self.first, self.head, self.width = first, head, width
        self.blocks: list[MaskedResidualBlock] = blocks  # type: ignore[assignment]
        self.levels, self.features, self.reach = 2, 1, first.reach
        self.cached = len(self.blocks), self.blocks[0].narrow.out_channels
        self.looks: list[Pointwise] = looks or nn.ModuleList()  # type: ignore[assignment]
        self.told = self.looks[0].in_channels if looks else 0

    def pixels(self, levels: Tensor) -> Tensor:
        """Return 0 or 1, [B, 1]."""
        return levels.unsqueeze(1).to(torch.float32)

    def look_up(self, rows_above: Tensor, activations: Tensor, told: Tensor | None) -> Pixel:
        """Return what each masked convolution sees above, and behind that what each is told."""
        first = self.first
        coming = [one_row(first.masked_weight()[:, :, :-1], first.bias, rows_above)]
        for block, rows in zip(self.blocks, activations, strict=True):
            coming.append(one_row(block.around.weight[:, :, :-1], block.around.bias, rows))
        if told is None:
            return tuple(coming)
        of_first, *of_blocks = (look(told) for look in self.looks)
        return coming[0] + of_first, *coming[1:], *of_blocks

    def look_left(self, before: Tensor, left: Pixel, coming: Pixel) -> tuple[Tensor, Pixel, Pixel]:
        """Run the network at one pixel; the next one and those below see the same of it."""
        first = self.first
        # [outputs, 1, reach] of the row itself; the mask hides the pixel and what is beyond.
        h = coming[0] + linear(before.flatten(1), first.weight[:, 0, -1, : first.reach])
        seen, told = [], iter(coming[1 + len(self.blocks) :])
        for block, last, above in zip(self.blocks, left, coming[1:], strict=False):
            h = h + next(told) if self.told else h
            narrow = block.narrow(h.relu()).relu()
            beside = torch.cat([last, narrow], dim=1)
            # [outputs, C, column] -> [outputs, column * C]: to the left, and the pixel itself.
            kernel = block.around.weight[:, :, -1, :2].transpose(1, 2).flatten(1)
            h = h + block.widen((above + linear(beside, kernel)).relu())
            seen.append(narrow)
        odds = self.head(h)
        return torch.cat([torch.zeros_like(odds), odds], dim=1), tuple(seen), tuple(seen)
