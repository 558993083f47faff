"""Deep convolutional generative adversarial network, conditional on a class.

Alec Radford, Luke Metz and Soumith Chintala, "Unsupervised Representation Learning with Deep
Convolutional Generative Adversarial Networks", 2015, arXiv:1511.06434: strided convolutions,
batch normalisation, ReLU in the generator, LeakyReLU in the discriminator, no dense hidden layers.
The condition enters both networks, after Mehdi Mirza and Simon Osindero, "Conditional Generative
Adversarial Nets", 2014, arXiv:1411.1784 (equation 2).

Sign convention: the discriminator's logit is high for real pictures. The generator descends the
non-saturating loss -log D(G(z)) of Goodfellow et al. 2014, arXiv:1406.2661, section 3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot, softplus

from model_zoo.cards import (
    LATENT_CONTROLS,
    class_condition,
    image_event,
    image_preprocess,
    normal_latent,
)
from model_zoo.data import in_chunks
from model_zoo.family import Batch, Card, Family, Figure, Graph, Objective, Port
from model_zoo.layers import normal_noise
from model_zoo.recipe import load_trained

CHUNK = 500  # images made at a time while measuring
INITIAL_DEVIATION = 0.02  # of all convolution weights, Radford et al. section 4
EMBEDDING_SIZE = 16  # coordinates that tell the generator the class
LEAK = 0.2  # slope of LeakyReLU below zero, same place


class DCGAN(Family):
    """Generator and discriminator, both shown the class."""

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
        names a trained classifier that `evaluate` asks which class it sees.
        """
        super().__init__()
        self.image_shape, self.classes = tuple(image_shape), classes
        self.latent_size, self.judge = latent_size, judge
        self.generator = Generator(self.image_shape, classes, latent_size, width)
        self.discriminator = Discriminator(self.image_shape, classes, width)
        self.apply(_initialise)

    def generate(self, latent: Tensor, class_weights: Tensor) -> Tensor:
        """Map z [N, latent] and weights of the classes [N, classes] to images in [-1, 1]."""
        return self.generator(latent, class_weights).float()

    def objectives(self) -> dict[str, Objective]:
        """Return the discriminator's loss, then the generator's."""
        return {
            "discriminator": Objective(
                list(self.discriminator.parameters()), self._discriminator_loss
            ),
            "generator": Objective(list(self.generator.parameters()), self._generator_loss),
        }

    def _discriminator_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        condition = self._one_hot(batch.labels)
        with torch.no_grad():
            fake = self.generate(self._prior(len(condition), generator), condition)
        real_logit = self.discriminator(_to_unit(batch.images), condition)
        fake_logit = self.discriminator(fake, condition)
        # -log D(x|y) - log(1 - D(G(z|y))), equation 2, by softplus so that no logit overflows
        return (softplus(-real_logit) + softplus(fake_logit)).mean()

    def _generator_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        condition = self._one_hot(batch.labels)
        fake = self.generate(self._prior(len(condition), generator), condition)
        return softplus(-self.discriminator(fake, condition)).mean()  # -log D(G(z))

    def _prior(self, count: int, generator: torch.Generator) -> Tensor:
        return normal_noise((count, self.latent_size), generator)

    def _one_hot(self, labels: Tensor) -> Tensor:
        return one_hot(labels, self.classes).float()

    @torch.no_grad()
    def evaluate(self, data: Batch, generator: torch.Generator) -> list[Figure]:
        """Make one image for every label of `data` and compare the two sets."""
        fake = torch.cat(
            [
                self.generate(
                    self._prior(len(chunk.labels), generator), self._one_hot(chunk.labels)
                )
                for chunk in in_chunks(data, CHUNK)
            ]
        )
        figures = [_diversity_figure(fake, _to_unit(data.images), data.labels)]
        if self.judge is None:
            return figures
        made = Batch((fake + 1) * 127.5, data.labels)
        return [_recognised_figure(self.judge, made), *figures]

    def card(self) -> Card:
        """Describe the model to those who serve it."""
        return Card(
            family="generative adversarial network",
            event=image_event(self.image_shape),
            preprocess=image_preprocess(-1.0, 1.0),
            latent=normal_latent(self.latent_size),
            condition=class_condition(self.classes),
            controls=LATENT_CONTROLS,
            operations={"sample": {}, "decode": {}, "interpolate": {}},
        )

    def graphs(self) -> tuple[Graph, ...]:
        """Return decode; switches the model to eval mode."""
        latent = Port("latent", "latent", (self.latent_size,))
        condition = Port("class_weights", "condition", (self.classes,))
        images = Port("images", "data", self.image_shape)
        return (Graph("decode", Decode(self.generator).eval(), (latent, condition), (images,)),)


