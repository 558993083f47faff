"""The contract of a family: one training step, export, load, and every operation it declares.

Each family is here once, in a tiny configuration; a new one is a line in `TINY`.
"""

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from export import export_artifact
from model_zoo.family import Batch, Family
from service.core.manifest import read_manifest
from service.rpc.pb.generation_service_pb2_grpc import GenerationServiceStub
from service.settings import Settings
from tests.contract import check_operation

ROOT = Path(__file__).parent.parent
SIDE = 8

TINY: Mapping[str, dict[str, Any]] = {
    "autoregressive.fvbn.FullyVisibleBeliefNetwork": {},
    "autoregressive.gated_pixelcnn.GatedPixelCNN": {
        "classes": 3,
        "layers": 3,
        "channels": 4,
        "head_width": 8,
    },
    "autoregressive.made.MADE": {"hidden_units": 12},
    "autoregressive.nade.NADE": {"hidden_units": 12},
    "autoregressive.pixel_rnn.PixelRNN": {"layers": 2, "hidden": 3},
    "autoregressive.pixelcnn.PixelCNN": {"blocks": 2, "channels": 4},
    "autoregressive.pixelcnn_plus_plus.PixelCNNPlusPlus": {"blocks": 2, "channels": 4},
    "autoencoders.vae.VariationalAutoencoder": {
        "latent_size": 2,
        "width": 4,
        "residual_blocks": 1,
    },
    "autoencoders.ae.Autoencoder": {
        "latent_size": 2,
        "width": 4,
        "residual_blocks": 1,
        "components": 2,
    },
    "autoencoders.cvae.ConditionalVariationalAutoencoder": {
        "classes": 3,
        "latent_size": 2,
        "width": 4,
        "residual_blocks": 1,
    },
    "autoencoders.vq_vae.VectorQuantisedAutoencoder": {
        "classes": 3,
        "levels": 5,
        "code_size": 2,
        "width": 4,
        "prior_layers": 2,
        "prior_channels": 4,
    },
    "autoencoders.pixel_vae.PixelVAE": {
        "latent_size": 2,
        "width": 4,
        "features": 3,
        "channels": 4,
    },
    "autoencoders.vae_gan.AdversarialAutoencoder": {
        "latent_size": 2,
        "width": 4,
        "residual_blocks": 1,
    },
    "autoencoders.vq_vae_2.HierarchicalVectorQuantisedAutoencoder": {
        "classes": 3,
        "levels": 5,
        "code_size": 2,
        "width": 4,
        "prior_layers": 2,
        "prior_channels": 4,
    },
    "baselines.gaussian_mixture.GaussianMixture": {"components": 3},
    "baselines.k_means.KMeans": {"centres": 4},
    "baselines.kernel_density.KernelDensity": {"kernels": 8},
    "baselines.probabilistic_pca.ProbabilisticPCA": {"components": 3},
    "flows.ffjord.FFJORD": {"width": 8, "steps": 2},
    "flows.glow.Glow": {"widths": (4, 4), "steps": (2, 2)},
    "flows.nice.NICE": {"couplings": 2, "width": 16, "layers": 2},
    "flows.real_nvp.RealNVP": {"widths": (4, 4), "couplings": (3, 2)},
    "flows.vector_ffjord.VectorFFJORD": {"vector_size": 2, "width": 8, "steps": 2},
    "energy.rbm.RestrictedBoltzmannMachine": {"hidden_units": 6, "annealing_steps": 100},
    "energy.deep_boltzmann_machine.DeepBoltzmannMachine": {
        "hidden_units": (6, 5),
        "annealing_steps": 100,
    },
    "energy.gsn.GenerativeStochasticNetwork": {"hidden_units": (6, 5)},
    "gans.began.BEGAN": {"latent_size": 4, "width": 4},
    "gans.cgan.ConditionalGAN": {"classes": 3, "latent_size": 4, "width": 4},
    "gans.dcgan.DCGAN": {"classes": 3, "latent_size": 4, "width": 4},
    "gans.gan.GAN": {"latent_size": 4, "width": 4},
    "gans.lsgan.LSGAN": {"latent_size": 4, "width": 4},
    "gans.wgan.WGAN": {"latent_size": 4, "width": 4, "critic_steps": 2},
    "gans.wgan_gp.WGANGP": {"latent_size": 4, "width": 4, "critic_steps": 2},
}


def build(name: str) -> Family:
    module, _, kind = name.rpartition(".")
    torch.manual_seed(0)
    family = getattr(importlib.import_module(f"model_zoo.{module}"), kind)
    shape = {} if "vector_size" in TINY[name] else {"image_shape": (1, SIDE, SIDE)}
    return family(**shape, **TINY[name])


def batch_for(family: Family, count: int) -> Batch:
    """Return random images, or vectors for a family of these."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, SIDE, SIDE), generator=generator).float()
    if family.card().event["kind"] == "vector":
        images = torch.randn(count, *family.card().event["shape"], generator=generator)
    return Batch(images, torch.arange(count) % 3)


def artifact_name(name: str) -> str:
    return "tiny-" + name.split(".")[1].replace("_", "-")


def take_a_step(family: Family) -> dict[str, float]:
    """Descend every objective once on random digits and conclude, as the training loop does."""
    generator, batch = torch.Generator().manual_seed(0), batch_for(family, 16)
    losses = {}
    for objective_name, objective in family.train().objectives().items():
        parameters = list(objective.parameters)
        optimiser = torch.optim.Adam(parameters, lr=1e-2)
        loss = objective.loss(batch, generator)
        loss.backward()
        optimiser.step()
        family.zero_grad()
        losses[objective_name] = loss.item()
    family.eval().conclude(batch, generator)
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
    return Settings(model_repository=repository, default_models=(), workers=2)


def test_every_family_is_here() -> None:
    paths = (ROOT / "model_zoo").glob("*/[!_]*.py")
    modules = [f"{path.parent.name}.{path.stem}" for path in paths]
    defined = {
        f"{module}.{name}"
        for module in modules
        for name, value in vars(importlib.import_module(f"model_zoo.{module}")).items()
        if isinstance(value, type) and issubclass(value, Family)
        if value.__module__ == f"model_zoo.{module}" and not inspect.isabstract(value)
        if not value.__subclasses__()  # what families share is none
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
    figures = family.evaluate(batch_for(family, 12), torch.Generator())
    assert figures
    for figure in figures:
        assert np.isfinite(figure.value)
        assert figure.unit and figure.protocol


CASES = [(name, operation) for name in TINY for operation in build(name).card().operations]


@pytest.mark.parametrize(("name", "operation"), CASES)
async def test_every_operation_that_a_family_declares_is_served_alike_by_both_transports(
    repository: Path,
    name: str,
    operation: str,
    client: httpx.AsyncClient,
    stub: GenerationServiceStub,
) -> None:
    manifest = read_manifest(repository / artifact_name(name) / "1")
    await check_operation(manifest, operation, client, stub)
