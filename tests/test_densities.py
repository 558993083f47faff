"""Densities in the plane: known exactly, integrating to one, and drawn as they are declared."""

import asyncio
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from prometheus_client import CollectorRegistry
from scipy.stats import chi2

from export import export_artifact
from model_zoo.data import index_hash, load_splits
from model_zoo.densities import COUNTS, DENSITIES, on_checkerboard
from model_zoo.family import Batch
from model_zoo.flows.vector_ffjord import VectorFFJORD
from model_zoo.sheets import CELL_PIXELS, CELLS, histogram, write_sample_sheet
from service.core.requests import SampleRequest
from service.metrics import Metrics
from service.server import build_engine
from service.settings import Settings
from tests.test_flows import shake

# The data


def test_the_checkerboard_is_uniform_on_every_other_square() -> None:
    vectors = DENSITIES["checkerboard"].vectors("train")
    assert vectors.dtype == np.float32 and vectors.shape == (COUNTS["train"], 2)
    # Cells of side 1/2: 128 of them are full, with the same share each.
    column, row = np.floor(2 * (vectors.astype(np.float64) + 4)).astype(int).T
    counts = np.zeros((16, 16))
    np.add.at(counts, (column, row), 1)
    full = np.kron(np.indices((4, 4)).sum(axis=0) % 2 == 0, np.ones((4, 4))) == 1
    assert counts[~full].sum() == 0
    expected = len(vectors) / 128
    assert chi2.sf(((counts[full] - expected) ** 2 / expected).sum(), 127) > 1e-3
    assert DENSITIES["checkerboard"].entropy == pytest.approx(math.log(full.sum() / 4))


def test_the_ends_of_the_uniforms_stay_on_the_board() -> None:
    ends = on_checkerboard(np.array([[0.0, 0.0], [1 - 2**-53, 1 - 2**-53], [0.25, 0.5]]))
    assert np.abs(ends).max() <= 4
    assert ends[0].tolist() == [-4, -4] and ends[2].tolist() == [-2, 2]


def test_splits_are_those_of_any_data_set_and_never_change() -> None:
    splits = load_splits("checkerboard")
    assert {name: len(each) for name, each in splits.items()} == {
        "fit": 48_000,
        "select": 2_000,
        "score_fit": 5_000,
        "calibrate": 5_000,
        "test": 10_000,
    }
    assert index_hash(splits["test"].indices.numpy()) == index_hash(np.arange(10_000))
    batch = splits["test"].batch(slice(0, 2))
    np.testing.assert_allclose(batch.images, [[-0.088676, -0.7041], [2.89024, 2.264418]], atol=1e-6)
    seen = {tuple(vector) for vector in splits["fit"].images.tolist()}
    assert not any(tuple(vector) in seen for vector in splits["test"].images.tolist())


# The model


def plane_flow(seed: int = 0) -> VectorFFJORD:
    torch.manual_seed(seed)
    model = shake(VectorFFJORD(2, width=16, steps=8), seed, size=0.4)
    assert isinstance(model, VectorFFJORD)
    return model.eval()


@pytest.mark.parametrize("seed", range(2))
def test_the_density_of_its_graph_integrates_to_one(seed: int) -> None:
    model = plane_flow(seed)
    graph = {graph.name: graph for graph in model.graphs()}["log_likelihood"]
    axis = torch.linspace(-15, 15, 301)
    with torch.no_grad():
        density = graph.module(torch.cartesian_prod(axis, axis))[0].exp()
    assert density.sum().item() * 0.1**2 == pytest.approx(1, abs=0.01)


def test_what_it_measures_stands_beside_the_entropy() -> None:
    model, vectors = plane_flow(), torch.randn(50, 2)
    nats, halving = model.evaluate(Batch(vectors, torch.zeros(50)), torch.Generator())
    with torch.no_grad():
        assert nats.value == pytest.approx(-model.log_density(vectors).mean().item(), rel=1e-5)
    assert nats.published is not None
    assert (nats.published["dataset"], nats.published["value"]) == ("checkerboard", math.log(32))
    assert halving.name == "step_halving_error" and halving.value > 0


