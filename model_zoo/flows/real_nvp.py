"""Multi-scale RealNVP, a flow with exact inverse and exact density.

Laurent Dinh, Jascha Sohl-Dickstein and Samy Bengio, "Density estimation using Real NVP", 2016,
arXiv:1605.08803. Affine coupling layers (equations 7 and 8, in the masked form of equation 9)
alternate what they keep; squeezes trade space for channels; half of the channels leave after every
scale but the last (equation 14). Levels become reals by uniform noise and a logit (section 4.1).

Differences: the logit keeps the same margin from both ends; no batch normalisation, so a row never
depends on its batch and training and serving compute the same function; a learned normalisation of
the logits instead, with fixed first values (after the actnorm of Kingma and Dhariwal 2018,
arXiv:1807.03039).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from model_zoo.cards import (
    LATENT_CONTROLS,
    image_event,
    image_preprocess,
    likelihood_bound,
    normal_latent,
)
from model_zoo.data import in_chunks
from model_zoo.family import Batch, Card, Family, Figure, Graph, Objective, Port
from model_zoo.layers import (
    ResidualBlock,
    standard_error,
    standard_normal_log_density,
    uniform_noise,
)

LEVELS = 256
CHUNK = 250  # images measured at a time
BIN_CENTRE = 0.5
PUBLISHED = {
    "dataset": "mnist",
    "value": 1.06,
    "source": "RealNVP on MNIST, table 2 of FFJORD, arXiv:1810.01367",
}


class Coupling(nn.Module):
    """Affine coupling: what the mask keeps decides how the rest is scaled and shifted."""

    def __init__(self, mask: Tensor, network: nn.Module):
        """Take a 0/1 `mask` [C, 1, 1] or [D], 1 = kept, and a network that doubles dimension 1."""
        super().__init__()
        self.network = network
        self.register_buffer("mask", mask)
        self.factor = nn.Parameter(torch.ones_like(mask))  # bounds the log scale

    def scale_and_shift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return log scale and shift, zero where the mask keeps."""
        scale, shift = self.network(self.mask * x).float().chunk(2, dim=1)
        return (1 - self.mask) * self.factor * scale.tanh(), (1 - self.mask) * shift

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x to y = x * exp(s) + t (equation 9) and log |det dy/dx| (equation 6), [N]."""
        scale, shift = self.scale_and_shift(x)
        return x * scale.exp() + shift, scale.flatten(1).sum(dim=1)

    def inverse(self, y: Tensor) -> Tensor:
        """Map y back; s and t read only what the mask kept, which y still holds (equation 8)."""
        scale, shift = self.scale_and_shift(y)
        return (y - shift) * (-scale).exp()


class Squeeze(nn.Module):
    """Trade space for channels: [N, C, H, W] -> [N, 4C, H/2, W/2] (figure 3)."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Reorder; the log-determinant is zero, [N]."""
        return pixel_unshuffle(x, 2), x.new_zeros(x.shape[0])

    def inverse(self, y: Tensor) -> Tensor:
        """Undo the reordering."""
        return pixel_shuffle(y, 2)


