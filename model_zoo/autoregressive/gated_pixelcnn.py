"""Gated PixelCNN, an exact distribution over images, one grey level after another.

Aaron van den Oord, Nal Kalchbrenner, Oriol Vinyals, Lasse Espeholt, Alex Graves and Koray
Kavukcuoglu, "Conditional Image Generation with PixelCNN Decoders", 2016, arXiv:1606.05328.
p(x) is the product of p(x_i | x_1 .. x_i-1) over pixels in reading order (equation 1), each a
softmax over all levels. A vertical stack sees the rows above a pixel, a horizontal one what is left
of it and, through a 1x1 convolution, the vertical one (figure 2); both are gated (equation 2), and
a class shifts every gate (equation 4).

Differences, most for the sake of fast sampling: the first layer alone is masked (7x7, so that the
vertical stack never sees the pixel's own row), later kernels look one row up or one column left
(2x3 and 1x2); residual 1x1 convolutions have no bias; there are no skip connections. Levels enter
as learned features, from which a small net learns far faster than from a brightness. Labels are
dropped at random while training, so that class weights of zero ask for the plain p(x), as in
classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, one_hot

from model_zoo.autoregressive.gated_layers import first_layer, later_layer
from model_zoo.autoregressive.row_step import RowStep
from model_zoo.cards import (
    BINARISATION,
    EXACT_PROBABILITY,
    class_condition,
    image_event,
    image_preprocess,
    sampling_controls,
)
from model_zoo.data import in_chunks
from model_zoo.family import Batch, Card, Family, Figure, Function, Graph, Objective, Port
from model_zoo.layers import binarise, standard_error, uniform_noise

GREY_LEVELS = 256
LABEL_DROPOUT = 0.1
CHUNK = 250  # images measured at a time
PUBLISHED = {
    "dataset": "mnist",
    "value": 0.808,
    "source": "Gated PixelCNN of 852,160 parameters on 8-bit MNIST, UvA deep learning tutorial 12",
}


class GatedPixelCNN(Family):
    """Autoregressive model of images in grey levels, with or without a class."""

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        classes: int = 10,
        layers: int = 7,
        channels: int = 32,
        head_width: int = 64,
        levels: int = GREY_LEVELS,
        level_features: int = 8,
        reach: int = 3,
    ):
        """Build for grey images [1, height, width] of so many `levels`.

        The first layer sees `reach` pixels up and to each side. Two levels are drawn by their grey
        value while training; any other number below 256 is that of equal bins. One layer
        alone can be trained and score images, as a background; sampling takes at least two.
        """
        super().__init__()
        self.image_shape, self.classes, self.levels = tuple(image_shape), classes, levels
        self.event_size = math.prod(self.image_shape)
        self.features = level_embedding(levels, level_features)
        self.layers = nn.ModuleList(
            [
                first_layer(level_features, channels, classes, reach),
                *(later_layer(channels, classes) for _ in range(layers - 1)),
            ]
        )
        self.head = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, head_width, 1),
            nn.ReLU(),
            nn.Conv2d(head_width, levels, 1),
        )

    def logits(self, levels: Tensor, class_weights: Tensor) -> Tensor:
        """Map levels [N, H, W], int64, to logits of every pixel's level, [N, H, W, levels]."""
        v = h = self.features(levels).permute(0, 3, 1, 2)  # [N, features, H, W]
        for layer in self.layers:
            v, h = layer(v, h, class_weights)
        return self.head(h).float().permute(0, 2, 3, 1)

    def log_probabilities(self, levels: Tensor, class_weights: Tensor) -> Tensor:
        """Return log p(x_i | x_1 .. x_i-1) in nats of every level x_i, [N, H, W, levels]."""
        return log_softmax(self.logits(levels, class_weights), dim=3)

    def log_probability(self, levels: Tensor, class_weights: Tensor) -> Tensor:
        """Return log p(x) in nats, [N] (equation 1)."""
        of_pixels = of_levels(self.log_probabilities(levels, class_weights), levels)
        return of_pixels.flatten(1).sum(dim=1)

    def log_probability_and_entropy(
        self, data: Tensor, class_weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Map levels [N, 1, H, W] to log p(x), pixel by pixel too, and what it was to be.

        All are in nats, [N], [N, H, W] and [N]. The last is the entropy of p(x_i | x_1 .. x_i-1),
        summed over the pixels: what -log p(x) would be on average, if the model drew each pixel
        after those that the image has before it.
        """
        levels = data.squeeze(1).round().long()
        log_probabilities = self.log_probabilities(levels, class_weights)
        of_pixels = of_levels(log_probabilities, levels)
        entropies = -(log_probabilities.exp() * log_probabilities).sum(dim=3)  # [N, H, W]
        return of_pixels.flatten(1).sum(dim=1), of_pixels, entropies.flatten(1).sum(dim=1)

    def from_grey(self, grey: Tensor, generator: torch.Generator) -> Tensor:
        """Map 8-bit grey values [N, 1, H, W] to this model's levels [N, H, W], int64."""
        if self.levels == 2:
            return binarise(grey, generator).squeeze(1).long()
        return (grey * self.levels / GREY_LEVELS).floor().squeeze(1).long()

    def objectives(self) -> dict[str, Objective]:
        """Return the one loss: bits per dimension, with some labels dropped."""
        return {"pixelcnn": Objective(list(self.parameters()), self._loss)}

    def _loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        kept = uniform_noise((len(batch.labels), 1), generator) >= LABEL_DROPOUT
        class_weights = self._class_weights(batch) * kept
        levels = self.from_grey(batch.images, generator)
        return self._bits_per_dimension(levels, class_weights).mean()

    def _class_weights(self, batch: Batch) -> Tensor:
        return one_hot(batch.labels, self.classes).float()

    def _bits_per_dimension(self, levels: Tensor, class_weights: Tensor) -> Tensor:
        return -self.log_probability(levels, class_weights) / (self.event_size * math.log(2))

    @torch.no_grad()
    def evaluate(self, data: Batch, generator: torch.Generator) -> list[Figure]:
        """Measure bits per dimension without a class, and given the right one."""
        plain, given = [], []
        for chunk in in_chunks(data, CHUNK):
            levels, labels = self.from_grey(chunk.images, generator), self._class_weights(chunk)
            plain.append(self._bits_per_dimension(levels, torch.zeros_like(labels)))
            given.append(self._bits_per_dimension(levels, labels))
        return [
            self._figure("bits_per_dim", plain, "no class given"),
            self._figure("bits_per_dim_given_class", given, "the right class given"),
        ]

    def _figure(self, name: str, chunks: list[Tensor], given: str) -> Figure:
        bits = torch.cat(chunks)
        protocol = f"exact -log2 P(x) / dimensions over {self.levels} levels, {given}"
        published = PUBLISHED if self.levels == GREY_LEVELS else None
        return Figure(
            name, bits.mean().item(), "bits/dim", protocol, standard_error(bits), published
        )

    def card(self) -> Card:
        """Describe the model to those who serve it."""
        binarisation = BINARISATION if self.levels == 2 else None
        shown = GREY_LEVELS if self.levels == 2 else self.levels
        painting = {"sample": {}, "complete": {}} if len(self.layers) > 1 else {}
        return Card(
            family="gated PixelCNN",
            event={**image_event(self.image_shape), "levels": shown},
            preprocess=image_preprocess(0.0, self.levels - 1.0, binarisation=binarisation),
            condition=class_condition(self.classes, optional=True),
            controls=sampling_controls(self.levels),
            operations={**painting, "likelihood": EXACT_PROBABILITY, "classify": {}},
            program="raster_rows",
        )

    def graphs(self) -> tuple[Graph, ...]:
        """Return log_likelihood and, of two layers or more, both row steps; sets eval mode.

        One layer alone, a background, says its likelihood and nothing else.
        """
        data = Port("data", "data", self.image_shape)
        condition = Port("class_weights", "condition", (self.classes,))
        log_likelihood = Port("log_likelihood", "log_likelihood", ())
        whole = Function(self, self.log_probability_and_entropy).eval()
        if len(self.layers) == 1:
            alone = Function(self, lambda *inputs: whole(*inputs)[0]).eval()
            return (Graph("log_likelihood", alone, (data, condition), (log_likelihood,)),)
        of_pixels = Port("log_likelihood_map", "log_likelihood_map", self.image_shape[1:])
        predictive_entropy = Port("predictive_entropy", "statistic", ())
        return (
            Graph(
                "log_likelihood",
                whole,
                (data, condition),
                (log_likelihood, of_pixels, predictive_entropy),
            ),
            self._row_step("row_step", filtered=False),
            self._row_step("row_step_filtered", filtered=True),
        )

    def _row_step(self, name: str, filtered: bool) -> Graph:
        step = RowStep(self.features, self.layers, self.head, self.image_shape[2], filtered).eval()
        return Graph(name, step, step.input_ports(), step.output_ports())


def level_embedding(levels: int, size: int) -> nn.Embedding:
    """Return learned features of each level; the first starts as its brightness, -1 to 1.

    The others start at random, so that neighbouring levels can be told apart: from black to nearly
    black is a small step in brightness, and the largest in meaning.
    """
    embedding = nn.Embedding(levels, size)
    with torch.no_grad():
        embedding.weight *= 0.5
        embedding.weight[:, 0] = torch.linspace(-1, 1, levels)
    return embedding


def of_levels(log_probabilities: Tensor, levels: Tensor) -> Tensor:
    """Return those of the levels [N, H, W] among log-probabilities [N, H, W, levels], [N, H, W]."""
    return log_probabilities.gather(3, levels.unsqueeze(3)).squeeze(3)
