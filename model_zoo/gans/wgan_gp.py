"""Wasserstein GAN with a gradient penalty.

Ishaan Gulrajani, Faruk Ahmed, Martin Arjovsky, Vincent Dumoulin and Aaron Courville, "Improved
Training of Wasserstein GANs", 2017, arXiv:1704.00028. The critic's difference between real and fake
bounds the earth mover's distance if its slope is at most 1; it is made so by a penalty on its slope
between real and fake pictures (equation 3, algorithm 1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from model_zoo.gans.adversarial import CRITIC, Adversarial
from model_zoo.gans.gan_layers import Discriminator, Generator
from model_zoo.layers import uniform_noise


class WGANGP(Adversarial):
    """Generator and critic, with no condition."""

    family = "Wasserstein generative adversarial network with gradient penalty"
    meaning = CRITIC

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        latent_size: int = 32,
        width: int = 32,
        penalty: float = 10.0,
        critic_steps: int = 5,
        judge: str | None = None,
    ):
        """Build for images [channels, height, width] whose sides are multiples of 4.

        `width` is the number of channels at half the resolution, twice that at a quarter. `penalty`
        weighs the slope against the distance, and `critic_steps` are taken for one of the
        generator. `judge` names a trained classifier, in whose features `evaluate` measures the
        samples.
        """
        super().__init__(
            image_shape,
            0,
            Generator(image_shape, 0, latent_size, width),
            # The penalty is on each picture's own slope: batch normalisation mixes them, section 4.
            # What it adds to every picture cancels in the distance.
            Discriminator(image_shape, 0, width, normalised=False, offset=False),
            latent_size,
            judge,
        )
        self.penalty, self.generator_interval = penalty, critic_steps

    def discriminator_loss(
        self, real: Tensor, fake: Tensor, condition: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        """Return minus the distance that the critic sees, and the penalty (equation 3)."""
        distance = self.score(real).mean() - self.score(fake).mean()
        return self.penalty * self.gradient_penalty(real, fake, generator) - distance

    def gradient_penalty(self, real: Tensor, fake: Tensor, generator: torch.Generator) -> Tensor:
        """Return the mean of (|slope of the critic| - 1)^2 at random places between two images."""
        share = uniform_noise((len(real), 1, 1, 1), generator)
        between = (share * real + (1 - share) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(self.score(between).sum(), between, create_graph=True)
        return (slope.flatten(1).norm(dim=1) - 1).square().mean()

    def generator_loss(self, fake: Tensor, condition: Tensor | None) -> Tensor:
        """Return -D(G(z)) (algorithm 1, line 12)."""
        return -self.score(fake).mean()