class MultiScaleFlow(nn.Module):
    """Scales of invertible steps; after each but the last, half of the channels leave as latent.

    Events are vectors [D] or pictures [C, H, W], latents one flat vector of as many coordinates.
    """

    def __init__(self, event_shape: Sequence[int], scales: Sequence[Sequence[nn.Module]]):
        """Take the steps of every scale; each has `forward(x) -> y, log_det` and `inverse(y)`."""
        super().__init__()
        self.scales = nn.ModuleList(nn.ModuleList(steps) for steps in scales)
        self.shapes: list[tuple[int, ...]] = []  # at the end of each scale, before half leaves
        shape = tuple(event_shape)
        for steps in scales:
            for step in steps:
                shape = _squeezed(shape) if isinstance(step, Squeeze) else shape
            self.shapes.append(shape)
            shape = (shape[0] // 2, *shape[1:])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map events to latents [N, D] and log |det dz/dx| in nats, [N]."""
        latents, log_determinant = [], x.new_zeros(x.shape[0])
        for index, steps in enumerate(self.scales):
            for step in steps:
                x, change = step(x)
                log_determinant = log_determinant + change
            if index < len(self.scales) - 1:
                x, leaving = x.chunk(2, dim=1)
                latents.append(leaving.flatten(1))
        return torch.cat([*latents, x.flatten(1)], dim=1), log_determinant

    def inverse(self, latent: Tensor) -> Tensor:
        """Map latents [N, D] back to events."""
        *leaving, x = self._divide(latent)
        for index in reversed(range(len(self.scales))):
            if index < len(self.scales) - 1:
                x = torch.cat([x, leaving[index]], dim=1)
            for step in reversed(self.scales[index]):
                x = step.inverse(x)
        return x

    def log_density(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats, [N] (equation 3), with respect to Lebesgue measure."""
        latent, log_determinant = self(x)
        return standard_normal_log_density(latent) + log_determinant

    def _divide(self, latent: Tensor) -> list[Tensor]:
        """Cut the flat latent into the halves that left, and what stayed to the end."""
        shapes = [(c // 2, *rest) for c, *rest in self.shapes[:-1]] + [self.shapes[-1]]
        parts = latent.split([math.prod(shape) for shape in shapes], dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]


class LogitOfLevels(nn.Module):
    """Levels to reals: y = (x + u) / 256, logit(alpha + (1 - 2 alpha) y), normalised (4.1)."""

    def __init__(self, margin: float, channels: int):
        """Keep `margin` (the paper's alpha) away from 0 and 1, where the logit is infinite."""
        super().__init__()
        self.margin = margin
        width = 2 * math.log((1 - margin) / margin)  # of the interval that the logits fill
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1))
        self.log_scale = nn.Parameter(torch.full((channels, 1, 1), math.log(4 / width)))

    def forward(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Map dequantised levels in (0, 256) and return log |det| in nats, [N]."""
        p = self.margin + (1 - 2 * self.margin) * levels / LEVELS
        log_p, log_rest = p.log(), (1 - p).log()
        x = (log_p - log_rest) * self.log_scale.exp() + self.shift
        pixelwise = self.log_scale - log_p - log_rest + math.log((1 - 2 * self.margin) / LEVELS)
        return x, pixelwise.flatten(1).sum(dim=1)

    def inverse(self, x: Tensor) -> Tensor:
        """Map reals to dequantised levels, a little outside [0, 256] at the extremes."""
        p = torch.sigmoid((x - self.shift) * (-self.log_scale).exp())
        return (p - self.margin) / (1 - 2 * self.margin) * LEVELS


class RealNVP(Family):
    """Two-scale flow over 8-bit images."""

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        widths: tuple[int, int] = (48, 80),
        couplings: tuple[int, int] = (6, 4),
        residual_blocks: int = 1,
        margin: float = 1e-3,
    ):
        """Build for images [channels, height, width] whose sides are multiples of 4.

        `widths` and `couplings` are hidden channels and coupling layers of the two scales.
        """
        super().__init__()
        self.image_shape = tuple(image_shape)
        self.event_size = math.prod(self.image_shape)
        channels = self.image_shape[0]
        self.levels = LogitOfLevels(margin, channels)
        # A checkerboard over the picture is a choice between channels after a squeeze, at a
        # quarter of the cost: so the first scale squeezes first, and masks diagonals of 2x2.
        fine = checkerboard_masks(channels)
        first = [*fine, *fine, *channel_masks(4 * channels)]
        second = [*checkerboard_masks(2 * channels), *channel_masks(8 * channels)]
        self.flow = MultiScaleFlow(
            self.image_shape,
            [
                [Squeeze(), *_couplings(first, couplings[0], widths[0], residual_blocks)],
                [Squeeze(), *_couplings(second, couplings[1], widths[1], residual_blocks)],
            ],
        )

    def encode(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Map dequantised levels in (0, 256), [N, C, H, W], to latents [N, D] and log |det|."""
        x, first_change = self.levels(levels)
        latent, change = self.flow(x)
        return latent, first_change + change

    def decode(self, latent: Tensor) -> Tensor:
        """Map latents [N, D] to dequantised levels, [N, C, H, W]."""
        return self.levels.inverse(self.flow.inverse(latent))

    def log_density(self, levels: Tensor) -> Tensor:
        """Return log p in nats, [N], with respect to Lebesgue measure on levels.

        A level is an interval of length 1 of these, so the expectation over uniform noise of
        log p(x + u) is a lower bound on log P(x) (Theis et al. 2015, arXiv:1511.01844).
        """
        return self.log_density_and_norm(levels)[0]

    def log_density_and_norm(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log density in nats and the length of the latent, each [N].

        Equation 3 adds two terms: the prior's knows the latent by its length alone, which is near
        the square root of its size for what the model generates; the other is the log-determinant.
        """
        latent, log_determinant = self.encode(levels)
        log_density = standard_normal_log_density(latent) + log_determinant
        return log_density, latent.norm(dim=1)

    def objectives(self) -> dict[str, Objective]:
        """Return the one loss: bits per dimension of dequantised images."""
        return {"flow": Objective(list(self.parameters()), self._loss)}

    def _loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return self._bits_per_dimension(batch.images, generator).mean()

    def _bits_per_dimension(self, levels: Tensor, generator: torch.Generator) -> Tensor:
        noise = uniform_noise(tuple(levels.shape), generator)
        return -self.log_density(levels + noise) / (self.event_size * math.log(2))

    @torch.no_grad()
    def evaluate(self, data: Batch, generator: torch.Generator) -> list[Figure]:
        """Measure bits per dimension."""
        bits = torch.cat(
            [self._bits_per_dimension(chunk.images, generator) for chunk in in_chunks(data, CHUNK)]
        )
        protocol = "upper bound on -log2 P(x) / dimensions, one uniform dequantisation an image"
        value, error = bits.mean().item(), standard_error(bits)
        return [Figure("bits_per_dim", value, "bits/dim", protocol, error, PUBLISHED)]

    def card(self) -> Card:
        """Describe the model to those who serve it."""
        bound = likelihood_bound("dequantisation", "importance_weighted_dequantisation", draws=4)
        return Card(
            family="normalising flow",
            event=image_event(self.image_shape),
            preprocess=image_preprocess(0.0, 255.0, dequantisation="uniform"),
            latent=normal_latent(self.event_size),
            controls=LATENT_CONTROLS,
            operations={
                "sample": {},
                "encode": {},
                "decode": {},
                "reconstruct": {},
                "interpolate": {},
                "likelihood": bound,
            },
        )

    def graphs(self) -> tuple[Graph, ...]:
        """Return encode, decode and log_likelihood; switches the model to eval mode."""
        data = Port("data", "data", self.image_shape)
        latent = Port("latent", "latent", (self.event_size,))
        noise = Port("noise", "noise", self.image_shape, "float32", "uniform", "dequantisation")
        log_likelihood = Port("log_likelihood", "log_likelihood", ())
        latent_norm = Port("latent_norm", "statistic", ())
        return (
            Graph("encode", Encode(self).eval(), (data,), (latent,)),
            Graph("decode", Decode(self).eval(), (latent,), (data,)),
            Graph(
                "log_likelihood",
                LogDensity(self).eval(),
                (data, noise),
                (log_likelihood, latent_norm),
            ),
        )


class Encode(nn.Module):
    """Graph: levels to the latent of the centre of their bin."""

    def __init__(self, model: RealNVP):
        super().__init__()
        self.model = model

    def forward(self, data: Tensor) -> Tensor:
        """Map [N, C, H, W] in 0..255 to [N, D]."""
        latent, _ = self.model.encode(data + BIN_CENTRE)
        return latent


class Decode(nn.Module):
    """Graph: latent to levels, not yet rounded."""

    def __init__(self, model: RealNVP):
        super().__init__()
        self.model = model

    def forward(self, latent: Tensor) -> Tensor:
        """Map [N, D] to [N, C, H, W]; the nearest whole number is the level."""
        return self.model.decode(latent) - BIN_CENTRE


class LogDensity(nn.Module):
    """Graph: levels and dequantisation noise to one log density and the length of the latent."""

    def __init__(self, model: RealNVP):
        super().__init__()
        self.model = model

    def forward(self, data: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Map [N, C, H, W] in 0..255 and as many uniforms in (0, 1) to nats and length, [N]."""
        return self.model.log_density_and_norm(data + noise)


def checkerboard_masks(channels: int) -> list[Tensor]:
    """Return the two colours of a checkerboard as masks [4 * channels, 1, 1] after a squeeze.

    A squeeze puts each 2x2 square into channels 0 1 / 2 3: 0 and 3 share a colour.
    """
    black = torch.tensor([1.0, 0.0, 0.0, 1.0]).repeat(channels).reshape(-1, 1, 1)
    return [black, 1 - black]


def channel_masks(channels: int) -> list[Tensor]:
    """Return masks [channels, 1, 1] that keep the second half, then the first.

    The last of the pair changes what leaves at a factor-out, given what stays.
    """
    first = (torch.arange(channels) < channels // 2).float().reshape(-1, 1, 1)
    return [1 - first, first]


def coupling_network(channels: int, width: int, residual_blocks: int) -> nn.Module:
    """Return the convolutional s and t (section 3.7), zero at first so the flow starts as 1:1."""
    last = nn.Conv2d(width, 2 * channels, 3, padding=1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        *(ResidualBlock(width) for _ in range(residual_blocks)),
        nn.SiLU(),
        last,
    )


def _couplings(
    masks: Sequence[Tensor], count: int, width: int, residual_blocks: int
) -> list[Coupling]:
    chosen = [masks[index % len(masks)].clone() for index in range(count)]
    return [Coupling(mask, coupling_network(len(mask), width, residual_blocks)) for mask in chosen]


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    channels, height, width = shape
    return 4 * channels, height // 2, width // 2
