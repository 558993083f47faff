"""Sample sheets: what a model's decode graph or its chain paints from fixed noise, as one PNG.

Vectors of two coordinates are counted in the cells of a square instead: a sheet is the density.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import one_hot

from model_zoo.family import Card, Family, Graph, Port

ROWS = 10
VECTORS = 20_000  # of a histogram: enough in a cell to tell densities apart
CELLS = 50  # along each side of it
CELL_PIXELS = 2  # along each side of a cell
SHEET_SEED = 0
CHAIN_CALLS = 20  # of a transition: enough to tell digits from noise


@torch.no_grad()
def write_sample_sheet(model: Family, path: Path) -> None:
    """Write ROWS x ROWS samples from the prior, one class a column where there are classes.

    Those of a chain are what it has come to; vectors are a histogram. Does nothing for a model with
    neither a chain nor a decode graph. Leaves the model in eval mode.
    """
    graphs = {graph.name: graph for graph in model.graphs()}
    generator = torch.Generator().manual_seed(SHEET_SEED)
    device = next(model.parameters()).device
    card = model.card()
    if card.preprocess is None:
        latent = torch.randn(VECTORS, *graphs["decode"].inputs[0].shape, generator=generator)
        given = {"latent": latent.to(device)}
        vectors = _run(graphs["decode"], given, card, generator, device)["data"]
        _save(histogram(vectors.cpu().numpy(), extent=vectors.abs().quantile(0.999).item()), path)
        return
    if "transition" in graphs:
        levels = _end_of_chains(graphs, generator, device)
    elif "decode" in graphs:
        drawn: dict[str, Tensor] = {}  # what the prior gives, by role
        if "prior" in graphs:
            drawn = _run(graphs["prior"], drawn, card, generator, device)
        levels = to_levels(_run(graphs["decode"], drawn, card, generator, device)["data"], card)
    else:
        return
    _save(_grid(levels).cpu().numpy(), path)


def histogram(vectors: np.ndarray, extent: float) -> np.ndarray:
    """Count vectors [N, 2] in the cells of a square about 0, `extent` from it to each side.

    Returns grey values, uint8, CELL_PIXELS for each side of a cell, the second coordinate upwards.
    White is a cell as full as the fullest hundredth; what lies outside the square is left out.
    """
    sides = np.linspace(-extent, extent, CELLS + 1)
    counts, _, _ = np.histogram2d(vectors[:, 0], vectors[:, 1], bins=[sides, sides])
    full = max(np.quantile(counts, 0.99), 1)
    grey = np.rint(255 * np.minimum(counts / full, 1)).astype(np.uint8)
    return np.kron(grey.T[::-1], np.ones((CELL_PIXELS, CELL_PIXELS), np.uint8))


def _save(picture: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def _end_of_chains(
    graphs: Mapping[str, Graph], generator: torch.Generator, device: torch.device
) -> Tensor:
    """Return the binary pictures of chains at temperature 1, levels [N, 1, H, W]."""
    start, transition = graphs["start"], graphs["transition"]
    fixed = {
        "steps": lambda port: torch.full((ROWS * ROWS,), _noise_of(transition).shape[0]),
        "forced": lambda port: torch.full((ROWS * ROWS, *port.shape), -1),
        "control": lambda port: torch.ones(ROWS * ROWS, *port.shape),
        "noise": lambda port: torch.rand(ROWS * ROWS, *port.shape, generator=generator),
    }
    state = start.module(fixed["noise"](_noise_of(start)).to(device))
    for _ in range(CHAIN_CALLS):
        inputs = [
            state if port.role == "cache" else fixed[port.role](port).to(device)
            for port in transition.inputs
        ]
        state, levels = transition.module(*inputs)
    return (255 * levels).unsqueeze(1).to(torch.uint8)


def _noise_of(graph: Graph) -> Port:
    return next(port for port in graph.inputs if port.role == "noise")


def to_levels(values: Tensor, card: Card) -> Tensor:
    """Undo the card's preprocessing: graph values [N, C, H, W] to the nearest uint8 level."""
    low, high = card.preprocess["range"]
    mean, deviation = (
        torch.tensor(card.preprocess[key], device=values.device).reshape(-1, 1, 1)
        for key in ("mean", "deviation")
    )
    unit = (values * deviation + mean - low) / (high - low)
    return (unit * 255).round().clamp(0, 255).to(torch.uint8)


def _run(
    graph: Graph,
    drawn: dict[str, Tensor],
    card: Card,
    generator: torch.Generator,
    device: torch.device,
) -> dict[str, Tensor]:
    """Return the outputs of a graph by role; what was not drawn before is drawn now."""
    inputs = [
        drawn[port.role] if port.role in drawn else _fixed_input(port, card, generator).to(device)
        for port in graph.inputs
    ]
    outputs = graph.module(*inputs)
    every = (outputs,) if isinstance(outputs, Tensor) else outputs
    return {port.role: output for port, output in zip(graph.outputs, every, strict=True)}


def _fixed_input(port: Port, card: Card, generator: torch.Generator) -> Tensor:
    count = ROWS * ROWS
    if port.role == "condition":
        return one_hot(torch.arange(count) % ROWS % port.shape[0], port.shape[0]).float()
    if port.role == "control":
        return torch.full((count, *port.shape), float(card.controls[port.name]["default"]))
    if port.distribution == "uniform":
        return torch.rand(count, *port.shape, generator=generator)
    return torch.randn(count, *port.shape, generator=generator)


def _grid(images: Tensor) -> Tensor:
    """Lay [N, C, H, W] out as one picture [ROWS * H, ROWS * W], with a last axis for colour."""
    count, channels, height, width = images.shape
    rows = images.reshape(ROWS, count // ROWS, channels, height, width)
    picture = rows.permute(0, 3, 1, 4, 2).reshape(ROWS * height, -1, channels)
    return picture.squeeze(2) if channels == 1 else picture
