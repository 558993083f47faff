"""The row step of a Gated PixelCNN as a graph written by hand: caches in, one row of pixels out.

What makes it fast, for the recurrence that `model_zoo/autoregressive/row_step.py` states plainly:

- the vertical stack runs for the whole row at once, as products of matrices whose rows are
  (column, image) pairs; taps that a mask would hide are never multiplied;
- a Scan over the columns runs the horizontal stack; what comes from above enters its products as
  Gemm's C operand, and each half of a gate is a Gemm of its own, which ONNX Runtime fuses with the
  Tanh or Sigmoid that follows;
- the body of the Scan owns its weights: ONNX Runtime keeps a packed copy of them alone, and a body
  that had captured the originals from outside would be left with inputs that are gone, for which
  it plans no memory; it would then allocate every result of every pixel, a sixth of all time;
- what the pixels don't need of each other, as log-probabilities, is computed behind the Scan for
  the whole row.

Weights enter as the model's state has them, so that the artifact holds them once. ONNX Runtime puts
them in the order of the products while it loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from export.vectors import Array
from model_zoo.autoregressive.gated_layers import GatedLayer
from model_zoo.autoregressive.row_step import COLDEST, KEEP_ALL, RowStep
from model_zoo.family import Port


class _Nodes:
    """Nodes in the making: a call adds one and returns the name of its result."""

    def __init__(self, prefix: str):
        """Names start with `prefix`, so that a Scan's body never hides what is outside of it."""
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Array] = {}

    def __call__(self, operator: str, *inputs: str, **attributes: Any) -> str:
        return self.several(1, operator, *inputs, **attributes)[0]

    def several(self, count: int, operator: str, *inputs: str, **attributes: Any) -> list[str]:
        """Add a node with `count` results."""
        start = f"{self.prefix}{operator.lower()}_{len(self.nodes)}"
        names = [f"{start}_{index}" for index in range(count)]
        self.nodes.append(helper.make_node(operator, list(inputs), names, **attributes))
        return names

    def name(self, value: str, name: str) -> None:
        """Give a result the name of a port."""
        self.nodes.append(helper.make_node("Identity", [value], [name]))

    def weight(self, name: str, values: Array | Tensor) -> str:
        """Keep an array with the graph."""
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
        name = self.prefix + name
        self.weights[name] = np.ascontiguousarray(array)
        return name

    def initializers(self) -> list[TensorProto]:
        """Return the arrays that were kept."""
        return [numpy_helper.from_array(array, name) for name, array in self.weights.items()]

    def integers(self, *values: int) -> str:
        """Return a constant int64 vector."""
        return self.weight("integers_" + "_".join(map(str, values)), np.array(values, np.int64))

    def kernel(self, name: str, convolution: nn.Conv2d) -> str:
        """Return a kernel [outputs, inputs, H, W] as [W * H * inputs, outputs], for products."""
        turned = self("Transpose", self.weight(name, convolution.weight), perm=[3, 2, 1, 0])
        return self("Reshape", turned, self.integers(-1, convolution.out_channels))

    def slice(self, value: str, start: int, end: int, axis: int) -> str:
        """Cut from `start` to `end`."""
        limits = (self.integers(number) for number in (start, end, axis))
        return self("Slice", value, *limits)


def build_row_step(step: RowStep, opset: int, ir_version: int) -> onnx.ModelProto:
    """Return the graph of a row step, with the ports that it describes."""
    write = _Nodes("row_")
    coming, next_activations = _look_up(write, step)
    levels, logits = _scan_columns(write, step, coming)
    features = write("Gather", write.weight("features", step.features.weight), levels)
    last = write.integers(-1)
    every = write("LogSoftmax", logits, axis=2)
    chosen = write("GatherElements", every, write("Unsqueeze", levels, last), axis=2)
    write.name(levels, "levels")
    write.name(write("Squeeze", chosen, last), "log_probability")
    write.name(_append(write, step, "rows_above", features), "next_rows_above")
    write.name(next_activations, "next_activations")
    graph = helper.make_graph(
        write.nodes,
        "row_step",
        [_describe(port) for port in step.input_ports()],
        [_describe(port) for port in step.output_ports()],
        write.initializers(),
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


def _describe(port: Port) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(port.dtype))
    return helper.make_tensor_value_info(port.name, kind, port.shape_of())


