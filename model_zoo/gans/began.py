"""Boundary equilibrium generative adversarial network.

David Berthelot, Thomas Schumm and Luke Metz, "BEGAN: Boundary Equilibrium Generative Adversarial
Networks", 2017, arXiv:1703.10717. The discriminator is an autoencoder: it restores real pictures
well and fakes badly, and the generator makes what it restores well. Both are kept in balance by
k_t, the weight of the fakes, which holds the error of fakes at gamma times that of real pictures
(section 3.4). What they then agree on is measured by M, which tells how far training is.

The autoencoder has no tanh at its end: the median pixel is black, and a tanh that has found black
learns nothing more, while black pictures please the generator. No batch is normalised.

Differences: latents are normal instead of uniform, and the networks are small ones of strided
convolutions, of which the generator ends in a tanh.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from model_zoo.data import in_chunks
from model_zoo.family import Batch, Figure
from model_zoo.gans.adversarial import CHUNK, Adversarial, Meaning
from model_zoo.gans.gan_layers import LEAK, Generator

RESTORED: Meaning = {
    "higher_means": "more_real",
    "unit": "half the range of levels",
    "meaning": "minus the mean absolute error of a pixel that the autoencoder restores",
}


class BEGAN(Adversarial):
    """Generator and autoencoder, with no condition."""

    family = "boundary equilibrium generative adversarial network"
    meaning = RESTORED

    balance: Tensor  # k_t
    real_error: Tensor  # L(x) of the last batch

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        latent_size: int = 32,
        width: int = 16,
        diversity: float = 0.5,
        balance_rate: float = 0.001,
        judge: str | None = None,
    ):
        """Build for images [channels, height, width] whose sides are multiples of 4.

        `width` is the number of channels at half the resolution, twice that at a quarter.
        `diversity` is gamma: low values make clean pictures that are alike. `balance_rate` is
        lambda, by which k_t learns. `judge` names a trained classifier, in whose features
        `evaluate` measures the samples.
        """
        super().__init__(
            image_shape,
            0,
            Generator(image_shape, 0, latent_size, width, normalised=False),
            Autoencoder(image_shape, latent_size, width),
            latent_size,
            judge,
        )
        self.diversity, self.balance_rate = diversity, balance_rate
        self.register_buffer("balance", torch.zeros(()))
        self.register_buffer("real_error", torch.zeros(()))

    def score(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return minus the error L of each image in [-1, 1] (equation 1 with eta = 1), [N]."""
        restored = self.discriminator(images).float()
        return -(images - restored).abs().flatten(1).mean(dim=1)

    def discriminator_loss(
        self, real: Tensor, fake: Tensor, condition: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        """Return L(x) - k_t L(G(z)) (section 3.4)."""
        real_error = -self.score(real).mean()
        self.real_error.copy_(real_error.detach())
        return real_error + self.balance * self.score(fake).mean()

    def generator_loss(self, fake: Tensor, condition: Tensor | None) -> Tensor:
        """Return L(G(z)), and let k_t learn from it (section 3.4)."""
        fake_error = -self.score(fake).mean()
        self.update_balance(self.real_error, fake_error.detach())
        return fake_error

    @torch.no_grad()
    def update_balance(self, real_error: Tensor, fake_error: Tensor) -> None:
        """Set k_t+1 = k_t + lambda (gamma L(x) - L(G(z))), from 0 to 1."""
        surplus = self.diversity * real_error - fake_error
        self.balance.add_(self.balance_rate * surplus).clamp_(0, 1)

    @torch.no_grad()
    def evaluate(self, data: Batch, generator: torch.Generator) -> list[Figure]:
        """Measure M besides what every adversarial family is measured by."""
        errors = []
        for chunk in in_chunks(data, CHUNK):
            fake, _ = self._sample(chunk.labels, generator)
            real = chunk.images / 127.5 - 1
            errors.append(-torch.stack([self.score(real), self.score(fake)]))
        real_error, fake_error = torch.cat(errors, dim=1).mean(dim=1)
        return [
            *super().evaluate(data, generator),
            convergence(self.diversity, real_error, fake_error),
        ]


class Autoencoder(nn.Module):
    """Picture to picture through as many numbers as the generator has, with no normalisation."""

    def __init__(self, shape: tuple[int, int, int], hidden: int, width: int):
        """Build the decoder as the generator is, with weights of its own."""
        super().__init__()
        channels, height, width_pixels = shape
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, width, 4, stride=2, padding=1),  # 28 -> 14
            nn.LeakyReLU(LEAK),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),  # 14 -> 7
            nn.LeakyReLU(LEAK),
            nn.Flatten(),
            nn.Linear(math.prod((2 * width, height // 4, width_pixels // 4)), hidden),
        )
        self.decoder = Generator(shape, 0, hidden, width, normalised=False, bounded=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map [N, C, H, W] in [-1, 1] to what is near them."""
        return self.decoder(self.encoder(images))


def convergence(diversity: float, real_error: Tensor, fake_error: Tensor) -> Figure:
    """Return M = L(x) + |gamma L(x) - L(G(z))| (section 3.4.1)."""
    value = real_error + (diversity * real_error - fake_error).abs()
    protocol = (
        f"M = L(x) + |gamma L(x) - L(G(z))|, gamma {diversity}, L the mean absolute error of a "
        "pixel, over all images of the split and as many fakes"
    )
    return Figure("convergence_measure", value.item(), "half the range of levels", protocol)
