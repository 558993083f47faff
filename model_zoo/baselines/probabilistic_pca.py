"""Probabilistic principal component analysis: a linear map of a normal latent, and noise.

Michael Tipping and Christopher Bishop, "Probabilistic Principal Component Analysis", Journal of the
Royal Statistical Society B 61, 1999. x = W z + mean + noise of variance sigma^2 (equation 2), whose
maximum of the likelihood is known: the first eigenvectors of the covariance, and the mean of the
eigenvalues left over (equations 7 and 8). The density is exact and normal (equations 4 and 5), and
so is the posterior of the latent (equation 6).

As with the autoencoders, what is decoded, and so sampled, is the mean of p(x|z): the noise of the
model, about thirty levels in every pixel, would hide the digit.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torch.nn.functional import linear

from model_zoo.baselines.fitting import fitted, seed_of, squared_error
from model_zoo.cards import (
    LATENT_CONTROLS,
    LATENT_OPERATIONS,
    image_event,
    image_preprocess,
    normal_latent,
)
from model_zoo.dequantised import BIN_CENTRE, LIKELIHOOD, DequantisedDensity
from model_zoo.family import Batch, Card, Figure, Function, Graph, Objective, Port
from model_zoo.layers import LOG_TWO_PI


class ProbabilisticPCA(DequantisedDensity):
    """A normal density of low rank, over dequantised levels."""

    def __init__(self, image_shape: tuple[int, int, int] = (1, 28, 28), components: int = 40):
        """Build for images [channels, height, width] with so many principal `components`."""
        super().__init__(image_shape)
        self.mean = fitted(self.event_size)
        self.weight = fitted(self.event_size, components)
        self.log_deviation = fitted()  # log sigma

    def inner(self) -> Tensor:
        """Return M = W^T W + sigma^2 I, [Q, Q], of which the paper's equations are made."""
        variance = (2 * self.log_deviation).exp()
        return self.weight.T @ self.weight + variance * torch.ones_like(self.weight[0]).diag()

    def posterior(self, levels: Tensor, inverse: Tensor) -> Tensor:
        """Return the mean of p(z|x) (equation 6), [N, Q], given M^-1."""
        return (levels.flatten(1) - self.mean) @ self.weight @ inverse

    def decode(self, latent: Tensor) -> Tensor:
        """Return the mean of p(x|z), [N, C, H, W], in dequantised levels."""
        return linear(latent, self.weight, self.mean).unflatten(1, self.image_shape)

    def decode_levels(self, latent: Tensor) -> Tensor:
        """Map latents [N, Q] to levels of the mean picture, [N, C, H, W], not yet rounded."""
        return self.decode(latent) - BIN_CENTRE

    def log_density(self, levels: Tensor) -> Tensor:
        """Return log p in nats, [N] (equations 4 and 5), with respect to Lebesgue measure."""
        return self.log_density_given(levels, *_inverse_and_log_determinant(self.inner()))

    def log_density_given(self, levels: Tensor, inverse: Tensor, log_determinant: Tensor) -> Tensor:
        """Return the same, given M^-1 and log |M|; no matrix of the size of an image is needed."""
        components = self.weight.shape[1]
        x = levels.flatten(1) - self.mean
        projected = x @ self.weight  # [N, Q]
        explained = (projected @ inverse * projected).sum(dim=1)
        # Woodbury: C^-1 = (I - W M^-1 W^T) / sigma^2, and |C| = sigma^(2 (D - Q)) |M|
        square = (x.square().sum(dim=1) - explained) * (-2 * self.log_deviation).exp()
        log_volume = log_determinant + 2 * (self.event_size - components) * self.log_deviation
        return -0.5 * (square + log_volume + self.event_size * LOG_TWO_PI)

    def objectives(self) -> dict[str, Objective]:
        """Return none: the maximum is known."""
        return {}

    def conclude(self, data: Batch, generator: torch.Generator) -> None:
        """Fit to all images, which dequantisation moves by half a level and blurs by a twelfth."""
        components = self.weight.shape[1]
        fit = PCA(components, random_state=seed_of(generator))
        fit.fit(data.images.flatten(1).double().cpu().numpy())
        largest = torch.from_numpy(fit.explained_variance_) + 1 / 12  # eigenvalues
        noise = torch.tensor(fit.noise_variance_) + 1 / 12
        directions = torch.from_numpy(fit.components_).T  # [D, Q]
        self.weight.copy_(directions * (largest - noise).sqrt())  # equation 7, with R = I
        self.log_deviation.copy_(0.5 * noise.log())  # equation 8
        self.mean.copy_(torch.from_numpy(fit.mean_) + BIN_CENTRE)

    @torch.no_grad()
    def evaluate(self, data: Batch, generator: torch.Generator) -> list[Figure]:
        """Measure bits per dimension, and the error of images and what their latents decode to."""
        inverse, _ = _inverse_and_log_determinant(self.inner())

        def reconstruct(levels: Tensor) -> Tensor:
            return self.decode(self.posterior(levels + BIN_CENTRE, inverse)) - BIN_CENTRE

        return [*super().evaluate(data, generator), squared_error(data, reconstruct)]

    def card(self) -> Card:
        """Describe the model to those who serve it."""
        return Card(
            family="probabilistic PCA",
            event=image_event(self.image_shape),
            preprocess=image_preprocess(0.0, 255.0, dequantisation="uniform"),
            latent=normal_latent(self.weight.shape[1]),
            controls=LATENT_CONTROLS,
            operations={**LATENT_OPERATIONS, "likelihood": LIKELIHOOD},
        )

    def graphs(self) -> tuple[Graph, ...]:
        """Return encode, decode and log_likelihood; switches the model to eval mode."""
        data = Port("data", "data", self.image_shape)
        latent = Port("latent", "latent", (self.weight.shape[1],))
        deviation = Port("latent_deviation", "latent_deviation", latent.shape)
        log_likelihood = self.log_likelihood_graph()
        return (
            Graph("encode", Encode(self).eval(), (data,), (latent, deviation)),
            Graph("decode", Function(self, self.decode_levels).eval(), (latent,), (data,)),
            replace(log_likelihood, module=LogDensity(self).eval()),
        )


