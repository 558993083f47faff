"""How good samples are of a model that has no density: distances in a classifier's features.

- The Fréchet distance of Martin Heusel et al., "GANs Trained by a Two Time-Scale Update Rule
  Converge to a Local Nash Equilibrium", 2017, arXiv:1706.08500: between two Gaussians, one fitted
  to the features of samples, the other to those of training images. Inception, the network of that
  paper, has seen photographs; a small classifier of the same data takes its place here, so that the
  values compare with each other and with the anchors (`model_zoo.anchors`), and with nothing else.
- Improved precision and recall of Tuomas Kynkäänniemi et al., "Improved Precision and Recall Metric
  for Assessing Generative Models", 2019, arXiv:1904.06991: the share of samples that look real, and
  the share of what is real that is sampled.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model_zoo.classifier import Classifier
from model_zoo.data import Examples, load_splits
from model_zoo.family import Batch, Figure
from model_zoo.recipe import PACKAGE, WEIGHTS, load_trained, read_recipe

CHUNK = 500  # images that the classifier sees at a time
FULL_COUNT = 10_000  # samples for a Fréchet distance: fewer would not fill the covariance
NEIGHBOURS = 3  # k of Kynkäänniemi et al., section 2
KEPT = PACKAGE.parent / "runs"  # where what is the same for every model lies between runs
MANIFOLD_COUNT = 5_000  # images on either side of precision and recall: seconds, not minutes


@dataclass(frozen=True)
class Gaussian:
    """Mean [D] and covariance [D, D], float64."""

    mean: Tensor
    covariance: Tensor

    @cached_property
    def root(self) -> Tensor:
        """The symmetric square root of the covariance."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


class Judge:
    """A trained classifier that looks at samples, and at the images it was trained on."""

    def __init__(self, name: str, device: torch.device | None = None):
        """Load the classifier of a bundled recipe by its name."""
        self.name, self.device = name, device or torch.device("cpu")
        classifier = load_trained(name)
        assert isinstance(classifier, Classifier)
        self.classifier = classifier.to(self.device)

    @torch.no_grad()
    def compare(self, levels: Tensor, asked: Tensor | None = None) -> list[Figure]:
        """Return how images as levels, [N, C, H, W], lie among training images.

        The Fréchet distance only where there are enough; precision and recall always; first of
        all, where classes were `asked` for, [N], the share that is seen as its own.
        """
        features = self._features(levels)
        recognised = [] if asked is None else [self._recognised(features, asked)]
        return recognised + self._distance(features) + self._precision_and_recall(features)

    def _recognised(self, features: Tensor, asked: Tensor) -> Figure:
        seen = self.classifier.classify(features).argmax(1)
        share = (seen == asked).float().mean().item()
        protocol = f"one image for each label of the split, share that {self.name} assigns to it"
        return _share("recognised_as_asked", share, len(seen), protocol)

    def _distance(self, features: Tensor) -> list[Figure]:
        if len(features) < FULL_COUNT:
            return []
        distance = frechet_distance(_moments([features]), _training_moments(self.name, self.device))
        count = len(_training_images(self.name))
        protocol = (
            f"squared distance between Gaussians fitted to {len(features)} images and to the "
            f"{count} of fit, in {self._space(features)}"
        )
        return [Figure("frechet_distance", distance, "squared distance", protocol)]

    def _precision_and_recall(self, features: Tensor) -> list[Figure]:
        count = min(len(features), MANIFOLD_COUNT, len(_training_images(self.name)))
        real = _training_features(self.name, self.device, count)
        precision, recall = precision_and_recall(real, features[:count])
        between = (
            f"first {count} images and first {count} of fit, {NEIGHBOURS} nearest neighbours in "
            f"{self._space(features)}"
        )
        return [
            _share("precision", precision, count, f"share of images among real ones: {between}"),
            _share("recall", recall, count, f"share of real ones among the images: {between}"),
        ]

    @torch.no_grad()
    def _features(self, levels: Tensor) -> Tensor:
        """Return [N, D], float32."""
        return torch.cat([self.classifier.features(chunk) for chunk in levels.split(CHUNK)])

    def _space(self, features: Tensor) -> str:
        return (
            f"the {features.shape[1]} features that the last layer of {self.name} sees, whose "
            f"weights have sha256 {_hash(self.name)[:12]}"
        )


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """Return |m - n|^2 + Tr(A + B - 2 (A B)^(1/2)), Heusel et al. equation 6.

    A B has the eigenvalues of B^(1/2) A B^(1/2), which is symmetric: no complex square root.
    """
    between = other.root @ one.covariance @ other.root
    overlap = torch.linalg.eigvalsh(between).clamp(min=0).sqrt().sum()
    spread = one.covariance.trace() + other.covariance.trace() - 2 * overlap
    return ((one.mean - other.mean).square().sum() + spread).item()


