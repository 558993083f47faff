"""Multi-scale RealNVP, a flow with exact inverse and exact density.

Laurent Dinh, Jascha Sohl-Dickstein and Samy Bengio, "Density estimation using Real NVP", 2016,
arXiv:1605.08803. Affine coupling layers (equations 7 and 8, in the masked form of equation 9)
alternate what they keep; squeezes trade space for channels; half of the channels leave after every
scale but the last (equation 14). Levels become reals by uniform noise and a logit (section 4.1).

Differences: the logit keeps the same margin from both ends; no batch normalisation, so a row never
depends on its batch and training and serving compute the same function; a learned normalisation of
the logits instead, with fixed first values (after the actnorm of Kingma and Dhariwal 2018,
arXiv:1807.03039).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model_zoo.flows.flow_layers import FlowOfLevels, LogitOfLevels, MultiScaleFlow, Squeeze
from model_zoo.layers import ResidualBlock

PUBLISHED = {
    "dataset": "mnist",
    "value": 1.06,
    "source": "RealNVP on MNIST, table 2 of FFJORD, arXiv:1810.01367",
}


class Coupling(nn.Module):
    """Affine coupling: what the mask keeps decides how the rest is scaled and shifted."""

    def __init__(self, mask: Tensor, network: nn.Module):
        """Take a 0/1 `mask` [C, 1, 1] or [D], 1 = kept, and a network that doubles dimension 1."""
        super().__init__()
        self.network = network
        self.register_buffer("mask", mask)
        self.factor = nn.Parameter(torch.ones_like(mask))  # bounds the log scale

    def scale_and_shift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return log scale and shift, zero where the mask keeps."""
        scale, shift = self.network(self.mask * x).float().chunk(2, dim=1)
        return (1 - self.mask) * self.factor * scale.tanh(), (1 - self.mask) * shift

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x to y = x * exp(s) + t (equation 9) and log |det dy/dx| (equation 6), [N]."""
        scale, shift = self.scale_and_shift(x)
        return x * scale.exp() + shift, scale.flatten(1).sum(dim=1)

    def inverse(self, y: Tensor) -> Tensor:
        """Map y back; s and t read only what the mask kept, which y still holds (equation 8)."""
        scale, shift = self.scale_and_shift(y)
        return (y - shift) * (-scale).exp()


class RealNVP(FlowOfLevels):
    """Two-scale flow over 8-bit images."""

    published = PUBLISHED

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        widths: tuple[int, int] = (48, 80),
        couplings: tuple[int, int] = (6, 4),
        residual_blocks: int = 1,
        margin: float = 1e-3,
    ):
        """Build for images [channels, height, width] whose sides are multiples of 4.

        `widths` and `couplings` are hidden channels and coupling layers of the two scales.
        """
        super().__init__(image_shape)
        channels = self.image_shape[0]
        self.levels = LogitOfLevels(margin, channels)
        # A checkerboard over the picture is a choice between channels after a squeeze, at a
        # quarter of the cost: so the first scale squeezes first, and masks diagonals of 2x2.
        fine = checkerboard_masks(channels)
        first = [*fine, *fine, *channel_masks(4 * channels)]
        second = [*checkerboard_masks(2 * channels), *channel_masks(8 * channels)]
        self.flow = MultiScaleFlow(
            self.image_shape,
            [
                [Squeeze(), *_couplings(first, couplings[0], widths[0], residual_blocks)],
                [Squeeze(), *_couplings(second, couplings[1], widths[1], residual_blocks)],
            ],
        )

    def encode(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Map dequantised levels in (0, 256), [N, C, H, W], to latents [N, D] and log |det|."""
        x, first_change = self.levels(levels)
        latent, change = self.flow(x)
        return latent, first_change + change

    def decode(self, latent: Tensor) -> Tensor:
        """Map latents [N, D] to dequantised levels, [N, C, H, W]."""
        return self.levels.inverse(self.flow.inverse(latent))


def checkerboard_masks(channels: int) -> list[Tensor]:
    """Return the two colours of a checkerboard as masks [4 * channels, 1, 1] after a squeeze.

    A squeeze puts each 2x2 square into channels 0 1 / 2 3: 0 and 3 share a colour.
    """
    black = torch.tensor([1.0, 0.0, 0.0, 1.0]).repeat(channels).reshape(-1, 1, 1)
    return [black, 1 - black]


def channel_masks(channels: int) -> list[Tensor]:
    """Return masks [channels, 1, 1] that keep the second half, then the first.

    The last of the pair changes what leaves at a factor-out, given what stays.
    """
    first = (torch.arange(channels) < channels // 2).float().reshape(-1, 1, 1)
    return [1 - first, first]


def coupling_network(channels: int, width: int, residual_blocks: int) -> nn.Module:
    """Return the convolutional s and t (section 3.7), zero at first so the flow starts as 1:1."""
    last = nn.Conv2d(width, 2 * channels, 3, padding=1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        *(ResidualBlock(width) for _ in range(residual_blocks)),
        nn.SiLU(),
        last,
    )


def _couplings(
    masks: Sequence[Tensor], count: int, width: int, residual_blocks: int
) -> list[Coupling]:
    chosen = [masks[index % len(masks)].clone() for index in range(count)]
    return [Coupling(mask, coupling_network(len(mask), width, residual_blocks)) for mask in chosen]
