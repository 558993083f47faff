"""An autoregressive distribution over maps of codes: a small PixelCNN whose pixels are codes.

Section 3.4 of van den Oord et al. 2017, arXiv:1711.00937: once a picture is a map of codes, its
prior is a PixelCNN over them, with the layers of the gated one (arXiv:1606.05328). Few codes make a
picture, so a whole map is drawn within one graph: a loop over rows, each the row step by which the
PixelCNNs of pixels are painted.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from model_zoo.autoregressive.gated_layers import first_layer, later_layer
from model_zoo.autoregressive.row_step import RowStep
from model_zoo.scan import Scan

LABEL_DROPOUT = 0.1


class CodePrior(nn.Module):
    """p(c) as the product of p(c_i | c_1 .. c_i-1, condition) over a map in reading order."""

    def __init__(
        self,
        shape: tuple[int, int],
        levels: int,
        conditions: int,
        layers: int,
        channels: int,
        head_width: int = 64,
        features: int = 8,
        reach: int = 3,
    ):
        """Build for maps [height, width] of codes 0 to `levels` - 1, of 2 layers or more.

        Each position is conditioned on `conditions` numbers; the first layer sees `reach` codes up
        and to each side.
        """
        super().__init__()
        self.shape, self.levels = shape, levels
        self.features = nn.Embedding(levels, features)
        self.layers = nn.ModuleList(
            [
                first_layer(features, channels, conditions, reach),
                *(later_layer(channels, conditions) for _ in range(layers - 1)),
            ]
        )
        self.head = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, head_width, 1),
            nn.ReLU(),
            nn.Conv2d(head_width, levels, 1),
        )

    def log_probability(self, codes: Tensor, condition: Tensor) -> Tensor:
        """Return log p(c) in nats, [N], of maps [N, H, W].

        The condition is [N, conditions], the same everywhere, or a map [N, H, W, conditions].
        """
        v = h = self.features(codes).permute(0, 3, 1, 2)  # [N, features, H, W]
        for layer in self.layers:
            v, h = layer(v, h, condition)
        of_codes = log_softmax(self.head(h).float(), dim=1)  # [N, levels, H, W]
        return of_codes.gather(1, codes[:, None]).flatten(1).sum(dim=1)


class DrawMap(Scan):
    """Graph: draw the codes of one map, row after row."""

    def __init__(
        self, prior: CodePrior, start: int = 0, condition: Callable[..., Tensor] | None = None
    ):
        """Draw a map by those numbers of a row of noise that begin at `start`.

        `condition` maps class weights and the codes of the maps before this one to the condition of
        the prior, a map [N, H, W, conditions]. Without it, class weights are the condition.
        """
        super().__init__()
        height, width = prior.shape
        self.step_of_row = RowStep(prior.features, prior.layers, prior.head, width, filtered=False)
        self.shape, self.places = prior.shape, slice(start, start + height * width)
        self.condition = condition

    def prepare(self, *inputs: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Take noise [N, size], temperature [N], class weights [N, classes] and codes before."""
        uniform, temperature, class_weights, *before = inputs
        noise = uniform[:, self.places].unflatten(1, self.shape).permute(1, 2, 0)  # [H, W, N]
        caches = [
            uniform.new_zeros(port.shape_of(uniform.shape[0]))
            for port in self.step_of_row.input_ports()
            if port.role == "cache"
        ]
        given = self.condition(class_weights, *before) if self.condition else class_weights
        return (*caches, temperature), (noise, _by_row(given, self.shape[0]))

    def step(
        self, states: tuple[Tensor, ...], items: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Draw one row."""
        rows_above, activations, temperature = states
        noise, condition = items
        free = torch.full_like(noise, -1, dtype=torch.int64)
        codes, _, *caches = self.step_of_row(
            rows_above, activations, condition, temperature, free, noise
        )
        return (*caches, temperature), (codes.T,)

    def finish(self, *results: Tensor) -> tuple[Tensor, ...]:
        """Map rows [H, N, W] to codes in reading order, [N, H * W]."""
        (rows,) = results
        return (rows.transpose(0, 1).flatten(1),)


def _by_row(condition: Tensor, height: int) -> Tensor:
    """Return the condition of each row: [H, N, D], or [H, N, 1, W, D] of a map [N, H, W, D]."""
    if condition.dim() == 2:
        return condition.expand(height, *condition.shape)
    return condition.transpose(0, 1)[:, :, None]
