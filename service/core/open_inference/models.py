"""What is a model of the Open Inference Protocol, and what it says of itself.

Its models are the graphs of artifacts, and the `sample` operation of those that sample. What a
graph takes and gives is the manifest's to say, so a tensor here is what the operations feed it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from service.core.manifest import Manifest
from service.core.manifest_parts import Graph, VectorEvent
from service.core.models import Model
from service.core.open_inference.tensors import BATCH, TensorMetadata, metadata_of

SERVER_NAME = "genserve"
SAMPLE = "sample"
"""The operation that is a model, beside the graphs."""


@dataclass(frozen=True)
class InferenceModel:
    """One graph of an artifact as a model, `<artifact>.<graph>`, or its `sample` operation."""

    artifact: Model
    function: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    streams: bool  # whether a stream shows what is being made

    @property
    def name(self) -> str:
        """The model's name."""
        return f"{self.artifact.name}.{self.function}"

    @property
    def version(self) -> str:
        """The version of the artifact."""
        return self.artifact.version

    @property
    def ready(self) -> bool:
        """Whether it is loaded; one that is not loads when it is first asked."""
        return self.artifact.state == "ready"

    @property
    def samples(self) -> bool:
        """Whether it is no graph, but an operation that takes parameters."""
        return self.function == SAMPLE

    def metadata(self, versions: Sequence[str]) -> dict[str, Any]:
        """Return what the protocol calls the metadata of a model, by its names."""
        return {
            "name": self.name,
            "versions": list(versions),
            "platform": self._platform,
            "inputs": [_described(tensor) for tensor in self.inputs],
            "outputs": [_described(tensor) for tensor in self.outputs],
        }

    def configuration(self, maximum_rows: int) -> dict[str, Any]:
        """Return a Triton model configuration, by its names; rows of a graph are its batch."""
        # Where there is a batch, its axis is not among the dimensions.
        skipped = 0 if self.samples else 1
        return {
            "name": self.name,
            "platform": self._platform,
            "max_batch_size": 0 if self.samples else maximum_rows,
            "input": [_configured(tensor, skipped) for tensor in self.inputs],
            "output": [_configured(tensor, skipped) for tensor in self.outputs],
            "model_transaction_policy": {"decoupled": self.streams},
        }

    @property
    def _platform(self) -> str:
        return SERVER_NAME if self.samples else "onnxruntime_onnx"


def models_of(artifact: Model) -> list[InferenceModel]:
    """Return the models of an artifact: none where its manifest can't be read."""
    manifest = artifact.manifest
    if manifest is None:
        return []
    models = [
        InferenceModel(
            artifact,
            name,
            tuple(map(metadata_of, graph.inputs)),
            tuple(map(metadata_of, graph.outputs)),
            streams=False,
        )
        for name, graph in manifest.graphs.items()
        if _is_rows_first(graph)
    ]
    if SAMPLE in manifest.operations:
        streams = manifest.program == "raster_rows"
        outputs = _sample_outputs(manifest, streams)
        models.append(InferenceModel(artifact, SAMPLE, (), outputs, streams))
    return models


def _is_rows_first(graph: Graph) -> bool:
    """Whether rows of a graph can share a batch: not those of a step that a program repeats."""
    ports = (*graph.inputs, *graph.outputs)
    return bool(graph.inputs) and all(port.batch_axis == 0 for port in ports)


def _sample_outputs(manifest: Manifest, streams: bool) -> tuple[TensorMetadata, ...]:
    """Return `vectors`, or `images` and beside it what a stream shows: rows, from the first one."""
    if isinstance(manifest.event, VectorEvent):
        return (TensorMetadata("vectors", "FP32", (BATCH, *manifest.event.shape)),)
    height, width, channels = manifest.event.shape
    images = TensorMetadata("images", "UINT8", (BATCH, height, width, channels))
    if not streams:
        return (images,)
    return (
        images,
        TensorMetadata("rows", "UINT8", (BATCH, width, channels)),
        TensorMetadata("image", "INT64", (1,)),
        TensorMetadata("first_row", "INT64", (1,)),
    )


def _described(tensor: TensorMetadata) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}


def _configured(tensor: TensorMetadata, skipped: int) -> dict[str, Any]:
    dims = list(tensor.shape[skipped:])
    return {"name": tensor.name, "data_type": f"TYPE_{tensor.datatype}", "dims": dims}
