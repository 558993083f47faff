"""A module or an ONNX file to a pure graph: named ports, a free batch axis, no randomness."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    LiftConstantsToInitializersPass,
    NameFixPass,
    OutputFixPass,
)
from torch import Tensor, nn

from export.errors import ExportError
from export.onnx_files import read_file, run_file
from export.row_step import build_row_step
from export.scan import build_scan, build_scans
from export.tracing import OPSET, as_tuple, trace
from export.vectors import Array, Arrays
from model_zoo.autoregressive.row_step import RowStep
from model_zoo.family import Graph, Port
from model_zoo.scan import Scan, Scans

IR_VERSION = 10

RANDOM_OPERATORS = {
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}


def run_original(graph: Graph, inputs: Arrays) -> Arrays:
    """Run the module or file that a graph is made from: the truth that the graph must match.

    Raises ExportError where inputs or outputs are not what the ports say.
    """
    try:
        if isinstance(graph.module, Path):
            outputs = run_file(graph.module, inputs)
        else:
            outputs = _run_module(graph.module, inputs)
    except ExportError as error:
        raise ExportError(f"graph '{graph.name}': {error}") from error
    if len(outputs) != len(graph.outputs):
        raise ExportError(
            f"graph '{graph.name}': returns {len(outputs)} outputs, not {len(graph.outputs)}"
        )
    first = graph.inputs[0]
    rows = inputs[first.name].shape[first.batch_axis]
    for port, output in zip(graph.outputs, outputs, strict=True):
        _refuse_wrong_output(graph, port, output, rows)
    return {port.name: output for port, output in zip(graph.outputs, outputs, strict=True)}


def make_model(graph: Graph, inputs: Arrays) -> ir.Model:
    """Return a graph as ONNX, opset 20 and IR 10, that keeps the promises of the contract.

    `inputs` are any two rows or more; their values don't matter. Raises ExportError.
    """
    try:
        if isinstance(graph.module, Path):
            model = read_file(graph.module, OPSET)
        elif isinstance(graph.module, RowStep):
            model = ir.from_proto(build_row_step(graph.module, OPSET, IR_VERSION))
        else:
            model = _trace_module(graph, graph.module, inputs)
    except ExportError as error:
        raise ExportError(f"graph '{graph.name}': {error}") from error
    model.ir_version = IR_VERSION
    _refuse_random_operators(graph, model)
    _describe_ports(graph, model)
    LiftConstantsToInitializersPass()(model)  # shared between graphs, as weights are
    _strip(model)
    return model


def _run_module(module: nn.Module, inputs: Arrays) -> Sequence[Array]:
    tensors = [torch.from_numpy(values) for values in inputs.values()]
    try:
        with torch.no_grad():
            outputs = module.eval()(*tensors)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        shapes = ", ".join(f"'{name}' {list(values.shape)}" for name, values in inputs.items())
        raise ExportError(f"the module refuses the inputs {shapes}: {error}") from error
    if not all(isinstance(output, Tensor) for output in as_tuple(outputs)):
        raise ExportError("the module must return a tensor or a tuple of them")
    return [output.numpy() for output in as_tuple(outputs)]


def _refuse_wrong_output(graph: Graph, port: Port, actual: Array, rows: int) -> None:
    where, right = f"graph '{graph.name}', output '{port.name}'", port.shape_of(rows)
    if list(actual.shape) != right or actual.dtype != port.dtype:
        raise ExportError(
            f"{where}: is {actual.dtype} {list(actual.shape)} for {rows} rows, "
            f"not {port.dtype} {right}"
        )
    if not np.isfinite(actual).all():
        raise ExportError(f"{where}: is not finite on realistic inputs")


def _trace_module(graph: Graph, module: nn.Module, inputs: Arrays) -> ir.Model:
    tensors = [torch.from_numpy(values) for values in inputs.values()]
    axes = [port.batch_axis for port in graph.inputs]
    if isinstance(module, Scan):
        return ir.from_proto(build_scan(module, tensors, axes))
    if isinstance(module, Scans):
        return ir.from_proto(build_scans(module, tensors, axes))
    return trace(module, tensors, axes)


def _refuse_random_operators(graph: Graph, model: ir.Model) -> None:
    found = {node.op_type for node in model.graph.all_nodes()} & RANDOM_OPERATORS
    if found:
        raise ExportError(
            f"graph '{graph.name}': draws its own noise ({', '.join(sorted(found))}), which no "
            "seed could repeat; take it as an input with the role 'noise'"
        )


def _describe_ports(graph: Graph, model: ir.Model) -> None:
    """Name inputs and outputs by order, and write the free batch axis into their shapes."""
    OutputFixPass()(model)  # an output that is an input would otherwise be renamed with it
    pairs = [
        *zip(graph.inputs, model.graph.inputs, strict=True),
        *zip(graph.outputs, model.graph.outputs, strict=True),
    ]
    for port, value in pairs:
        _refuse_wrong_shape(graph, port, value)
        value.name = port.name
        value.shape = ir.Shape(port.shape_of())
    NameFixPass()(model)  # inner values that have the name of a port give way


def _refuse_wrong_shape(graph: Graph, port: Port, value: ir.Value) -> None:
    """Compare the known sizes; what is not known shows when the graph runs."""
    if value.shape is None:
        return
    sizes = [size if isinstance(size, int) else None for size in value.shape]
    fixed = sizes[port.batch_axis] if port.batch_axis < len(sizes) else None
    if fixed is not None:
        raise ExportError(
            f"graph '{graph.name}', port '{port.name}': the batch axis is fixed at {fixed} "
            "inside the model; no size may depend on how many rows the example had"
        )
    if not _fits(sizes, port.shape_of()):
        raise ExportError(
            f"graph '{graph.name}', port '{port.name}': its shape is {list(value.shape)}, "
            f"not {port.shape_of()}"
        )


def _fits(known: Sequence[int | None], shape: Sequence[int | str]) -> bool:
    same_rank = len(known) == len(shape)
    return same_rank and all(
        size in (None, right) for size, right in zip(known, shape, strict=True)
    )


def _strip(model: ir.Model) -> None:
    """Remove what tells of the machine that exported: stack traces, local paths, class names.

    Names and shapes of what lies between the ports go too: they were most of a file.
    """
    ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
    model.doc_string = None
    inner = [value for node in model.graph.all_nodes() for value in node.outputs]
    weights = [value for graph in model.graphs() for value in graph.initializers.values()]
    ports = [value for graph in model.graphs() for value in graph.inputs]
    for value in (*ports, *weights, *inner):
        value.doc_string = None
        value.metadata_props.clear()
    for value in weights:
        value.type, value.shape = None, None  # their tensors have them
    for node in model.graph.all_nodes():
        node.name = None
    for number, value in enumerate(inner):
        if not value.is_graph_output():
            value.name, value.type, value.shape = f"%{number}", None, None
