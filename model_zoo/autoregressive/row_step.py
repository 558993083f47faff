"""One row of pixels at a time: the recurrence by which a Gated PixelCNN is sampled.

A forward pass for every pixel would compute most activations again and again. What a row needs of
the past is little: of the rows above, the last few and the vertical activations of one; of the
pixels to the left, the last few and the horizontal activations of one. So a row is computed from
the caches that the row above left behind, each activation once (Ramachandran et al. 2017, "Fast
generation for convolutional autoregressive models", arXiv:1704.06001). Images in a batch may stand
at different rows, since nothing depends on the position: caches of zeros are the padding.

This is the plain statement of the function, for reading and for proof. The exporter writes the
graph that is served by hand, several times faster, and compares it with this.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, log_softmax, pad

from model_zoo.autoregressive.gated_layers import GatedLayer, gate, spread
from model_zoo.family import Port

COLDEST = 2.0**-100
"""Temperatures below count as this: one level has all of the probability, and nothing overflows."""

KEEP_ALL = 2.0
"""Stands for a top_p of 1, so that rounding never drops a level from the whole."""


class RowStep(nn.Module):
    """Graph: draw the next row of every image of a batch, wherever each of them stands.

    Temperature 0 is greedy. `top_k` keeps the levels with the largest probabilities, `top_p` then
    the fewest whose share of these reaches it; of equals, lower levels count as larger.
    """

    def __init__(
        self,
        features: nn.Embedding,
        layers: Sequence[nn.Module],
        head: nn.Sequential,
        width: int,
        filtered: bool,
    ):
        """Take the parts of a model of rows of `width` pixels.

        Raises ValueError where one layer would leave nothing to cache.
        """
        super().__init__()
        if len(layers) < 2:
            raise ValueError(f"layers is {len(layers)}; row steps are of at least 2")
        self.layers: list[GatedLayer] = nn.ModuleList(layers)  # type: ignore[assignment]
        self.features, self.head, self.width, self.filtered = features, head, width, filtered
        self.reach = self.layers[0].vertical.kernel_size[0]
        self.channels = self.layers[0].residual.in_channels
        self.classes = self.layers[0].condition.in_features
        self.levels, self.level_features = features.weight.shape

    def input_ports(self) -> tuple[Port, ...]:
        """Describe the inputs; `forced` is -1 where a pixel is free."""
        row = (self.width,)
        filters = (
            Port("top_k", "control", (), "int64"),
            Port("top_p", "control", ()),
        )
        return (
            Port("rows_above", "cache", self._rows_shape(), batch_axis=1),
            Port("activations", "cache", self._activations_shape(), batch_axis=2),
            Port("class_weights", "condition", (self.classes,)),
            Port("temperature", "control", ()),
            *(filters if self.filtered else ()),
            Port("forced", "forced", row, "int64", batch_axis=1),
            Port("uniform", "noise", row, "float32", "uniform", "pixels", batch_axis=1),
        )

    def output_ports(self) -> tuple[Port, ...]:
        """Describe the outputs; probabilities are those at temperature 1, unfiltered."""
        row = (self.width,)
        return (
            Port("levels", "levels", row, "int64", batch_axis=1),
            Port("log_probability", "log_likelihood_map", row, batch_axis=1),
            Port("next_rows_above", "cache", self._rows_shape(), batch_axis=1),
            Port("next_activations", "cache", self._activations_shape(), batch_axis=2),
        )

    def _rows_shape(self) -> tuple[int, ...]:
        return self.width, self.reach * self.level_features

    def _activations_shape(self) -> tuple[int, ...]:
        return len(self.layers) - 1, self.width, self.channels

    def forward(
        self,
        rows_above: Tensor,
        activations: Tensor,
        class_weights: Tensor,
        temperature: Tensor,
        *rest: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Map caches [W, B, reach * features], [layers - 1, W, B, C] and choices to [W, B]."""
        *filters, forced, uniform = rest
        coming, next_activations = self.look_up(rows_above, activations, class_weights)
        temperature = temperature.clamp(min=COLDEST)[:, None]
        left = [torch.zeros_like(coming[0][0, :, : self.channels]) for _ in self.layers]
        pixels = [torch.zeros_like(rows_above[0, :, : self.level_features])] * self.reach
        levels, log_probability = [], []
        for column in range(self.width):
            before = torch.stack(pixels[-self.reach :], dim=2)  # [B, features, reach]
            logits, left = self.look_left(before, left, [pixel[column] for pixel in coming])
            probability = (logits / temperature).softmax(dim=1)
            if filters:
                probability = keep_likely(probability, *filters)
            level = draw(probability, uniform[column])
            level = torch.where(forced[column] < 0, level, forced[column])
            levels.append(level)
            log_probability.append(log_softmax(logits, 1).gather(1, level[:, None])[:, 0])
            pixels.append(self.features(level))
        row = torch.stack(pixels[self.reach :])  # [W, B, features]
        next_rows = torch.cat([rows_above[:, :, self.level_features :], row], dim=2)
        return torch.stack(levels), torch.stack(log_probability), next_rows, next_activations

    def look_up(
        self, rows_above: Tensor, activations: Tensor, class_weights: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Run the vertical stack: what each layer's left gate gets, [W, B, 2C], and the cache."""
        coming, passed_on = [], []
        rows = rows_above.reshape(self.width, -1, self.reach, self.level_features)
        rows = rows.permute(1, 3, 2, 0)  # [W, B, reach, features] -> [B, features, reach, W]
        for index, layer in enumerate(self.layers):
            shift_v, shift_h = spread(layer.condition(class_weights)).chunk(2, dim=1)
            above = valid_convolution(layer.vertical, rows) + shift_v  # [B, 2C, 1, W]
            coming.append((layer.across(above) + shift_h)[:, :, 0].permute(2, 0, 1))
            passed_on.append(gate(above))
            if index < len(activations):
                cached = activations[index].permute(1, 2, 0)[
                    :, :, None
                ]  # [W, B, C] -> [B, C, 1, W]
                rows = torch.cat([cached, passed_on[-1]], dim=2)
        # [layers - 1] of [B, C, 1, W] -> [layers - 1, W, B, C]
        kept = [activation[:, :, 0].permute(2, 0, 1) for activation in passed_on[:-1]]
        return coming, torch.stack(kept)

    def look_left(
        self, before: Tensor, left: list[Tensor], coming: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Run the horizontal stack for one pixel: its logits, and what the next one looks back at.

        `before` holds the pixels to the left, [B, features, reach]; `left` the input of every layer
        but the first one column ago, [B, C]; `coming` what comes from above, [B, 2C].
        """
        seen, h = [], before
        for index, layer in enumerate(self.layers):
            seen.append(h)
            window = torch.stack([left[index], h], dim=2) if index else h
            # [2C, inputs, 1, columns] -> [2C, inputs * columns]
            pushed = linear(window.flatten(1), layer.horizontal.weight.flatten(1))
            change = layer.residual(gate((pushed + coming[index])[:, :, None, None]))[:, :, 0, 0]
            h = h + change if layer.has_shortcut else change
        return self.head(h[:, :, None, None])[:, :, 0, 0], seen


def valid_convolution(layer: nn.Conv2d, rows: Tensor) -> Tensor:
    """Convolve [B, inputs, kernel height, W] to one row [B, outputs, 1, W]."""
    reach = layer.kernel_size[1] // 2
    return conv2d(pad(rows, (reach, reach)), layer.weight, layer.bias)


def keep_likely(probability: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Set to zero what top-k and then top-p leave out, [B, levels]."""
    ordered, level = probability.sort(dim=1, descending=True, stable=True)
    rank = torch.arange(probability.shape[1], device=probability.device)
    ordered = torch.where(rank < top_k[:, None], ordered, 0.0)
    share = torch.where(top_p >= 1, KEEP_ALL, top_p) * ordered.sum(dim=1)
    larger = ordered.cumsum(dim=1) - ordered  # the probability of all larger ones
    return torch.zeros_like(ordered).scatter(
        1, level, torch.where(larger < share[:, None], ordered, 0.0)
    )


def draw(probability: Tensor, uniform: Tensor) -> Tensor:
    """Invert the cumulative sum of [B, levels], which need not end at 1, at [B] in [0, 1).

    The level is the number of sums that do not exceed uniform * total. The last sum is the total,
    so the result is always a level; equal sums are passed at once, so its probability is never 0.
    """
    cumulative = probability.cumsum(dim=1)
    threshold = (uniform * cumulative[:, -1])[:, None]
    return (cumulative <= threshold).sum(dim=1)