class Encode(nn.Module):
    """Graph: levels to mean and deviation of the posterior (equation 6)."""

    def __init__(self, model: ProbabilisticPCA):
        super().__init__()
        self.model = model
        inverse, _ = _inverse_and_log_determinant(model.inner())
        self.register_buffer("inverse", inverse)
        self.register_buffer("deviation", model.log_deviation.exp() * inverse.diagonal().sqrt())

    def forward(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """Map [N, C, H, W] in 0..255 to two [N, Q]; the deviation is the same for all images."""
        mean = self.model.posterior(data + BIN_CENTRE, self.inverse)
        return mean, self.deviation.expand_as(mean)


class LogDensity(nn.Module):
    """Graph: levels and dequantisation noise to one log density, M inverted beforehand."""

    def __init__(self, model: ProbabilisticPCA):
        super().__init__()
        self.model = model
        inverse, log_determinant = _inverse_and_log_determinant(model.inner())
        self.register_buffer("inverse", inverse)
        self.register_buffer("log_determinant", log_determinant)

    def forward(self, data: Tensor, noise: Tensor) -> Tensor:
        """Map [N, C, H, W] in 0..255 and as many uniforms in (0, 1) to nats, [N]."""
        return self.model.log_density_given(data + noise, self.inverse, self.log_determinant)


def _inverse_and_log_determinant(inner: Tensor) -> tuple[Tensor, Tensor]:
    """Return M^-1 and log |M|, computed in double precision."""
    exact = inner.detach().double()
    return exact.inverse().to(inner.dtype), exact.logdet().to(inner.dtype)
