"""Batch normalisation behind a convolution becomes part of it, and leaves the kernel as it is.

torch's exporter would multiply the kernel out. The product is no tensor of the model's state, and
float16 does not hold it: the artifact would keep it besides, at twice the size. Here the graph
holds the factors, and ONNX Runtime multiplies once, while it loads. The bits are the same.
"""

import numpy as np
import onnx_ir as ir
from onnxscript.optimizer import fold_constants

from export.vectors import Array

OUTPUT_AXIS = {"Conv": 0, "ConvTranspose": 1}
"""Where the kernel of an operator has its output channels, if they form one group."""


def fold_batch_norms(model: ir.Model) -> None:
    """Let every convolution that a batch normalisation follows do its work."""
    if not any(node.op_type == "BatchNormalization" for node in model.graph):
        return
    fold_constants(model)  # a convolution without a bias may have one that is computed of zeros
    for node in list(model.graph):
        source = node.inputs[0] if node.op_type == "BatchNormalization" else None
        convolution = source.producer() if source is not None else None
        if convolution is not None and _is_foldable(convolution, node):
            _fold(model.graph, convolution, node)


def _is_foldable(convolution: ir.Node, norm: ir.Node) -> bool:
    constants = [*convolution.inputs[1:], *norm.inputs[1:]]
    return (
        convolution.op_type in OUTPUT_AXIS
        and convolution.attributes.get_int("group", 1) == 1
        and len(convolution.outputs[0].uses()) == 1
        and all(value is not None and value.const_value is not None for value in constants)
    )


def _fold(graph: ir.Graph, convolution: ir.Node, norm: ir.Node) -> None:
    gamma, beta, mean, variance = map(_numbers, norm.inputs[1:])
    factor = gamma / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
    bias = _numbers(convolution.inputs[2]) if len(convolution.inputs) > 2 else np.zeros_like(mean)
    kernel = convolution.inputs[1]
    assert kernel is not None and kernel.const_value is not None
    shape = [1] * len(kernel.const_value.shape)
    shape[OUTPUT_AXIS[convolution.op_type]] = -1
    scaled = ir.node(
        "Mul",
        [kernel, _keep(graph, f"{kernel.name}_factor", factor.reshape(shape))],
        name=f"{kernel.name}_scale",
    )
    scaled.outputs[0].name = f"{kernel.name}_scaled"
    graph.insert_before(convolution, scaled)
    convolution.resize_inputs(3)
    convolution.replace_input_with(1, scaled.outputs[0])
    shifted = _keep(graph, f"{kernel.name}_shift", (bias - mean) * factor + beta)
    convolution.replace_input_with(2, shifted)
    ir.convenience.replace_all_uses_with(
        norm.outputs[0], convolution.outputs[0], replace_graph_outputs=True
    )
    graph.remove(norm, safe=True)


def _numbers(value: ir.Value | None) -> Array:
    assert value is not None and value.const_value is not None
    return value.const_value.numpy()


def _keep(graph: ir.Graph, name: str, numbers: Array) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(numbers))
    graph.register_initializer(value)
    return value
