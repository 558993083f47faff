"""Restricted Boltzmann machine, trained by persistent contrastive divergence.

Paul Smolensky, "Information Processing in Dynamical Systems: Foundations of Harmony Theory", 1986.
Binary pixels v and hidden units h have the energy E(v, h) = -b'v - c'h - h'Wv; p(v, h) is
exp(-E) / Z. Given one layer the units of the other are independent, so a Gibbs step draws each
layer whole. Summed over h, p(v) = exp(-F(v)) / Z with the free energy F.

Tijmen Tieleman, "Training Restricted Boltzmann Machines using Approximations to the Likelihood
Gradient", 2008: the gradient of log p(v) is that of F at the model's own pictures less that of F
at the data; the pictures are those of Markov chains that go on from one update to the next.

The normaliser Z is estimated by annealed importance sampling, forward and reverse (see
`annealing.py`), on the path of Salakhutdinov and Murray 2008.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from model_zoo.data import in_chunks
from model_zoo.energy.annealing import AnnealingPath, Effort, LogPartition, forward, reverse
from model_zoo.energy.chain import (
    bernoulli,
    chain_controls,
    machine_card,
    machine_graphs,
    smoothed_mean,
)
from model_zoo.family import Batch, Card, Family, Figure, Graph, Objective
from model_zoo.layers import binarise, standard_error, uniform_noise

INITIAL_DEVIATION = 0.01  # of weights: hidden units start nearly alike, yet not the same
NOT_STARTED = -1.0
CHEAP = Effort(steps=400, chains=32)  # between epochs: too high by some nats, but it tells the way
CHAINS = 128  # of the estimate that is kept
REVERSED_IMAGES = 250
BURN_IN, THINNING = 1000, 100  # steps; digits are there after some hundred


class RestrictedBoltzmannMachine(Family):
    """Binary images, one layer of hidden units, and chains that training goes on from."""

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        hidden_units: int = 500,
        chains: int = 100,
        gibbs_steps: int = 1,
        annealing_steps: int = 20_000,
    ):
        """Build for grey images [1, height, width].

        Every update moves all `chains` by so many Gibbs steps. The normaliser is estimated in
        `annealing_steps`.
        """
        super().__init__()
        self.image_shape, self.gibbs_steps = tuple(image_shape), gibbs_steps
        self.effort = Effort(annealing_steps, CHAINS)
        self.hidden_units, self.pixels = hidden_units, math.prod(self.image_shape)
        self.uniforms = hidden_units + self.pixels
        self.weight = nn.Parameter(INITIAL_DEVIATION * torch.randn(hidden_units, self.pixels))
        self.visible_bias = nn.Parameter(torch.zeros(self.pixels))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden_units))
        self.register_buffer("start_rates", torch.full((self.pixels,), 0.5))
        # Of float64, which rounding to halves leaves alone: log Z is hundreds of nats.
        self.register_buffer("log_partition", torch.tensor(math.nan, dtype=torch.float64))
        self.register_buffer("log_partition_error", torch.tensor(math.nan, dtype=torch.float64))
        chain_states = torch.full((chains, self.pixels), NOT_STARTED)
        self.register_buffer("chains", chain_states, persistent=False)

    def hidden_logits(self, v: Tensor) -> Tensor:
        """Return the log odds of every hidden unit being on, given pixels [N, D]."""
        return linear(v, self.weight, self.hidden_bias).float()

    def hidden_means(self, v: Tensor) -> Tensor:
        """Return the probability of every hidden unit being on, [N, H]."""
        return torch.sigmoid(self.hidden_logits(v))

    def visible_logits(self, h: Tensor) -> Tensor:
        """Return the log odds of every pixel being on, given hidden units [N, H]."""
        return (h @ self.weight).float() + self.visible_bias

    def free_energy(self, v: Tensor) -> Tensor:
        """Return F(v) = -b'v - sum over j of log(1 + exp(c_j + W_j v)) in nats, [N]."""
        return -(v @ self.visible_bias) - softplus(self.hidden_logits(v)).sum(dim=1)

    def log_probability(self, v: Tensor) -> Tensor:
        """Return log p(v) in nats, [N], by the estimate of log Z that `conclude` made."""
        return -self.free_energy(v) - self.log_partition.float()

    def step(self, state: Tensor, uniforms: Tensor, temperature: Tensor | None) -> Tensor:
        """Make a Gibbs step: hidden units given pixels, then pixels given hidden units."""
        t = 1.0 if temperature is None else temperature
        of_hidden, of_pixels = uniforms.split([self.hidden_units, self.pixels], dim=1)
        h = (of_hidden < torch.sigmoid(self.hidden_logits(state) / t)).float()
        return (of_pixels < torch.sigmoid(self.visible_logits(h) / t)).float()

    # Training

    def objectives(self) -> dict[str, Objective]:
        """Return the one loss: how much lower the chains' free energy is than the data's."""
        return {"machine": Objective(list(self.parameters()), self._loss)}

    def _loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        v = binarise(batch.images, generator).flatten(1)
        with torch.no_grad():
            if (self.chains == NOT_STARTED).any():
                self._start(v, generator)
            for _ in range(self.gibbs_steps):
                noise = uniform_noise((len(self.chains), self.uniforms), generator)
                self.chains = self.step(self.chains, noise, None)
        return self.free_energy(v).mean() - self.free_energy(self.chains).mean()

    def _start(self, v: Tensor, generator: torch.Generator) -> None:
        """Let each pixel be on as often as in the first batch, whatever the hidden units are."""
        self.start_rates.copy_(smoothed_mean(v))
        self.visible_bias.copy_(torch.logit(self.start_rates))
        self.chains = bernoulli(self.start_rates.expand_as(self.chains), generator)

    @torch.no_grad()
    def conclude(self, data: Batch, generator: torch.Generator) -> None:
        """Estimate log Z of the weights as they will be stored, from where all pixels are free."""
        for parameter in self.parameters():
            parameter.copy_(parameter.half())
        self.start_rates.copy_(smoothed_mean(data.images.flatten(1) / 255))
        value, error = self.estimate_log_partition(self.effort, generator)
        self.log_partition.fill_(value)
        self.log_partition_error.fill_(error)

    def estimate_log_partition(self, effort: Effort, generator: torch.Generator) -> LogPartition:
        """Estimate log Z by annealed importance sampling, from independent pixels."""
        return forward(AnnealedMachine(self), effort, generator)

    @torch.no_grad()
    def evaluate(self, data: Batch, generator: torch.Generator) -> list[Figure]:
        """Measure log p(x), and once log Z is known its conservative estimate on some images."""
        v = binarise(data.images, generator).flatten(1)
        energies = torch.cat(
            [self.free_energy(chunk.images) for chunk in in_chunks(Batch(v, data.labels), 1000)]
        )
        concluded = not self.log_partition.isnan()
        if concluded:
            z = LogPartition(self.log_partition.item(), self.log_partition_error.item())
        else:
            z = self.estimate_log_partition(CHEAP, generator)
        likelihood = _likelihood_figure(energies, z, self.effort if concluded else CHEAP)
        return (
            [likelihood, *self._bracket(v, energies, z, generator)] if concluded else [likelihood]
        )

    def _bracket(
        self, v: Tensor, energies: Tensor, z: LogPartition, generator: torch.Generator
    ) -> list[Figure]:
        """Return log Z, and log p(x) by a log Z from above, of chains that start at images.

        Some images are enough: of log Z all say the same, of log p(x) each says its own.
        """
        some, steps = v[:: max(1, len(v) // REVERSED_IMAGES)], self.effort.steps // 2
        above = reverse(AnnealedMachine(self), steps, some, generator)
        return [
            Figure(
                "log_likelihood_reverse",
                -(energies.mean() + above.mean()).item(),
                "nats",
                f"as log_likelihood, log Z by reverse annealing from {len(some)} of the images in "
                f"{steps} steps: tends to be too low",
                math.hypot(standard_error(energies) or 0.0, standard_error(above) or 0.0),
            ),
            Figure(
                "log_partition",
                z.value,
                "nats",
                f"log Z by annealed importance sampling, {self.effort}",
                z.standard_error,
            ),
        ]

    # Serving

    def card(self) -> Card:
        """Describe the model to those who serve it."""
        return machine_card(
            self,
            family="restricted Boltzmann machine",
            units=self.hidden_units,
            estimator="annealed_importance_sampling",
            controls=chain_controls(BURN_IN, THINNING, tempered=True),
        )

    def graphs(self) -> tuple[Graph, ...]:
        """Return the chain, encode, decode, reconstruct and log_likelihood; sets eval mode."""
        return machine_graphs(self, units=self.hidden_units)


class AnnealedMachine(AnnealingPath):
    """From pixels that are on at start_rates, and hidden units at random, to the machine."""

    def __init__(self, model: RestrictedBoltzmannMachine):
        """Anneal a trained machine."""
        self.model = model
        self.start_bias = torch.logit(model.start_rates)
        of_hidden = model.hidden_units * math.log(2)
        self.log_partition_at_zero = softplus(self.start_bias).sum().item() + of_hidden
        self._known: tuple[Tensor, Tensor] | None = None

    def start(self, chains: int, generator: torch.Generator) -> Tensor:
        """Draw pixels [chains, D]."""
        rates = self.model.start_rates
        return bernoulli(rates.expand(chains, len(rates)), generator)

    def log_ratio(self, state: Tensor, before: float, after: float) -> Tensor:
        """Return log f_after(v) - log f_before(v)."""
        logits = self._hidden_logits(state)
        of_hidden = softplus(after * logits) - softplus(before * logits)
        of_pixels = (after - before) * (state @ (self.model.visible_bias - self.start_bias))
        return of_pixels + of_hidden.sum(dim=1)

    def move(self, state: Tensor, b: float, generator: torch.Generator) -> Tensor:
        """Make a Gibbs step of the machine on the way."""
        h = bernoulli(torch.sigmoid(b * self._hidden_logits(state)), generator)
        logits = (1 - b) * self.start_bias + b * self.model.visible_logits(h)
        return bernoulli(torch.sigmoid(logits), generator)

    def _hidden_logits(self, state: Tensor) -> Tensor:
        """Return the model's, which both its uses at one state share."""
        if self._known is None or self._known[0] is not state:
            self._known = (state, self.model.hidden_logits(state))
        return self._known[1]


def _likelihood_figure(energies: Tensor, z: LogPartition, effort: Effort) -> Figure:
    spread = standard_error(energies) or 0.0
    return Figure(
        "log_likelihood",
        (-energies.mean() - z.value).item(),
        "nats",
        "log P(x), pixels drawn 0 or 1 by their grey value once, log Z by annealed importance "
        f"sampling, {effort}: tends to be too high",
        math.hypot(spread, z.standard_error),
    )
