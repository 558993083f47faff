"""The first adversarial game, which three families play.

Ian Goodfellow, Jean Pouget-Abadie, Mehdi Mirza, Bing Xu, David Warde-Farley, Sherjil Ozair, Aaron
Courville and Yoshua Bengio, "Generative Adversarial Nets", 2014, arXiv:1406.2661. The discriminator
gives the logit of D, and both losses are written by softplus, so that no logit overflows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from model_zoo.gans.adversarial import Adversarial
from model_zoo.gans.gan_layers import Discriminator, Generator, initialise


class FirstGame(Adversarial):
    """Generator and discriminator with batch normalisation, both shown the class y, if any."""

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        classes: int = 10,
        latent_size: int = 32,
        width: int = 32,
        judge: str | None = None,
    ):
        """Build for images [channels, height, width] whose sides are multiples of 4.

        `classes` is 0 where there is no condition. `width` is the number of channels at half the
        resolution, twice that at a quarter. `judge` names a trained classifier, in whose features
        `evaluate` measures the samples.
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
        """Return -log D(x|y) - log(1 - D(G(z|y)|y)), in nats: minus the value of equation 1."""
        real_logit, fake_logit = self.score(real, condition), self.score(fake, condition)
        return (softplus(-real_logit) + softplus(fake_logit)).mean()

    def generator_loss(self, fake: Tensor, condition: Tensor | None) -> Tensor:
        """Return -log D(G(z|y)|y), in nats, the loss that does not saturate (section 3).

        log(1 - D(G(z))) of equation 1 has the same fixed point, but hardly any gradient early on,
        when every fake is told.
        """
        return softplus(-self.score(fake, condition)).mean()
