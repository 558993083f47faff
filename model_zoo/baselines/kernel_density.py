"""Kernel density estimate, or Parzen windows: a normal about every one of a few training images.

Emanuel Parzen, "On estimation of a probability density function and mode", 1962. The kernel is a
product of normals as wide as a multiple of each pixel's own deviation (David Scott, "Multivariate
Density Estimation", 1992); the multiple is the one under which other training images
are the likeliest, as Breuleux, Bengio and Vincent 2011 choose it, whose estimates by samples of
a model it was once common to quote (Theis et al. 2015, arXiv:1511.01844, say why not to).
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.neighbors import KernelDensity as Fit

from model_zoo.baselines.fitting import deviations, fitted
from model_zoo.baselines.mixtures import Components, MixtureOfNormals
from model_zoo.family import Batch
from model_zoo.layers import uniform_noise

BANDWIDTHS = np.geomspace(0.1, 10.0, 41)  # a step is an eighth
JUDGES = 1000  # images that choose the bandwidth; their mean log density is sharp enough


class KernelDensity(MixtureOfNormals):
    """Equal normals about training images, all of one width in each pixel."""

    name = "kernel density"

    def __init__(self, image_shape: tuple[int, int, int] = (1, 28, 28), kernels: int = 128):
        """Build for images [channels, height, width] with a kernel on `kernels` of them."""
        super().__init__(image_shape)
        self.centres = fitted(kernels, self.event_size, dtype=torch.uint8)
        self.log_width = fitted(1, self.event_size)

    def components(self) -> Components:
        """Return the kernels, each about the centre of its image's bins."""
        means = self.centres.float() + 0.5
        return Components(torch.zeros_like(means[:, 0]), means, self.log_width)

    def conclude(self, data: Batch, generator: torch.Generator) -> None:
        """Put kernels on the first images, and choose their width by those that follow."""
        kernels = len(self.centres)
        self.centres.copy_(data.images[:kernels].flatten(1))
        judges = data.images[kernels : kernels + JUDGES].flatten(1)
        judges = judges + uniform_noise(tuple(judges.shape), generator)
        deviation = deviations(data.images.flatten(1))
        bandwidth = choose_bandwidth(
            ((self.centres + 0.5) / deviation).cpu().numpy(), (judges / deviation).cpu().numpy()
        )
        self.log_width.copy_((bandwidth * deviation).log())


def choose_bandwidth(centres: np.ndarray, judges: np.ndarray) -> float:
    """Return the bandwidth of kernels on `centres` [K, D] that makes `judges` [N, D] likeliest."""
    scores = [Fit(bandwidth=width).fit(centres).score(judges) for width in BANDWIDTHS]
    return float(BANDWIDTHS[int(np.argmax(scores))])
