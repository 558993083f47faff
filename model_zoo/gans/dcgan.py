"""Deep convolutional generative adversarial network, conditional on a class.

Alec Radford, Luke Metz and Soumith Chintala, "Unsupervised Representation Learning with Deep
Convolutional Generative Adversarial Networks", 2015, arXiv:1511.06434. What the paper adds to the
game of Goodfellow et al. is what its networks are made of (section 3): all families here have
learned that from it. This is the paper's own game, at half its width, with a class that enters both
networks after Mirza and Osindero, 2014, arXiv:1411.1784.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model_zoo.gans.adversarial import Adversarial
from model_zoo.gans.gan_layers import Discriminator, Generator, initialise
from model_zoo.gans.losses import discriminate, look_real


class DCGAN(Adversarial):
    """Generator and discriminator with batch normalisation, both shown the class."""

    family = "deep convolutional generative adversarial network"

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        classes: int = 10,
        latent_size: int = 64,
        width: int = 64,
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
        """Return the loss of a classifier of real and fake, in nats."""
        return discriminate(self.score(real, condition), self.score(fake, condition))

    def generator_loss(self, fake: Tensor, condition: Tensor | None) -> Tensor:
        """Return the non-saturating loss, in nats."""
        return look_real(self.score(fake, condition))
