"""Torch operators that torch's own exporter has no ONNX for, or one that loses their precision."""

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


def _log_sigmoid(self: Any) -> Any:
    """Minus a Softplus; the logarithm of a Sigmoid would know no number below about -18."""
    return op.Neg(op.Softplus(op.Neg(self)))


def _exp_minus_one(self: Any) -> Any:
    """e^x - 1 as tanh(x / 2) (e^x + 1), which of a small x keeps all digits."""
    half = op.CastLike(op.Constant(value_float=0.5), self)
    one = op.CastLike(op.Constant(value_float=1.0), self)
    return op.Mul(op.Tanh(op.Mul(self, half)), op.Add(op.Exp(self), one))


TRANSLATIONS: Translations = {
    torch.ops.aten.sort.stable: _stable_sort,
    torch.ops.aten.log_sigmoid.default: _log_sigmoid,
    torch.ops.aten.expm1.default: _exp_minus_one,
}
"""By operator."""
