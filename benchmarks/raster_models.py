"""The raster models that are measured: the bundled one, and a larger one of random weights."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.exports import ARTIFACTS, ROOT, export_folder
from service.core.artifact import load_artifact
from service.core.batcher import LoadedGraph
from service.core.manifest import Manifest
from service.core.painting.lanes import Canvas
from service.runtime.onnx_session import OnnxSession
from service.runtime.session import Session

BUNDLED = "mnist-pixelcnn"
LARGE = "random-pixelcnn"

_SOURCES = ("export", "model_zoo/autoregressive", f"artifacts/{BUNDLED}/1")
_open_session = partial(OnnxSession, provider="cpu")


@dataclass(frozen=True, eq=False)
class RasterModel:
    """A model as it is served, and its full forward pass, run as the server runs graphs."""

    description: str
    manifest: Manifest
    graphs: dict[str, LoadedGraph]
    forward: Session  # data [N, 1, H, W] and class_weights to logits [N, levels, H, W]

    def draw_canvas(self, images: int, seed: int, filtered: bool = False) -> Canvas:
        """Return a canvas of free pixels without a class; nothing of it changes the work."""
        height, width, _ = self.manifest.event.shape
        generator = np.random.default_rng(seed)
        assert self.manifest.condition is not None, "both models have classes"
        controls = {"temperature": np.ones(images)}
        if filtered:
            controls |= {"top_k": np.full(images, 50), "top_p": np.full(images, 0.9)}
        return Canvas(
            uniforms=generator.random((images, height, width), np.float32),
            forced=np.full((images, height, width), -1),
            class_weights=np.zeros((images, len(self.manifest.condition.names)), np.float32),
            controls=controls,
        )


def open_bundled() -> RasterModel:
    """Open mnist-pixelcnn; its forward pass is exported from the bundled weights."""
    forward = _exports() / f"{BUNDLED}.onnx"
    if not forward.exists():
        from model_zoo.recipe import load_trained

        _export_forward(load_trained(BUNDLED), forward)
    description = f"`{BUNDLED}`: 7 layers, 32 channels, head 64, 256 levels, trained"
    return _open(description, ARTIFACTS / BUNDLED / "1", forward)


def open_large() -> RasterModel:
    """Open a model of 10 layers and 64 channels; it is made and exported where it is missing."""
    forward = _exports() / f"{LARGE}.onnx"
    if not forward.exists():
        model = _make_large()
        _export_artifact(model)
        _export_forward(model, forward)
    description = f"`{LARGE}`: 10 layers, 64 channels, head 128, 256 levels, random weights"
    return _open(description, _exports() / LARGE / "1", forward)


def _open(description: str, folder: Path, forward: Path) -> RasterModel:
    manifest, graphs = load_artifact(folder, _open_session)
    session = _open_session(forward, ["data", "class_weights"], ["logits"])
    return RasterModel(description, manifest, graphs, session)


def _exports() -> Path:
    return export_folder([Path(__file__), *(ROOT / source for source in _SOURCES)])


# Torch is imported where something is to be exported, and there only: it takes seconds.


def _make_large():
    import torch

    from model_zoo.autoregressive.gated_pixelcnn import GatedPixelCNN

    torch.manual_seed(1)
    return GatedPixelCNN(layers=10, channels=64, head_width=128).eval()


def _export_artifact(model) -> None:
    from export import export_artifact

    export_artifact(
        _exports(),
        name=LARGE,
        version="1",
        card=model.card(),
        graphs=model.graphs(),
        licence="Apache-2.0",
    )


def _export_forward(model, path: Path) -> None:
    """Export the logits alone: the least that a sampler without caches must compute."""
    import onnx_ir
    import torch

    from export.graphs import make_model
    from model_zoo.family import Graph, Port

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, data, class_weights):
            logits = self.model.logits(data.squeeze(1).round().long(), class_weights)
            return logits.permute(0, 3, 1, 2)  # as the last convolution left them: copies nothing

    height, width = model.image_shape[1:]
    data = Port("data", "data", model.image_shape)
    condition = Port("class_weights", "condition", (model.classes,))
    logits = Port("logits", "logits", (model.levels, height, width))
    examples = {port.name: np.zeros((2, *port.shape), np.float32) for port in (data, condition)}
    graph = Graph("logits", Logits().eval(), (data, condition), (logits,))
    onnx_ir.save(make_model(graph, examples), path)
