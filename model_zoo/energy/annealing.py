"""Annealed importance sampling: what the unknown normaliser of an energy model is.

Ruslan Salakhutdinov and Iain Murray, "On the Quantitative Analysis of Deep Belief Networks", 2008:
chains go from a distribution whose normaliser Z_0 is known, through others f_k, to the model; the
mean of their weights w, the products of all f_k(v) / f_k-1(v), is an unbiased estimate of Z / Z_0.
Estimates of log Z tend to be too low, and likelihoods with them too high.

Yuri Burda, Roger Grosse and Ruslan Salakhutdinov, "Accurate and Conservative Estimates of MRF
Log-likelihood using Reverse Annealing", 2015, arXiv:1412.8566: chains that go the way back, from a
picture v, give an unbiased estimate of how probable v is where pictures are drawn by going there.
Estimates of log-likelihoods tend to be too low. Where both agree, both are right.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

# Shares of the way and of its steps, after Salakhutdinov and Murray: near the model
# the chains have most to sort out.
SCHEDULE = ((0.0, 0.5, 0.05), (0.5, 0.9, 0.3), (0.9, 1.0, 0.65))


class Effort(NamedTuple):
    """How much an estimate may cost."""

    steps: int
    chains: int

    def __str__(self) -> str:
        return f"{self.chains} chains of {self.steps} steps"


class LogPartition(NamedTuple):
    """An estimate of log Z in nats, and its standard error over chains."""

    value: float
    standard_error: float


class AnnealingPath(ABC):
    """Distributions p_b = f_b / Z_b, from one of independent pixels at b = 0 to the model at 1."""

    log_partition_at_zero: float
    """log Z_0 in nats."""

    @abstractmethod
    def start(self, chains: int, generator: torch.Generator) -> Tensor:
        """Draw states [chains, size] exactly from p_0."""

    @abstractmethod
    def log_ratio(self, state: Tensor, before: float, after: float) -> Tensor:
        """Return log f_after(state) - log f_before(state) in nats, [chains]."""

    @abstractmethod
    def move(self, state: Tensor, b: float, generator: torch.Generator) -> Tensor:
        """Make one step of a chain that leaves p_b as it is, and is its own reverse."""


def schedule(steps: int) -> list[float]:
    """Return steps + 1 places on the way, from 0 to 1."""
    parts = [
        torch.linspace(first, last, round(share * steps) + 1, dtype=torch.float64)[1:]
        for first, last, share in SCHEDULE
    ]
    return [0.0, *torch.cat(parts).tolist()]


@torch.no_grad()
def forward(path: AnnealingPath, effort: Effort, generator: torch.Generator) -> LogPartition:
    """Estimate log Z by chains that go from p_0 to the model.

    The estimate tends to be too low, the less so the more steps.
    """
    places, state = schedule(effort.steps), path.start(effort.chains, generator)
    log_weight = torch.zeros(effort.chains, dtype=torch.float64, device=state.device)
    for before, after in pairwise(places):
        log_weight += path.log_ratio(state, before, after)
        state = path.move(state, after, generator)
    return mean_weight(path.log_partition_at_zero + log_weight)


@torch.no_grad()
def reverse(path: AnnealingPath, steps: int, state: Tensor, generator: torch.Generator) -> Tensor:
    """Return for each of the states [N, size] a log Z by a chain that starts there, [N], nats.

    The mean over states that the model drew is too high, as that of the log weights of `forward` is
    too low; log f_1(v) less that of v is the conservative log-likelihood of v.
    """
    places = schedule(steps)[::-1]
    log_weight = torch.zeros(len(state), dtype=torch.float64, device=state.device)
    for after, before in pairwise(places):
        state = path.move(state, after, generator)
        log_weight += path.log_ratio(state, before, after)
    return path.log_partition_at_zero + log_weight


def mean_weight(log_weights: Tensor) -> LogPartition:
    """Return the log of the mean of weights [N], and its standard error (delta method)."""
    count = len(log_weights)
    value = log_weights.logsumexp(dim=0) - math.log(count)
    spread = (log_weights - value).exp().std().item() if count > 1 else 0.0
    return LogPartition(value.item(), spread / math.sqrt(count))
