"""An autoregressive distribution over maps of codes: a small PixelCNN whose pixels are codes.

Section 3.4 of van den Oord et al. 2017, arXiv:1711.00937: once a picture is a map of codes, its
prior is a PixelCNN over them, with the layers of the gated one (arXiv:1606.05328). Few codes make a
picture, so a whole map is drawn within one graph: a loop over rows, each the row step by which the
PixelCNNs of pixels are painted.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch.nn.functional import log_softmax

from model_zoo.autoregressive.gated_layers import first_layer, later_layer
from model_zoo.autoregressive.row_step import RowStep

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

    def draw(self, uniform: Tensor, temperature: Tensor, condition: Tensor) -> Tensor:
        """Return maps [N, H, W] drawn with one uniform number in [0, 1) a code, [N, H, W].

        Logits are divided by `temperature`, [N]. The weights must not ask for gradients.
        """
        height, width = self.shape
        count = uniform.shape[0]
        step = RowStep(self.features, self.layers, self.head, width, filtered=False)
        free = torch.full((width, count), -1, device=uniform.device)

        def paint_row(
            caches: tuple[Tensor, Tensor], row: tuple[Tensor, Tensor]
        ) -> tuple[tuple[Tensor, Tensor], Tensor]:
            codes, _, rows_above, activations = step(*caches, row[1], temperature, free, row[0])
            return (rows_above, activations), codes

        caches = [
            uniform.new_zeros(port.shape_of(count))
            for port in step.input_ports()
            if port.role == "cache"
        ]
        noise = uniform.permute(1, 2, 0).contiguous()  # [N, H, W] -> [H, W, N]
        _, rows = scan(paint_row, tuple(caches), (noise, _by_row(condition, height)))
        return rows.permute(2, 0, 1)  # [H, W, N] -> [N, H, W]


def _by_row(condition: Tensor, height: int) -> Tensor:
    """Return the condition of each row: [H, N, D], or [H, N, 1, W, D] of a map [N, H, W, D]."""
    if condition.dim() == 2:
        return condition.expand(height, *condition.shape).contiguous()
    return condition.transpose(0, 1)[:, :, None].contiguous()
