"""Variational autoencoder with a Bernoulli decoder.

Diederik P. Kingma and Max Welling, "Auto-Encoding Variational Bayes", 2013, arXiv:1312.6114.
A decoder p(x|z) and an encoder q(z|x) are fitted together by maximising the evidence lower bound
(their equation 3), with the reparameterised draw z = mean + deviation * noise (section 2.4).
The bound from k draws is that of Yuri Burda, Roger Grosse and Ruslan Salakhutdinov, "Importance
Weighted Autoencoders", 2015, arXiv:1509.00519 (equation 8).

A Bernoulli decoder is a distribution over binary pictures: while training, every pixel is drawn
afresh with its grey value as probability (dynamic binarisation).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model_zoo.autoencoders.autoencoder_layers import (
    bernoulli_log_mass,
    bound_graphs,
    convolutional_decoder,
    convolutional_encoder,
    kl_divergence,
    split_posterior,
)
from model_zoo.cards import (
    BINARISATION,
    LATENT_CONTROLS,
    LATENT_OPERATIONS,
    image_event,
    image_preprocess,
    likelihood_bound,
    normal_latent,
)
from model_zoo.data import in_chunks
from model_zoo.family import Batch, Card, Family, Figure, Function, Graph, Objective, Port
from model_zoo.layers import (
    binarise,
    normal_noise,
    standard_error,
    standard_normal_log_density,
)

IMPORTANCE_DRAWS = 200
CHUNK = 500  # images measured at a time
LARGE = 5000  # images of a test set, which is measured once: every fourth gets so many draws


class VariationalAutoencoder(Family):
    """Convolutional encoder and decoder around a normal latent vector."""

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        latent_size: int = 32,
        width: int = 64,
        residual_blocks: int = 2,
    ):
        """Build for images [channels, height, width] whose sides are multiples of 4.

        `width` is the number of channels at a quarter of the resolution.
        """
        super().__init__()
        self.image_shape, self.latent_size = tuple(image_shape), latent_size
        self.encoder = convolutional_encoder(
            self.image_shape, width, residual_blocks, 2 * latent_size
        )
        self.decoder = convolutional_decoder(self.image_shape, width, residual_blocks, latent_size)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x in [0, 1] to mean and log deviation of q(z|x), each [N, latent]."""
        return split_posterior(self.encoder(2 * x - 1))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x in [0, 1] to mean and deviation of q(z|x), each [N, latent]."""
        mean, log_deviation = self.encode(x)
        return mean, log_deviation.exp()

    def decode_logits(self, latent: Tensor) -> Tensor:
        """Map z to the log odds of every pixel being on."""
        return self.decoder(latent).float()

    def decode(self, latent: Tensor) -> Tensor:
        """Map z to the mean picture, intensities in [0, 1], [N, C, H, W]."""
        return torch.sigmoid(self.decode_logits(latent))

    def log_weight(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return log p(x|z) + log p(z) - log q(z|x) in nats, [N], for binary x and one z a row.

        Its mean over noise is the evidence lower bound; exp of it averages to p(x).
        """
        return self.log_weight_and_statistics(x, noise)[0]

    def log_weight_and_statistics(self, x: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        """Return the log weight and, of the same draw, what anomaly scores look at, each [N].

        These are the reconstruction error -log p(x|z) and the divergence of q(z|x) from the prior,
        whose means add up to minus the bound (equation 3), in nats; and the length of q's mean.
        """
        mean, log_deviation = self.encode(x)
        log_weight, log_mass = self._log_weight_and_mass(x, mean, log_deviation, noise)
        return log_weight, -log_mass, kl_divergence(mean, log_deviation), mean.norm(dim=1)

    def _log_weight_and_mass(
        self, x: Tensor, mean: Tensor, log_deviation: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        latent = mean + log_deviation.exp() * noise
        log_mass = self.log_mass_given(x, latent)
        log_prior = standard_normal_log_density(latent)
        log_posterior = standard_normal_log_density(noise) - log_deviation.sum(dim=1)
        return log_mass + log_prior - log_posterior, log_mass

    def log_mass_given(self, x: Tensor, latent: Tensor) -> Tensor:
        """Return log p(x|z) in nats, [N], for binary x; over the prior, exp of it averages to p(x).

        Few draws from the prior hit the few large terms: the bounds above draw where they are.
        """
        return bernoulli_log_mass(x, self.decode_logits(latent))

    def evidence_lower_bound(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return the bound in nats, [N], its divergence in closed form (appendix B).

        The expectation is that of `log_weight`, the variance smaller.
        """
        mean, log_deviation = self.encode(x)
        latent = mean + log_deviation.exp() * noise
        return self.log_mass_given(x, latent) - kl_divergence(mean, log_deviation)

    def objectives(self) -> dict[str, Objective]:
        """Return the one loss: minus the evidence lower bound on binarised images."""
        return {"autoencoder": Objective(list(self.parameters()), self._loss)}

    def _loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        x = binarise(batch.images, generator)
        noise = normal_noise((len(x), self.latent_size), generator)
        return -self.evidence_lower_bound(x, noise).mean()

    @torch.no_grad()
    def evaluate(self, data: Batch, generator: torch.Generator) -> list[Figure]:
        """Measure the bound on all images and the importance-weighted one on some of them."""
        binary = Batch(binarise(data.images, generator), data.labels)
        bound = torch.cat(
            [self._draw_log_weight(chunk.images, generator) for chunk in in_chunks(binary, CHUNK)]
        )
        # Published bounds are of latents with room for everything, not of two to draw on paper.
        published = VAE_PUBLISHED if self.latent_size > 2 else None
        every, word = (4, "fourth") if len(binary.images) >= LARGE else (10, "tenth")
        return [
            _figure("elbo", bound, "one posterior draw an image", published),
            _figure(
                f"iwae_{IMPORTANCE_DRAWS}",
                self._importance_bound(binary.images[::every], generator),
                f"{IMPORTANCE_DRAWS} posterior draws an image, every {word} image",
                None,
            ),
        ]

    def _draw_log_weight(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return self.log_weight(x, normal_noise((len(x), self.latent_size), generator))

    def _importance_bound(self, x: Tensor, generator: torch.Generator) -> Tensor:
        bounds = []
        for part in x.split(CHUNK):
            mean, log_deviation = self.encode(part)  # once: half of the work
            noises = (normal_noise(mean.shape, generator) for _ in range(IMPORTANCE_DRAWS))
            draws = [
                self._log_weight_and_mass(part, mean, log_deviation, noise)[0] for noise in noises
            ]
            bounds.append(torch.stack(draws).logsumexp(dim=0) - math.log(IMPORTANCE_DRAWS))
        return torch.cat(bounds)

    def card(self) -> Card:
        """Describe the model to those who serve it."""
        return Card(
            family="variational autoencoder",
            event=image_event(self.image_shape),
            preprocess=image_preprocess(0.0, 1.0, binarisation=BINARISATION),
            latent=normal_latent(self.latent_size),
            controls=LATENT_CONTROLS,
            operations={
                **LATENT_OPERATIONS,
                "likelihood": likelihood_bound("elbo", "iwae", draws=16),
            },
        )

    def graphs(self) -> tuple[Graph, ...]:
        """Return encode, decode, log_likelihood and log_mass_given_latent; sets eval mode."""
        data = Port("data", "data", self.image_shape)
        latent = Port("latent", "latent", (self.latent_size,))
        deviation = Port("latent_deviation", "latent_deviation", (self.latent_size,))
        log_weight = Function(self, self.log_weight_and_statistics)
        log_mass = Function(self, self.log_mass_given)
        return (
            Graph("encode", Function(self, self.posterior).eval(), (data,), (latent, deviation)),
            Graph("decode", Function(self, self.decode).eval(), (latent,), (data,)),
            *bound_graphs(data, latent, log_weight, log_mass),
        )


VAE_PUBLISHED = {
    "dataset": "mnist",
    "value": -86.77,
    "source": "VAE, dynamic binarisation, pytorch-generative README",
}


def _figure(name: str, nats: Tensor, draws: str, published: dict | None) -> Figure:
    protocol = f"lower bound on log P(x), pixels drawn 0 or 1 by their grey value once, {draws}"
    return Figure(name, nats.mean().item(), "nats", protocol, standard_error(nats), published)
