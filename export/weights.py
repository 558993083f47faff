"""One weights file for all graphs of an artifact; equal tensors are stored once.

Numbers of float32 that float16 holds exactly are stored in half the size, behind a Cast that ONNX
Runtime folds away while it loads. Models that the zoo trained are rounded to such numbers before
they are measured; what an export computes from them, and weights of others, stay as they are.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

WEIGHTS_FILE = "weights.bin"

SMALLEST = 1024  # bytes; less stays inside the graph, where it costs no page of its own
PAGE = 4096  # bytes; ONNX asks for offsets that can be memory-mapped


def save_models(models: Mapping[str, ir.Model], folder: Path) -> None:
    """Write `<name>.onnx` for every model, and their large tensors to the shared weights file."""
    stored: dict[bytes, int] = {}  # offset by hash of the content
    with (folder / WEIGHTS_FILE).open("wb") as file:
        for value, tensor in list(_tensors(models.values())):
            if tensor.nbytes < SMALLEST:
                continue
            value, tensor = _halve(value, tensor)
            content = tensor.tobytes()
            key = hashlib.sha256(content).digest()
            if key not in stored:
                file.write(bytes(-file.tell() % PAGE))
                stored[key] = file.tell()
                file.write(content)
            value.const_value = _refer(value, tensor, stored[key], folder)
    if not stored:
        (folder / WEIGHTS_FILE).unlink()
    for name, model in models.items():
        ir.save(model, folder / f"{name}.onnx")


def hash_weights(model: ir.Model) -> str:
    """Return the SHA-256 of a graph's floating-point tensors, whatever their names and order."""
    digests = sorted(
        hashlib.sha256(tensor.tobytes()).digest()
        for _, tensor in _tensors([model])
        if tensor.dtype.is_floating_point()
    )
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _halve(value: ir.Value, tensor: ir.TensorProtocol) -> tuple[ir.Value, ir.TensorProtocol]:
    """Return the initializer to store: one of float16 where that loses nothing."""
    if tensor.dtype != ir.DataType.FLOAT:
        return value, tensor
    numbers = tensor.numpy()
    with np.errstate(over="ignore"):  # to infinity, which differs
        halves = numbers.astype(np.float16)
    if not np.array_equal(halves, numbers):
        return value, tensor
    graph = value.graph
    assert graph is not None  # an initializer has one
    half = ir.Value(name=f"{value.name}_half", const_value=ir.tensor(halves))
    cast = ir.node("Cast", [half], {"to": ir.DataType.FLOAT}, name=f"{value.name}_cast")
    ir.convenience.replace_all_uses_with(value, cast.outputs[0])
    cast.outputs[0].name = graph.initializers.pop(str(value.name)).name
    graph.register_initializer(half)
    graph.insert_before(graph[0], cast)
    return half, half.const_value


def _tensors(models: Iterable[ir.Model]) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    for model in models:
        for graph in model.graphs():
            for value in graph.initializers.values():
                assert value.const_value is not None  # an initializer has one
                yield value, value.const_value


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