def precision_and_recall(
    real: Tensor, fake: Tensor, neighbours: int = NEIGHBOURS
) -> tuple[float, float]:
    """Return the shares of fake among real and of real among fake, of [N, D] and [M, D].

    A point is among others if it is as close to one of them as that one's k-th neighbour is
    (Kynkäänniemi et al., equations 1 and 2).
    """
    distances = torch.cdist(fake, real)
    among_real = distances <= _radii(real, neighbours)
    among_fake = distances <= _radii(fake, neighbours).unsqueeze(1)
    precision, recall = among_real.any(dim=1), among_fake.any(dim=0)
    return precision.float().mean().item(), recall.float().mean().item()


def diversity_figure(fake: Batch, real: Batch, within_classes: bool) -> Figure:
    """Return how far images of a set lie apart, as a share of how far the real ones do."""
    if within_classes:
        made, found = (_within_class_distance(images) for images in (fake, real))
        where = "mean Euclidean distance between two images of a class, averaged over classes"
    else:
        made, found = (_distance(images.images) for images in (fake, real))
        where = "mean Euclidean distance between two images"
    name = "within_class_distance" if within_classes else "distance_between_images"
    protocol = f"{where}, divided by that of the real images of the split"
    return Figure(name, (made / found).item(), "ratio", protocol)


def _radii(points: Tensor, neighbours: int) -> Tensor:
    """Return the distance of each point to its k-th neighbour, [N]; it is not its own."""
    return torch.cdist(points, points).kthvalue(neighbours + 1, dim=1).values


def _within_class_distance(data: Batch) -> Tensor:
    distances = [_distance(data.images[data.labels == label]) for label in data.labels.unique()]
    return torch.stack(distances).nanmean()  # a class of one image has no pairs


def _distance(images: Tensor) -> Tensor:
    return torch.pdist(images.flatten(1)).mean()


def _share(name: str, share: float, count: int, protocol: str) -> Figure:
    error = (share * (1 - share) / count) ** 0.5
    return Figure(name, share, "share", protocol, error)


def _moments(features: Iterable[Tensor]) -> Gaussian:
    """Fit a Gaussian to chunks of features, [N, D] each.

    In float64: many directions hardly vary, and the square root would magnify what rounding adds.
    """
    count, total, products = 0, 0.0, 0.0
    for chunk in features:
        rows = chunk.double()
        count += len(rows)
        total = total + rows.sum(dim=0)
        products = products + rows.T @ rows
    mean = total / count
    return Gaussian(mean, (products - count * mean.outer(mean)) / (count - 1))


# What does not change between the epochs of one run


@cache
def _training_images(judge: str) -> Examples:
    return load_splits(read_recipe(judge).dataset)["fit"]


@cache
def _training_features(judge: str, device: torch.device, count: int) -> Tensor:
    images = _training_images(judge).to(device).batch(slice(count)).images
    return Judge(judge, device)._features(images)


@cache
def _training_moments(judge: str, device: torch.device) -> Gaussian:
    """Return them from a file that an earlier run has left: they take a minute and a half."""
    path = KEPT / f"{judge}-{_hash(judge)[:12]}.safetensors"
    if not path.exists():
        looking = Judge(judge, device)
        images = _training_images(judge).images.split(CHUNK)
        moments = _moments(looking._features(chunk.float().to(device)) for chunk in images)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        save_file({"mean": moments.mean, "covariance": moments.covariance}, partial)
        os.replace(partial, path)
    found = load_file(path)
    return Gaussian(found["mean"].to(device), found["covariance"].to(device))


@cache
def _hash(judge: str) -> str:
    return hashlib.sha256((WEIGHTS / f"{judge}.safetensors").read_bytes()).hexdigest()
