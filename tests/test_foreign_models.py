"""Models that no file of the project knows: a module of one's own, and an existing ONNX generator.

Both are exported by the public function and served over both transports as they are.
"""

from pathlib import Path

import httpx
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from export import Card, Graph, Port, export_artifact
from service.rpc.pb.generation_service_pb2_grpc import GenerationServiceStub
from service.settings import Settings
from tests.both_transports import ask_grpc, ask_rest

LATENT, HEIGHT, WIDTH = 3, 5, 6


class ColourBlobs(nn.Module):
    """A module of one's own: a latent is the place and the size of a coloured blob."""

    def __init__(self) -> None:
        super().__init__()
        rows, columns = torch.meshgrid(
            torch.linspace(-1, 1, HEIGHT), torch.linspace(-1, 1, WIDTH), indexing="ij"
        )
        self.register_buffer("grid", torch.stack([rows, columns])[None])
        self.register_buffer("colours", torch.tensor([1.0, 2.0, 4.0]).reshape(1, 3, 1, 1))

    def forward(self, latent: Tensor) -> Tensor:
        """[N, 3] -> [N, 3, H, W] in [0, 1]."""
        offset = self.grid - latent[:, :2, None, None]
        distance = offset.square().sum(1, keepdim=True)  # [N, 1, H, W]
        return torch.exp(-self.colours * distance * torch.exp(latent[:, 2, None, None, None]))


def write_onnx_generator(path: Path) -> None:
    """An existing generator as others ship it: old opset, names of its own, a batch of one."""
    weights = np.random.default_rng(0).normal(size=(LATENT, 3 * HEIGHT * WIDTH)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["z_in", "W"], ["flat"]),
            helper.make_node("Sigmoid", ["flat"], ["intensity"]),
            helper.make_node("Reshape", ["intensity", "shape"], ["picture"]),
        ],
        "generator",
        [helper.make_tensor_value_info("z_in", TensorProto.FLOAT, [1, LATENT])],
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, [1, 3, HEIGHT, WIDTH])],
        [
            numpy_helper.from_array(weights, "W"),
            numpy_helper.from_array(np.array([1, 3, HEIGHT, WIDTH], np.int64), "shape"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)


def card() -> Card:
    """Colour images of 5 x 6 from three numbers."""
    return Card(
        family="blobs",
        event={
            "kind": "image",
            "shape": [HEIGHT, WIDTH, 3],
            "levels": 256,
            "base_measure": "counting",
        },
        preprocess={
            "range": [0.0, 1.0],
            "mean": [0.0],
            "deviation": [1.0],
            "layout": "NCHW",
            "padding": [0, 0, 0, 0],
            "binarisation": None,
            "dequantisation": None,
        },
        latent={"shape": [LATENT], "prior": "standard_normal"},
        operations={"sample": {}, "decode": {}, "interpolate": {}},
    )


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("foreign")
    existing = folder / "existing.onnx"
    write_onnx_generator(existing)
    for name, source in (("our-module", ColourBlobs()), ("their-generator", existing)):
        graph = Graph(
            "decode",
            source,
            (Port("latent", "latent", (LATENT,)),),
            (Port("data", "data", (3, HEIGHT, WIDTH)),),
        )
        export_artifact(
            folder / "models", name=name, version="1", card=card(), graphs=[graph], licence="MIT"
        )
    return folder


@pytest.fixture
def settings(repository: Path) -> Settings:
    names = ("our-module", "their-generator")
    return Settings(model_repository=repository / "models", default_models=names)


@pytest.mark.parametrize("model", ["our-module", "their-generator"])
async def test_a_foreign_model_is_served_over_both_transports(
    model: str, client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    request = {"model": model, "count": 4, "seed": 9}
    rest, grpc = await ask_rest(client, "sample", request), await ask_grpc(stub, "sample", request)
    assert rest.shape == (4, HEIGHT, WIDTH, 3)
    assert np.array_equal(rest, grpc)
    assert len(np.unique(rest.reshape(4, -1), axis=0)) == 4


async def test_a_module_decodes_as_it_does_in_torch(client: httpx.AsyncClient) -> None:
    latents = np.random.default_rng(3).normal(size=(4, LATENT)).astype(np.float32)
    request = {"model": "our-module", "latents": latents.tolist()}
    served = await ask_rest(client, "decode", request)
    expected = ColourBlobs()(torch.from_numpy(latents)).permute(0, 2, 3, 1).numpy()
    assert np.abs(served - 255 * expected).max() <= 0.501


async def test_an_onnx_generator_decodes_as_the_original(
    client: httpx.AsyncClient, repository: Path
) -> None:
    latents = np.random.default_rng(3).normal(size=(4, LATENT)).astype(np.float32)
    request = {"model": "their-generator", "latents": latents.tolist()}
    served = await ask_rest(client, "decode", request)
    original = onnxruntime.InferenceSession(
        repository / "existing.onnx", providers=["CPUExecutionProvider"]
    )
    for row, latent in zip(served, latents, strict=True):
        expected = original.run(None, {"z_in": latent[None]})[0][0].transpose(1, 2, 0)
        assert np.abs(row - 255 * expected).max() <= 0.501