# Above: the vertical stack, for the whole row


def _look_up(write: _Nodes, step: RowStep) -> tuple[list[str], str]:
    """Return what both halves of every horizontal gate get from above, and the next cache."""
    shifts_up, shifts_left = _shifts(write, step)
    last = len(step.layers) - 1
    cached = write.several(last, "Split", "activations", axis=0, num_outputs=last)
    rows, coming, kept = "rows_above", [], []
    for index in range(len(step.layers)):
        above = write("Add", _convolve(write, step, index, rows), shifts_up[index])  # [W, B, 2C]
        coming += _across(write, step, index, above, shifts_left[index])
        if index < last:
            activation = _gate_row(write, above)
            kept.append(write("Unsqueeze", activation, write.integers(0)))
            row_before = write("Squeeze", cached[index], write.integers(0))
            rows = write("Concat", row_before, activation, axis=2)  # [W, B, 2C]
    return coming, write("Concat", *kept, axis=0)


def _shifts(write: _Nodes, step: RowStep) -> tuple[list[str], list[str]]:
    """Return bias and shift by the class of every vertical and horizontal gate, [B, 2C] each."""
    weights, biases = [], []
    for index, layer in enumerate(step.layers):
        weights.append(write.weight(f"condition_{index}", layer.condition.weight))  # [4C, classes]
        assert layer.vertical.bias is not None and layer.across.bias is not None
        biases.append(write.weight(f"vertical_bias_{index}", layer.vertical.bias))
        biases.append(write.weight(f"across_bias_{index}", layer.across.bias))
    condition, bias = (write("Concat", *parts, axis=0) for parts in (weights, biases))
    shifts = write("Gemm", "class_weights", condition, bias, transB=1)
    pieces = write.several(len(biases), "Split", shifts, axis=1, num_outputs=len(biases))
    return pieces[::2], pieces[1::2]


def _window(write: _Nodes, step: RowStep, rows: str, index: int) -> str:
    """Return what a vertical kernel sees of `rows`, [W, B, *], as [W, B, columns * rows]."""
    columns = step.layers[index].vertical.kernel_size[1]
    side = columns // 2
    padded = write("Pad", rows, write.integers(side, 0, 0, side, 0, 0))
    views = [write.slice(padded, at, at + step.width, axis=0) for at in range(columns)]
    return write("Concat", *views, axis=2)


def _convolve(write: _Nodes, step: RowStep, index: int, rows: str) -> str:
    """Apply a vertical kernel to `rows`, [W, B, rows * inputs]; the result is [W, B, 2C]."""
    weight = write.kernel(f"vertical_{index}", step.layers[index].vertical)
    return write("MatMul", _window(write, step, rows, index), weight)


def _across(write: _Nodes, step: RowStep, index: int, above: str, shift: str) -> list[str]:
    """Apply the 1x1 convolution from stack to stack: both halves of a gate, [W, B, C]."""
    weight = write.kernel(f"across_{index}", step.layers[index].across)
    shifted = write("Add", write("MatMul", above, weight), shift)
    return write.several(2, "Split", shifted, axis=2, num_outputs=2)


def _gate_row(write: _Nodes, above: str) -> str:
    """Map [W, B, 2C] to [W, B, C] (equation 2 of the paper)."""
    content, openness = write.several(2, "Split", above, axis=2, num_outputs=2)
    return write("Mul", write("Tanh", content), write("Sigmoid", openness))