def test_the_loss_counts_what_the_solver_leaves_out() -> None:
    model, batch = plane_flow(), Batch(torch.randn(64, 2), torch.zeros(64))
    (objective,) = model.objectives().values()
    loss = objective.loss(batch, torch.Generator()).item()
    nats, halving = model.evaluate(batch, torch.Generator())
    assert loss == pytest.approx(nats.value + 0.2 * halving.value, rel=1e-5)


# The sampler

SIDES, EXTENT, FINE = 12, 4.0, 20
DRAWN = 40_000


def cell_masses(model: VectorFFJORD) -> np.ndarray:
    """The mass of each cell of a square, and last that of the rest, by sums over a fine grid."""
    step = 2 * EXTENT / (SIDES * FINE)
    axis = -EXTENT + step * (torch.arange(SIDES * FINE) + 0.5)
    with torch.no_grad():
        density = model.log_density(torch.cartesian_prod(axis, axis)).exp().double()
    inside = (density.reshape(SIDES, FINE, SIDES, FINE).sum(dim=(1, 3)) * step**2).flatten()
    return np.append(inside.numpy(), 1 - inside.sum().item())


def cell_counts(vectors: np.ndarray) -> np.ndarray:
    cells = np.floor((vectors + EXTENT) * SIDES / (2 * EXTENT)).astype(int)
    outside = np.any((cells < 0) | (cells >= SIDES), axis=1)
    index = np.where(outside, SIDES**2, cells[:, 0] * SIDES + cells[:, 1])
    return np.bincount(index, minlength=SIDES**2 + 1)


def p_value(counts: np.ndarray, masses: np.ndarray) -> float:
    """Pearson's; cells that expect fewer than ten are taken together."""
    expected = masses * counts.sum()
    rare = expected < 10
    found = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    return float(chi2.sf(((found - expected) ** 2 / expected).sum(), len(found) - 1))


def draw(model: VectorFFJORD, folder: Path) -> np.ndarray:
    """Vectors as the service draws them."""
    export_artifact(
        folder,
        name="plane-flow",
        version="1",
        card=model.card(),
        graphs=model.graphs(),
        licence="Apache-2.0",
    )
    return asyncio.run(_sample(folder))


async def _sample(folder: Path) -> np.ndarray:
    chosen = Settings(
        model_repository=folder, default_models=("plane-flow",), workers=1, maximum_count=DRAWN
    )
    engine = build_engine(chosen, Metrics(CollectorRegistry()))
    await engine.load_default_models()
    result = (await engine.run("sample", SampleRequest(count=DRAWN, seed=1))).result
    await engine.drain()
    return result.vectors


def test_what_is_drawn_has_the_declared_density(tmp_path: Path) -> None:
    """And the test would see it where a fiftieth of the mass lies elsewhere."""
    model = plane_flow()
    counts, masses = cell_counts(draw(model, tmp_path)), cell_masses(model)
    assert p_value(counts, masses) > 1e-3
    perturbed = masses.copy()
    order = np.argsort(masses)
    low, high = order[: len(order) // 2], order[len(order) // 2 :]
    perturbed[high] *= 1 - 0.02 / masses[high].sum()
    perturbed[low] += 0.02 * masses[low] / masses[low].sum()
    assert np.abs(perturbed - masses).sum() / 2 == pytest.approx(0.02)
    assert p_value(counts, perturbed) < 1e-6


# The sheet


def test_a_histogram_has_its_second_axis_upwards_and_leaves_out_what_is_outside() -> None:
    corner = np.array([[0.99, 0.99]] * 5 + [[7.0, 0.0]])
    picture = histogram(corner, extent=1.0)
    assert picture.shape == (CELLS * CELL_PIXELS,) * 2 and picture.dtype == np.uint8
    assert picture[0, -1] == 255 and picture.sum() == 255 * CELL_PIXELS**2


def test_a_sample_sheet_of_vectors_is_a_histogram(tmp_path: Path) -> None:
    write_sample_sheet(plane_flow(), tmp_path / "sheets" / "001.png")
    with Image.open(tmp_path / "sheets" / "001.png") as sheet:
        grey = np.asarray(sheet.convert("L"), float)
    side = CELLS * CELL_PIXELS
    assert grey.shape == (side, side)
    quarter = side // 4
    assert grey[quarter:-quarter, quarter:-quarter].mean() > 2 * grey.mean(), "about the middle"
