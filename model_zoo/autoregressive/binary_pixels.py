"""What the families that draw one binary pixel after another have in common.

Each is p(x) = prod_d p(x_d | x_<d) over the pixels in reading order, every factor a Bernoulli
distribution whose log odds it computes in its own way.
"""

from __future__ import annotations

import math
from abc import abstractmethod

from torch import Tensor

from model_zoo.autoregressive.binary_images import BinaryImages
from model_zoo.autoregressive.draw import Draw, Recurrence, log_probabilities, of_values
from model_zoo.cards import sampling_controls
from model_zoo.family import Card, Function, Graph, Port


class BinaryPixels(BinaryImages):
    """A density over binary images as vectors of D pixels."""

    def __init__(self, image_shape: tuple[int, int, int]):
        """Build for grey images [1, height, width]."""
        super().__init__(image_shape)
        self.pixels = math.prod(self.image_shape)

    @abstractmethod
    def logits(self, x: Tensor) -> Tensor:
        """Map x [N, D] in {0, 1} to the log odds of x_d = 1 given x_<d, [N, D]."""

    @abstractmethod
    def recurrence(self) -> Recurrence:
        """Return the steps by which pixels are drawn."""

    def log_probabilities(self, x: Tensor) -> Tensor:
        """Return log p(x_d | x_<d) in nats, [N, D], for x [N, D] in {0, 1}."""
        return of_values(log_probabilities(self.logits(x)), x)

    def log_probability(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats, [N], for x in {0, 1}, [N, 1, H, W]."""
        return self.log_probabilities(x.flatten(1)).sum(dim=1)

    def log_probability_and_entropy(self, data: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map [N, 1, H, W] in {0, 1} to log p(x), pixel by pixel too, and what it was to be.

        All are in nats, [N], [N, H, W] and [N]. The last is the entropy of p(x_d | x_<d), summed
        over the pixels: what -log p(x) would be on average, if the model drew each pixel after
        those that the image has before it.
        """
        x = data.flatten(1)
        logs = log_probabilities(self.logits(x))
        of_pixels = of_values(logs, x)
        entropies = -(logs.exp() * logs).sum(dim=2)
        return of_pixels.sum(dim=1), of_pixels.view_as(data).squeeze(1), entropies.sum(dim=1)

    def card(self) -> Card:
        """Describe the model to those who serve it."""
        controls = sampling_controls(levels=2)
        # Of two levels, top_k and top_p leave both or one: that is greedy.
        return self.described(
            "ancestral", {name: controls[name] for name in ("greedy", "temperature")}
        )

    def graphs(self) -> tuple[Graph, ...]:
        """Return draw and log_likelihood; sets eval mode."""
        draw = Draw(self.recurrence(), self.pixels).eval()
        outputs = (
            Port("log_likelihood", "log_likelihood", ()),
            Port("log_likelihood_map", "log_likelihood_map", self.image_shape[1:]),
            Port("predictive_entropy", "statistic", ()),
        )
        data = Port("data", "data", self.image_shape)
        log_likelihood = Function(self, self.log_probability_and_entropy).eval()
        return (
            Graph("draw", draw, draw.input_ports(), draw.output_ports()),
            Graph("log_likelihood", log_likelihood, (data,), outputs),
        )
