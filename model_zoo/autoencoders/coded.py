"""What autoencoders of codes have in common: two losses, a bound, its figures and the graphs.

An autoencoder names one row of codes c for a picture x, so log p(x|c) + log p(c) is one term of
log p(x), the logarithm of a sum over all rows: a lower bound (van den Oord et al. 2017,
arXiv:1711.00937, section 3.2). Its decoder is a Bernoulli distribution over binary pictures, drawn
afresh while training. Labels are dropped at random while the prior trains, so that class weights of
zero ask for p(c) without a class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from model_zoo.autoencoders.autoencoder_layers import bernoulli_log_mass
from model_zoo.autoencoders.code_prior import DrawMap
from model_zoo.cards import (
    BINARISATION,
    CODE_CONTROLS,
    SINGLE_CODE_BOUND,
    class_condition,
    image_event,
    image_preprocess,
)
from model_zoo.data import in_chunks
from model_zoo.family import Batch, Card, Figure, Function, Graph, Objective, Port
from model_zoo.layers import binarise, standard_error, uniform_noise
from model_zoo.scan import Scans

LABEL_DROPOUT = 0.1
CHUNK = 500  # images measured at a time


class CodedAutoencoder(nn.Module, ABC):
    """An autoencoder of codes without its networks: what it needs of them is abstract."""

    family_name: str
    image_shape: tuple[int, int, int]
    classes: int
    levels: int
    map_shapes: Mapping[str, tuple[int, int]]
    """The maps of a row of codes by name, in their order: each is flattened in reading order."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Map x in [0, 1], [N, C, H, W], to codes, int64 [N, size]."""

    @abstractmethod
    def decode_logits(self, codes: Tensor) -> Tensor:
        """Map codes [N, size] to the log odds of every pixel being on, [N, C, H, W]."""

    @abstractmethod
    def quantised_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the codes of x decode to, with a gradient, and the codebooks' loss, [N]."""

    @abstractmethod
    def log_prior(self, codes: Tensor, class_weights: Tensor) -> Tensor:
        """Return log p(c) in nats, [N], of codes [N, size] given [N, classes]."""

    @abstractmethod
    def draws(self) -> Sequence[DrawMap]:
        """Return how each map is drawn, given the class and the maps before it."""

    @abstractmethod
    def priors(self) -> Sequence[nn.Module]:
        """Return the parts that the loss of the prior moves; all others are the autoencoder's."""

    def decode(self, codes: Tensor) -> Tensor:
        """Map codes [N, size] to the mean picture, in [0, 1], [N, C, H, W]."""
        return torch.sigmoid(self.decode_logits(codes))

    def maps_of(self, codes: Tensor) -> list[Tensor]:
        """Return the maps [N, h, w] of rows [N, size]."""
        sizes = [height * width for height, width in self.map_shapes.values()]
        parts = codes.split(sizes, dim=1)
        shapes = self.map_shapes.values()
        return [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]

    def bound_and_parts(self, x: Tensor, class_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the bound log p(x|c) + log p(c) of binary x, and minus each of them, [N] in nats.

        -log p(c) is the divergence from the prior of a posterior that knows c alone.
        """
        codes = self.encode(x)
        log_mass = bernoulli_log_mass(x, self.decode_logits(codes))
        log_prior = self.log_prior(codes, class_weights)
        return log_mass + log_prior, -log_mass, -log_prior

    def objectives(self) -> dict[str, Objective]:
        """Return the loss of the autoencoder, then that of the prior of its codes."""
        prior = [parameter for part in self.priors() for parameter in part.parameters()]
        taken = set(prior)
        rest = [parameter for parameter in self.parameters() if parameter not in taken]
        return {
            "autoencoder": Objective(rest, self._loss),
            "prior": Objective(prior, self._prior_loss),
        }

    def _loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        x = binarise(batch.images, generator)
        logits, distances = self.quantised_logits(x)
        return (distances - bernoulli_log_mass(x, logits)).mean()

    def _prior_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            codes = self.encode(binarise(batch.images, generator))
        kept = uniform_noise((len(codes), 1), generator) >= LABEL_DROPOUT
        return -self.log_prior(codes, one_hot(batch.labels, self.classes) * kept).mean()

    @torch.no_grad()
    def evaluate(self, data: Batch, generator: torch.Generator) -> list[Figure]:
        """Measure the bound without a class, its two parts, and how many codes are in use."""
        parts, codes = [], []
        for chunk in in_chunks(data, CHUNK):
            x = binarise(chunk.images, generator)
            nothing = torch.zeros(len(x), self.classes, device=x.device)
            parts.append(torch.stack(self.bound_and_parts(x, nothing)))
            codes.append(self.encode(x))
        bound, error, rate = torch.cat(parts, dim=1)
        return [
            _figure("code_bound", bound, "lower bound on log P(x): log p(x|c) + log p(c)"),
            _figure("reconstruction_error", error, "-log p(x|c)"),
            _figure("code_length", rate, "-log p(c), no class given"),
            *self._usage(torch.cat(codes)),
        ]

    def _usage(self, codes: Tensor) -> list[Figure]:
        """Return how many codes of each map are in use."""
        protocol = "exp of the entropy of how often each code is used, all places of a map together"
        return [
            Figure(
                f"{name}_perplexity",
                perplexity(part.flatten().bincount(minlength=self.levels)),
                "codes",
                protocol,
            )
            for name, part in zip(self.map_shapes, self.maps_of(codes), strict=True)
        ]

    def card(self) -> Card:
        """Describe the model to those who serve it."""
        maps: list[dict[str, Any]] = [
            {"name": name, "shape": list(shape), "levels": self.levels}
            for name, shape in self.map_shapes.items()
        ]
        given = ", each given those before it" if len(maps) > 1 else ""
        return Card(
            family=self.family_name,
            event=image_event(self.image_shape),
            preprocess=image_preprocess(0.0, 1.0, binarisation=BINARISATION),
            codes={
                "maps": maps,
                "prior_meaning": f"a PixelCNN over the codes of the training images{given}",
            },
            condition=class_condition(self.classes, optional=True),
            controls=CODE_CONTROLS,
            operations={
                "sample": {},
                "encode": {},
                "decode": {},
                "reconstruct": {},
                "likelihood": SINGLE_CODE_BOUND,
            },
        )

    def graphs(self) -> tuple[Graph, ...]:
        """Return encode, decode, prior and log_likelihood; switches the model to eval mode."""
        data = Port("data", "data", self.image_shape)
        condition = Port("class_weights", "condition", (self.classes,))
        size = sum(height * width for height, width in self.map_shapes.values())
        codes = Port("codes", "codes", (size,), "int64")
        draws = (
            Port("uniform", "noise", codes.shape, "float32", "uniform", "codes"),
            Port("temperature", "control", ()),
        )
        outputs = (
            Port("log_likelihood", "log_likelihood", ()),
            Port("reconstruction_error", "statistic", ()),
            Port("kl_divergence", "statistic", ()),
        )
        bound = Function(self, self.bound_and_parts)
        return (
            Graph("encode", Function(self, self.encode).eval(), (data,), (codes,)),
            Graph("decode", Function(self, self.decode).eval(), (codes,), (data,)),
            Graph("prior", Scans(self.draws()).eval(), (*draws, condition), (codes,)),
            Graph("log_likelihood", bound.eval(), (data, condition), outputs),
        )


def perplexity(counts: Tensor) -> float:
    """Return exp of the entropy of how often each of some codes occurs, 1 to their number."""
    return torch.special.entr(counts / counts.sum()).sum().exp().item()


def _figure(name: str, nats: Tensor, quantity: str) -> Figure:
    protocol = f"{quantity}, c the codes of x, pixels drawn 0 or 1 by their grey value once"
    return Figure(name, nats.mean().item(), "nats", protocol, standard_error(nats))
