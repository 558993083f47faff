"""Functions that go through the positions of a sequence with a state: a loop inside one graph."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

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


class Scans(nn.Module):
    """Graph: loops one after another; their single results are put side by side, [B, ..].

    Each is given the inputs of the graph, and behind them the results of those before it.
    """

    def __init__(self, scans: Sequence[Scan]):
        """Join loops that have one result each."""
        super().__init__()
        self.scans: list[Scan] = nn.ModuleList(scans)  # type: ignore[assignment]

    def forward(self, *inputs: Tensor) -> Tensor:
        """Run the loops."""
        results: list[Tensor] = []
        for scan in self.scans:
            results += scan(*inputs, *results)
        return torch.cat(results, dim=1)
