"""The parts of a card that models have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TRUNCATION: dict[str, Any] = {
    "meaning": "largest absolute value of a latent coordinate, drawn from the truncated normal",
    "minimum": 0.01,
    "maximum": 10.0,
    "default": None,
}

LATENT_CONTROLS: dict[str, dict[str, Any]] = {
    "temperature": {
        "meaning": "standard deviation of the latent prior",
        "minimum": 0.0,
        "maximum": 2.0,
        "default": 1.0,
    },
    "truncation": TRUNCATION,
}

LATENT_OPERATIONS: dict[str, dict[str, Any]] = {
    "sample": {},
    "encode": {},
    "decode": {},
    "reconstruct": {},
    "interpolate": {},
}
"""What every model offers that maps events to latents and back."""

BINARISATION: dict[str, Any] = {
    "levels": 2,
    "rules": ["threshold", "stochastic"],
    "required_by": ["likelihood"],
}


def image_event(shape: tuple[int, int, int], base_measure: str = "counting") -> dict[str, Any]:
    """Describe 8-bit images of `shape` [channels, height, width]."""
    channels, height, width = shape
    return {
        "kind": "image",
        "shape": [height, width, channels],
        "levels": 256,
        "base_measure": base_measure,
    }


def vector_event(size: int) -> dict[str, Any]:
    """Describe vectors of real coordinates."""
    return {"kind": "vector", "shape": [size], "base_measure": "lebesgue"}


def image_preprocess(
    low: float,
    high: float,
    binarisation: Mapping[str, Any] | None = None,
    dequantisation: str | None = None,
) -> dict[str, Any]:
    """Describe graphs that take levels 0..255 as values from `low` to `high`."""
    return {
        "range": [low, high],
        "mean": [0.0],
        "deviation": [1.0],
        "layout": "NCHW",
        "padding": [0, 0, 0, 0],
        "binarisation": binarisation,
        "dequantisation": dequantisation,
    }


def class_condition(classes: int, optional: bool = False) -> dict[str, Any]:
    """Describe a choice of classes called 0, 1, .., or a mixture of them, all equally likely.

    `optional` says that weights of zero mean no class, which the model was trained to answer.
    """
    return {
        "optional": optional,
        "kinds": ["class", "class_weights"],
        "names": [str(label) for label in range(classes)],
        "prior": [1 / classes] * classes,
    }


def normal_latent(size: int) -> dict[str, Any]:
    """Describe a latent of `size` coordinates with a standard normal prior."""
    return {"shape": [size], "prior": "standard_normal"}


def sampling_controls(levels: int) -> dict[str, dict[str, Any]]:
    """Describe how a distribution over `levels` is sharpened before a level is drawn from it."""
    return {
        "greedy": {
            "meaning": "1 takes the most probable level of every pixel",
            "minimum": 0.0,
            "maximum": 1.0,
            "default": 0.0,
        },
        "temperature": {
            "meaning": "what the logits of every pixel are divided by",
            "minimum": 0.01,
            "maximum": 10.0,
            "default": 1.0,
        },
        "top_k": {
            "meaning": "number of most probable levels to draw from, after temperature",
            "minimum": 1.0,
            "maximum": float(levels),
            "default": None,
        },
        "top_p": {
            "meaning": "share of probability to draw from, most probable levels first, after top_k",
            "minimum": 0.01,
            "maximum": 1.0,
            "default": None,
        },
    }


EXACT_PROBABILITY: dict[str, Any] = {
    "quantity": "probability",
    "kind": "exact",
    "base_measure": "counting",
    "estimator": "exact",
    "draws": 1,
    "conditioning": "none",
}


def likelihood_bound(estimator: str, importance_estimator: str, draws: int) -> dict[str, Any]:
    """Describe a lower bound on log P(x), estimated from `draws` weights an image."""
    return {
        "quantity": "probability",
        "kind": "lower_bound",
        "base_measure": "counting",
        "estimator": estimator,
        "draws": draws,
        "importance_estimator": importance_estimator,
        "conditioning": "none",
    }


SINGLE_CODE_BOUND: dict[str, Any] = {
    "quantity": "probability",
    "kind": "lower_bound",
    "base_measure": "counting",
    "estimator": "single_code",
    "draws": 1,
    "conditioning": "none",
}
"""One term of the sum over all codes: that of the codes which an image is encoded to."""

CODE_CONTROLS: dict[str, dict[str, Any]] = {
    "temperature": {
        "meaning": "what the logits of every code are divided by",
        "minimum": 0.01,
        "maximum": 10.0,
        "default": 1.0,
    },
}
