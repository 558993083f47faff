"""Latent space: draws from the prior, paths, grids and arithmetic. Latents are float32 [N, D]."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.core import noise
from service.core.requests import Mode

Latents = NDArray[np.float32]
_Points = NDArray[np.float64]


@dataclass(frozen=True)
class PriorDraws:
    """Latents [N, size] from N(0, temperature^2), each coordinate of z truncated to
    |z| <= truncation before it is scaled (Brock et al. 2018, section 3.1).

    They are drawn where they are needed: for all requests of a batch at once, numpy takes little
    longer than for one.
    """

    seeds: NDArray[np.uint64]  # [N]
    items: NDArray[np.uint64]  # [N]
    size: int
    temperature: _Points  # [N, 1]
    truncation: float | None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, rows: slice) -> "PriorDraws":
        return PriorDraws(
            self.seeds[rows], self.items[rows], self.size, self.temperature[rows], self.truncation
        )

    def join(self, others: Sequence["PriorDraws"]) -> Latents:
        """Draw these and then the others, all of one size, as [N, size]."""
        parts = [self, *others]
        if any(part.truncation != self.truncation for part in others):
            return np.concatenate([part.join([]) for part in parts])
        seeds = np.concatenate([part.seeds for part in parts])
        items = np.concatenate([part.items for part in parts])
        temperature = np.concatenate([part.temperature for part in parts])
        uniforms = noise.uniform(seeds, "latent", items, self.size)
        return (temperature * noise.normal(uniforms, self.truncation)).astype(np.float32)


def draw(
    seed: int, count: int, size: int, temperature: float = 1.0, truncation: float | None = None
) -> PriorDraws:
    """Return draws for items 0 .. count - 1 of a seed."""
    return PriorDraws(
        np.full(count, seed, np.uint64),
        np.arange(count, dtype=np.uint64),
        size,
        np.full((count, 1), temperature),
        truncation,
    )


def path(start: Latents, end: Latents, steps: int, mode: Mode) -> Latents:
    """Return `steps` latents [steps, D] from start to end [D], both included exactly."""
    at = np.linspace(0.0, 1.0, steps)[:, None]
    return _between(start.astype(float), end.astype(float), at, mode).astype(np.float32)


def corner_grid(corners: Sequence[Latents], steps: int, mode: Mode) -> Latents:
    """Return [steps * steps, D], row by row, between top left, top right, bottom left and right."""
    top = path(corners[0], corners[1], steps, mode).astype(float)
    bottom = path(corners[2], corners[3], steps, mode).astype(float)
    at = np.linspace(0.0, 1.0, steps)[:, None]
    columns = [_between(top[k], bottom[k], at, mode) for k in range(steps)]
    # [column, row, D] -> [row, column, D] -> [row * column, D]
    return np.stack(columns).swapaxes(0, 1).reshape(steps * steps, -1).astype(np.float32)


def _between(start: _Points, end: _Points, at: _Points, mode: Mode) -> _Points:
    """Interpolate points [D] at fractions [steps, 1]; spherically as in White 2016, section 2.1.

    The sphere is undefined where a point is the origin or the two are (anti)parallel; there the
    path is linear.
    """
    lengths = np.linalg.norm(start) * np.linalg.norm(end)
    cosine = float(start @ end / lengths) if lengths > 0 else 1.0
    if mode == "lerp" or abs(cosine) > 1.0 - 1e-9:
        return (1.0 - at) * start + at * end
    angle = np.arccos(cosine)
    points: _Points = (np.sin((1.0 - at) * angle) * start + np.sin(at * angle) * end) / np.sin(
        angle
    )
    return points
