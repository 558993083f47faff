"""Least squares generative adversarial network.

Xudong Mao, Qing Li, Haoran Xie, Raymond Y. K. Lau, Zhen Wang and Stephen Paul Smolley, "Least
Squares Generative Adversarial Networks", 2017, arXiv:1611.04076. The discriminator fits a number to
each picture, and a fake on the right side of the border is still pulled towards the real ones where
it lies far from them. With b - c = 1 and b - a = 2 the generator would descend a Pearson divergence
(equation 8); a = 0 and b = c = 1, as here, works as well and makes fakes as real as can be
(equation 9).
"""

from __future__ import annotations

import torch
from torch import Tensor

from model_zoo.gans.adversarial import Adversarial, Meaning
from model_zoo.gans.gan_layers import Discriminator, Generator

FAKE, REAL, WANTED = 0.0, 1.0, 1.0  # a, b and c
ESTIMATE: Meaning = {
    "higher_means": "more_real",
    "unit": "label",
    "meaning": "the discriminator's estimate of a label, 1 of real images and 0 of fakes",
}


class LSGAN(Adversarial):
    """Generator and discriminator, with no condition."""

    family = "least squares generative adversarial network"
    meaning = ESTIMATE

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        latent_size: int = 32,
        width: int = 32,
        judge: str | None = None,
    ):
        """Build for images [channels, height, width] whose sides are multiples of 4.

        `width` is the number of channels at half the resolution, twice that at a quarter. `judge`
        names a trained classifier, in whose features `evaluate` measures the samples.
        """
        super().__init__(
            image_shape,
            0,
            Generator(image_shape, 0, latent_size, width),
            Discriminator(image_shape, 0, width, normalised=True),
            latent_size,
            judge,
        )

    def discriminator_loss(
        self, real: Tensor, fake: Tensor, condition: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        """Return 1/2 (D(x) - b)^2 + 1/2 (D(G(z)) - a)^2 (equation 2)."""
        misses = (self.score(real) - REAL).square() + (self.score(fake) - FAKE).square()
        return misses.mean() / 2

    def generator_loss(self, fake: Tensor, condition: Tensor | None) -> Tensor:
        """Return 1/2 (D(G(z)) - c)^2 (equation 2)."""
        return (self.score(fake) - WANTED).square().mean() / 2
