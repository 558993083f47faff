"""Deep Boltzmann machine of two hidden layers, trained by mean field and persistent chains.

Ruslan Salakhutdinov and Geoffrey Hinton, "Deep Boltzmann Machines", 2009. Pixels v and hidden
layers h1 and h2 have an energy with terms for v and h1, and for h1 and h2. Given h1, the other two
are independent, and given those, so is h1: a Gibbs step draws either whole. What the data expects
of hidden units comes from a mean field, what the model expects from persistent chains.

All layers are trained at once, without the greedy layerwise start of section 3.1: the energy is of
pixels and units less their offsets, after Gregoire Montavon and Klaus-Robert Müller, "Deep
Boltzmann Machines and the Centering Trick", 2012.

The likelihood is theirs: the mean field's lower bound less an estimate of log Z by annealed
importance sampling, which tends to be too low. So the result may lie on either side.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from model_zoo.data import in_chunks
from model_zoo.energy.annealing import AnnealingPath, Effort, LogPartition, forward
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
TRAINING_UPDATES, UPDATES = 8, 12  # of the mean field: enough to learn by, and until it stands
CHEAP = Effort(steps=400, chains=32)  # between epochs: too high by some nats, but it tells the way
CHAINS = 128  # of the estimate that is kept
BURN_IN, THINNING = 1000, 100  # steps; digits are there after some hundred


class DeepBoltzmannMachine(Family):
    """Binary images, two layers of hidden units, and chains that training goes on from.

    The state of a chain is the pixels and the second layer.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        hidden_units: tuple[int, int] = (150, 100),
        chains: int = 100,
        gibbs_steps: int = 2,
        annealing_steps: int = 20_000,
    ):
        """Build for grey images [1, height, width].

        Every update moves all `chains` by so many Gibbs steps. The normaliser is estimated in
        `annealing_steps`.
        """
        super().__init__()
        self.image_shape, self.gibbs_steps = tuple(image_shape), gibbs_steps
        self.effort = Effort(annealing_steps, CHAINS)
        self.first, self.second = hidden_units
        self.pixels = math.prod(self.image_shape)
        self.uniforms = self.first + self.pixels + self.second
        self.weight = nn.Parameter(INITIAL_DEVIATION * torch.randn(self.first, self.pixels))
        self.upper_weight = nn.Parameter(INITIAL_DEVIATION * torch.randn(self.second, self.first))
        self.visible_bias = nn.Parameter(torch.zeros(self.pixels))
        self.first_bias = nn.Parameter(torch.zeros(self.first))
        self.second_bias = nn.Parameter(torch.zeros(self.second))
        # Pixels are less their mean, hidden units less one half, where they start.
        self.register_buffer("start_rates", torch.full((self.pixels + self.second,), 0.5))
        self.register_buffer("visible_offset", torch.full((self.pixels,), 0.5))
        # Of float64, which rounding to halves leaves alone: log Z is hundreds of nats.
        self.register_buffer("log_partition", torch.tensor(math.nan, dtype=torch.float64))
        self.register_buffer("log_partition_error", torch.tensor(math.nan, dtype=torch.float64))
        states = torch.full((chains, self.pixels + self.second), NOT_STARTED)
        self.register_buffer("chains", states, persistent=False)

    # The energy and its conditionals

    def first_logits(self, v: Tensor, h2: Tensor) -> Tensor:
        """Return the log odds of the first layer's units, given pixels and second layer."""
        return self._from_below(v) + ((h2 - 0.5) @ self.upper_weight).float()

    def _from_below(self, v: Tensor) -> Tensor:
        return linear(v - self.visible_offset, self.weight, self.first_bias).float()

    def visible_logits(self, h1: Tensor) -> Tensor:
        """Return the log odds of the pixels, given the first layer."""
        return ((h1 - 0.5) @ self.weight).float() + self.visible_bias

    def second_logits(self, h1: Tensor) -> Tensor:
        """Return the log odds of the second layer's units, given the first."""
        return linear(h1 - 0.5, self.upper_weight, self.second_bias).float()

    def energy(self, v: Tensor, h1: Tensor, h2: Tensor) -> Tensor:
        """Return the energy in nats, [N]; of means, its mean where units are independent."""
        of_pairs = (h1 - 0.5) * (self.first_logits(v, h2) - self.first_bias)
        biases = v @ self.visible_bias + h1 @ self.first_bias + h2 @ self.second_bias
        return -(biases + of_pairs.sum(dim=1))

    def mean_field(self, v: Tensor, updates: int) -> tuple[Tensor, Tensor]:
        """Return the means of both layers given pixels, by so many updates."""
        from_below = self._from_below(v)
        h1 = torch.sigmoid(from_below)
        for _ in range(updates):
            h2 = torch.sigmoid(self.second_logits(h1))
            h1 = torch.sigmoid(from_below + ((h2 - 0.5) @ self.upper_weight).float())
        return h1, torch.sigmoid(self.second_logits(h1))

    def bound(self, v: Tensor) -> Tensor:
        """Return a lower bound on log p(v) + log Z in nats, [N], that of the mean field."""
        h1, h2 = self.mean_field(v, UPDATES)
        entropy = bernoulli_entropy(h1) + bernoulli_entropy(h2)
        return entropy - self.energy(v, h1, h2)

    def hidden_means(self, v: Tensor) -> Tensor:
        """Return the means of the first layer's units given pixels, by mean field."""
        return self.mean_field(v, UPDATES)[0]

    def log_probability(self, v: Tensor) -> Tensor:
        """Return the bound less the estimate of log Z that `conclude` made, in nats, [N]."""
        return self.bound(v) - self.log_partition.float()

    def step(self, state: Tensor, uniforms: Tensor, temperature: Tensor | None) -> Tensor:
        """Make a Gibbs step: the first layer, then pixels and second layer given it."""
        t = 1.0 if temperature is None else temperature
        sizes = [self.first, self.pixels, self.second]
        of_first, of_pixels, of_second = uniforms.split(sizes, dim=1)
        v, h2 = state.split([self.pixels, self.second], dim=1)
        h1 = (of_first < torch.sigmoid(self.first_logits(v, h2) / t)).float()
        v = (of_pixels < torch.sigmoid(self.visible_logits(h1) / t)).float()
        h2 = (of_second < torch.sigmoid(self.second_logits(h1) / t)).float()
        return torch.cat([v, h2], dim=1)

    # Training

    def objectives(self) -> dict[str, Objective]:
        """Return the one loss: how much lower the chains' energy is than the data's."""
        return {"machine": Objective(list(self.parameters()), self._loss)}

    def _loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        v = binarise(batch.images, generator).flatten(1)
        with torch.no_grad():
            if (self.chains == NOT_STARTED).any():
                self._start(v, generator)
            for _ in range(self.gibbs_steps):
                noise = uniform_noise((len(self.chains), self.uniforms), generator)
                self.chains = self.step(self.chains, noise, None)
            h1, h2 = self.mean_field(v, TRAINING_UPDATES)
            drawn_v, drawn_h2 = self.chains.split([self.pixels, self.second], dim=1)
            drawn_h1 = torch.sigmoid(self.first_logits(drawn_v, drawn_h2))
        of_data = self.energy(v, h1, h2).mean()
        return of_data - self.energy(drawn_v, drawn_h1, drawn_h2).mean()

    def _start(self, v: Tensor, generator: torch.Generator) -> None:
        """Let each pixel be on as often as in the first batch, whatever the hidden units are."""
        self._set_start(smoothed_mean(v))
        self.visible_offset.copy_(self.start_rates[: self.pixels])
        self.visible_bias.copy_(torch.logit(self.visible_offset))
        self.chains = bernoulli(self.start_rates.expand_as(self.chains), generator)

    def _set_start(self, pixel_rates: Tensor) -> None:
        self.start_rates[: self.pixels] = pixel_rates

    @torch.no_grad()
    def conclude(self, data: Batch, generator: torch.Generator) -> None:
        """Estimate log Z of the weights as they will be stored, from where all pixels are free."""
        for tensor in (*self.parameters(), self.visible_offset):
            tensor.copy_(tensor.half())
        self._set_start(smoothed_mean(data.images.flatten(1) / 255))
        value, error = self.estimate_log_partition(self.effort, generator)
        self.log_partition.fill_(value)
        self.log_partition_error.fill_(error)

    def estimate_log_partition(self, effort: Effort, generator: torch.Generator) -> LogPartition:
        """Estimate log Z by annealed importance sampling, from independent units."""
        return forward(AnnealedMachine(self), effort, generator)

    @torch.no_grad()
    def evaluate(self, data: Batch, generator: torch.Generator) -> list[Figure]:
        """Measure the mean field's bound less log Z, and log Z itself."""
        v = binarise(data.images, generator).flatten(1)
        bounds = torch.cat(
            [self.bound(chunk.images) for chunk in in_chunks(Batch(v, data.labels), 1000)]
        )
        effort, z = CHEAP, LogPartition(*map(float, (self.log_partition, self.log_partition_error)))
        if math.isnan(z.value):
            z = self.estimate_log_partition(effort, generator)
        else:
            effort = self.effort
        return [
            Figure(
                "log_likelihood",
                (bounds.mean() - z.value).item(),
                "nats",
                "lower bound on log P(x) by mean field, pixels drawn 0 or 1 by their grey value "
                f"once, log Z by annealed importance sampling, {effort}: may lie on either side",
                math.hypot(standard_error(bounds) or 0.0, z.standard_error),
            ),
            Figure(
                "log_partition",
                z.value,
                "nats",
                f"log Z by annealed importance sampling, {effort}",
                z.standard_error,
            ),
        ]

    # Serving

    def card(self) -> Card:
        """Describe the model to those who serve it."""
        return machine_card(
            self,
            family="deep Boltzmann machine",
            units=self.first,
            estimator="mean_field_bound_less_annealed_normaliser",
            controls=chain_controls(BURN_IN, THINNING, tempered=True),
        )

    def graphs(self) -> tuple[Graph, ...]:
        """Return the chain, encode, decode, reconstruct and log_likelihood; sets eval mode."""
        return machine_graphs(self, units=self.first)


