"""A codebook: vectors, each known by its number, of which the nearest stands for any other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

COMMITMENT = 0.25  # beta of equation 3; results hardly change from 0.1 to 2, the paper says


class Codebook(nn.Module):
    """Vector quantisation (van den Oord et al. 2017, arXiv:1711.00937, section 3)."""

    def __init__(self, levels: int, size: int):
        """Hold `levels` vectors of `size` numbers."""
        super().__init__()
        self.levels, self.size = levels, size
        self.vectors = nn.Parameter((2 * torch.rand(levels, size) - 1) / levels)

    def nearest(self, z: Tensor) -> Tensor:
        """Return the number of the nearest vector at each place of z [N, D, H, W], [N, H, W].

        Of equally near ones it is the lowest (equation 1).
        """
        away = z.float().permute(0, 2, 3, 1)[..., None, :] - self.vectors  # [N, H, W, K, D]
        return away.square().sum(dim=4).argmin(dim=3)

    def look_up(self, codes: Tensor) -> Tensor:
        """Map codes [N, H, W] to their vectors [N, D, H, W]."""
        return self.vectors[codes].permute(0, 3, 1, 2)

    def quantise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest vectors to z, [N, D, H, W], and the loss that brings them nearer, [N].

        The gradient of what is made of them passes to z as if it were not quantised (equation 2).
        The vectors move to what they stand for, and z stays near them: the second and third term of
        equation 3. There is no running mean of the vectors, which the paper has as another way.
        """
        z = z.float()
        vectors = self.look_up(self.nearest(z))
        moved = (vectors - z.detach()).square() + COMMITMENT * (vectors.detach() - z).square()
        return z + (vectors - z).detach(), moved.flatten(1).sum(dim=1)
