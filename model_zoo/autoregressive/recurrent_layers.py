"""The layers of a PixelRNN: an LSTM that goes down the rows, all pixels of a row at once.

Aaron van den Oord, Nal Kalchbrenner and Koray Kavukcuoglu, "Pixel Recurrent Neural Networks", 2016,
arXiv:1601.06759, section 3.1. Pictures have their channels last here: the convolutions along a row
are products of what a pixel sees of it, and so are the same for a whole picture and for one pixel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


class RowLSTM(nn.Module):
    """A residual block around a Row LSTM of `hidden` units, in a stream of twice as many channels.

    The input-to-state convolution looks at a pixel and its left neighbour: it is 3 wide with mask
    B, of which the hidden third is left out. The state-to-state one looks at three pixels above.
    """

    def __init__(self, hidden: int):
        """Start with gates that remember."""
        super().__init__()
        self.input_to_state = nn.Linear(2 * 2 * hidden, 4 * hidden)
        self.state_to_state = nn.Linear(3 * hidden, 4 * hidden, bias=False)
        self.widen = nn.Linear(hidden, 2 * hidden)
        with torch.no_grad():
            self.input_to_state.bias[:hidden] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures [N, H, W, 2 * hidden] to the same shape."""
        from_input = self.from_input(x)
        h = c = torch.zeros_like(x[:, 0, :, : self.widen.in_features])
        rows = []
        for row in from_input.unbind(1):
            h, c = self.next_state(row + self.from_above(h), c)
            rows.append(h)
        return x + self.widen(torch.stack(rows, dim=1))

    def next_row(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map a row [N, W, 2 * hidden] and the state above it, [N, W, hidden], to those of it."""
        h, c = self.next_state(self.from_input(x) + self.from_above(h), c)
        return x + self.widen(h), h, c

    def from_input(self, x: Tensor) -> Tensor:
        """Return what the gates get from a row, or from all: [.., W, 2 * hidden] to 4 * hidden."""
        return self.input_to_state(torch.cat([pad(x[..., :-1, :], (0, 0, 1, 0)), x], dim=-1))

    def from_above(self, h: Tensor) -> Tensor:
        """Return what the gates of a row get from the states above it, [N, W, hidden]."""
        around = pad(h, (0, 0, 1, 1))
        seen = torch.cat([around[:, :-2], h, around[:, 2:]], dim=-1)
        return self.state_to_state(seen)

    @staticmethod
    def next_state(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Map gates [.., 4 * hidden] and memory [.., hidden] to state and memory (equation 3)."""
        opened, content = gates.split([3 * c.shape[-1], c.shape[-1]], dim=-1)
        forget, write, show = opened.sigmoid().chunk(3, dim=-1)
        c = forget * c + write * content.tanh()
        return show * c.tanh(), c
