"""Sample sheets: what a model's decode graph or its chain paints from fixed noise, as one PNG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import one_hot

from model_zoo.family import Card, Family, Graph, Port

ROWS = 10
SHEET_SEED = 0
CHAIN_CALLS = 20  # of a transition: enough to tell digits from noise


@torch.no_grad()
def write_sample_sheet(model: Family, path: Path) -> None:
    """Write ROWS x ROWS samples from the prior, one class a column where there are classes.

    Those of a chain are what it has come to. Does nothing for a model with neither a chain nor a
    decode graph. Leaves the model in eval mode.
    """
    graphs = {graph.name: graph for graph in model.graphs()}
    generator = torch.Generator().manual_seed(SHEET_SEED)
    device = next(model.parameters()).device
    card = model.card()
    if "transition" in graphs:
        levels = _end_of_chains(graphs, generator, device)
    elif "decode" in graphs:
        drawn: dict[str, Tensor] = {}  # what the prior gives, by role
        if "prior" in graphs:
            drawn = _run(graphs["prior"], drawn, card, generator, device)
        levels = to_levels(_run(graphs["decode"], drawn, card, generator, device)["data"], card)
    else:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(_grid(levels).cpu().numpy()).save(path)


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
