"""Wasserstein generative adversarial network, its critic's weights clipped.

Martin Arjovsky, Soumith Chintala and Léon Bottou, "Wasserstein GAN", 2017, arXiv:1701.07875. Among
all critics with a bounded slope, the largest difference between the mean values of real and fake
pictures is, up to that bound, the earth mover's distance between the two (equation 2). It shrinks
smoothly as fakes move towards the real ones, even where the two never meet. The slope is bounded by
clipping every weight after each step (algorithm 1), and the critic takes several of them for one of
the generator, so that it stays near the largest difference.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model_zoo.family import Batch
from model_zoo.gans.adversarial import CRITIC, Adversarial
from model_zoo.gans.gan_layers import Discriminator, Generator


class WGAN(Adversarial):
    """Generator and critic, with no condition."""

    family = "Wasserstein generative adversarial network"
    meaning = CRITIC

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        latent_size: int = 32,
        width: int = 32,
        clip: float = 0.01,
        critic_steps: int = 5,
        judge: str | None = None,
    ):
        """Build for images [channels, height, width] whose sides are multiples of 4.

        `width` is the number of channels at half the resolution, twice that at a quarter. Weights
        of the critic are within `clip` of 0, and `critic_steps` are taken for one of the generator.
        `judge` names a trained classifier, in whose features `evaluate` measures the samples.
        """
        super().__init__(
            image_shape,
            0,
            Generator(image_shape, 0, latent_size, width),
            # What it adds to every picture cancels in the difference.
            Discriminator(image_shape, 0, width, normalised=True, offset=False),
            latent_size,
            judge,
        )
        self.clip, self.generator_interval = clip, critic_steps

    def discriminator_loss(
        self, real: Tensor, fake: Tensor, condition: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        """Return minus the difference of the means (algorithm 1, line 5), clipping first."""
        self.clip_critic()  # what the step before has moved, line 7
        return self.score(fake).mean() - self.score(real).mean()

    def generator_loss(self, fake: Tensor, condition: Tensor | None) -> Tensor:
        """Return -D(G(z)) (algorithm 1, line 10)."""
        self.clip_critic()
        return -self.score(fake).mean()

    def conclude(self, data: Batch, generator: torch.Generator) -> None:
        """Clip what the last step has moved."""
        self.clip_critic()

    @torch.no_grad()
    def clip_critic(self) -> None:
        """Put every weight of the critic to where it is allowed."""
        for parameter in self.discriminator.parameters():
            parameter.clamp_(-self.clip, self.clip)
