"""One row of pixels at a time, for any network that can say what a row needs of the past.

As for the gated PixelCNN, a row is computed from the caches that the row above left behind, each
activation once (Ramachandran et al. 2017, arXiv:1704.06001). What differs between networks is what
comes from above, for a whole row at once, and what happens at a pixel: the exporter traces either.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from model_zoo.autoregressive.row_step import COLDEST, draw, keep_likely
from model_zoo.family import Graph, Port
from model_zoo.scan import Scan

Pixel = tuple[Tensor, ...]
"""What there is of one pixel of every image, [B, *] each."""


class RowNetwork(nn.Module, ABC):
    """A network without classes, as a row of pixels sees it: W pixels of `features` numbers each.

    `reach` rows above the row, and pixels to the left, are seen directly; of `cached` layers the
    activations of the row above, so many channels each. Outside of the picture all is zero. Where
    the network is `told` something of every pixel of the row, that is so many numbers each.
    """

    width: int
    levels: int
    features: int
    reach: int
    cached: tuple[int, int]
    told: int = 0

    @abstractmethod
    def pixels(self, levels: Tensor) -> Tensor:
        """Map levels [B] to the features of a pixel, [B, features]."""

    @abstractmethod
    def look_up(self, rows_above: Tensor, activations: Tensor, told: Tensor | None) -> Pixel:
        """Return what comes from above for every column, [W, B, *] each.

        `rows_above` are [B, features, reach, W], `activations` [layers, B, C, 1, W]; what is told,
        if anything, [W, B, told], may go along with what comes from above.
        """

    @abstractmethod
    def look_left(self, before: Tensor, left: Pixel, coming: Pixel) -> tuple[Tensor, Pixel, Pixel]:
        """Return the logits [B, levels] of a pixel, and what the next one and those below see.

        The next one sees an activation of every cached layer, [B, C], and so do those below, which
        may see another. `before` are the `reach` pixels to the left, [B, reach, features]; `left`
        is what the last of them left for this one.
        """


class ScannedRowStep(Scan):
    """Graph: draw the next row of every image of a batch, wherever each of them stands.

    Temperature 0 is greedy. `top_k` keeps the levels with the largest probabilities, `top_p` then
    the fewest whose share of these reaches it; of equals, lower levels count as larger.
    """

    def __init__(self, network: RowNetwork, filtered: bool):
        """Take a network, whose weights it shares."""
        super().__init__()
        self.network, self.filtered = network, filtered

    def input_ports(self) -> tuple[Port, ...]:
        """Describe the inputs; `forced` is -1 where a pixel is free."""
        row = (self.network.width,)
        filters = (Port("top_k", "control", (), "int64"), Port("top_p", "control", ()))
        told = Port("features", "features", (self.network.width, self.network.told), batch_axis=1)
        return (
            Port("rows_above", "cache", self._rows_shape(), batch_axis=1),
            Port("activations", "cache", self._activations_shape(), batch_axis=2),
            *((told,) if self.network.told else ()),
            Port("temperature", "control", ()),
            *(filters if self.filtered else ()),
            Port("forced", "forced", row, "int64", batch_axis=1),
            Port("uniform", "noise", row, "float32", "uniform", "pixels", batch_axis=1),
        )

    def output_ports(self) -> tuple[Port, ...]:
        """Describe the outputs; probabilities are those at temperature 1, unfiltered."""
        row = (self.network.width,)
        return (
            Port("levels", "levels", row, "int64", batch_axis=1),
            Port("log_probability", "log_likelihood_map", row, batch_axis=1),
            Port("next_rows_above", "cache", self._rows_shape(), batch_axis=1),
            Port("next_activations", "cache", self._activations_shape(), batch_axis=2),
        )

    def _rows_shape(self) -> tuple[int, ...]:
        return self.network.width, self.network.reach * self.network.features

    def _activations_shape(self) -> tuple[int, ...]:
        layers, channels = self.network.cached
        return layers, self.network.width, channels

    def prepare(
        self, rows_above: Tensor, activations: Tensor, *rest: Tensor
    ) -> tuple[Pixel, Pixel]:
        """Map caches [W, B, reach * features], [layers, W, B, C] and choices to the first column.

        States are the pixels to the left, what they were seen as, and the choices; a column gets
        what comes from above, its share of the caches, the level that is forced and the noise.
        """
        network, (layers, channels) = self.network, self.network.cached
        told, rest = (rest[0], rest[1:]) if network.told else (None, rest)
        temperature, *filters, forced, uniform = rest
        # [W, B, reach * features] -> [B, features, reach, W]
        rows = rows_above.unflatten(2, (network.reach, network.features)).permute(1, 3, 2, 0)
        # [layers, W, B, C] -> [layers, B, C, 1, W]
        coming = network.look_up(rows, activations.permute(0, 2, 3, 1).unsqueeze(3), told)
        nothing = torch.zeros_like(temperature).unsqueeze(1)  # [B, 1]
        before = nothing.unsqueeze(2).repeat(1, network.reach, network.features)
        left = [nothing.repeat(1, channels) for _ in range(layers)]
        choices = temperature.clamp(min=COLDEST), *filters
        return (before, *left, *choices), (*coming, rows_above, forced, uniform)

    def step(self, states: Pixel, items: Pixel) -> tuple[Pixel, Pixel]:
        """Draw a pixel of every image."""
        layers, network = self.network.cached[0], self.network
        before, *left = states[: layers + 1]
        temperature, *filters = choices = states[layers + 1 :]
        *coming, above, forced, uniform = items
        logits, seen, kept = network.look_left(before, tuple(left), tuple(coming))
        probability = (logits / temperature.unsqueeze(1)).softmax(dim=1)
        if filters:
            probability = keep_likely(probability, *filters)
        level = torch.where(forced < 0, draw(probability, uniform), forced)
        pixel = network.pixels(level)
        next_before = torch.cat([before[:, 1:], pixel.unsqueeze(1)], dim=1)
        next_above = torch.cat([above[:, network.features :], pixel], dim=1)
        next_activations = torch.stack(kept, dim=1)  # [B, layers, C]
        return (next_before, *seen, *choices), (level, logits, next_above, next_activations)

    def finish(self, *results: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Map levels [W, B], logits [W, B, levels] and what goes into the caches to the outputs."""
        levels, logits, next_rows, seen = results
        log_probability = log_softmax(logits, dim=2).gather(2, levels.unsqueeze(2)).squeeze(2)
        return levels, log_probability, next_rows, seen.permute(2, 0, 1, 3)


def row_steps(network: RowNetwork) -> tuple[Graph, Graph]:
    """Return both row steps of a network, the one without filters and the one with them."""
    plain, filtered = (ScannedRowStep(network, which).eval() for which in (False, True))
    return (
        Graph("row_step", plain, plain.input_ports(), plain.output_ports()),
        Graph("row_step_filtered", filtered, filtered.input_ports(), filtered.output_ports()),
    )


def one_row(convolution: Tensor, bias: Tensor | None, rows: Tensor) -> Tensor:
    """Apply a kernel [outputs, C, height, width] to rows [B, C, height, W]: [W, B, outputs].

    There are as many rows as the kernel is high; it is as wide to the left as to the right.
    """
    side = convolution.shape[3] // 2
    row = torch.conv2d(rows, convolution, bias, padding=(0, side))
    return row.squeeze(2).permute(2, 0, 1)