class Generator(nn.Module):
    """Latent and class to picture, doubling the resolution twice."""

    def __init__(self, shape: tuple[int, int, int], classes: int, latent_size: int, width: int):
        """Start from `2 * width` channels at a quarter of the resolution."""
        super().__init__()
        channels, height, width_pixels = shape
        inner = (2 * width, height // 4, width_pixels // 4)
        self.embedding = nn.Linear(classes, EMBEDDING_SIZE, bias=False)
        self.body = nn.Sequential(
            nn.Linear(latent_size + EMBEDDING_SIZE, math.prod(inner), bias=False),
            nn.Unflatten(1, inner),  # [N, 128 * 49] -> [N, 128, 7, 7]
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1, bias=False),  # 7 -> 14
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1),  # 14 -> 28
            nn.Tanh(),
        )

    def forward(self, latent: Tensor, class_weights: Tensor) -> Tensor:
        """Map [N, latent] and [N, classes], one-hot or a mixture, to [N, C, H, W] in [-1, 1]."""
        return self.body(torch.cat([latent, self.embedding(class_weights)], dim=1))


class Discriminator(nn.Module):
    """Picture and class to the logit of being real."""

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int):
        """Show the class as one more channel, a learned plane for each class."""
        super().__init__()
        channels, height, width_pixels = shape
        self.embedding = nn.Sequential(
            nn.Linear(classes, height * width_pixels), nn.Unflatten(1, (1, height, width_pixels))
        )
        self.body = nn.Sequential(
            nn.Conv2d(channels + 1, width, 4, stride=2, padding=1),  # 28 -> 14
            nn.LeakyReLU(LEAK),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1, bias=False),  # 14 -> 7
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(LEAK),
            nn.Flatten(),
            nn.Linear(2 * width * (height // 4) * (width_pixels // 4), 1),
        )

    def forward(self, images: Tensor, class_weights: Tensor) -> Tensor:
        """Map [N, C, H, W] in [-1, 1] and [N, classes] to logits [N], high for real."""
        plane = self.embedding(class_weights)  # [N, 1, H, W]
        return self.body(torch.cat([images, plane], dim=1)).float().squeeze(1)


class Decode(nn.Module):
    """Graph: latent and class weights to images."""

    def __init__(self, generator: Generator):
        super().__init__()
        self.generator = generator

    def forward(self, latent: Tensor, class_weights: Tensor) -> Tensor:
        """Map [N, latent] and [N, classes] to [N, C, H, W] in [-1, 1]."""
        return self.generator(latent, class_weights)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, INITIAL_DEVIATION)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, INITIAL_DEVIATION)


def _to_unit(levels: Tensor) -> Tensor:
    return levels / 127.5 - 1  # 0..255 -> [-1, 1]


def _recognised_figure(judge: str, made: Batch) -> Figure:
    classifier = load_trained(judge).to(made.images.device)
    seen = torch.cat([classifier(chunk.images).argmax(1) for chunk in in_chunks(made, CHUNK)])
    share = (seen == made.labels).float().mean().item()
    protocol = f"one image for each label of the split, share that {judge} assigns to its label"
    error = (share * (1 - share) / len(seen)) ** 0.5
    return Figure("recognised_as_asked", share, "share", protocol, error)


def _diversity_figure(fake: Tensor, real: Tensor, labels: Tensor) -> Figure:
    made, found = (_within_class_distance(images, labels) for images in (fake, real))
    protocol = (
        "mean Euclidean distance between two images of a class, averaged over classes, "
        "divided by that of the real images of the split"
    )
    return Figure("within_class_distance", made / found, "ratio", protocol)


def _within_class_distance(images: Tensor, labels: Tensor) -> float:
    rows = images.flatten(1)
    distances = [torch.pdist(rows[labels == label]).mean() for label in labels.unique()]
    return torch.stack(distances).nanmean().item()  # a class of one image has no pairs
