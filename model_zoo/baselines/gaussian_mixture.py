"""Gaussian mixture: a weighted sum of normals with a deviation for every pixel of each.

Karl Pearson, "Contributions to the mathematical theory of evolution", 1894; fitted by expectation
maximisation, Arthur Dempster, Nan Laird and Donald Rubin, "Maximum likelihood from incomplete data
via the EM algorithm", 1977.

Pixels are independent given the component, so a sample is the mean of a cluster under noise. Full
covariances would know strokes but not that the border is black: the noise that is left over when
forty directions are explained is the same everywhere, and costs three bits a pixel more.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.mixture import GaussianMixture as Fit

from model_zoo.baselines.fitting import fitted, seed_of
from model_zoo.baselines.mixtures import Components, MixtureOfNormals
from model_zoo.family import Batch
from model_zoo.layers import uniform_noise

ITERATIONS = 100  # of expectation maximisation at most; it has settled long before


class GaussianMixture(MixtureOfNormals):
    """Mixture of normals with diagonal covariances."""

    name = "Gaussian mixture"

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        components: int = 50,
        added_variance: float = 1 / 12,
    ):
        """Build for images [channels, height, width].

        `added_variance`, in squared levels, keeps a pixel that is black in all of a cluster from
        being certain to be.
        """
        super().__init__(image_shape)
        self.added_variance = added_variance
        self.log_weights = fitted(components)
        self.means = fitted(components, self.event_size)
        self.log_deviations = fitted(components, self.event_size)

    def components(self) -> Components:
        """Return the fitted mixture."""
        return Components(self.log_weights, self.means, self.log_deviations)

    def conclude(self, data: Batch, generator: torch.Generator) -> None:
        """Fit to all images, dequantised once."""
        levels = data.images + uniform_noise(tuple(data.images.shape), generator)
        mixture = Fit(
            len(self.log_weights),
            covariance_type="diag",
            reg_covar=self.added_variance,
            init_params="k-means++",
            max_iter=ITERATIONS,
            random_state=seed_of(generator),
        ).fit(levels.flatten(1).cpu().numpy())
        self.log_weights.copy_(torch.from_numpy(np.log(mixture.weights_)))
        self.means.copy_(torch.from_numpy(mixture.means_))
        self.log_deviations.copy_(torch.from_numpy(0.5 * np.log(mixture.covariances_)))
