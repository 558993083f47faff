"""The contract of a family: one training step, export, load, and every operation it declares.

Each family is here once, in a tiny configuration; a new one is a line in `TINY`.
"""

import ast
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from export import export_artifact
from model_zoo.family import Batch, Family
from service.rpc.pb.generation_service_pb2_grpc import GenerationServiceStub
from service.settings import Settings
from tests.both_transports import ask_grpc, ask_rest

ROOT = Path(__file__).parent.parent
SIDE = 8

TINY: Mapping[str, dict[str, Any]] = {
    "autoregressive.gated_pixelcnn.GatedPixelCNN": {
        "classes": 3,
        "layers": 3,
        "channels": 4,
        "head_width": 8,
    },
    "autoregressive.pixelcnn.PixelCNN": {"blocks": 2, "channels": 4},
    "autoregressive.pixelcnn_plus_plus.PixelCNNPlusPlus": {"blocks": 2, "channels": 4},
    "autoencoders.vae.VariationalAutoencoder": {
        "latent_size": 2,
        "width": 4,
        "residual_blocks": 1,
    },
    "flows.real_nvp.RealNVP": {"widths": (4, 4), "couplings": (3, 2)},
    "gans.dcgan.DCGAN": {"classes": 3, "latent_size": 4, "width": 4},
}


def build(name: str) -> Family:
    module, _, kind = name.rpartition(".")
    torch.manual_seed(0)
    family = getattr(importlib.import_module(f"model_zoo.{module}"), kind)
    return family(image_shape=(1, SIDE, SIDE), **TINY[name])


def artifact_name(name: str) -> str:
    return "tiny-" + name.split(".")[1].replace("_", "-")


def take_a_step(family: Family) -> dict[str, float]:
    """Descend every objective once on random digits, as the training loop does."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (16, 1, SIDE, SIDE), generator=generator).float()
    batch = Batch(images, torch.arange(16) % 3)
    losses = {}
    for objective_name, objective in family.train().objectives().items():
        parameters = list(objective.parameters)
        optimiser = torch.optim.Adam(parameters, lr=1e-2)
        loss = objective.loss(batch, generator)
        loss.backward()
        optimiser.step()
        family.zero_grad()
        losses[objective_name] = loss.item()
    return losses


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with every family, one training step old."""
    folder = tmp_path_factory.mktemp("families")
    for name in TINY:
        family = build(name)
        take_a_step(family)
        export_artifact(
            folder,
            name=artifact_name(name),
            version="1",
            card=family.card(),
            graphs=family.graphs(),
            licence="Apache-2.0",
        )
    return folder


@pytest.fixture
def settings(repository: Path) -> Settings:
    names = tuple(artifact_name(name) for name in TINY)
    return Settings(model_repository=repository, default_models=names, workers=2)


def test_every_family_is_here() -> None:
    defined = {
        f"{path.parent.name}.{path.stem}.{node.name}"
        for path in (ROOT / "model_zoo").glob("*/*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        if any(isinstance(base, ast.Name) and base.id == "Family" for base in node.bases)
    }
    assert defined == set(TINY)


@pytest.mark.parametrize("name", TINY)
def test_training_steps_move_every_weight(name: str) -> None:
    family, moved = build(name), set()
    for _ in range(2):  # behind a layer that starts at zero, gradients arrive a step later
        before = {key: value.clone() for key, value in family.named_parameters()}
        assert all(np.isfinite(loss) for loss in take_a_step(family).values())
        moved |= {
            key for key, value in family.named_parameters() if not torch.equal(value, before[key])
        }
    assert moved == set(before)


@pytest.mark.parametrize("name", TINY)
def test_a_family_measures_itself(name: str) -> None:
    family = build(name).eval()
    images = torch.randint(0, 256, (12, 1, SIDE, SIDE)).float()
    figures = family.evaluate(Batch(images, torch.arange(12) % 3), torch.Generator())
    assert figures
    for figure in figures:
        assert np.isfinite(figure.value)
        assert figure.unit and figure.protocol


CASES = [(name, operation) for name in TINY for operation in build(name).card().operations]


@pytest.mark.parametrize(("name", "operation"), CASES)
async def test_every_operation_that_a_family_declares_is_served_alike_by_both_transports(
    name: str, operation: str, client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    request = {"model": artifact_name(name), **REQUESTS[operation]}
    if operation == "decode":
        request["latents"] = latents(build(name))
    rest, grpc = (
        await ask_rest(client, operation, request),
        await ask_grpc(stub, operation, request),
    )
    assert rest.dtype == grpc.dtype and np.array_equal(rest, grpc)
    assert len(rest) == 3
    assert np.all(np.isfinite(rest))
    if operation in ("sample", "decode", "reconstruct", "interpolate", "complete"):
        assert rest.shape == (3, SIDE, SIDE, 1) and rest.dtype == np.uint8


def latents(family: Family) -> list[list[float]]:
    size = family.card().latent["shape"][0]
    return np.random.default_rng(2).normal(size=(3, size)).round(3).tolist()


def pictures() -> list[Any]:
    """Three black and white images: the levels that every family takes."""
    bits = np.random.default_rng(1).integers(0, 2, (3, SIDE, SIDE, 1))
    return (255 * bits).tolist()


REQUESTS: Mapping[str, dict[str, Any]] = {
    "sample": {"count": 3, "seed": 5},
    "encode": {"images": pictures()},
    "decode": {"seed": 5},
    "reconstruct": {"images": pictures(), "seed": 5},
    "likelihood": {"images": pictures()},
    "interpolate": {"start": {"seed": 1}, "end": {"seed": 2}, "steps": 3, "seed": 5},
    "complete": {"image": pictures()[0], "prefix_rows": 4, "count": 3, "seed": 5},
    "classify": {"images": pictures()},
}
