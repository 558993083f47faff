"""What image flows have in common: levels as reals, scales of invertible steps, pure graphs.

The scales are those of Laurent Dinh, Jascha Sohl-Dickstein and Samy Bengio, "Density estimation
using Real NVP", 2016, arXiv:1605.08803, whose equations are cited here: squeezes trade space for
channels, and half of the channels leave after every scale but the last (equation 14). Levels become
reals by uniform noise and a logit (section 4.1), whose margin is the same at both ends; a learned
normalisation of the logits with fixed first values follows.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from model_zoo.cards import (
    LATENT_CONTROLS,
    LATENT_OPERATIONS,
    image_event,
    image_preprocess,
    normal_latent,
)
from model_zoo.dequantised import BIN_CENTRE, LEVELS, LIKELIHOOD, DequantisedDensity
from model_zoo.family import Batch, Card, Function, Graph, Objective, Port
from model_zoo.layers import standard_normal_log_density


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


class FlowOfLevels(DequantisedDensity):
    """A flow over 8-bit images: one map between dequantised levels and normal latents."""

    @abstractmethod
    def encode(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Map dequantised levels in (0, 256), [N, C, H, W], to latents [N, D] and log |det|."""

    @abstractmethod
    def decode(self, latent: Tensor) -> Tensor:
        """Map latents [N, D] to dequantised levels, [N, C, H, W]."""

    def log_density(self, levels: Tensor) -> Tensor:
        """Return log p in nats, [N], with respect to Lebesgue measure on levels."""
        return self.log_density_and_norm(levels)[0]

    def log_density_and_norm(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log density in nats and the length of the latent, each [N].

        Equation 3 adds two terms: the prior's knows the latent by its length alone, which is near
        the square root of its size for what the model generates; the other is the log-determinant.
        """
        latent, log_determinant = self.encode(levels)
        log_density = standard_normal_log_density(latent) + log_determinant
        return log_density, latent.norm(dim=1)

    def encode_levels(self, levels: Tensor) -> Tensor:
        """Map levels 0..255 [N, C, H, W] to the latents of the centres of their bins, [N, D]."""
        return self.encode(levels + BIN_CENTRE)[0]

    def decode_levels(self, latent: Tensor) -> Tensor:
        """Map latents [N, D] to levels [N, C, H, W], of which the nearest whole number is one."""
        return self.decode(latent) - BIN_CENTRE

    def log_density_and_norm_of(self, levels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return both of levels 0..255 with as many uniforms in (0, 1), [N]."""
        return self.log_density_and_norm(levels + noise)

    def objectives(self) -> dict[str, Objective]:
        """Return the one loss: bits per dimension of dequantised images."""
        return {"flow": Objective(list(self.parameters()), self._loss)}

    def _loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return self.bits_per_dimension(batch.images, generator).mean()

    def card(self) -> Card:
        """Describe the model to those who serve it."""
        return Card(
            family="normalising flow",
            event=image_event(self.image_shape),
            preprocess=image_preprocess(0.0, 255.0, dequantisation="uniform"),
            latent=normal_latent(self.event_size),
            controls=LATENT_CONTROLS,
            operations={**LATENT_OPERATIONS, "likelihood": LIKELIHOOD},
        )

    def graphs(self) -> tuple[Graph, ...]:
        """Return encode, decode and log_likelihood; switches the model to eval mode."""
        data = Port("data", "data", self.image_shape)
        latent = Port("latent", "latent", (self.event_size,))
        noise = Port("noise", "noise", self.image_shape, "float32", "uniform", "dequantisation")
        log_likelihood = Port("log_likelihood", "log_likelihood", ())
        latent_norm = Port("latent_norm", "statistic", ())
        return (
            Graph("encode", Function(self, self.encode_levels).eval(), (data,), (latent,)),
            Graph("decode", Function(self, self.decode_levels).eval(), (latent,), (data,)),
            Graph(
                "log_likelihood",
                Function(self, self.log_density_and_norm_of).eval(),
                (data, noise),
                (log_likelihood, latent_norm),
            ),
        )


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    channels, height, width = shape
    return 4 * channels, height // 2, width // 2
