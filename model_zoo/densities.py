"""Data sets that are drawn from a density in the plane, so that their entropy is known exactly.

They need no files: the same numbers come out each time. How far a model is from one is its mean
-log p less the entropy, the Kullback-Leibler divergence, which no other data set can tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

COUNTS = {"train": 60_000, "test": 10_000}  # as MNIST has them
KEYS = {"train": 1, "test": 2}  # any two numbers that differ; they must never change


@dataclass(frozen=True)
class PlaneDensity:
    """A density over the plane: how it is drawn, and its entropy in nats, known exactly.

    `draw` maps uniforms in [0, 1), float64 [N, 2], to vectors [N, 2].
    """

    draw: Callable[[np.ndarray], np.ndarray]
    entropy: float
    formula: str
    """What the entropy is, in words."""

    def vectors(self, part: str) -> np.ndarray:
        """Return the vectors of the part `train` or `test`, float32 [N, 2], the same each time."""
        count = COUNTS[part]
        # The raw words of Philox are the one thing that numpy promises never to change.
        words = np.random.Philox(key=KEYS[part]).random_raw(2 * count)
        uniforms = (words >> np.uint64(11)).astype(np.float64) / 2**53
        return self.draw(uniforms.reshape(count, 2)).astype(np.float32)


def on_checkerboard(uniforms: np.ndarray) -> np.ndarray:
    """Return vectors that are uniform on every other square of 4 x 4, each of side 2, about 0.

    A density of sharp edges, which a flow can only come near: it is the image of a smooth map.
    """
    column = np.floor(4 * uniforms[:, 0])
    chosen, place = np.divmod(2 * uniforms[:, 1], 1.0)  # one of the column's two squares
    row = 2 * chosen + column % 2
    return np.stack([8 * uniforms[:, 0], 2 * (row + place)], axis=1) - 4


DENSITIES: Mapping[str, PlaneDensity] = {
    "checkerboard": PlaneDensity(on_checkerboard, math.log(32), "log of its area, 32"),
}
"""By the name of their data set."""
