"""Building blocks and measurements that more than one family uses."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LOG_TWO_PI = math.log(2 * math.pi)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016), activated before each."""

    def __init__(self, channels: int):
        """Keep `channels` and the size of the picture."""
        super().__init__()
        self.body = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to the same shape."""
        return x + self.body(x)


def standard_normal_log_density(x: Tensor) -> Tensor:
    """Return log N(x; 0, I) in nats, [N] for x [N, D]."""
    return -0.5 * (x.square() + LOG_TWO_PI).sum(dim=1)


def normal_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw standard normal noise, on the generator's device."""
    return torch.randn(shape, generator=generator, device=generator.device)


def uniform_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw noise uniform on [0, 1), on the generator's device."""
    return torch.rand(shape, generator=generator, device=generator.device)


def binarise(levels: Tensor, generator: torch.Generator) -> Tensor:
    """Draw each pixel as 0 or 1 with its level / 255 as probability of 1."""
    return (uniform_noise(tuple(levels.shape), generator) < levels / 255).float()


def standard_error(values: Tensor) -> float | None:
    """Return the standard error of the mean of `values` [N]; None of a single one."""
    return (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else None
