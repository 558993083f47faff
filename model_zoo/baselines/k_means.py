"""k-means: every image stands for the nearest of a few centres, each the mean of its images.

Stuart Lloyd, "Least squares quantization in PCM", 1957 (published 1982). The method minimises the
mean squared distance and defines no distribution: there is nothing to sample, and no likelihood.
The latent is a vector with a 1 at the image's centre; the largest coordinate is the one decoded.
"""

from __future__ import annotations

import torch
from sklearn.cluster import KMeans as Fit
from torch import Tensor

from model_zoo.baselines.fitting import fitted, seed_of, squared_error
from model_zoo.cards import image_event, image_preprocess, normal_latent
from model_zoo.family import Batch, Card, Family, Figure, Function, Graph, Objective, Port


class KMeans(Family):
    """Vector quantisation of whole images."""

    def __init__(self, image_shape: tuple[int, int, int] = (1, 28, 28), centres: int = 64):
        """Build for images [channels, height, width] with so many `centres`."""
        super().__init__()
        self.image_shape = tuple(image_shape)
        self.centres = fitted(centres, *self.image_shape)

    def encode(self, levels: Tensor) -> Tensor:
        """Map images [N, C, H, W] to vectors [N, K] with a 1 at the nearest centre, else 0."""
        centres, x = self.centres.flatten(1), levels.flatten(1)
        # |x - c|^2 less |x|^2, which is the same for all centres
        distances = centres.square().sum(dim=1) - 2 * x @ centres.T  # [N, K]
        nearest = distances.argmin(dim=1, keepdim=True)
        return (nearest == torch.arange(len(centres), device=x.device)).float()

    def decode(self, latent: Tensor) -> Tensor:
        """Map vectors [N, K] to the centre of the largest coordinate, [N, C, H, W]."""
        return self.centres[latent.argmax(dim=1)]

    def objectives(self) -> dict[str, Objective]:
        """Return none: Lloyd's algorithm takes no gradients."""
        return {}

    def conclude(self, data: Batch, generator: torch.Generator) -> None:
        """Run Lloyd's algorithm on all images, from centres chosen apart (k-means++)."""
        clusters = Fit(len(self.centres), n_init=1, random_state=seed_of(generator))
        clusters.fit(data.images.flatten(1).cpu().numpy())
        self.centres.copy_(
            torch.from_numpy(clusters.cluster_centers_).unflatten(1, self.image_shape)
        )

    @torch.no_grad()
    def evaluate(self, data: Batch, generator: torch.Generator) -> list[Figure]:
        """Measure the error of images and their centres."""
        return [squared_error(data, lambda levels: self.decode(self.encode(levels)))]

    def card(self) -> Card:
        """Describe the model to those who serve it."""
        return Card(
            family="k-means",
            event=image_event(self.image_shape),
            preprocess=image_preprocess(0.0, 255.0),
            latent=normal_latent(len(self.centres)),
            operations={"encode": {}, "decode": {}, "reconstruct": {}},
        )

    def graphs(self) -> tuple[Graph, ...]:
        """Return encode and decode; switches the model to eval mode."""
        data = Port("data", "data", self.image_shape)
        latent = Port("latent", "latent", (len(self.centres),))
        return (
            Graph("encode", Function(self, self.encode).eval(), (data,), (latent,)),
            Graph("decode", Function(self, self.decode).eval(), (latent,), (data,)),
        )
