"""Autoencoder, and a mixture of normal distributions over what it encodes.

G. E. Hinton and R. R. Salakhutdinov, "Reducing the Dimensionality of Data with Neural Networks",
Science 313, 2006: an encoder and a decoder are fitted to give each picture back, through a few
numbers. That is no distribution: nothing says where among these numbers pictures are. So, once the
networks are trained, a mixture is fitted to the encodings of the training pictures, as ex-post
density estimation in Partha Ghosh et al., "From Variational to Deterministic Autoencoders", 2020,
arXiv:1903.12436, section 4. What is sampled is drawn from that mixture, and decoded.
"""

from __future__ import annotations

import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from model_zoo.autoencoders.autoencoder_layers import (
    convolutional_decoder,
    convolutional_encoder,
    normal_log_densities,
)
from model_zoo.cards import LATENT_OPERATIONS, image_event, image_preprocess
from model_zoo.data import in_chunks
from model_zoo.family import Batch, Card, Family, Figure, Function, Graph, Objective, Port
from model_zoo.layers import standard_error

CHUNK = 500  # images encoded at a time
SMALLEST_VARIANCE = 1e-3  # added to each component's, so that none is flat; encodings are about 1


class Autoencoder(Family):
    """Deterministic encoder and decoder around a latent vector, and a mixture over it."""

    mixture_weights: Tensor
    mixture_means: Tensor
    mixture_factors: Tensor

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        latent_size: int = 16,
        width: int = 32,
        residual_blocks: int = 1,
        components: int = 32,
    ):
        """Build for images [channels, height, width] whose sides are multiples of 4.

        `width` is the number of channels at a quarter of the resolution. Until `conclude` fits it,
        the mixture is one standard normal distribution.
        """
        super().__init__()
        self.image_shape, self.latent_size = tuple(image_shape), latent_size
        self.components = components
        self.encoder = convolutional_encoder(self.image_shape, width, residual_blocks, latent_size)
        self.decoder = convolutional_decoder(self.image_shape, width, residual_blocks, latent_size)
        self.register_buffer("mixture_weights", torch.full((components,), 1 / components))
        self.register_buffer("mixture_means", torch.zeros(components, latent_size))
        # Lower triangular L of each covariance L L^T.
        self.register_buffer("mixture_factors", torch.eye(latent_size).repeat(components, 1, 1))

    def encode(self, x: Tensor) -> Tensor:
        """Map x in [0, 1], [N, C, H, W], to latents [N, latent]."""
        return self.encoder(2 * x - 1).float()

    def decode(self, latent: Tensor) -> Tensor:
        """Map latents to intensities about 0 to 1, [N, C, H, W]."""
        return self.decoder(latent).float()

    def picture(self, latent: Tensor) -> Tensor:
        """Map latents [N, latent] to intensities in [0, 1], [N, C, H, W]."""
        return self.decode(latent).clamp(0, 1)

    def draw_latent(self, uniform: Tensor, noise: Tensor, temperature: Tensor) -> Tensor:
        """Draw from the mixture, [N, latent]: a component by `uniform` [N] in [0, 1), then from it.

        `noise` is standard normal, [N, latent]; its components are scaled by `temperature` [N].
        """
        cumulative = self.mixture_weights.cumsum(dim=0)
        chosen = (cumulative <= uniform[:, None] * cumulative[-1]).sum(dim=1)  # [N]
        moved = (self.mixture_factors[chosen] @ noise[:, :, None])[:, :, 0]
        return self.mixture_means[chosen] + temperature[:, None] * moved

    def mixture_log_density(self, latent: Tensor) -> Tensor:
        """Return the log density of latents under the mixture in nats, [N]."""
        whiteners = torch.linalg.inv(self.mixture_factors)
        log_densities = normal_log_densities(latent, self.mixture_means, whiteners)
        log_weights = (self.mixture_weights / self.mixture_weights.sum()).log()
        return (log_weights + log_densities).logsumexp(dim=1)

    def objectives(self) -> dict[str, Objective]:
        """Return the one loss: the squared error of the picture that comes back."""
        return {"autoencoder": Objective(list(self.parameters()), self._loss)}

    def _loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return self._squared_error(batch.images).mean()

    def _squared_error(self, images: Tensor) -> Tensor:
        """Return the squared error of each image in intensities, summed over its pixels, [N]."""
        x = images / 255
        return (self.decode(self.encode(x)) - x).square().flatten(1).sum(dim=1)

    @torch.no_grad()
    def conclude(self, data: Batch, generator: torch.Generator) -> None:
        """Fit the mixture to the encodings of all training images, by expectation maximisation."""
        latents = self._encode_all(data).cpu().double()
        seed = torch.randint(2**31, (), generator=generator, device=generator.device).item()
        mixture = GaussianMixture(
            self.components, reg_covar=SMALLEST_VARIANCE, random_state=int(seed)
        ).fit(latents.numpy())
        factors = torch.linalg.cholesky(torch.from_numpy(mixture.covariances_))
        self.mixture_weights.copy_(torch.from_numpy(mixture.weights_))
        self.mixture_means.copy_(torch.from_numpy(mixture.means_))
        self.mixture_factors.copy_(factors)

    def _encode_all(self, data: Batch) -> Tensor:
        return torch.cat([self.encode(chunk.images / 255) for chunk in in_chunks(data, CHUNK)])

    @torch.no_grad()
    def evaluate(self, data: Batch, generator: torch.Generator) -> list[Figure]:
        """Measure the reconstructions, and how well the mixture knows where encodings are."""
        error = torch.cat([self._squared_error(part.images) for part in in_chunks(data, CHUNK)])
        latents = self._encode_all(data)
        gain = self.mixture_log_density(latents) - normal_log_density(latents)
        return [
            Figure(
                "squared_error",
                error.mean().item(),
                "squared intensity",
                "squared error of reconstructions in intensities 0 to 1, summed over an image",
                standard_error(error),
            ),
            Figure(
                "mixture_gain",
                gain.mean().item(),
                "nats",
                "log density of the encodings of the split under the mixture, less that under one "
                "normal distribution with their mean and covariance",
                standard_error(gain),
            ),
        ]

    def card(self) -> Card:
        """Describe the model to those who serve it."""
        return Card(
            family="autoencoder",
            event=image_event(self.image_shape),
            preprocess=image_preprocess(0.0, 1.0),
            latent={
                "shape": [self.latent_size],
                "prior": "graph",
                "prior_meaning": (
                    f"a mixture of {self.components} normal distributions, fitted to the encodings "
                    "of the training images when the networks were done; an autoencoder has no "
                    "distribution of its own"
                ),
            },
            controls={
                "temperature": {
                    "meaning": "what the deviations of each component of the mixture are scaled by",
                    "minimum": 0.0,
                    "maximum": 2.0,
                    "default": 1.0,
                }
            },
            operations=LATENT_OPERATIONS,
        )

    def graphs(self) -> tuple[Graph, ...]:
        """Return encode, decode and prior; switches the model to eval mode."""
        data = Port("data", "data", self.image_shape)
        latent = Port("latent", "latent", (self.latent_size,))
        draws = (
            Port("uniform", "noise", (), "float32", "uniform", "component"),
            Port("noise", "noise", (self.latent_size,), "float32", "normal", "latent"),
            Port("temperature", "control", ()),
        )
        return (
            Graph("encode", Function(self, self.encode).eval(), (data,), (latent,)),
            Graph("decode", Function(self, self.picture).eval(), (latent,), (data,)),
            Graph("prior", Function(self, self.draw_latent).eval(), draws, (latent,)),
        )


def normal_log_density(x: Tensor) -> Tensor:
    """Return the log density in nats, [N], of each x [N, D] under the normal of their moments."""
    mean = x.mean(dim=0)
    spread = (x - mean).T @ (x - mean) / len(x)
    factor = torch.linalg.cholesky(spread + SMALLEST_VARIANCE * torch.eye(len(mean)).to(x))
    return normal_log_densities(x, mean[None], torch.linalg.inv(factor)[None])[:, 0]
