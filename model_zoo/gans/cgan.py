"""Generative adversarial network that is told the class.

Mehdi Mirza and Simon Osindero, "Conditional Generative Adversarial Nets", 2014, arXiv:1411.1784.
Both networks are shown y beside what they had, and play the first game given y (equation 2): a
digit that looks real, but not of its class, is told from the real ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model_zoo.gans.adversarial import Adversarial
from model_zoo.gans.gan_layers import Discriminator, Generator, initialise
from model_zoo.gans.losses import discriminate, look_real


class ConditionalGAN(Adversarial):
    """Generator and discriminator, both shown the class."""

    family = "conditional generative adversarial network"

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        classes: int = 10,
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
            classes,
            Generator(image_shape, classes, latent_size, width),
            Discriminator(image_shape, classes, width, normalised=True),
            latent_size,
            judge,
        )
        self.apply(initialise)

    def discriminator_loss(
        self, real: Tensor, fake: Tensor, condition: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        """Return -log D(x|y) - log(1 - D(G(z|y)|y)), in nats (equation 2)."""
        return discriminate(self.score(real, condition), self.score(fake, condition))

    def generator_loss(self, fake: Tensor, condition: Tensor | None) -> Tensor:
        """Return -log D(G(z|y)|y), in nats."""
        return look_real(self.score(fake, condition))
