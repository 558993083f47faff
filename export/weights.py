"""One weights file for all graphs of an artifact; equal tensors are stored once."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import onnx_ir as ir

WEIGHTS_FILE = "weights.bin"

SMALLEST = 1024  # bytes; less stays inside the graph, where it costs no page of its own
PAGE = 4096  # bytes; ONNX asks for offsets that can be memory-mapped


def save_models(models: Mapping[str, ir.Model], folder: Path) -> None:
    """Write `<name>.onnx` for every model, and their large tensors to the shared weights file."""
    stored: dict[bytes, int] = {}  # offset by hash of the content
    with (folder / WEIGHTS_FILE).open("wb") as file:
        for value, tensor in _tensors(models.values()):
            content = tensor.tobytes()
            if len(content) < SMALLEST:
                continue
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
