"""Generative adversarial network, with the loss of the generator that does not saturate.

Ian Goodfellow, Jean Pouget-Abadie, Mehdi Mirza, Bing Xu, David Warde-Farley, Sherjil Ozair, Aaron
Courville and Yoshua Bengio, "Generative Adversarial Nets", 2014, arXiv:1406.2661. Discriminator and
generator play equation 1; where D is best, the generator descends the Jensen-Shannon divergence of
its pictures from the real ones (theorem 1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from model_zoo.gans.adversarial import Adversarial
from model_zoo.gans.gan_layers import Discriminator, Generator, initialise
from model_zoo.gans.losses import discriminate, look_real


class GAN(Adversarial):
    """Generator and discriminator of the first game, with no condition."""

    family = "generative adversarial network"

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
        self.apply(initialise)

    def discriminator_loss(
        self, real: Tensor, fake: Tensor, condition: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        """Return the loss of a classifier of real and fake, in nats (equation 1)."""
        return discriminate(self.score(real), self.score(fake))

    def generator_loss(self, fake: Tensor, condition: Tensor | None) -> Tensor:
        """Return -log D(G(z)), in nats (section 3)."""
        return look_real(self.score(fake))
