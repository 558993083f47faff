"""Proof that a graph under ONNX Runtime does what its original does, row by row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from export.errors import ExportError
from export.onnx_files import open_session
from export.vectors import ROWS, Array, Arrays
from model_zoo.family import Graph, Port

# |actual - expected| <= ABSOLUTE + RELATIVE * |expected|, in the unit of the output. Float32 with
# sums in another order stays far inside; a wrong layer, padding or epsilon does not.
ABSOLUTE = 1e-4
RELATIVE = 1e-4

BATCHES = (1, 2, ROWS)


@dataclass(frozen=True)
class Agreement:
    """How well a graph matches: the largest absolute error, and whether rows are bit for bit."""

    largest_error: float
    rows_are_identical: bool

    def __str__(self) -> str:
        rows = "bit for bit" if self.rows_are_identical else "within tolerance"
        return f"largest error {self.largest_error:.1e}, rows alone and in a batch agree {rows}"


def check(
    graph: Graph, path: Path, inputs: Arrays, original: Callable[[Arrays], Arrays]
) -> Agreement:
    """Compare the graph at `path` with its original at batch 1, 2 and 5, and with its own rows.

    Raises ExportError that names the graph and port where they differ.
    """
    _check_file(graph, path)
    session = open_session(path)
    _check_free_batch(graph, session)
    errors = []
    for count in BATCHES:
        some = _rows(graph.inputs, inputs, slice(count))
        actual = _run(graph, session, some)
        label = f"differs from the original at batch {count}"
        errors.append(_compare(graph, actual, original(some), label))
    together = _run(graph, session, inputs)
    return Agreement(max(errors), _check_rows(graph, session, inputs, together))


def _check_file(graph: Graph, path: Path) -> None:
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"graph '{graph.name}': is not valid ONNX: {error}") from error


def _check_free_batch(graph: Graph, session: onnxruntime.InferenceSession) -> None:
    """Read back what a loader sees: names in order, and [batch, ...] everywhere."""
    for ports, arguments in (
        (graph.inputs, session.get_inputs()),
        (graph.outputs, session.get_outputs()),
    ):
        right = [(port.name, port.shape_of()) for port in ports]
        actual = [(argument.name, argument.shape) for argument in arguments]
        if actual != right:
            raise ExportError(f"graph '{graph.name}': its ports are {actual}, not {right}")


def _check_rows(
    graph: Graph, session: onnxruntime.InferenceSession, inputs: Arrays, together: Arrays
) -> bool:
    """Run each row alone, and return whether every bit is the same as in the batch."""
    identical = True
    for row in range(ROWS):
        alone = _run(graph, session, _rows(graph.inputs, inputs, slice(row, row + 1)))
        among = _rows(graph.outputs, together, slice(row, row + 1))
        _compare(graph, alone, among, "of a row depends on the other rows of its batch")
        identical &= all(np.array_equal(alone[name], among[name]) for name in alone)
    return identical


def _rows(ports: Sequence[Port], arrays: Arrays, which: slice) -> Arrays:
    """Take rows, each port's along its own batch axis."""
    return {
        port.name: arrays[port.name][(slice(None),) * port.batch_axis + (which,)] for port in ports
    }


def _run(graph: Graph, session: onnxruntime.InferenceSession, inputs: Arrays) -> Arrays:
    names = [port.name for port in graph.outputs]
    try:
        outputs: list[Array] = session.run(names, inputs)
    except Exception as error:  # ONNX Runtime's errors have no common class
        rows = inputs[graph.inputs[0].name].shape[graph.inputs[0].batch_axis]
        raise ExportError(f"graph '{graph.name}': fails at batch {rows}: {error}") from error
    return dict(zip(names, outputs, strict=True))


def _compare(graph: Graph, actual: Arrays, expected: Arrays, label: str) -> float:
    """Return the largest absolute error over all outputs."""
    largest = 0.0
    for name, right in expected.items():
        if actual[name].shape != right.shape:
            raise ExportError(
                f"graph '{graph.name}', output '{name}' {label}: its shape is "
                f"{list(actual[name].shape)}, not {list(right.shape)}"
            )
        error = np.abs(actual[name].astype(np.float64) - right)
        # Not `error > allowed`: that is false for NaN.
        if not np.all(error <= ABSOLUTE + RELATIVE * np.abs(right)):
            raise ExportError(
                f"graph '{graph.name}', output '{name}' {label}: by {error.max():.2g}, where "
                f"{ABSOLUTE} + {RELATIVE} * |expected| is allowed"
            )
        largest = max(largest, float(error.max(initial=0.0)))
    return largest
