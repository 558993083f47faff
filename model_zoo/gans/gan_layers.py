"""The two networks that every adversarial family here plays with, and what both are shown.

They are those of Alec Radford, Luke Metz and Soumith Chintala, "Unsupervised Representation
Learning with Deep Convolutional Generative Adversarial Networks", 2015, arXiv:1511.06434: strided
convolutions, ReLU in the generator, LeakyReLU in the discriminator, no dense hidden layers. A class
enters both networks, after Mehdi Mirza and Simon Osindero, "Conditional Generative Adversarial
Nets", 2014, arXiv:1411.1784 (figure 1).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

INITIAL_DEVIATION = 0.02  # of all convolution weights, Radford et al. section 4
EMBEDDING_SIZE = 16  # coordinates that tell the generator the class
LEAK = 0.2  # slope of LeakyReLU below zero, same place


class Generator(nn.Module):
    """Latent, and class if there are some, to picture, doubling the resolution twice."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        latent_size: int,
        width: int,
        normalised: bool = True,
        bounded: bool = True,
    ):
        """Start from `2 * width` channels at a quarter of the resolution.

        `classes` is 0 where there is no condition. `normalised` says whether batches are, `bounded`
        whether a tanh keeps pixels within [-1, 1].
        """
        super().__init__()
        channels, height, width_pixels = shape
        inner = (2 * width, height // 4, width_pixels // 4)
        inputs = latent_size
        if classes:
            self.embedding = nn.Linear(classes, EMBEDDING_SIZE, bias=False)
            inputs += EMBEDDING_SIZE
        bias = not normalised  # which normalisation would take out again
        self.body = nn.Sequential(
            nn.Linear(inputs, math.prod(inner), bias=bias),
            nn.Unflatten(1, inner),  # [N, 2 * width * 49] -> [N, 2 * width, 7, 7]
            *_normalisation(2 * width, normalised),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1, bias=bias),  # 7 -> 14
            *_normalisation(width, normalised),
            nn.ReLU(),
            nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1),  # 14 -> 28
            nn.Tanh() if bounded else nn.Identity(),
        )

    def forward(self, latent: Tensor, class_weights: Tensor | None = None) -> Tensor:
        """Map [N, latent] and [N, classes], one-hot or a mixture, to [N, C, H, W]."""
        if class_weights is not None:
            latent = torch.cat([latent, self.embedding(class_weights)], dim=1)
        return self.body(latent)


class Discriminator(nn.Module):
    """Picture, and class if there are some, to one number: high for real in every family."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        width: int,
        normalised: bool,
        offset: bool = True,
    ):
        """Show the class as one more channel, a learned plane for each class.

        `classes` is 0 where there is no condition. `normalised` says whether batches are. Without
        `offset` the number is 0 where all features are.
        """
        super().__init__()
        channels, height, width_pixels = shape
        if classes:
            self.embedding = nn.Sequential(
                nn.Linear(classes, height * width_pixels),
                nn.Unflatten(1, (1, height, width_pixels)),
            )
            channels += 1
        bias = not normalised
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 4, stride=2, padding=1),  # 28 -> 14
            nn.LeakyReLU(LEAK),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1, bias=bias),  # 14 -> 7
            *_normalisation(2 * width, normalised),
            nn.LeakyReLU(LEAK),
            nn.Flatten(),
            nn.Linear(2 * width * (height // 4) * (width_pixels // 4), 1, bias=offset),
        )

    def forward(self, images: Tensor, class_weights: Tensor | None = None) -> Tensor:
        """Map [N, C, H, W] in [-1, 1] and [N, classes] to one number each, [N]."""
        if class_weights is not None:
            images = torch.cat([images, self.embedding(class_weights)], dim=1)
        return self.body(images).float().squeeze(1)


def initialise(module: nn.Module) -> None:
    """Draw the weights of one layer as Radford et al. do, section 4; for `Module.apply`."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, INITIAL_DEVIATION)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, INITIAL_DEVIATION)


def _normalisation(channels: int, wanted: bool) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels)] if wanted else []
