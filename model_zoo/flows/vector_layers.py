"""What flows over vectors have in common: reals as they are, a density of them, pure graphs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from model_zoo.cards import LATENT_CONTROLS, LATENT_OPERATIONS, normal_latent, vector_event
from model_zoo.data import in_chunks
from model_zoo.densities import DENSITIES
from model_zoo.family import Batch, Card, Family, Figure, Function, Graph, Objective, Port
from model_zoo.layers import standard_error, standard_normal_log_density

CHUNK = 5_000  # vectors measured at a time
LIKELIHOOD: dict[str, Any] = {
    "quantity": "density",
    "kind": "exact",
    "base_measure": "lebesgue",
    "estimator": "change_of_variables",
    "draws": 1,
    "conditioning": "none",
}
"""What the operation means for a flow whose density is a formula."""


class FlowOfVectors(Family):
    """A flow over vectors: one map between them and normal latents of as many coordinates."""

    compared_with: str = "checkerboard"
    """The data set whose entropy the mean -log p stands beside."""

    def __init__(self, vector_size: int):
        """Take the number of coordinates."""
        super().__init__()
        self.vector_size = vector_size

    @abstractmethod
    def encode(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Map vectors [N, D] to latents [N, D], and return log |det| in nats, [N]."""

    @abstractmethod
    def decode(self, latent: Tensor) -> Tensor:
        """Map latents [N, D] to vectors [N, D]."""

    def log_density(self, vectors: Tensor) -> Tensor:
        """Return log p in nats, [N], with respect to Lebesgue measure."""
        latent, log_determinant = self.encode(vectors)
        return standard_normal_log_density(latent) + log_determinant

    def objectives(self) -> dict[str, Objective]:
        """Return the one loss: nats per vector."""
        return {"flow": Objective(list(self.parameters()), self._loss)}

    def _loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return -self.log_density(batch.images).mean()

    @torch.no_grad()
    def evaluate(self, data: Batch, generator: torch.Generator) -> list[Figure]:
        """Measure the mean -log p, which is the entropy of the data and the divergence from it."""
        nats = -torch.cat([self.log_density(chunk.images) for chunk in in_chunks(data, CHUNK)])
        protocol = "mean of -log p(x), by the density at each vector as it is"
        value, error = nats.mean().item(), standard_error(nats)
        return [Figure("negative_log_likelihood", value, "nats", protocol, error, self._entropy)]

    @property
    def _entropy(self) -> Mapping[str, Any]:
        density = DENSITIES[self.compared_with]
        source = f"entropy of the data, {density.formula}: no density is lower on average"
        return {"dataset": self.compared_with, "value": density.entropy, "source": source}

    def card(self) -> Card:
        """Describe the model to those who serve it."""
        return Card(
            family="normalising flow",
            event=vector_event(self.vector_size),
            preprocess=None,
            latent=normal_latent(self.vector_size),
            controls=LATENT_CONTROLS,
            operations={**LATENT_OPERATIONS, "likelihood": LIKELIHOOD},
        )

    def graphs(self) -> tuple[Graph, ...]:
        """Return encode, decode and log_likelihood; switches the model to eval mode."""
        data = Port("data", "data", (self.vector_size,))
        latent = Port("latent", "latent", (self.vector_size,))
        log_likelihood = Port("log_likelihood", "log_likelihood", ())
        ports = {"encode": latent, "decode": data, "log_likelihood": log_likelihood}
        return tuple(
            Graph(name, module.eval(), (latent if name == "decode" else data,), (ports[name],))
            for name, module in self.functions().items()
        )

    def functions(self) -> dict[str, nn.Module]:
        """Return what the graphs compute, by their names."""
        return {
            "encode": Function(self, lambda vectors: self.encode(vectors)[0]),
            "decode": Function(self, self.decode),
            "log_likelihood": Function(self, self.log_density),
        }
