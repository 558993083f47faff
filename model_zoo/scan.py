"""Functions that go through the positions of a sequence with a state: a loop inside one graph."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Scan(nn.Module, ABC):
    """Graph: a loop over positions, of three functions without one.

    This is the plain loop. The exporter traces the three functions one by one, and joins them with
    an ONNX Scan whose body is the step; what a step reads of weights it gets as a sequence or keeps
    as a constant of the body.
    """

    @abstractmethod
    def prepare(self, *inputs: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Map the inputs of the graph to the first states, [B, ..], and to sequences [D, ..].

        The last axis of a sequence, or any other but the first, may be the batch.
        """

    @abstractmethod
    def step(
        self, states: tuple[Tensor, ...], items: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Map the states and the items of a position to the next states, and to results [B, ..]."""

    @abstractmethod
    def finish(self, *results: Tensor) -> tuple[Tensor, ...]:
        """Map the results of all steps, [D, B, ..], to the outputs of the graph."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the loop."""
        states, sequences = self.prepare(*inputs)
        results = []
        for items in zip(*sequences, strict=True):
            states, result = self.step(states, items)
            results.append(result)
        return self.finish(*(torch.stack(parts) for parts in zip(*results, strict=True)))
