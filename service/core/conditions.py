"""What images are conditioned on: classes or weights over classes, as asked or from the prior."""

from collections.abc import Sequence

import numpy as np

from service.core import noise
from service.core.manifest import Manifest
from service.core.requests import Array, ConditionRequest, check_range
from service.errors import ConditionNotOffered, InvalidRequest, OutOfRange


def class_weights(
    manifest: Manifest, request: ConditionRequest, count: int, seed: int
) -> Array | None:
    """Return class weights [count, K]: as asked, or else the model's answer to no class.

    That is zeros where the model was trained for it, and one-hot classes drawn from its prior
    otherwise.
    """
    condition, asked = manifest.condition, _asked_kinds(request)
    if condition is None:
        if asked:
            raise ConditionNotOffered(f"{manifest.name} is unconditional; leave out the condition")
        return None
    if len(asked) > 1:
        raise InvalidRequest("give classes or class weights, not both")
    if not asked <= set(condition.kinds):
        raise ConditionNotOffered(
            f"{manifest.name} is not conditioned on {asked.pop()}; "
            f"give {' or '.join(condition.kinds)}",
            kinds=list(condition.kinds),
        )
    if request.class_weights is not None:
        return _check_class_weights(request.class_weights, count, len(condition.names))
    if not asked and condition.optional:
        return np.zeros((count, len(condition.names)), np.float32)
    classes = _drawn_classes(condition.prior, count, seed) if not asked else request.classes
    return _one_hot(classes or (), count, len(condition.names))


def every_class(classes: int, count: int) -> Array:
    """Return the weights of one class after the other for each image, [count * K, K]."""
    return np.tile(np.eye(classes, dtype=np.float32), (count, 1))


def is_given(request: ConditionRequest) -> bool:
    """Whether the request asks for a condition."""
    return bool(_asked_kinds(request))


def _asked_kinds(request: ConditionRequest) -> set[str]:
    """Return the kinds of condition that are given, as manifests call them."""
    given = {"class": request.classes, "class_weights": request.class_weights}
    return {kind for kind, value in given.items() if value is not None}


def _one_hot(classes: Sequence[int], count: int, size: int) -> Array:
    if len(classes) not in (1, count):
        raise InvalidRequest(
            f"{len(classes)} classes were given for {count} images; give 1 or {count}"
        )
    for label in classes:
        check_range("class", label, 0, size - 1)
    weights = np.zeros((count, size), np.float32)
    weights[np.arange(count), classes] = 1.0  # one class is that of all
    return weights


def _drawn_classes(prior: Sequence[float], count: int, seed: int) -> list[int]:
    items = np.arange(count, dtype=np.uint64)
    uniforms = noise.uniform(np.full(count, seed, np.uint64), "class", items, 1)[:, 0]
    classes = np.searchsorted(np.cumsum(prior), uniforms, side="right")
    return [int(label) for label in np.minimum(classes, len(prior) - 1)]


def _check_class_weights(weights: Array, count: int, size: int) -> Array:
    if weights.ndim == 1:
        weights = np.repeat(weights[None], count, axis=0)
    if weights.shape != (count, size):
        raise InvalidRequest(
            f"class weights have shape {list(weights.shape)}; allowed are [{size}] "
            f"and [{count}, {size}]"
        )
    # Written so that NaN is refused too.
    if not (np.all(weights >= 0) and np.all(np.abs(weights.sum(axis=1) - 1.0) < 1e-4)):
        raise OutOfRange("class weights must not be negative and must sum to 1 for each image")
    return weights.astype(np.float32)
