"""What a PixelCNN's full forward pass would have drawn, with the noise that the service drew by.

One pass over a finished image gives the distribution of every pixel given those before it. If each
of them, at the pixel's uniform number, gives the level that was painted, then painting row by row
has drawn from the very distribution that the model defines.
"""

from dataclasses import dataclass

import numpy as np
import torch

from model_zoo.autoregressive.gated_pixelcnn import GatedPixelCNN
from service.core import noise

NEAR_TIE = 1e-4
"""Samplers may differ where a cumulative probability is this close to its uniform number, or where
the share that top-p keeps is this close to its bound."""


@dataclass(frozen=True)
class Replay:
    """Of every pixel, [N, H, W]: whether it was drawn as the model says, and was a near-tie."""

    agrees: np.ndarray
    near_tie: np.ndarray


def replay(
    model: GatedPixelCNN,
    levels: np.ndarray,
    class_weights: np.ndarray,
    seed: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Replay:
    """Compare levels of the model, [N, H, W], with what a full pass draws, in double precision."""
    count, height, width = levels.shape
    items = np.arange(count, dtype=np.uint64)
    uniforms = noise.uniform(np.full(count, seed, np.uint64), "pixels", items, height * width)
    uniforms = noise.to_float32(uniforms).reshape(count, height, width)
    with torch.no_grad():
        drawn = torch.from_numpy(levels).long()
        logits = model.logits(drawn, torch.from_numpy(class_weights)).double().numpy()
    scaled = logits / temperature
    probability = np.exp(scaled - scaled.max(axis=3, keepdims=True))
    probability /= probability.sum(axis=3, keepdims=True)
    probability, near_bound = _keep_likely(probability, top_k, top_p)
    cumulative = probability.cumsum(axis=3) / probability.sum(axis=3, keepdims=True)
    distance = np.abs(cumulative - uniforms[..., None]).min(axis=3)
    expected = (cumulative <= uniforms[..., None]).sum(axis=3)
    return Replay(expected == levels, (distance < NEAR_TIE) | near_bound)


def _keep_likely(
    probability: np.ndarray, top_k: int | None, top_p: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Set to zero what top-k, then top-p, leave out; and say where the bound of top-p is near."""
    order = np.argsort(-probability, axis=3, kind="stable")
    ordered = np.take_along_axis(probability, order, axis=3)
    if top_k is not None:
        ordered[..., top_k:] = 0
    near_bound = np.zeros(probability.shape[:3], bool)
    if top_p is not None and top_p < 1:
        beyond = ordered.cumsum(axis=3) - ordered - top_p * ordered.sum(axis=3, keepdims=True)
        near_bound = (np.abs(beyond) < NEAR_TIE).any(axis=3)
        ordered[beyond >= 0] = 0
    kept = np.zeros_like(probability)
    np.put_along_axis(kept, order, ordered, axis=3)
    return kept, near_bound
