"""A torch module to ONNX operators, by torch's own exporter."""

import warnings
from collections.abc import Sequence

import onnx_ir as ir
import torch
from torch import Tensor, nn

from export.batch_norm import fold_batch_norms
from export.errors import ExportError
from export.translations import TRANSLATIONS
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
            program.optimize()
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip()
        raise ExportError(f"torch can't export it: {reason}") from error
    return program.model


class _Positional(nn.Module):
    """Takes its inputs by position, whatever the module calls them."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return as_tuple(self.module(*inputs))
