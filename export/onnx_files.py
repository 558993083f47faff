"""Existing ONNX files, of whatever origin: running them as they are, reading them for the contract.

They may have other port names, an older opset, external data, and a batch axis fixed at a number.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx_ir.passes.common import (
    InlinePass,
    LiftConstantsToInitializersPass,
    RemoveInitializersFromInputsPass,
    ShapeInferencePass,
)

from export.errors import ExportError
from export.vectors import Array, Arrays
from model_zoo.family import BATCH


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """Open a graph on the CPU with one thread, as it is served. Raises ExportError."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common class
        raise ExportError(f"ONNX Runtime can't load {path.name}: {error}") from error


def run_file(path: Path, inputs: Arrays) -> Sequence[Array]:
    """Run an existing file on inputs in its own order, in chunks where its batch axis is fixed.

    Raises ExportError where it can't be loaded or refuses the inputs.
    """
    session = open_session(path)
    arguments = session.get_inputs()
    if len(arguments) != len(inputs):
        raise ExportError(f"{path.name} has {len(arguments)} inputs, not {list(inputs)}")
    rows = len(next(iter(inputs.values())))
    chunk = next((size for size in arguments[0].shape[:1] if isinstance(size, int)), rows)
    padded = -(-rows // chunk) * chunk
    # np.resize repeats the rows until the last chunk is full.
    feeds = {
        argument.name: np.resize(values, (padded, *values.shape[1:]))
        for argument, values in zip(arguments, inputs.values(), strict=True)
    }
    try:
        parts = [
            session.run(None, {name: values[at : at + chunk] for name, values in feeds.items()})
            for at in range(0, padded, chunk)
        ]
    except Exception as error:  # ONNX Runtime's errors have no common class
        shapes = ", ".join(f"'{name}' {list(values.shape)}" for name, values in inputs.items())
        raise ExportError(f"{path.name} refuses the inputs {shapes}: {error}") from error
    return [np.concatenate(outputs)[:rows] for outputs in zip(*parts, strict=True)]


def read_file(path: Path, opset: int) -> ir.Model:
    """Return an existing file at an opset, with its batch axis freed. Raises ExportError."""
    model = ir.from_proto(_convert_version(path, opset))
    InlinePass()(model)
    RemoveInitializersFromInputsPass()(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=1)(model)
    _free_batch_axis(model)
    return model


def _convert_version(path: Path, opset: int) -> onnx.ModelProto:
    proto = onnx.load(path)
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    version = versions.get("", versions.get("ai.onnx"))
    if version == opset:
        return proto
    try:
        return onnx.version_converter.convert_version(proto, opset)
    except Exception as error:  # the converter's errors have no common class
        raise ExportError(
            f"{path.name} has opset {version} and can't be converted to {opset}: {error}; "
            f"export it again with opset {opset}"
        ) from error


def _free_batch_axis(model: ir.Model) -> None:
    """Forget the sizes that follow from a fixed batch, then infer shapes with it free."""
    ShapeInferencePass()(model)
    _free_reshapes(model)
    for node in model.graph.all_nodes():
        for value in node.outputs:
            value.shape = None
    for value in model.graph.inputs:
        if value.shape is not None and len(value.shape):
            value.shape = ir.Shape([BATCH, *value.shape[1:]])
    ShapeInferencePass()(model)


def _free_reshapes(model: ir.Model) -> None:
    """Let Reshapes that state the first axis they already have copy it instead (a 0).

    Exporters that were given no free axis fold `x.view(len(x), ...)` to a constant.
    """
    for number, node in enumerate(model.graph.all_nodes()):
        if node.op_type != "Reshape":
            continue
        source, target = node.inputs
        assert source is not None and target is not None and node.graph is not None
        if source.shape is None or target.const_value is None:
            continue
        sizes = target.const_value.numpy().copy()
        if sizes.size and 0 not in sizes and list(source.shape[:1]) == [sizes[0]]:
            sizes[0] = 0
            free = ir.Value(name=f"free_shape_{number}", const_value=ir.tensor(sizes))
            node.graph.register_initializer(free)
            node.replace_input_with(1, free)
            node.attributes.pop("allowzero", None)
