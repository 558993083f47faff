"""The family contract: what training and export may ask of a generative model.

A family is one `nn.Module` that knows three things about itself: the losses it is trained with
(`objectives`), how good it is (`evaluate`), and how it is served (`card` and `graphs`). Nothing
else in the project branches on a family; a new one is this contract in one file and a recipe.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

BATCH = "batch"
"""Name of the free axis of every graph input and output, mostly the first."""


@dataclass(frozen=True)
class Batch:
    """Training examples: `images` are levels 0..255, float32 [N, C, H, W]; `labels` int64 [N].

    Of a data set of vectors, `images` are these, float32 [N, D].
    """

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Objective:
    """One loss and the parameters that descend it; a GAN has two of them, stepped in turn.

    `loss` maps a batch and a generator (the only source of randomness) to a scalar. Each objective
    calls for an optimiser of the same name in the recipe, and is stepped at every `interval`-th
    step of training: a critic may be ahead of its generator.
    """

    parameters: Iterable[nn.Parameter]
    loss: Callable[[Batch, torch.Generator], Tensor]
    interval: int = 1


@dataclass(frozen=True)
class Figure:
    """One measured number with everything needed to compare it with another.

    `protocol` says how it was measured, in a sentence; `published` holds the `value` and `source`
    of the figure to set it beside and the `dataset` that it is of, or is None where there is none
    on the same protocol.
    """

    name: str
    value: float
    unit: str
    protocol: str
    standard_error: float | None = None
    published: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Port:
    """An input or output of a graph. `shape` leaves out the batch axis, which is the first.

    Roles of inputs: data, latent, features, codes, condition, noise, control, cache, forced, steps.
    Roles of outputs: data, latent, latent_deviation, features, codes, levels, log_likelihood and
    log_likelihood_map (nats), score, statistic, cache. A noise input also names its `distribution`
    (uniform or normal) and its `purpose`, which keys the noise scheme. A statistic is one more
    number that the graph log_likelihood gives of each row, and its name says which:
    reconstruction_error or kl_divergence (nats), or latent_norm. The output `next_x` of a cache `x`
    is what to pass as `x` next time; the first time it is zero. `batch_axis` is another one where
    an inner loop over rows gains from it.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    distribution: str | None = None
    purpose: str | None = None
    batch_axis: int = 0

    def shape_of(self, rows: int | str = BATCH) -> list[int | str]:
        """Return the whole shape, with so many rows on the batch axis."""
        shape: list[int | str] = list(self.shape)
        shape.insert(self.batch_axis, rows)
        return shape


@dataclass(frozen=True)
class Graph:
    """A pure function to be served: `module(*inputs)` returns a tensor, or a tuple as `outputs`.

    Its name says which function it is: decode, encode, reconstruct, prior (what decode takes, of
    noise), draw (a whole event, position after position), log_likelihood, score, row_step, features
    (what row_step is told of every pixel of its row, [height, width, *] of a latent). Two more
    may stand beside log_likelihood: background_log_likelihood, that of a model of nearest pixels
    alone, which takes the same condition, and log_mass_given_latent, log p(x|z). The program
    markov_chain runs start, noise to the state of a chain, and transition, which makes so many
    steps of its noise [most steps, ...] as the input of role steps says.
    Pure means that it draws no randomness and keeps no state: noise enters as an input, and row i
    of every output depends on row i of the inputs only. An existing ONNX file may stand in for the
    module; its inputs and outputs are then matched to the ports by order.
    """

    name: str
    module: nn.Module | Path
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


class Function(nn.Module):
    """A function of a model as a module: what a graph is made of. Its weights are the model's."""

    def __init__(self, model: nn.Module, function: Callable[..., Tensor | tuple[Tensor, ...]]):
        """Take a method of the model, or another function that reads its weights."""
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return what the function returns."""
        return self.function(*inputs)


@dataclass(frozen=True)
class Card:
    """What a model says of itself to those who serve it; the exporter copies it to the manifest.

    `family` is a word for people. `event` has a kind: `image`, with shape [height, width,
    channels], levels and base measure of the density, or `vector`, with shape [size] and the base
    measure. `preprocess` maps levels of images to graph values:
    value = (low + (high - low) * level / (levels - 1) - mean) / deviation;
    graphs take vectors as they are, so there is none of these.
    `latent` has shape and prior, standard_normal or graph, and `prior_meaning` in words of a
    graph. `codes`, of a model of discrete latents, has `maps`, each of a name, a shape and levels,
    that follow each other in one vector, and `prior_meaning`. `condition` has kinds, names and
    prior.
    Each is None where there is none.
    `controls` maps a request field to meaning, minimum, maximum and default. `operations` maps
    each operation offered to the graphs that it runs and what its answer means.
    """

    family: str
    event: Mapping[str, Any]
    preprocess: Mapping[str, Any] | None
    operations: Mapping[str, Mapping[str, Any]]
    latent: Mapping[str, Any] | None = None
    codes: Mapping[str, Any] | None = None
    condition: Mapping[str, Any] | None = None
    controls: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    program: str = "single_pass"


class Trainable(nn.Module, ABC):
    """What the training loop needs to know: the losses, and how good the model is.

    A generative model is a `Family`; a network that only measures others is no more than this.
    """

    @abstractmethod
    def objectives(self) -> dict[str, Objective]:
        """Return the losses by name, in the order in which one training step takes them."""

    def conclude(self, data: Batch, generator: torch.Generator) -> None:
        """Fit to the whole training split what no gradient fits, after the last epoch.

        That is a mixture of latents, say, or all of a model that has a closed form. Most have none.
        """

    @abstractmethod
    def evaluate(self, data: Batch, generator: torch.Generator) -> list[Figure]:
        """Measure the model on a split, in eval mode. The first figure is the one to select by."""


class Family(Trainable):
    """A generative model that can be trained, measured and exported."""

    @abstractmethod
    def card(self) -> Card:
        """Describe the model to those who serve it."""

    @abstractmethod
    def graphs(self) -> tuple[Graph, ...]:
        """Return the pure functions that the card's operations run, in eval mode."""