def _append(write: _Nodes, step: RowStep, rows: str, features: str) -> str:
    """Forget the first of the `reach` rows that are known, and append another, [W, B, features]."""
    size = step.level_features
    kept = write.slice(rows, size, step.reach * size, axis=2)
    return write("Concat", kept, features, axis=2)


# To the left: the horizontal stack, pixel by pixel


def _scan_columns(write: _Nodes, step: RowStep, coming: Sequence[str]) -> list[str]:
    """Return levels [W, B] and logits [W, B, levels]."""
    last = write.integers(-1)
    coldest = write.weight("coldest", np.array(COLDEST, np.float32))
    temperature = write("Unsqueeze", write("Max", "temperature", coldest), last)  # [B, 1]
    free = write("Less", "forced", write.weight("zero", np.array(0, np.int64)))
    columns = [*coming, write("Unsqueeze", "uniform", last), "forced", free]
    pixels = _zeros(write, step.reach * step.level_features)
    states = [pixels, *[_zeros(write, step.channels)] * (len(step.layers) - 1)]
    body = _column(step, temperature, _filter_limits(write, step))
    results = write.several(
        len(states) + 2, "Scan", *states, *columns, body=body, num_scan_inputs=len(columns)
    )
    return results[len(states) :]


def _zeros(write: _Nodes, size: int) -> str:
    """Return zeros [B, size]: left of the first pixel there is nothing."""
    batch = write("Shape", "temperature")
    return write("ConstantOfShape", write("Concat", batch, write.integers(size), axis=0))


def _column(step: RowStep, temperature: str, limits: Sequence[str]) -> onnx.GraphProto:
    """Return the body of the Scan: one pixel of every image."""
    inner = _Nodes("pixel_")
    before = "pixels_before"
    left = [f"left_{index}" for index in range(1, len(step.layers))]
    coming = [f"coming_{index}" for index in range(2 * len(step.layers))]
    logits, seen = _look_left(inner, step, before, left, coming)
    probability = inner("Softmax", inner("Div", logits, temperature), axis=1)
    if limits:
        probability = _keep_likely(inner, probability, *limits)
    level = inner("Where", "free", _draw(inner, step, probability), "forced_level")
    next_before = _push(inner, step, before, level)
    inputs = [before, *left, *coming, "uniform_draw", "forced_level", "free"]
    kinds = [TensorProto.FLOAT] * (len(inputs) - 2) + [TensorProto.INT64, TensorProto.BOOL]
    states = [next_before, *seen]
    outputs = [*states, level, logits]
    out_kinds = [TensorProto.FLOAT] * len(states) + [TensorProto.INT64, TensorProto.FLOAT]
    return helper.make_graph(
        inner.nodes,
        "column",
        [helper.make_tensor_value_info(n, k, None) for n, k in zip(inputs, kinds, strict=True)],
        [
            helper.make_tensor_value_info(n, k, None)
            for n, k in zip(outputs, out_kinds, strict=True)
        ],
        inner.initializers(),
    )


def _push(inner: _Nodes, step: RowStep, before: str, level: str) -> str:
    """Forget the first of the `reach` pixels that are known, and append that of a level, [B].

    A product with ones below the diagonal moves the others on, each times one and so exactly.
    """
    size = step.level_features
    moves = np.eye(step.reach * size, k=-size, dtype=np.float32)
    features = inner.weight("features", step.features.weight)
    newest = inner("Pad", features, inner.integers(0, (step.reach - 1) * size, 0, 0))
    pixel = inner("Gather", newest, level)
    return inner("Gemm", before, inner.weight("moves", moves), pixel)


def _look_left(
    inner: _Nodes, step: RowStep, before: str, left: Sequence[str], coming: Sequence[str]
) -> tuple[str, list[str]]:
    """Return the logits [B, levels] and the input of every layer but the first, [B, C]."""
    h = _gated_change(inner, step, 0, before, coming[:2], "")
    seen = []
    for index in range(1, len(step.layers)):
        seen.append(h)
        window = inner("Concat", left[index - 1], h, axis=1)  # [B, 2C]
        h = _gated_change(inner, step, index, window, coming[2 * index : 2 * index + 2], h)
    return _head(inner, step, h), seen


