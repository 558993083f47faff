"""What the families that draw binary images row after row have in common."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from model_zoo.autoregressive.binary_images import BinaryImages
from model_zoo.autoregressive.scanned_row_step import RowNetwork, row_steps
from model_zoo.cards import sampling_controls
from model_zoo.family import Card, Function, Graph, Port


class BinaryRows(BinaryImages):
    """A density over binary images, p(x) = prod_i p(x_i | x_1 .. x_i-1), row after row."""

    @abstractmethod
    def logits(self, x: Tensor) -> Tensor:
        """Map x in {0, 1}, [N, 1, H, W], to the log odds of every pixel being on."""

    @abstractmethod
    def row_network(self) -> RowNetwork:
        """Return the model as a row sees it."""

    def log_probabilities(self, x: Tensor) -> Tensor:
        """Return log p(x_i | x_1 .. x_i-1) in nats, [N, 1, H, W], for x in {0, 1}."""
        return log_probability_of(x, self.logits(x))

    def log_probability(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats, [N], for x in {0, 1}, [N, 1, H, W]."""
        return self.log_probabilities(x).flatten(1).sum(dim=1)

    def log_probability_and_map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(x) and that of each pixel in nats, [N] and [N, H, W]."""
        of_pixels = self.log_probabilities(x).squeeze(1)
        return of_pixels.flatten(1).sum(dim=1), of_pixels

    def card(self) -> Card:
        """Describe the model to those who serve it."""
        return self.described("raster_rows", sampling_controls(2))

    def likelihood_graph(self) -> nn.Module:
        """Return what maps an image to its log-probability, and to that of each pixel."""
        return Function(self, self.log_probability_and_map)

    def graphs(self) -> tuple[Graph, ...]:
        """Return log_likelihood and both row steps; sets eval mode."""
        data = Port("data", "data", self.image_shape)
        log_likelihood = Port("log_likelihood", "log_likelihood", ())
        of_pixels = Port("log_likelihood_map", "log_likelihood_map", self.image_shape[1:])
        graph = self.likelihood_graph().eval()
        return (
            Graph("log_likelihood", graph, (data,), (log_likelihood, of_pixels)),
            *row_steps(self.row_network()),
        )


def log_probability_of(x: Tensor, logits: Tensor) -> Tensor:
    """Return the log-probabilities of pixels x in {0, 1}, in nats, by their log odds."""
    return logsigmoid((2 * x - 1) * logits)
