"""NICE, a flow of additive couplings, each of which keeps volume.

Laurent Dinh, David Krueger and Yoshua Bengio, "NICE: Non-linear Independent Components Estimation",
2014, arXiv:1410.8516. Every coupling adds to one half of the pixels what a deep network makes of
the other (section 3.2); even and odd pixels take turns; a diagonal scaling at the end weighs the
coordinates (section 3.3), whose prior is logistic (section 3.4).

Difference: a logistic coordinate is served as the normal one of the same rank, so that latents are
what they are in every other flow. The density is that of the logistic prior.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from model_zoo.dequantised import LEVELS
from model_zoo.flows.flow_layers import FlowOfLevels
from model_zoo.layers import LOG_TWO_PI, standard_normal_log_density

PUBLISHED = {
    "dataset": "mnist",
    "value": 4.34,
    "source": "NICE with 1000 hidden units, pytorch-generative README",
}
NEWTON_STEPS = 4  # from a start that is near, to the last bits of float32
GILES_END = 17.0  # where his approximation for float32 ends
FARTHEST = 100.0  # deviations, of a normal latent; no sample has more than six


class AdditiveCoupling(nn.Module):
    """Adds to the odd pixels what a network makes of the even ones, or the other way round."""

    def __init__(self, size: int, width: int, layers: int, keep_even: bool):
        """Take an even number of pixels; the network has so many hidden layers of ReLU."""
        super().__init__()
        self.keep_even = keep_even
        sizes = [size // 2, *[width] * layers]
        hidden = [
            part
            for before, after in pairwise(sizes)
            for part in (nn.Linear(before, after), nn.ReLU())
        ]
        last = nn.Linear(width, size // 2)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(*hidden, last)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, D] to the same; the log-determinant is zero."""
        return self._add(x, 1.0)

    def inverse(self, y: Tensor) -> Tensor:
        """Map back, by subtraction."""
        return self._add(y, -1.0)

    def _add(self, x: Tensor, sign: float) -> Tensor:
        even, odd = x.unflatten(1, (-1, 2)).unbind(dim=2)  # [N, D / 2] each
        if self.keep_even:
            odd = odd + sign * self.network(even).float()
        else:
            even = even + sign * self.network(odd).float()
        return torch.stack([even, odd], dim=2).flatten(1)


class NICE(FlowOfLevels):
    """Additive couplings, a scaling, and a logistic prior over 8-bit images."""

    published = PUBLISHED

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        couplings: int = 4,
        width: int = 256,
        layers: int = 5,
    ):
        """Build for images [channels, height, width] of an even number of values.

        `width` and `layers` are those of every coupling's network.
        """
        super().__init__(image_shape)
        self.couplings = nn.ModuleList(
            AdditiveCoupling(self.event_size, width, layers, keep_even=index % 2 == 0)
            for index in range(couplings)
        )
        # A uniform on [0, 1] becomes as wide as the logistic: (pi / sqrt 3) / (1 / sqrt 12).
        self.log_scale = nn.Parameter(torch.full((self.event_size,), math.log(2 * math.pi)))

    def encode(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Map dequantised levels in (0, 256), [N, C, H, W], to latents [N, D] and log |det|."""
        h = levels.flatten(1) / LEVELS
        for coupling in self.couplings:
            h = coupling(h)
        h = h * self.log_scale.exp()
        log_determinant = self.log_scale.sum() - self.event_size * math.log(LEVELS)
        latent = normal_of_logistic(h)
        # dz/dh is the ratio of the two priors
        change = logistic_log_density(h) - standard_normal_log_density(latent)
        return latent, log_determinant + change

    def decode(self, latent: Tensor) -> Tensor:
        """Map latents [N, D] to dequantised levels, [N, C, H, W]."""
        h = logistic_of_normal(latent) * (-self.log_scale).exp()
        for coupling in reversed(self.couplings):
            h = coupling.inverse(h)
        return (h * LEVELS).unflatten(1, self.image_shape)


def logistic_log_density(h: Tensor) -> Tensor:
    """Return log p(h) of the standard logistic prior in nats, [N] for h [N, D]."""
    return -(softplus(h) + softplus(-h)).sum(dim=1)


def normal_of_logistic(h: Tensor) -> Tensor:
    """Return the standard normal of the same rank: Phi^-1(sigmoid(h)), to about 1e-5.

    By Mike Giles, "Approximating the erfinv function", 2011; his (1 - x) (1 + x) is written in h,
    which keeps the tails exact, and where they end the expansion of the normal tail goes on.
    """
    w = softplus(h) + softplus(-h) - math.log(4)
    middle = _polynomial(w.clamp(max=5.0) - 2.5, GILES_MIDDLE)
    tail = _polynomial(w.clamp(5.0, GILES_END).sqrt() - 3.0, GILES_TAIL)
    near = math.sqrt(2) * torch.where(w < 5.0, middle, tail) * (h / 2).tanh()
    return torch.where(w < GILES_END, near, h.sign() * _far_normal(h.abs().clamp(min=GILES_END)))


def logistic_of_normal(z: Tensor) -> Tensor:
    """Invert `normal_of_logistic` by Newton's method, for |z| up to `FARTHEST`."""
    z = z.clamp(-FARTHEST, FARTHEST)
    h = 1.5976 * z + 0.0706 * z**3  # Page 1977, within 0.0002 of the distribution function
    far = 0.5 * z.square() + (z.abs().clamp(min=1.0) * math.sqrt(2 * math.pi)).log()
    h = torch.where(z.abs() < 6.0, h, z.sign() * far)
    for _ in range(NEWTON_STEPS):
        found = normal_of_logistic(h)
        # log of dz/dh, the ratio of the densities
        log_slope = 0.5 * (found.square() + LOG_TWO_PI) - softplus(h) - softplus(-h)
        h = h + (z - found) * (-log_slope).exp()
    return h


def _far_normal(h: Tensor) -> Tensor:
    """Return z with -log Phi(-z) = h, for h above 16: z^2 / 2 = h - log(z sqrt(2 pi)) - 1 / z^2."""
    square = 2 * h
    for _ in range(5):  # each leaves a thirtieth of the error
        inverse = 1 / square
        expansion = (1 - inverse * (1 - inverse * (3 - 15 * inverse))).log()
        square = 2 * (h + expansion) - square.log() - LOG_TWO_PI
    return square.sqrt()


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    value = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value


# Highest power first.
GILES_MIDDLE = (
    2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087,
    -0.00125372503, -0.00417768164, 0.246640727, 1.50140941,
)  # fmt: skip
GILES_TAIL = (
    -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773,
    -0.0076224613, 0.00943887047, 1.00167406, 2.83297682,
)  # fmt: skip
