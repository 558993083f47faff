"""FFJORD over vectors: a flow in continuous time, with nothing around it.

Grathwohl et al. 2018, "FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative
Models", arXiv:1810.01367, whose figure 2 shows densities in the plane; what is solved, and what
differs, is in `continuous_layers`.

One difference more: how far the log density with half of the steps is from that with all of them
is part of the loss. Without that, training finds dynamics which the solver gets wrong in its own
favour, and reports less than the entropy of the data.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from model_zoo.data import in_chunks
from model_zoo.family import Batch, Card, Figure
from model_zoo.flows.continuous_layers import ContinuousFlow, SolverLoop, step_halving_figure
from model_zoo.flows.vector_layers import CHUNK, LIKELIHOOD, FlowOfVectors
from model_zoo.layers import standard_normal_log_density


class VectorFFJORD(FlowOfVectors):
    """Continuous flow over vectors of a few coordinates."""

    def __init__(
        self, vector_size: int = 2, width: int = 64, steps: int = 8, error_weight: float = 0.2
    ):
        """Build for vectors of `vector_size` coordinates; `steps` is an even number.

        `error_weight` is that of the step-halving error beside the nats of the density. The method
        is of the fourth order, so what it gains by an error shows about 15 times in that: a weight
        above 1/15 is enough for no error to be worth its while.
        """
        super().__init__(vector_size)
        self.flow = ContinuousFlow(vector_size, width, steps)
        self.error_weight = error_weight

    def encode(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Map vectors [N, D] to latents [N, D], and return log |det| in nats, [N]."""
        return self.flow(vectors)

    def decode(self, latent: Tensor) -> Tensor:
        """Map latents [N, D] to vectors [N, D]."""
        return self.flow.inverse(latent)

    def _loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        log_density, error = self._log_density_and_error(batch.images)
        return error.mean() * self.error_weight - log_density.mean()

    @torch.no_grad()
    def evaluate(self, data: Batch, generator: torch.Generator) -> list[Figure]:
        """Measure the mean -log p, and what the solver leaves out."""
        errors = torch.cat(
            [self._log_density_and_error(chunk.images)[1] for chunk in in_chunks(data, CHUNK)]
        )
        halving = step_halving_figure(errors, self.flow.steps, "of every vector")
        return [*super().evaluate(data, generator), halving]

    def _log_density_and_error(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p, and by how much every step twice as long changes it, nats [N]."""
        log_density = self.flow.log_density(vectors)
        coarse = self.flow.log_density(vectors, self.flow.steps // 2)
        return log_density, (log_density - coarse).abs()

    def functions(self) -> dict[str, nn.Module]:
        """Return what the graphs compute, by their names: loops over the solver's steps."""

        def log_density(latent: Tensor, integral: Tensor) -> Tensor:
            return standard_normal_log_density(latent) + integral

        def reached(z: Tensor, integral: Tensor) -> Tensor:
            return z

        return {
            "encode": SolverLoop(self.flow, 1.0, 0.0, reached),
            "decode": SolverLoop(self.flow, 0.0, 1.0, reached),
            "log_likelihood": SolverLoop(self.flow, 1.0, 0.0, log_density),
        }

    def card(self) -> Card:
        """Describe the model to those who serve it; a solver's likelihood is an estimate."""
        card = super().card()
        likelihood = {**LIKELIHOOD, "kind": "estimate"}
        return replace(card, operations={**card.operations, "likelihood": likelihood})
