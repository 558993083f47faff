"""What autoencoders share: networks from picture to vector and back, and terms of their bounds."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn.functional import softplus

from model_zoo.family import Function, Graph, Port
from model_zoo.layers import LOG_TWO_PI, ResidualBlock

LOG_DEVIATION_LIMIT = 7.0  # exp(7) is far beyond any posterior; keeps the exponential finite


def downsampling(channels: int, width: int, residual_blocks: int) -> list[nn.Module]:
    """Return layers from [N, channels, H, W] to `width` channels at a quarter of the resolution."""
    return [
        nn.Conv2d(channels, width // 2, 4, stride=2, padding=1),  # 28 -> 14
        nn.SiLU(),
        nn.Conv2d(width // 2, width, 4, stride=2, padding=1),  # 14 -> 7
        *(ResidualBlock(width) for _ in range(residual_blocks)),
        nn.SiLU(),
    ]


def upsampling(channels: int, width: int, residual_blocks: int) -> list[nn.Module]:
    """Return layers from `width` channels to [N, channels, H, W] at four times the resolution."""
    return [
        *(ResidualBlock(width) for _ in range(residual_blocks)),
        nn.SiLU(),
        nn.ConvTranspose2d(width, width // 2, 4, stride=2, padding=1),  # 7 -> 14
        nn.SiLU(),
        nn.ConvTranspose2d(width // 2, channels, 4, stride=2, padding=1),  # 14 -> 28
    ]


def convolutional_encoder(
    image_shape: tuple[int, int, int], width: int, residual_blocks: int, outputs: int
) -> nn.Sequential:
    """Return a network from images [N, C, H, W], about -1 to 1, to vectors [N, outputs].

    The sides of images are multiples of 4; `width` is the number of channels at a quarter of the
    resolution.
    """
    channels, height, width_pixels = image_shape
    return nn.Sequential(
        *downsampling(channels, width, residual_blocks),
        nn.Flatten(),  # [N, width, 7, 7] -> [N, width * 49]
        nn.Linear(width * (height // 4) * (width_pixels // 4), outputs),
    )


def convolutional_decoder(
    image_shape: tuple[int, int, int], width: int, residual_blocks: int, inputs: int
) -> nn.Sequential:
    """Return the mirror image of the encoder: vectors [N, inputs] to images [N, C, H, W]."""
    channels, height, width_pixels = image_shape
    inner = (width, height // 4, width_pixels // 4)
    return nn.Sequential(
        nn.Linear(inputs, math.prod(inner)),
        nn.Unflatten(1, inner),  # [N, width * 49] -> [N, width, 7, 7]
        *upsampling(channels, width, residual_blocks),
    )


def split_posterior(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and log deviation of q(z|x), each [N, D], of an encoder's outputs [N, 2 * D]."""
    mean, log_deviation = outputs.float().chunk(2, dim=1)
    return mean, log_deviation.clamp(-LOG_DEVIATION_LIMIT, LOG_DEVIATION_LIMIT)


def bernoulli_log_mass(x: Tensor, logits: Tensor) -> Tensor:
    """Return log p(x|z) in nats, [N], summed over pixels; exact for logits of any size."""
    return (x * logits - softplus(logits)).flatten(1).sum(dim=1)


def kl_divergences(mean: Tensor, log_deviation: Tensor) -> Tensor:
    """Return KL(q(z_j|x) || p(z_j)) in nats of every coordinate of z, [N, D]."""
    return 0.5 * (mean.square() + (2 * log_deviation).exp() - 1 - 2 * log_deviation)


def kl_divergence(mean: Tensor, log_deviation: Tensor) -> Tensor:
    """Return KL(q(z|x) || p(z)) in nats, [N] (Kingma and Welling 2013, appendix B)."""
    return kl_divergences(mean, log_deviation).sum(dim=1)


def normal_log_densities(x: Tensor, means: Tensor, whiteners: Tensor) -> Tensor:
    """Return the log density in nats of x [N, D] under K normal distributions, [N, K].

    Their means are [K, D], their covariances L L^T, and `whiteners` the inverses of the lower
    triangular L, [K, D, D]: no graph can invert a matrix.
    """
    whitened = (whiteners @ (x[:, None] - means)[..., None])[..., 0]  # [N, K, D]
    log_shrinking = whiteners.diagonal(dim1=1, dim2=2).log().sum(dim=1)  # [K]
    return log_shrinking - 0.5 * (whitened.square() + LOG_TWO_PI).sum(dim=2)


def bound_graphs(
    data: Port, latent: Port, log_weight: Function, log_mass: Function
) -> tuple[Graph, Graph]:
    """Return the graphs of a bound on log p(x), log_likelihood and log_mass_given_latent.

    `log_weight` maps binary x and the noise of a draw of z from q(z|x) to the log weight of the
    draw, its reconstruction error, its divergence and the length of q's mean; `log_mass` maps x and
    z to log p(x|z). Sets eval mode.
    """
    noise = Port("noise", "noise", latent.shape, "float32", "normal", "posterior")
    log_likelihood = Port("log_likelihood", "log_likelihood", ())
    statistics = (
        Port("reconstruction_error", "statistic", ()),
        Port("kl_divergence", "statistic", ()),
        Port("latent_norm", "statistic", ()),
    )
    outputs = (log_likelihood, *statistics)
    return (
        Graph("log_likelihood", log_weight.eval(), (data, noise), outputs),
        Graph("log_mass_given_latent", log_mass.eval(), (data, latent), (log_likelihood,)),
    )
