"""Draws of a vector of binary values one after another, each given those before it."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from model_zoo.family import Port
from model_zoo.scan import Scan

COLDEST = 2.0**-100
"""Temperatures below count as this: one value has all of the probability, and nothing overflows."""


class Recurrence(nn.Module, ABC):
    """How a model goes from one value to the next, with a state that sums up those before.

    No step knows its position: what differs from one to the next it gets in slices of weights.
    """

    @abstractmethod
    def start(self) -> Tensor:
        """Return the state before the first value, [S]."""

    @abstractmethod
    def slices(self) -> tuple[Tensor, ...]:
        """Return what the steps need of the weights, one after another, [D, ..] each."""

    @abstractmethod
    def logit(self, state: Tensor, *slices: Tensor) -> Tensor:
        """Map states [B, S] and the slices of d to the log odds of x_d = 1, [B]."""

    @abstractmethod
    def move_on(self, state: Tensor, value: Tensor, *slices: Tensor) -> Tensor:
        """Map states [B, S], x_d [B, 1] in {0, 1} and the slices of d to the next states."""


class Draw(Scan):
    """Graph: draw vectors, with those values that are forced as they are.

    A value is 1 where the uniform number is not below the probability of 0: the inverse of the
    cumulative distribution. Temperature 0 is greedy where the uniform number is 0.
    """

    def __init__(self, recurrence: Recurrence, size: int):
        """Draw `size` values by a recurrence."""
        super().__init__()
        self.recurrence, self.size = recurrence, size

    def input_ports(self) -> tuple[Port, ...]:
        """Describe the inputs; `forced` is -1 where a value is free."""
        return (
            Port("temperature", "control", ()),
            Port("forced", "forced", (self.size,), "int64"),
            Port("uniform", "noise", (self.size,), "float32", "uniform", "pixels"),
        )

    def output_ports(self) -> tuple[Port, ...]:
        """Describe the outputs; probabilities are those at temperature 1."""
        return (
            Port("levels", "levels", (self.size,), "int64"),
            Port("log_probability", "log_likelihood_map", (self.size,)),
        )

    def prepare(self, *inputs: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Map temperature [B], forced and uniform [B, D] to states and sequences."""
        temperature, forced, uniform = inputs
        state = self.recurrence.start().expand(forced.shape[0], -1)
        coldness = 1 / temperature.clamp(min=COLDEST)
        return (state, coldness), (forced.T, uniform.T, *self.recurrence.slices())

    def step(
        self, states: tuple[Tensor, ...], items: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Draw one value."""
        state, coldness = states
        forced, uniform, *slices = items
        logit = self.recurrence.logit(state, *slices)
        probability = log_odds(logit * coldness).softmax(dim=-1)
        drawn = (uniform >= probability[..., 0]).long()
        value = torch.where(forced < 0, drawn, forced)
        state = self.recurrence.move_on(state, value[:, None].float(), *slices)
        return (state, coldness), (value, logit)

    def finish(self, *results: Tensor) -> tuple[Tensor, ...]:
        """Map values and log odds [D, B] to values and their log-probabilities in nats, [B, D]."""
        values, logits = results
        return values.T, of_values(log_probabilities(logits), values).T


def log_odds(logits: Tensor) -> Tensor:
    """Set log odds of 1 beside those of 0, on a last axis, for a softmax over both.

    It takes each pair by itself. Of functions that ONNX Runtime applies element by element, the
    last bit depends on the place in memory, and so on what else is in a batch.
    """
    return torch.stack([torch.zeros_like(logits), logits], dim=-1)


def log_probabilities(logits: Tensor) -> Tensor:
    """Map log odds of 1 to log-probabilities of 0 and of 1 in nats, [.., 2]."""
    return log_odds(logits).log_softmax(dim=-1)


def of_values(logs: Tensor, values: Tensor) -> Tensor:
    """Return the log-probabilities of binary values, [..], among those of 0 and 1, [.., 2]."""
    return torch.where(values > 0, logs[..., 1], logs[..., 0])