def _gated_change(
    inner: _Nodes, step: RowStep, index: int, window: str, coming: Sequence[str], shortcut: str
) -> str:
    """Return the output of a horizontal layer, [B, C], the shortcut added where there is one."""
    layer: GatedLayer = step.layers[index]
    kernel = inner.kernel(f"horizontal_{index}", layer.horizontal)
    content, openness = inner.several(2, "Split", kernel, axis=1, num_outputs=2)
    gated = inner(
        "Mul",
        inner("Tanh", inner("Gemm", window, content, coming[0])),
        inner("Sigmoid", inner("Gemm", window, openness, coming[1])),
    )
    residual = inner.kernel(f"residual_{index}", layer.residual)
    return inner("Gemm", gated, residual, *([shortcut] if shortcut else []))


def _head(inner: _Nodes, step: RowStep, h: str) -> str:
    """Return the logits, [B, levels]."""
    convolutions = [part for part in step.head if isinstance(part, nn.Conv2d)]
    for index, convolution in enumerate(convolutions):  # each behind a ReLU
        weight = inner.kernel(f"head_{index}", convolution)
        assert convolution.bias is not None
        bias = inner.weight(f"head_bias_{index}", convolution.bias)
        h = inner("Gemm", inner("Relu", h), weight, bias)
    return h


def _draw(inner: _Nodes, step: RowStep, probability: str) -> str:
    """Return the level that the uniform number falls on, [B]; see `draw` of the model."""
    cumulative = inner("CumSum", probability, inner.weight("one", np.array(1, np.int64)))
    total = inner("Gather", cumulative, inner.integers(step.levels - 1), axis=1)
    passed = inner("LessOrEqual", cumulative, inner("Mul", total, "uniform_draw"))
    ones = inner("Cast", passed, to=TensorProto.FLOAT)
    return inner(
        "Cast", inner("ReduceSum", ones, inner.integers(1), keepdims=0), to=TensorProto.INT64
    )


# What top-k and top-p leave


def _filter_limits(write: _Nodes, step: RowStep) -> list[str]:
    """Return which ranks top-k keeps, [B, levels], and the share that top-p keeps, [B, 1]."""
    if not step.filtered:
        return []
    last = write.integers(-1)
    ranks = write.weight("ranks", np.arange(step.levels, dtype=np.int64))
    kept_ranks = write("Less", ranks, write("Unsqueeze", "top_k", last))
    one = write.weight("whole", np.array(1, np.float32))
    everything = write.weight("keep_all", np.array(KEEP_ALL, np.float32))
    share = write("Where", write("GreaterOrEqual", "top_p", one), everything, "top_p")
    return [kept_ranks, write("Unsqueeze", share, last)]


def _keep_likely(inner: _Nodes, probability: str, kept_ranks: str, share: str) -> str:
    """Set to zero what top-k and then top-p leave out, [B, levels]; TopK ties go to the lower."""
    nothing = inner.weight("nothing", np.array(0, np.float32))
    levels = inner("Slice", inner("Shape", probability), *[inner.integers(n) for n in (1, 2)])
    ordered, level = inner.several(2, "TopK", probability, levels, axis=1)
    ordered = inner("Where", kept_ranks, ordered, nothing)
    whole = inner("ReduceSum", ordered, inner.integers(1))
    axis = inner.weight("one", np.array(1, np.int64))
    larger = inner("CumSum", ordered, axis, exclusive=1)
    likely = inner("Less", larger, inner("Mul", share, whole))
    kept = inner("Where", likely, ordered, nothing)
    return inner("ScatterElements", probability, level, kept, axis=1)
