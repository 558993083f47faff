"""FFJORD over small images: a flow in continuous time, on the logits of their levels.

Grathwohl et al. 2018, "FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative
Models", arXiv:1810.01367; what is solved, and what differs, is in `continuous_layers`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from model_zoo.data import in_chunks
from model_zoo.dequantised import BIN_CENTRE, CHUNK, LIKELIHOOD
from model_zoo.family import Batch, Card, Figure
from model_zoo.flows.continuous_layers import ContinuousFlow, step_halving_figure
from model_zoo.flows.flow_layers import FlowOfLevels, LogitOfLevels
from model_zoo.layers import standard_normal_log_density


class FFJORD(FlowOfLevels):
    """Continuous flow over small 8-bit images."""

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 8, 8),
        width: int = 128,
        steps: int = 8,
        margin: float = 1e-3,
    ):
        """Build for images [channels, height, width]; `steps` is an even number."""
        super().__init__(image_shape)
        self.levels = LogitOfLevels(margin, self.image_shape[0])
        self.flow = ContinuousFlow(self.event_size, width, steps)

    def encode(self, levels: Tensor, steps: int | None = None) -> tuple[Tensor, Tensor]:
        """Map dequantised levels in (0, 256), [N, C, H, W], to latents [N, D] and log |det|."""
        x, first_change = self.levels(levels)
        latent, change = self.flow(x.flatten(1), steps)
        return latent, first_change + change

    def decode(self, latent: Tensor) -> Tensor:
        """Map latents [N, D] to dequantised levels, [N, C, H, W]."""
        return self.levels.inverse(self.flow.inverse(latent).unflatten(1, self.image_shape))

    @torch.no_grad()
    def evaluate(self, data: Batch, generator: torch.Generator) -> list[Figure]:
        """Measure bits per dimension, and what the solver leaves out."""
        errors = torch.cat(
            [self._step_halving_error(chunk.images) for chunk in in_chunks(data, CHUNK)]
        )
        where = "of images at the centres of their levels"
        halving = step_halving_figure(errors, self.flow.steps, where)
        return [*super().evaluate(data, generator), halving]

    def _step_halving_error(self, images: Tensor) -> Tensor:
        """Return how much log p of images changes when every step is twice as long, in nats [N]."""
        log_density, coarse = (
            standard_normal_log_density(latent) + log_determinant
            for latent, log_determinant in (
                self.encode(images + BIN_CENTRE, steps)
                for steps in (self.flow.steps, self.flow.steps // 2)
            )
        )
        return (log_density - coarse).abs()

    def card(self) -> Card:
        """Describe the model to those who serve it; a solver's likelihood is an estimate."""
        card = super().card()
        likelihood = {**LIKELIHOOD, "kind": "estimate"}
        return replace(card, operations={**card.operations, "likelihood": likelihood})
