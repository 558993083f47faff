"""PixelRNN, an exact distribution over binary images, by a recurrent network down the rows.

Aaron van den Oord, Nal Kalchbrenner and Koray Kavukcuoglu, "Pixel Recurrent Neural Networks", 2016,
arXiv:1601.06759. p(x) is the product of p(x_i | x_1 .. x_i-1) over pixels in reading order
(equation 1), each a Bernoulli distribution. A 7x7 convolution with mask A is followed by residual
blocks of Row LSTMs (section 3.1) and two 1x1 convolutions. A Row LSTM sees a triangle above the
pixel that reaches to the first row: unlike a PixelCNN's, its view has no end.

Left out is the Diagonal BiLSTM, which also sees what is above beside the triangle; and so are the
multi-scale networks. Pixels are drawn afresh with their grey value as probability whenever they are
looked at (dynamic binarisation); figures of the paper are of images binarised once for all.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from model_zoo.autoregressive.binary_rows import BinaryRows, log_probability_of
from model_zoo.autoregressive.masked_layers import MaskedConvolution, Pointwise
from model_zoo.autoregressive.recurrent_layers import RowLSTM
from model_zoo.autoregressive.scanned_row_step import Pixel, RowNetwork, one_row
from model_zoo.scan import Scan


class PixelRNN(BinaryRows):
    """Recurrent autoregressive model of black and white images."""

    family = "PixelRNN"
    published = None  # those of the paper are on another protocol

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        layers: int = 5,
        hidden: int = 16,
    ):
        """Build for grey images [1, height, width], with `hidden` units in each Row LSTM."""
        super().__init__(image_shape)
        channels = 2 * hidden
        self.first = MaskedConvolution(1, channels, 7, "A")
        self.layers = nn.ModuleList([RowLSTM(hidden) for _ in range(layers)])
        self.head = nn.Sequential(
            nn.ReLU(), Pointwise(channels, channels), nn.ReLU(), Pointwise(channels, 1)
        )

    def logits(self, x: Tensor) -> Tensor:
        """Map x in {0, 1}, [N, 1, H, W], to the log odds of every pixel being on."""
        h = self.first(x).permute(0, 2, 3, 1)  # channels last
        for layer in self.layers:
            h = layer(h)
        return self.head(h.permute(0, 3, 1, 2)).float()

    def row_network(self) -> RowNetwork:
        """Return the model as a row sees it."""
        return PixelRNNRow(self)

    def likelihood_graph(self) -> nn.Module:
        """Return what maps an image to its log-probability, and to that of each pixel."""
        return RowAfterRow(self)


class RowAfterRow(Scan):
    """Graph: binary image to log p(x), pixel by pixel too.

    The loop over rows is outermost, so that a graph holds the layers once and not for every row.
    """

    def __init__(self, model: PixelRNN):
        super().__init__()
        self.model = model

    def prepare(self, *inputs: Tensor) -> tuple[Pixel, Pixel]:
        """Map data [N, 1, H, W] to states of zeros, [N, W, hidden], and to rows of it."""
        (data,) = inputs
        first = self.model.first(data).permute(2, 0, 3, 1)  # [H, N, W, channels]
        like = first[0, :, :, : first.shape[3] // 2]
        # Each a tensor of its own: one that came in twice would be traced as one.
        states = tuple(torch.zeros_like(like) for _ in range(2 * len(self.model.layers)))
        return states, (first, data[:, 0].permute(1, 0, 2))

    def step(self, states: Pixel, items: Pixel) -> tuple[Pixel, Pixel]:
        """Run all layers on one row: log-probabilities [N, W]."""
        row, x = items
        below: list[Tensor] = []
        for layer, h, c in zip(self.model.layers, states[::2], states[1::2], strict=True):
            row, h, c = layer.next_row(row, h, c)
            below += h, c
        logits = self.model.head(row).squeeze(2)
        return tuple(below), (log_probability_of(x, logits),)

    def finish(self, *results: Tensor) -> tuple[Tensor, Tensor]:
        """Map log-probabilities [H, N, W] to nats, [N] and [N, H, W]."""
        of_pixels = results[0].permute(1, 0, 2)
        return of_pixels.flatten(1).sum(dim=1), of_pixels


class PixelRNNRow(RowNetwork):
    """A PixelRNN as a row sees it: state and memory of each layer are what the row below needs."""

    def __init__(self, model: PixelRNN):
        """Share the weights of a model."""
        super().__init__()
        self.model, self.width = model, model.image_shape[2]
        self.levels, self.features, self.reach = 2, 1, model.first.reach
        self.cached = len(model.layers), model.first.out_channels  # as wide as a state and a memory

    def pixels(self, levels: Tensor) -> Tensor:
        """Return 0 or 1, [B, 1]."""
        return levels.unsqueeze(1).to(torch.float32)

    def look_up(self, rows_above: Tensor, activations: Tensor, told: Tensor | None) -> Pixel:
        """Return what the convolution sees above, and each layer's gates and memory from above."""
        first = self.model.first
        coming = [one_row(first.masked_weight()[:, :, :-1], first.bias, rows_above)]
        for layer, above in zip(self.model.layers, activations, strict=True):
            h, c = above.squeeze(2).permute(0, 2, 1).chunk(2, dim=2)  # [B, W, hidden] each
            coming += layer.from_above(h).permute(1, 0, 2), c.permute(1, 0, 2)
        return tuple(coming)

    def look_left(self, before: Tensor, left: Pixel, coming: Pixel) -> tuple[Tensor, Pixel, Pixel]:
        """Run the network at one pixel; the next one sees the layers' inputs."""
        first = self.model.first
        # [outputs, 1, reach] of the row itself; the mask hides the pixel and what is beyond.
        x = coming[0] + linear(before.flatten(1), first.weight[:, 0, -1, : first.reach])
        seen, below = [], []
        from_above, memories = coming[1::2], coming[2::2]
        for layer, last, gates, c in zip(
            self.model.layers, left, from_above, memories, strict=True
        ):
            seen.append(x)
            gates = gates + layer.input_to_state(torch.cat([last, x], dim=1))
            h, c = layer.next_state(gates, c)
            x = x + layer.widen(h)
            below.append(torch.cat([h, c], dim=1))
        odds = self.model.head(x)
        return torch.cat([torch.zeros_like(odds), odds], dim=1), tuple(seen), tuple(below)
