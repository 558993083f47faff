"""A torch module to ONNX operators, by torch's own exporter."""

import warnings
from collections.abc import Sequence

import onnx_ir as ir
import torch
from onnxscript.optimizer import optimize_ir
from torch import Tensor, nn

from export.batch_norm import fold_batch_norms
from export.errors import ExportError
from export.translations import TRANSLATIONS
from export.weights import SMALLEST
from model_zoo.family import BATCH

OPSET = 20


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return what a module returned as a tuple."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def trace(
    module: nn.Module, inputs: Sequence[Tensor], batch_axes: Sequence[int | None]
) -> ir.Model:
    """Return a module as a graph of inputs with a free batch axis each, or none.

    Raises ExportError.
    """
    batch = torch.export.Dim(BATCH)
    free = tuple({} if axis is None else {axis: batch} for axis in batch_axes)
    try:
        # No graph needs gradients.
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # they speak of torch's own internals
            program = torch.onnx.export(
                _Positional(module).eval(),
                tuple(inputs),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=(free,),
                custom_translation_table=TRANSLATIONS,
                optimize=False,
                verbose=False,
            )
            assert program is not None  # it is None only for the older exporter
            fold_batch_norms(program.model)
            optimize_ir(program.model, should_fold=_is_foldable)
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip()
        raise ExportError(f"torch can't export it: {reason}") from error
    return program.model


def _is_foldable(node: ir.Node) -> bool | None:
    """Leave what is computed of weights to ONNX Runtime, which computes it once, while it loads.

    The artifact would hold the result besides the weights. A transpose it can refer to.
    """
    weights = any(
        value is not None
        and value.const_value is not None
        and value.const_value.dtype.is_floating_point()
        and value.const_value.nbytes >= SMALLEST
        for value in node.inputs
    )
    return False if weights and node.op_type != "Transpose" else None


class _Positional(nn.Module):
    """Takes its inputs by position, whatever the module calls them."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return as_tuple(self.module(*inputs))
