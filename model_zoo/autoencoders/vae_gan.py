"""VAE/GAN: a variational autoencoder whose pictures are compared as a discriminator sees them.

Anders Boesen Lindbo Larsen, Soren Kaae Sonderby, Hugo Larochelle and Ole Winther, "Autoencoding
beyond pixels using a learned similarity metric", 2016, arXiv:1512.09300. Squared differences of
pixels make blurred pictures; so a reconstruction is to equal its original in a hidden layer of the
discriminator (equation 7), which is trained to tell both it and samples from real pictures. Each of
the three networks descends the loss that algorithm 1 gives it.

Difference: the decoder descends the non-saturating form of its game, -log D, as GANs do.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from model_zoo.autoencoders.autoencoder_layers import (
    convolutional_decoder,
    convolutional_encoder,
    kl_divergence,
    split_posterior,
)
from model_zoo.cards import (
    LATENT_CONTROLS,
    LATENT_OPERATIONS,
    image_event,
    image_preprocess,
    normal_latent,
)
from model_zoo.data import in_chunks
from model_zoo.family import Batch, Card, Family, Figure, Function, Graph, Objective, Port
from model_zoo.layers import normal_noise, standard_error
from model_zoo.sample_quality import Judge

CHUNK = 500  # images measured at a time
LEAK = 0.2  # slope of LeakyReLU below zero
GAMMA = 1e-2  # of algorithm 1: what likeness weighs beside the game; a hidden layer has many sums


class AdversarialAutoencoder(Family):
    """Encoder, decoder, and a discriminator whose hidden layer measures likeness."""

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        latent_size: int = 32,
        width: int = 32,
        residual_blocks: int = 1,
        judge: str | None = None,
    ):
        """Build for images [channels, height, width] whose sides are multiples of 4.

        `width` is the number of channels at a quarter of the resolution, in all three networks.
        `judge` names a trained classifier, in whose features `evaluate` measures the samples.
        """
        super().__init__()
        self.image_shape, self.latent_size = tuple(image_shape), latent_size
        self.judge = judge
        self.encoder = convolutional_encoder(
            self.image_shape, width, residual_blocks, 2 * latent_size
        )
        self.decoder = convolutional_decoder(self.image_shape, width, residual_blocks, latent_size)
        self.discriminator = Discriminator(self.image_shape, width)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x in [-1, 1] to mean and log deviation of q(z|x), each [N, latent]."""
        return split_posterior(self.encoder(x))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x in [-1, 1] to mean and deviation of q(z|x), each [N, latent]."""
        mean, log_deviation = self.encode(x)
        return mean, log_deviation.exp()

    def decode(self, latent: Tensor) -> Tensor:
        """Map z to a picture in [-1, 1], [N, C, H, W]."""
        return self.decoder(latent).float().tanh()

    def objectives(self) -> dict[str, Objective]:
        """Return the three losses in the order of algorithm 1."""
        return {
            "encoder": Objective(list(self.encoder.parameters()), self._encoder_loss),
            "decoder": Objective(list(self.decoder.parameters()), self._decoder_loss),
            "discriminator": Objective(
                list(self.discriminator.parameters()), self._discriminator_loss
            ),
        }

    def _encoder_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        x = to_unit(batch.images)
        mean, log_deviation = self.encode(x)
        likeness = self._unlikeness(x, self.decode(self._draw(mean, log_deviation, generator)))
        return (kl_divergence(mean, log_deviation) + likeness).mean()

    def _decoder_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        x = to_unit(batch.images)
        rebuilt, made = self._pictures(x, generator)
        fooled = softplus(-self.discriminator(rebuilt)) + softplus(-self.discriminator(made))
        return (GAMMA * self._unlikeness(x, rebuilt) + fooled).mean()

    def _discriminator_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        x = to_unit(batch.images)
        with torch.no_grad():
            rebuilt, made = self._pictures(x, generator)
        # -log D(x) - log(1 - D(rebuilt)) - log(1 - D(made)), by softplus
        fakes = softplus(self.discriminator(rebuilt)) + softplus(self.discriminator(made))
        return (softplus(-self.discriminator(x)) + fakes).mean()

    def _pictures(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return reconstructions, of latents that bring no gradient, and samples of the prior."""
        with torch.no_grad():
            latent = self._draw(*self.encode(x), generator)
        return self.decode(latent), self._sample(len(x), generator)

    def _sample(self, count: int, generator: torch.Generator) -> Tensor:
        return self.decode(normal_noise((count, self.latent_size), generator))

    def _draw(self, mean: Tensor, log_deviation: Tensor, generator: torch.Generator) -> Tensor:
        noise = normal_noise((len(mean), self.latent_size), generator)
        return mean + log_deviation.exp() * noise

    def _unlikeness(self, x: Tensor, rebuilt: Tensor) -> Tensor:
        """Return -log of a normal density in the hidden layer but for a constant, [N] (eq. 7)."""
        difference = self.discriminator.hidden(x) - self.discriminator.hidden(rebuilt)
        return 0.5 * difference.float().square().flatten(1).sum(dim=1)

    @torch.no_grad()
    def evaluate(self, data: Batch, generator: torch.Generator) -> list[Figure]:
        """Measure reconstructions, what they cost beside the prior, and one sample an image."""
        errors, divergences = [], []
        for chunk in in_chunks(data, CHUNK):
            x = to_unit(chunk.images)
            mean, log_deviation = self.encode(x)
            errors.append((self.decode(mean) - x).square().flatten(1).sum(dim=1) / 4)
            divergences.append(kl_divergence(mean, log_deviation))
        return [
            _figure(
                "squared_error",
                torch.cat(errors),
                "squared intensity",
                "squared error of reconstructions in intensities 0 to 1, summed over an image",
            ),
            _figure(
                "kl_divergence",
                torch.cat(divergences),
                "nats",
                "divergence of q(z|x) from the prior, in closed form",
            ),
            *self._judged(data, generator),
        ]

    def _judged(self, data: Batch, generator: torch.Generator) -> list[Figure]:
        """Return how samples lie among training images, where there is a judge."""
        if self.judge is None:
            return []
        made = [self._sample(len(chunk.images), generator) for chunk in in_chunks(data, CHUNK)]
        levels = ((torch.cat(made) + 1) * 127.5).round()  # as they are served
        return Judge(self.judge, levels.device).compare(levels)

    def card(self) -> Card:
        """Describe the model to those who serve it."""
        return Card(
            family="autoencoder with a discriminator",
            event=image_event(self.image_shape),
            preprocess=image_preprocess(-1.0, 1.0),
            latent=normal_latent(self.latent_size),
            controls=LATENT_CONTROLS,
            operations=LATENT_OPERATIONS,
        )

    def graphs(self) -> tuple[Graph, ...]:
        """Return encode and decode; switches the model to eval mode."""
        data = Port("data", "data", self.image_shape)
        latent = Port("latent", "latent", (self.latent_size,))
        deviation = Port("latent_deviation", "latent_deviation", (self.latent_size,))
        return (
            Graph("encode", Function(self, self.posterior).eval(), (data,), (latent, deviation)),
            Graph("decode", Function(self, self.decode).eval(), (latent,), (data,)),
        )


class Discriminator(nn.Module):
    """Picture to the logit of being real, by way of a hidden layer."""

    def __init__(self, shape: tuple[int, int, int], width: int):
        """Take `width` channels at a quarter of the resolution, half of them before."""
        super().__init__()
        channels, height, width_pixels = shape
        self.hidden = nn.Sequential(
            nn.Conv2d(channels, width // 2, 4, stride=2, padding=1),  # 28 -> 14
            nn.LeakyReLU(LEAK),
            nn.Conv2d(width // 2, width, 4, stride=2, padding=1, bias=False),  # 14 -> 7
            nn.BatchNorm2d(width),
            nn.LeakyReLU(LEAK),
        )
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(width * (height // 4) * (width_pixels // 4), 1)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map [N, C, H, W] in [-1, 1] to logits [N], high for real."""
        return self.head(self.hidden(images)).float().squeeze(1)


def to_unit(levels: Tensor) -> Tensor:
    """Map levels 0..255 to [-1, 1]."""
    return levels / 127.5 - 1


def _figure(name: str, values: Tensor, unit: str, protocol: str) -> Figure:
    return Figure(name, values.mean().item(), unit, protocol, standard_error(values))
