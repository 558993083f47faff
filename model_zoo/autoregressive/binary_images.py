"""What all densities over binary images have in common: how they are trained and measured.

While training, every pixel is drawn afresh with its grey value as probability (dynamic
binarisation).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from model_zoo.cards import BINARISATION, EXACT_PROBABILITY, image_event, image_preprocess
from model_zoo.data import in_chunks
from model_zoo.family import Batch, Card, Family, Figure, Objective
from model_zoo.layers import binarise, standard_error

CHUNK = 250  # images measured at a time


class BinaryImages(Family):
    """A density over binary images, exact, pixel after pixel in reading order."""

    family: str
    """The word for people."""
    published: ClassVar[Mapping[str, Any] | None]
    """The figure to set ours beside: dataset, value and source."""

    def __init__(self, image_shape: tuple[int, int, int]):
        """Build for grey images [1, height, width]."""
        super().__init__()
        self.image_shape = tuple(image_shape)

    @abstractmethod
    def log_probability(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats, [N], for x in {0, 1}, [N, 1, H, W]."""

    def objectives(self) -> dict[str, Objective]:
        """Return the one loss: -log p(x) of binarised images, in nats."""
        return {"likelihood": Objective(list(self.parameters()), self._loss)}

    def _loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return -self.log_probability(binarise(batch.images, generator)).mean()

    @torch.no_grad()
    def evaluate(self, data: Batch, generator: torch.Generator) -> list[Figure]:
        """Measure the exact log-likelihood of all images, each binarised once."""
        binary = Batch(binarise(data.images, generator), data.labels)
        nats = torch.cat([self.log_probability(part.images) for part in in_chunks(binary, CHUNK)])
        return [
            Figure(
                "log_likelihood",
                nats.mean().item(),
                "nats",
                "exact log P(x), pixels drawn 0 or 1 by their grey value once",
                standard_error(nats),
                self.published,
            )
        ]

    def described(self, program: str, controls: Mapping[str, Mapping[str, Any]]) -> Card:
        """Return the card of a model that a program draws from, with what the draw can be asked."""
        return Card(
            family=self.family,
            event=image_event(self.image_shape),
            preprocess=image_preprocess(0.0, 1.0, binarisation=BINARISATION),
            controls=controls,
            operations={"sample": {}, "complete": {}, "likelihood": EXACT_PROBABILITY},
            program=program,
        )
