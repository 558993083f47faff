"""Generative adversarial network, with the loss of the generator that does not saturate.

Ian Goodfellow, Jean Pouget-Abadie, Mehdi Mirza, Bing Xu, David Warde-Farley, Sherjil Ozair, Aaron
Courville and Yoshua Bengio, "Generative Adversarial Nets", 2014, arXiv:1406.2661. Discriminator and
generator play equation 1; where D is best, the generator descends the Jensen-Shannon divergence of
its pictures from the real ones (theorem 1).
"""

from __future__ import annotations

from model_zoo.gans.first_game import FirstGame


class GAN(FirstGame):
    """Generator and discriminator of the first game, with no condition."""

    family = "generative adversarial network"

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        latent_size: int = 32,
        width: int = 32,
        judge: str | None = None,
    ):
        """Build for images [channels, height, width], as `FirstGame` says."""
        super().__init__(image_shape, 0, latent_size, width, judge)
