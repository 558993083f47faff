"""Generative stochastic network: a Markov chain that is learned, and no density.

Yoshua Bengio, Éric Thibodeau-Laufer, Guillaume Alain and Jason Yosinski, "Deep Generative
Stochastic Networks Trainable by Backprop", 2014, arXiv:1306.1091. A step corrupts the picture, maps
it to hidden units H with noise of their own, and draws a picture from P(X | H); where the network
has learned to undo it, the chain's pictures are distributed as the data. The noise of the hidden
units lets P(X | H) be simple, a product over pixels.

Training is the walkback of Yoshua Bengio, Li Yao, Guillaume Alain and Pascal Vincent, "Generalized
Denoising Auto-Encoders as Generative Models", 2013, arXiv:1305.6663: from a picture of the data the
chain makes some steps, and after each the network is to find the way back to that picture, so that
it unlearns pictures that it wanders to.

Corruption is salt and pepper. There are two hidden layers, and both maps use the same weights, as
the paper's do.

Differences: H depends on X alone, where the paper's remembers the H before it, so that pictures are
all there is to a state; a walk has a fixed number of steps; noise enters before the activation, not
after it too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, linear

from model_zoo.cards import BINARISATION, image_event, image_preprocess
from model_zoo.data import in_chunks
from model_zoo.energy.chain import chain_controls, chain_graphs, smoothed_mean
from model_zoo.family import Batch, Card, Family, Figure, Function, Graph, Objective, Port
from model_zoo.layers import binarise, standard_error, uniform_noise

HIDDEN_DEVIATION = 1.0  # of the noise before each hidden unit, uniform so that it needs no other
SPREAD = math.sqrt(12) * HIDDEN_DEVIATION  # a uniform's width is this many of its deviations
BURN_IN, THINNING = 100, 20  # steps: each goes far, from what is left of a corrupted picture
CHUNK = 1000  # images measured at a time


class GenerativeStochasticNetwork(Family):
    """Binary images, and a step from one to the next that keeps to the data."""

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        hidden_units: tuple[int, int] = (120, 120),
        corruption: float = 0.4,
        walk_back_steps: int = 4,
    ):
        """Build for grey images [1, height, width].

        `corruption` is the share of pixels that a step sets to 0 or 1 at random.
        """
        super().__init__()
        self.image_shape, self.corruption = tuple(image_shape), corruption
        self.walk_back_steps = walk_back_steps
        self.first, self.second = hidden_units
        self.pixels = math.prod(self.image_shape)
        self.uniforms = 2 * self.pixels + self.first + self.second
        self.weight = nn.Parameter(_glorot(self.first, self.pixels))
        self.upper_weight = nn.Parameter(_glorot(self.second, self.first))
        self.first_bias = nn.Parameter(torch.zeros(self.first))
        self.second_bias = nn.Parameter(torch.zeros(self.second))
        self.lower_bias = nn.Parameter(torch.zeros(self.first))
        self.visible_bias = nn.Parameter(torch.zeros(self.pixels))
        self.register_buffer("start_rates", torch.full((self.pixels,), 0.5))

    def corrupted(self, v: Tensor, uniforms: Tensor) -> Tensor:
        """Return pixels [N, D] of which a share is set to 0 and as many to 1."""
        low = self.corruption / 2
        v = torch.where(uniforms < low, torch.zeros_like(v), v)
        return torch.where(uniforms >= 1 - low, torch.ones_like(v), v)

    def logits(self, v: Tensor, first_noise: Tensor, second_noise: Tensor) -> Tensor:
        """Return the log odds of the picture that v [N, D] was made of, given hidden noise."""
        first = torch.tanh(linear(v, self.weight, self.first_bias) + first_noise)
        second = torch.tanh(linear(first, self.upper_weight, self.second_bias) + second_noise)
        below = torch.tanh(second @ self.upper_weight + self.lower_bias)
        return (below @ self.weight).float() + self.visible_bias

    def next_logits(self, v: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log odds of the next picture, and the uniforms left to draw it with."""
        sizes = [self.pixels, self.first, self.second, self.pixels]
        of_corruption, of_first, of_second, of_pixels = uniforms.split(sizes, dim=1)
        noisy = self.corrupted(v, of_corruption)
        logits = self.logits(noisy, SPREAD * (of_first - 0.5), SPREAD * (of_second - 0.5))
        return logits, of_pixels

    def step(self, state: Tensor, uniforms: Tensor, temperature: Tensor | None) -> Tensor:
        """Corrupt the picture, find a way back and draw the next picture."""
        logits, of_pixels = self.next_logits(state, uniforms)
        return (of_pixels < torch.sigmoid(logits)).float()

    def clean_logits(self, v: Tensor) -> Tensor:
        """Return the log odds of the next picture without any noise."""
        none = torch.zeros(1, device=v.device)
        return self.logits(v, none, none)

    # Training

    def objectives(self) -> dict[str, Objective]:
        """Return the one loss: -log P(x | H) in nats, the mean over the steps of a walk."""
        return {"network": Objective(list(self.parameters()), self._loss)}

    def _loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        v = state = binarise(batch.images, generator).flatten(1)
        losses = []
        for _ in range(self.walk_back_steps):
            logits, of_pixels = self.next_logits(state, self._noise(len(v), generator))
            losses.append(missing_nats(v, logits).mean())
            state = (of_pixels < torch.sigmoid(logits.detach())).float()
        return torch.stack(losses).mean()

    def _noise(self, count: int, generator: torch.Generator) -> Tensor:
        return uniform_noise((count, self.uniforms), generator)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Map pictures [N, 1, H, W] in [0, 1] to their means after one step without noise."""
        mean = torch.sigmoid(self.clean_logits(x.flatten(1)))
        return mean.reshape(-1, *self.image_shape)

    @torch.no_grad()
    def conclude(self, data: Batch, generator: torch.Generator) -> None:
        """Let chains start with pixels that are on as often as in the data."""
        self.start_rates.copy_(smoothed_mean(data.images.flatten(1) / 255))

    @torch.no_grad()
    def evaluate(self, data: Batch, generator: torch.Generator) -> list[Figure]:
        """Measure how well a corrupted picture is found again; there is no likelihood."""
        binary = Batch(binarise(data.images, generator).flatten(1), data.labels)
        nats = torch.cat(
            [
                missing_nats(v, self.next_logits(v, self._noise(len(v), generator))[0])
                for v in (chunk.images for chunk in in_chunks(binary, CHUNK))
            ]
        )
        return [
            Figure(
                "denoising_error",
                nats.mean().item(),
                "nats",
                "-log P(x | H), pixels drawn 0 or 1 by their grey value once, H of x corrupted by "
                f"{self.corruption:.0%} salt and pepper: how sharp a step is, and no likelihood",
                standard_error(nats),
            )
        ]

    # Serving

    def card(self) -> Card:
        """Describe the model to those who serve it."""
        return Card(
            family="generative stochastic network",
            event=image_event(self.image_shape),
            preprocess=image_preprocess(0.0, 1.0, binarisation={**BINARISATION, "required_by": []}),
            controls=chain_controls(BURN_IN, THINNING, tempered=False),
            operations={"sample": {}, "complete": {}, "reconstruct": {}},
            program="markov_chain",
        )

    def graphs(self) -> tuple[Graph, ...]:
        """Return the chain and reconstruct; sets eval mode."""
        data, mean = (Port(name, "data", self.image_shape) for name in ("data", "mean"))
        return (
            *chain_graphs(self, tempered=False),
            Graph("reconstruct", Function(self, self.reconstruct).eval(), (data,), (mean,)),
        )


def missing_nats(v: Tensor, logits: Tensor) -> Tensor:
    """Return -log P(v) of pixels [N, D] in nats, [N], by log odds of the same shape."""
    return binary_cross_entropy_with_logits(logits, v, reduction="none").sum(dim=1)


def _glorot(outputs: int, inputs: int) -> Tensor:
    return torch.empty(outputs, inputs).uniform_(-1, 1) * math.sqrt(6 / (inputs + outputs))
