"""One weights file for all graphs of an artifact: safetensors, in which each tensor lies once.

It holds the state of the model by the names that torch gives it, so that whoever trains, measures
or exports the model reads the file that serves it. Graphs refer into it by offset. What they need
besides goes by `<graph>/<name>`; no name of a state has a slash.

Numbers of float32 that float16 holds exactly are stored in half the size, behind a Cast that ONNX
Runtime folds away while it loads. Models that the zoo trained are rounded to such numbers before
they are measured; what an export computes from them, and weights of others, stay as they are. So is
a matrix that only lies on its side: graphs multiply by the transpose of what torch's linear layers
hold, and read it behind a Transpose.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from safetensors.numpy import save

WEIGHTS_FILE = "weights.safetensors"

SMALLEST = 1024  # bytes; less stays inside the graph, where it costs no mapping of its own

Array = NDArray[Any]


def save_models(models: Mapping[str, ir.Model], state: Mapping[str, Array], folder: Path) -> None:
    """Write `<name>.onnx` for every model, and the weights file: the state and large tensors.

    A tensor of a graph with the content of one of the state, in its order, is not stored again.
    """
    tensors = {name: _halved(numbers) for name, numbers in state.items()}
    names = {_digest(numbers): name for name, numbers in tensors.items()}
    references = []
    for name, model in models.items():
        for value, tensor in list(_tensors(model)):
            if tensor.nbytes < SMALLEST:
                continue
            own_name = f"{name}/{value.name}"
            value, tensor = _store_half(value, tensor)
            value, tensor = _store_turned(value, tensor, names)
            content = _content(tensor)
            stored = names.setdefault(_digest(content), own_name)
            tensors.setdefault(stored, content)
            references.append((value, tensor, stored))
    if tensors:
        offsets = _write(tensors, folder / WEIGHTS_FILE)
        for value, tensor, stored in references:
            value.const_value = _refer(value, tensor, offsets[stored], folder)
    for name, model in models.items():
        ir.save(model, folder / f"{name}.onnx")


def hash_weights(model: ir.Model) -> str:
    """Return the SHA-256 of a graph's floating-point tensors, whatever their names and order."""
    digests = sorted(
        hashlib.sha256(tensor.tobytes()).digest()
        for _, tensor in _tensors(model)
        if tensor.dtype.is_floating_point()
    )
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _halved(numbers: Array) -> Array:
    """Return numbers in float16 where that loses nothing, else as they are."""
    if numbers.dtype != np.float32:
        return numbers
    with np.errstate(over="ignore"):  # to infinity, which differs
        halves = numbers.astype(np.float16)
    return halves if np.array_equal(halves, numbers) else numbers


def _store_half(value: ir.Value, tensor: ir.TensorProtocol) -> tuple[ir.Value, ir.TensorProtocol]:
    """Return the initializer to store: one of float16 behind a Cast where that loses nothing."""
    if tensor.dtype != ir.DataType.FLOAT:
        return value, tensor
    halves = _halved(tensor.numpy())
    if halves.dtype == np.float32:
        return value, tensor
    return _store_other(value, "half", halves, "Cast", {"to": ir.DataType.FLOAT})


def _store_turned(
    value: ir.Value, tensor: ir.TensorProtocol, names: Mapping[bytes, str]
) -> tuple[ir.Value, ir.TensorProtocol]:
    """Return the initializer to store: the transpose behind a Transpose if that alone is stored."""
    content = _content(tensor)
    if content.ndim != 2 or _digest(content) in names or _digest(content.T) not in names:
        return value, tensor
    turned = np.ascontiguousarray(content.T)
    return _store_other(value, "turned", turned, "Transpose", {"perm": [1, 0]})


def _store_other(
    value: ir.Value, suffix: str, content: Array, operator: str, attributes: Mapping[str, Any]
) -> tuple[ir.Value, ir.TensorProtocol]:
    """Put an initializer in the place of another, which an operator makes of it."""
    graph = value.graph
    assert graph is not None  # an initializer has one
    other = ir.Value(name=f"{value.name}_{suffix}", const_value=ir.tensor(content))
    node = ir.node(operator, [other], attributes)
    ir.convenience.replace_all_uses_with(value, node.outputs[0])
    node.outputs[0].name = graph.initializers.pop(str(value.name)).name
    graph.register_initializer(other)
    graph.insert_before(graph[0], node)
    node.name = None  # the graph gave it one
    assert other.const_value is not None
    return other, other.const_value


def _tensors(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            assert value.const_value is not None  # an initializer has one
            yield value, value.const_value


def _content(tensor: ir.TensorProtocol) -> Array:
    """Return a tensor as numpy has it, or the bytes of one whose type numpy does not know."""
    numbers = tensor.numpy()
    known = numbers.dtype.isbuiltin == 1 and numbers.dtype.kind in "biuf"
    return numbers if known else np.frombuffer(tensor.tobytes(), np.uint8)


def _digest(numbers: Array) -> bytes:
    return hashlib.sha256(numbers.dtype.name.encode() + numbers.tobytes()).digest()


def _write(tensors: Mapping[str, Array], path: Path) -> dict[str, int]:
    """Write tensors, and return the offset of each in the file."""
    # Copied into order: safetensors takes the memory as it lies.
    content = save({name: np.array(numbers, order="C") for name, numbers in tensors.items()})
    path.write_bytes(content)
    start = 8 + int.from_bytes(content[:8], "little")  # the header, behind its length
    header: dict[str, Any] = json.loads(content[8:start])
    return {name: start + header[name]["data_offsets"][0] for name in tensors}


def _refer(
    value: ir.Value, tensor: ir.TensorProtocol, offset: int, folder: Path
) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        WEIGHTS_FILE,
        offset,
        tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=str(value.name),
        base_dir=folder,
    )
