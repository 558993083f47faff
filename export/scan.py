"""A loop over positions as one graph: its parts traced by torch, joined by an ONNX Scan.

A Scan of `model_zoo/scan.py` is three functions without a loop. Each is traced alone; the step
becomes the body of the Scan, which ONNX Runtime runs position after position without leaving the
graph.
"""

from collections.abc import Callable, Sequence

import onnx
import onnx_ir as ir
import torch
from onnx import compose, helper
from onnx_ir.passes.common import OutputFixPass
from torch import Tensor, nn

from export.tracing import as_tuple, trace
from model_zoo.scan import Scan, Scans


def build_scan(scan: Scan, inputs: Sequence[Tensor], batch_axes: Sequence[int]) -> onnx.ModelProto:
    """Return the graph of a loop; `inputs` are two rows or more, their batch axes as given.

    Raises ExportError.
    """
    with torch.no_grad():
        fewer = [values.narrow(axis, 0, 1) for values, axis in zip(inputs, batch_axes, strict=True)]
        states, sequences = scan.prepare(*inputs)
        one_row = scan.prepare(*fewer)
        items = tuple(sequence[0] for sequence in sequences)
        _, results = scan.step(states, items)
        stacked = [torch.stack([result] * len(sequences[0])) for result in results]
    of_step = [
        *_batch_axes(states, one_row[0]),
        *_batch_axes(items, [sequence[0] for sequence in one_row[1]]),
    ]
    prepare = _trace("prepare_", Part(scan, scan.prepare), inputs, batch_axes)
    step = _trace("step_", Step(scan, len(states)), (*states, *items), of_step)
    finish = _trace("finish_", Part(scan, scan.finish), stacked, [1] * len(stacked))
    return _join(prepare, step, finish, len(states))


def build_scans(
    scans: Scans, inputs: Sequence[Tensor], batch_axes: Sequence[int]
) -> onnx.ModelProto:
    """Return the graph of loops one after another, as `build_scan` does of one.

    Raises ExportError.
    """
    known, axes = list(inputs), list(batch_axes)
    loops: list[onnx.ModelProto] = []
    nodes: list[onnx.NodeProto] = []
    names: list[str] = []
    for number, scan in enumerate(scans.scans):
        loop = compose.add_prefix(build_scan(scan, known, axes), f"loop_{number}_")
        with torch.no_grad():
            known += scan(*known)
        axes += [0]
        names = names or [value.name for value in loop.graph.input]
        # What a later loop is given has its own name there; ONNX Runtime takes such nodes out.
        given = zip(names, loop.graph.input, strict=True)
        nodes += [
            helper.make_node("Identity", [name], [value.name])
            for name, value in given
            if name != value.name
        ]
        nodes += loop.graph.node
        names.append(loop.graph.output[0].name)
        loops.append(loop)
    return _beside(loops, nodes)


class Part(nn.Module):
    """What comes before or after the loop, its results in one row."""

    def __init__(self, scan: Scan, function: Callable[..., tuple]):
        super().__init__()
        self.scan, self.function = scan, function

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors of all results."""
        return tuple(_flat(self.function(*inputs)))


class Step(nn.Module):
    """The body of the loop, its inputs and results in one row."""

    def __init__(self, scan: Scan, states: int):
        super().__init__()
        self.scan, self.states = scan, states

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the next states, then the results."""
        return tuple(_flat(self.scan.step(inputs[: self.states], inputs[self.states :])))


def _flat(results: Sequence[Tensor | tuple[Tensor, ...]]) -> list[Tensor]:
    return [tensor for result in results for tensor in as_tuple(result)]


def _batch_axes(many: Sequence[Tensor], one: Sequence[Tensor]) -> list[int | None]:
    """Return the axis of each tensor that is longer for many rows than for one, or None."""
    axes: list[int | None] = []
    for more, fewer in zip(many, one, strict=True):
        differing = [axis for axis in range(more.dim()) if more.shape[axis] != fewer.shape[axis]]
        axes.append(differing[0] if differing else None)
    return axes


def _trace(
    prefix: str, module: nn.Module, inputs: Sequence[Tensor], batch_axes: Sequence[int | None]
) -> onnx.ModelProto:
    """Return a part of the graph, in which every name starts with `prefix`."""
    model = trace(module, inputs, batch_axes)
    OutputFixPass()(model)  # a state may go on as it is, but not under the same name
    return compose.add_prefix(ir.to_proto(model), prefix)


def _join(
    prepare: onnx.ModelProto, step: onnx.ModelProto, finish: onnx.ModelProto, states: int
) -> onnx.ModelProto:
    """Return one graph: what comes before, the Scan, and what comes after."""
    last_states = [f"last_{value.name}" for value in step.graph.output[:states]]
    loop = helper.make_node(
        "Scan",
        [value.name for value in prepare.graph.output],
        [*last_states, *(value.name for value in finish.graph.input)],
        body=step.graph,
        num_scan_inputs=len(step.graph.input) - states,
    )
    graph = helper.make_graph(
        [*prepare.graph.node, loop, *finish.graph.node],
        "scan",
        prepare.graph.input,
        finish.graph.output,
        [*prepare.graph.initializer, *finish.graph.initializer],
    )
    return helper.make_model(graph, opset_imports=prepare.opset_import)


def _beside(loops: Sequence[onnx.ModelProto], nodes: Sequence[onnx.NodeProto]) -> onnx.ModelProto:
    """Return the graph of the nodes of loops, their results put side by side."""
    results = [loop.graph.output[0] for loop in loops]
    whole = helper.make_tensor_value_info("results", results[0].type.tensor_type.elem_type, None)
    together = helper.make_node("Concat", [result.name for result in results], [whole.name], axis=1)
    graph = helper.make_graph(
        [*nodes, together],
        "scans",
        loops[0].graph.input,
        [whole],
        [tensor for loop in loops for tensor in loop.graph.initializer],
    )
    return helper.make_model(graph, opset_imports=loops[0].opset_import)
