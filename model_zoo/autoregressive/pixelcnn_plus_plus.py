"""PixelCNN++, an exact distribution over 8-bit images with few numbers a pixel.

Tim Salimans, Andrej Karpathy, Xi Chen and Diederik P. Kingma, "PixelCNN++", 2017, arXiv:1701.05517.
p(x_i | x_1 .. x_i-1) is a mixture of logistic distributions, cut into levels (equation 2), so that
neighbouring levels need not be learned apart. Blocks of the second half of the network have
short-cuts from those of the first (section 2.4), the last from the first.

Differences: nothing is scaled down and up again, so that a row can be computed from what the row
above left behind; of a block's two convolutions one looks around and one is 1x1; the second stream
looks to the left alone, and up through the first one. Activations are rectified, which costs less
than exponential units of both signs. There is no dropout: so small a model does not overfit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, log_softmax, logsigmoid, relu

from model_zoo.autoregressive.masked_layers import Pointwise
from model_zoo.autoregressive.scanned_row_step import Pixel, RowNetwork, one_row, row_steps
from model_zoo.autoregressive.shifted_layers import ShiftedBlock, ShiftedConvolution
from model_zoo.cards import (
    EXACT_PROBABILITY,
    image_event,
    image_preprocess,
    sampling_controls,
)
from model_zoo.data import in_chunks
from model_zoo.family import Batch, Card, Family, Figure, Function, Graph, Objective, Port
from model_zoo.layers import standard_error

GREY_LEVELS = 256
SMALLEST_LOG_SCALE = -7.0  # a logistic far narrower than a level
CHUNK = 250  # images measured at a time


class PixelCNNPlusPlus(Family):
    """Autoregressive model of grey images."""

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        blocks: int = 6,
        channels: int = 32,
        logistics: int = 5,
        levels: int = GREY_LEVELS,
        reach: int = 3,
    ):
        """Build for grey images [1, height, width] of so many `levels`, an even number of blocks.

        A pixel sees `reach` + `blocks` rows up, and as many columns to each side.
        """
        super().__init__()
        self.image_shape, self.levels, self.reach = tuple(image_shape), levels, reach
        self.event_size = math.prod(self.image_shape)
        self.first_up = ShiftedConvolution(
            2, channels, (reach, 2 * reach + 1), (reach, reach, reach, -1)
        )
        self.first_left = ShiftedConvolution(2, channels, (1, reach), (reach, -1, 0, 0))
        self.first_across = Pointwise(channels, channels, bias=False)
        half = blocks // 2
        self.blocks = nn.ModuleList([ShiftedBlock(channels, at >= half) for at in range(blocks)])
        self.head = Pointwise(channels, 3 * logistics)
        with torch.no_grad():  # logistics that start alike would stay alike
            self.head.bias[logistics : 2 * logistics] = torch.linspace(-1, 1, logistics)

    def mixture(self, levels: Tensor) -> Tensor:
        """Map levels [N, H, W], int64, to each pixel's mixture, [N, H, W, 3 * logistics]."""
        x = self.pixels(levels).permute(0, 3, 1, 2)  # [N, 2, H, W]
        v = self.first_up(x)
        h = self.first_left(x) + self.first_across(v)
        passed: list[tuple[Tensor, Tensor]] = []
        for block in self.blocks:
            v, h = block(v, h, passed.pop() if block.has_shortcut else (None, None))
            if not block.has_shortcut:
                passed.append((v, h))
        return self.head(relu(h)).float().permute(0, 2, 3, 1)

    def pixels(self, levels: Tensor) -> Tensor:
        """Return brightness from -1 to 1, and a one that is zero outside, [.., 2]."""
        brightness = 2.0 * levels / (self.levels - 1) - 1.0
        return torch.stack([brightness, torch.ones_like(brightness)], dim=-1)

    def log_probabilities(self, levels: Tensor) -> Tensor:
        """Return log p(x_i | x_1 .. x_i-1) in nats, [N, H, W], for levels [N, H, W]."""
        return log_mass(self.mixture(levels), levels.unsqueeze(-1), self.levels).squeeze(-1)

    def log_probability(self, levels: Tensor) -> Tensor:
        """Return log p(x) in nats, [N]."""
        return self.log_probabilities(levels).flatten(1).sum(dim=1)

    def log_probability_and_map(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """Map levels [N, 1, H, W] to log p(x) and that of each pixel in nats, [N] and [N, H, W]."""
        of_pixels = self.log_probabilities(data.squeeze(1).round().long())
        return of_pixels.flatten(1).sum(dim=1), of_pixels

    def objectives(self) -> dict[str, Objective]:
        """Return the one loss: bits per dimension."""
        return {"pixelcnn": Objective(list(self.parameters()), self._loss)}

    def _loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return self._bits_per_dimension(batch.images).mean()

    def _bits_per_dimension(self, grey: Tensor) -> Tensor:
        levels = (grey * self.levels / GREY_LEVELS).floor().squeeze(1).long()
        return -self.log_probability(levels) / (self.event_size * math.log(2))

    @torch.no_grad()
    def evaluate(self, data: Batch, generator: torch.Generator) -> list[Figure]:
        """Measure bits per dimension."""
        bits = torch.cat([self._bits_per_dimension(part.images) for part in in_chunks(data, CHUNK)])
        protocol = f"exact -log2 P(x) / dimensions over {self.levels} levels"
        error = standard_error(bits)
        return [Figure("bits_per_dim", bits.mean().item(), "bits/dim", protocol, error)]

    def card(self) -> Card:
        """Describe the model to those who serve it."""
        return Card(
            family="PixelCNN++",
            event={**image_event(self.image_shape), "levels": self.levels},
            preprocess=image_preprocess(0.0, self.levels - 1.0),
            controls=sampling_controls(self.levels),
            operations={"sample": {}, "complete": {}, "likelihood": EXACT_PROBABILITY},
            program="raster_rows",
        )

    def graphs(self) -> tuple[Graph, ...]:
        """Return log_likelihood and both row steps; sets eval mode."""
        data = Port("data", "data", self.image_shape)
        log_likelihood = Port("log_likelihood", "log_likelihood", ())
        of_pixels = Port("log_likelihood_map", "log_likelihood_map", self.image_shape[1:])
        graph = Function(self, self.log_probability_and_map).eval()
        return (
            Graph("log_likelihood", graph, (data,), (log_likelihood, of_pixels)),
            *row_steps(PixelCNNPlusPlusRow(self)),
        )


class PixelCNNPlusPlusRow(RowNetwork):
    """A PixelCNN++ as a row sees it; what each block is given of either stream is looked at again.

    The first stream knows of the rows above alone, so a row of it is computed at once.
    """

    def __init__(self, model: PixelCNNPlusPlus):
        """Share the weights of a model."""
        super().__init__()
        self.model, self.width = model, model.image_shape[2]
        self.levels, self.features, self.reach = model.levels, 2, model.reach
        self.cached = len(model.blocks), model.first_up.out_channels
        every = torch.arange(model.levels)
        self.register_buffer("every_level", every, persistent=False)

    def pixels(self, levels: Tensor) -> Tensor:
        """Return brightness and one, [B, 2]."""
        return self.model.pixels(levels)

    def look_up(self, rows_above: Tensor, activations: Tensor, told: Tensor | None) -> Pixel:
        """Return what the second stream gets from the first, and the first itself, by blocks."""
        first = self.model.first_up
        v = one_row(first.weight, first.bias, rows_above)  # [W, B, C]
        coming, kept = [self.model.first_across(v)], []
        passed: list[Tensor] = []
        for block, row_above in zip(self.model.blocks, activations, strict=True):
            kept.append(v)
            row = v.permute(1, 2, 0).unsqueeze(2)  # [W, B, C] -> [B, C, 1, W]
            rows = torch.cat([row_above, row], dim=2).relu()
            seen = one_row(block.up.weight, block.up.bias, rows)
            v = block.above(v, seen, passed.pop() if block.has_shortcut else None)
            if not block.has_shortcut:
                passed.append(v)
            coming.append(block.across(v.relu()))
        return *coming, *kept

    def look_left(self, before: Tensor, left: Pixel, coming: Pixel) -> tuple[Tensor, Pixel, Pixel]:
        """Run the second stream at one pixel; the first is what those below see."""
        across, kept = coming[: len(left) + 1], coming[len(left) + 1 :]
        h = across[0] + to_the_left(self.model.first_left, before.transpose(1, 2))
        seen: list[Tensor] = []
        passed: list[Tensor] = []
        for block, last, heard in zip(self.model.blocks, left, across[1:], strict=True):
            seen.append(h)
            beside = to_the_left(block.left, torch.stack([last, h], dim=2).relu())
            h = block.beside(h, beside + heard, passed.pop() if block.has_shortcut else None)
            if not block.has_shortcut:
                passed.append(h)
        mixture = self.model.head(h.relu())  # [B, 3 * logistics]
        return log_mass(mixture, self.every_level, self.levels), tuple(seen), kept


def to_the_left(convolution: nn.Conv2d, pixels: Tensor) -> Tensor:
    """Apply a kernel [outputs, C, 1, columns] to so many pixels [B, C, columns]: [B, outputs]."""
    return linear(pixels.flatten(1), convolution.weight.flatten(1), convolution.bias)


def log_mass(mixture: Tensor, levels: Tensor, count: int) -> Tensor:
    """Return log P(level) in nats, [.., L], of `count` levels under mixtures [.., 3 * logistics].

    A logistic's mass between two edges (equation 2) is sigmoid(b) sigmoid(-a) (1 - exp(a - b)),
    where a and b are the edges in its own scale: no difference of nearly equal numbers. What lies
    beyond the first and the last level belongs to them, so all masses add up to 1.
    """
    weight, mean, log_scale = (part.unsqueeze(-2) for part in mixture.chunk(3, dim=-1))
    log_scale = log_scale.clamp(min=SMALLEST_LOG_SCALE)  # [.., 1, logistics]
    levels = levels.unsqueeze(-1)  # [.., L, 1]
    middle = 2.0 * levels / (count - 1) - 1.0 - mean  # [.., L, logistics]
    narrow, half = (-log_scale).exp(), 1.0 / (count - 1)
    below = logsigmoid((middle + half) * narrow)  # of the upper edge
    above = logsigmoid(-(middle - half) * narrow)  # of the lower edge
    between = below + above + (-torch.expm1(-2.0 * half * narrow)).log()
    mass = torch.where(levels == 0, below, torch.where(levels == count - 1, above, between))
    return (log_softmax(weight, dim=-1) + mass).logsumexp(dim=-1)
