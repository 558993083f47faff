"""Glow, a flow whose channels are mixed by learned invertible 1x1 convolutions.

Diederik P. Kingma and Prafulla Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions",
2018, arXiv:1807.03039. One step of flow is actnorm, an invertible 1x1 convolution and an affine
coupling (table 1); steps are stacked in the multi-scale architecture of RealNVP (figure 2). The
convolution is parameterised by its LU decomposition (equation 10), whose log-determinant is a sum
(equation 11). Couplings start as zero, actnorm from the first batch (sections 3.1 and 3.3).

Differences: levels become reals by the logit of RealNVP, without which the black background of
digits is a thin slab; the log scale of a coupling is bounded; the prior's mean and deviation are
not learned: what leaves at the first scale was normalised by its own steps.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from model_zoo.dequantised import BIN_CENTRE
from model_zoo.family import Batch, Graph
from model_zoo.flows.flow_layers import FlowOfLevels, LogitOfLevels, MultiScaleFlow, Squeeze

SMALLEST_DEVIATION = 1e-3  # of a channel over the first batch; a constant one stays as it is
SCALE_BOUND = 2.0  # nats; one coupling scales by e^2 at most, and many of them by anything
PUBLISHED = {
    "dataset": "mnist",
    "value": 1.05,
    "source": "Glow on MNIST, table 2 of FFJORD, arXiv:1810.01367",
}


class ActNorm(nn.Module):
    """One scale and one shift a channel, learned, and first such that a batch is normalised."""

    def __init__(self, channels: int):
        """Start as the identity, until `initialise` is called."""
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1))
        self.log_scale = nn.Parameter(torch.zeros(channels, 1, 1))

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Give the channels of a batch [N, C, H, W] mean 0 and deviation 1 (section 3.1)."""
        channels = x.transpose(0, 1).flatten(1)  # [C, N * H * W]
        deviation = channels.std(dim=1).clamp(min=SMALLEST_DEVIATION)
        self.log_scale.copy_(-deviation.log().reshape(-1, 1, 1))
        self.shift.copy_(-(channels.mean(dim=1) / deviation).reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x to y = s * x + b and h * w * sum log |s|, [N]."""
        return x * self.log_scale.exp() + self.shift, _of_every_pixel(self.log_scale, x)

    def inverse(self, y: Tensor) -> Tensor:
        """Map y back."""
        return (y - self.shift) * (-self.log_scale).exp()


class InvertibleConvolution(nn.Module):
    """A 1x1 convolution by W = P L (U + diag(s)), equation 10; P and the signs of s are fixed."""

    def __init__(self, channels: int):
        """Start from a random rotation (section 3.2), and so from a determinant of 1."""
        super().__init__()
        rotation, _ = torch.linalg.qr(torch.randn(channels, channels))
        permutation, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        self.lower = nn.Parameter(lower.tril(-1))
        self.upper = nn.Parameter(upper.triu(1))
        self.log_diagonal = nn.Parameter(diagonal.abs().log())
        self.register_buffer("permutation", permutation)
        self.register_buffer("sign", diagonal.sign())

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return L with ones on its diagonal, and U + diag(s), each [C, C]."""
        lower = self.lower.tril(-1) + torch.ones_like(self.sign).diag()
        diagonal = (self.sign * self.log_diagonal.exp()).diag()
        return lower, self.upper.triu(1) + diagonal

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x to W x at every pixel and h * w * sum log |s| (equation 11), [N]."""
        with torch.autocast(x.device.type, enabled=False):  # the events themselves stay exact
            lower, upper = self.factors()
            y = _mix(x, self.permutation @ lower @ upper)
        return y, _of_every_pixel(self.log_diagonal, x)

    def inverse(self, y: Tensor) -> Tensor:
        """Map y back by two triangular systems."""
        return _mix(y, self.inverse_weight())

    def inverse_weight(self) -> Tensor:
        """Return W^-1, [C, C]."""
        lower, upper = self.factors()
        half_way = torch.linalg.solve_triangular(
            lower, self.permutation.T, upper=False, unitriangular=True
        )
        return torch.linalg.solve_triangular(upper, half_way, upper=True)


class FoldedConvolution(nn.Module):
    """The same 1x1 convolution with W and W^-1 as constants, as graphs have it."""

    def __init__(self, convolution: InvertibleConvolution):
        """Multiply and invert the factors, once, in double precision."""
        super().__init__()
        exact = deepcopy(convolution).double()
        lower, upper = exact.factors()
        kind = convolution.lower.dtype
        self.register_buffer("weight", (exact.permutation @ lower @ upper).detach().to(kind))
        self.register_buffer("inverted", exact.inverse_weight().detach().to(kind))
        self.register_buffer("log_diagonal", convolution.log_diagonal.detach())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x to W x at every pixel and the log-determinant, [N]."""
        return _mix(x, self.weight), _of_every_pixel(self.log_diagonal, x)

    def inverse(self, y: Tensor) -> Tensor:
        """Map y back."""
        return _mix(y, self.inverted)


class AffineCoupling(nn.Module):
    """The first half of the channels decides how the second is scaled and shifted (section 3.3)."""

    def __init__(self, channels: int, width: int):
        """Take an even number of channels, and of those inside the network."""
        super().__init__()
        last = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(
            nn.Conv2d(channels // 2, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
            nn.ReLU(),
            last,
        )

    def scale_and_shift(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Return log scale and shift of the other half."""
        scale, shift = self.network(kept).float().chunk(2, dim=1)
        return SCALE_BOUND * (scale / SCALE_BOUND).tanh(), shift

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x to y and the sum of log scales, [N]."""
        kept, changed = x.chunk(2, dim=1)
        scale, shift = self.scale_and_shift(kept)
        y = torch.cat([kept, changed * scale.exp() + shift], dim=1)
        return y, scale.flatten(1).sum(dim=1)

    def inverse(self, y: Tensor) -> Tensor:
        """Map y back."""
        kept, changed = y.chunk(2, dim=1)
        scale, shift = self.scale_and_shift(kept)
        return torch.cat([kept, (changed - shift) * (-scale).exp()], dim=1)


class Glow(FlowOfLevels):
    """Two-scale flow over 8-bit images."""

    published = PUBLISHED

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        widths: tuple[int, int] = (64, 96),
        steps: tuple[int, int] = (8, 8),
        margin: float = 1e-3,
    ):
        """Build for images [channels, height, width] whose sides are multiples of 4.

        `widths` are the hidden channels of the couplings of the two scales, `steps` the steps of
        flow (the paper's depth K).
        """
        super().__init__(image_shape)
        channels = self.image_shape[0]
        self.levels = LogitOfLevels(margin, channels)
        self.flow = MultiScaleFlow(
            self.image_shape,
            [
                [Squeeze(), *_steps(4 * channels, steps[0], widths[0])],
                [Squeeze(), *_steps(8 * channels, steps[1], widths[1])],
            ],
        )
        self.register_buffer("initialised", torch.tensor(False))

    def encode(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Map dequantised levels in (0, 256), [N, C, H, W], to latents [N, D] and log |det|."""
        x, first_change = self.levels(levels)
        latent, change = self.flow(x)
        return latent, first_change + change

    def decode(self, latent: Tensor) -> Tensor:
        """Map latents [N, D] to dequantised levels, [N, C, H, W]."""
        return self.levels.inverse(self.flow.inverse(latent))

    def _loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        if not self.initialised:
            self._initialise(batch)
        return super()._loss(batch, generator)

    @torch.no_grad()
    def _initialise(self, batch: Batch) -> None:
        """Let every actnorm normalise what the first batch is when it arrives there."""
        hooks = [
            module.register_forward_pre_hook(lambda norm, inputs: norm.initialise(inputs[0]))
            for module in self.modules()
            if isinstance(module, ActNorm)
        ]
        self.encode(batch.images + BIN_CENTRE)
        for hook in hooks:
            hook.remove()
        self.initialised.fill_(True)

    def graphs(self) -> tuple[Graph, ...]:
        """Return encode, decode and log_likelihood, their 1x1 convolutions multiplied out."""
        return super(Glow, self.folded()).graphs()

    def folded(self) -> Glow:
        """Return a copy that neither multiplies nor inverts a matrix of its own."""
        copy = deepcopy(self)
        for steps in copy.flow.scales:
            for place, step in enumerate(steps):
                if isinstance(step, InvertibleConvolution):
                    steps[place] = FoldedConvolution(step)
        return copy


def _steps(channels: int, count: int, width: int) -> list[nn.Module]:
    """Return `count` steps of flow, three modules each."""
    return [
        part
        for _ in range(count)
        for part in (
            ActNorm(channels),
            InvertibleConvolution(channels),
            AffineCoupling(channels, width),
        )
    ]


def _mix(x: Tensor, weight: Tensor) -> Tensor:
    """Apply a matrix [C, C] to the channels of every pixel of [N, C, H, W]."""
    return conv2d(x, weight[:, :, None, None])


def _of_every_pixel(log_scales: Tensor, x: Tensor) -> Tensor:
    """Return the log-determinant, [N], of a matrix with these log |scales| at every pixel."""
    return (log_scales.sum() * x.shape[2] * x.shape[3]).expand(x.shape[0])
