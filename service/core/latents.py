"""Latent space: draws from the prior, paths, grids and arithmetic. Latents are float32 [N, D]."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.core import noise
from service.core.requests import Mode

Latents = NDArray[np.float32]
_Points = NDArray[np.float64]


def draw(
    seed: int, items: NDArray[np.uint64], size: int, temperature: float, truncation: float | None
) -> Latents:
    """Draw latents [N, size] from N(0, temperature^2), each coordinate of z truncated to
    |z| <= truncation before it is scaled (Brock et al. 2018, section 3.1)."""
    seeds = np.full(len(items), seed, np.uint64)
    normals = noise.normal(noise.uniform(seeds, "latent", items, size), truncation)
    return (temperature * normals).astype(np.float32)


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
