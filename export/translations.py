"""Torch operators that torch's own exporter has no ONNX for, though ONNX has one."""

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset20 as op

Translations = dict[Callable[..., Any], Callable[..., Any]]


def _stable_sort(
    self: Any, stable: bool = True, dim: int = -1, descending: bool = False
) -> tuple[Any, Any]:
    """TopK of everything: of equal values it puts the one with the lower index first."""
    size = op.Shape(self, start=dim, end=dim + 1) if dim >= 0 else op.Shape(self, start=dim)
    values, indices = op.TopK(self, size, axis=dim, largest=int(descending), sorted=1)
    return values, indices


TRANSLATIONS: Translations = {torch.ops.aten.sort.stable: _stable_sort}
"""By operator."""