class AnnealedMachine(AnnealingPath):
    """From independent units to the machine; a state is the first layer.

    Pixels start on at start_rates, hidden units at random; the first layer's sums over both others
    are known.
    """

    def __init__(self, model: DeepBoltzmannMachine):
        """Anneal a trained machine."""
        self.model = model
        self.start_bias = torch.logit(model.start_rates[: model.pixels])
        of_hidden = (model.first + model.second) * math.log(2)
        self.log_partition_at_zero = softplus(self.start_bias).sum().item() + of_hidden
        self._known: tuple[Tensor, tuple[Tensor, Tensor]] | None = None

    def start(self, chains: int, generator: torch.Generator) -> Tensor:
        """Draw first layers [chains, units]."""
        half = torch.full((chains, self.model.first), 0.5, device=generator.device)
        return bernoulli(half, generator)

    def log_ratio(self, state: Tensor, before: float, after: float) -> Tensor:
        """Return log f_after(h1) - log f_before(h1), summed over pixels and second layer."""
        visible, second = self._logits(state)
        offsets = (visible - self.model.visible_bias) @ self.model.visible_offset
        offsets = offsets + 0.5 * (second - self.model.second_bias).sum(dim=1)
        of_pixels = softplus(self._mixed(visible, after)) - softplus(self._mixed(visible, before))
        of_second = softplus(after * second) - softplus(before * second)
        linear_terms = (after - before) * (state @ self.model.first_bias - offsets)
        return linear_terms + of_pixels.sum(dim=1) + of_second.sum(dim=1)

    def move(self, state: Tensor, b: float, generator: torch.Generator) -> Tensor:
        """Make a Gibbs step: pixels and second layer, then the first layer given them."""
        visible, second = self._logits(state)
        v = bernoulli(torch.sigmoid(self._mixed(visible, b)), generator)
        h2 = bernoulli(torch.sigmoid(b * second), generator)
        return bernoulli(torch.sigmoid(b * self.model.first_logits(v, h2)), generator)

    def _mixed(self, visible: Tensor, b: float) -> Tensor:
        return (1 - b) * self.start_bias + b * visible

    def _logits(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the model's, which both their uses at one state share."""
        if self._known is None or self._known[0] is not state:
            logits = self.model.visible_logits(state), self.model.second_logits(state)
            self._known = (state, logits)
        return self._known[1]


def bernoulli_entropy(mean: Tensor) -> Tensor:
    """Return the entropy in nats, [N], of independent units with means [N, D]."""
    clamped = mean.clamp(1e-7, 1 - 1e-7)  # float32 holds both
    return -(clamped * clamped.log() + (1 - clamped) * (1 - clamped).log()).sum(dim=1)
