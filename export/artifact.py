"""The one way to make an artifact: check everything in a draft folder, then move it into place."""

import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from export.errors import ExportError
from export.graphs import make_model, run_original
from export.parity import ABSOLUTE, RELATIVE, check
from export.vectors import Arrays, draw_inputs, stored
from export.weights import hash_weights, save_models
from model_zoo.family import Card, Figure, Graph, Port

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
VECTORS_FILE = "vectors.npz"

EXPORTERS = ("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime")
"""The packages whose versions decide what the graphs look like."""

DECODERS = ("decode", "features")
"""The graphs that take a latent, of which a model that has one has at least one."""

logger = logging.getLogger(__name__)


def export_artifact(
    repository: Path,
    *,
    name: str,
    version: str,
    card: Card,
    graphs: Sequence[Graph],
    licence: str,
    state: Mapping[str, Tensor] | None = None,
    quality: Sequence[Figure] = (),
    splits: Mapping[str, Mapping[str, Any]] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Export a model and return its folder, `<repository>/<name>/<version>`.

    Every graph is run under ONNX Runtime at batch 1, 2 and 5 and must match its module (which is
    switched to eval mode) or ONNX file. Only then does the folder appear, in place of a previous
    one of the same version. The same weights give the same `artifact_digest`. The `state` of the
    model, as torch names it, is kept by its names in the weights file, where graphs share it.

    Raises ExportError, and writes nothing, where a graph is not pure, has other ports than stated,
    can't be exported, or differs.
    """
    logger.info("%s, version %s", name, version)
    _refuse_bad_names(name, version, graphs)
    _refuse_bad_ports(card, graphs)
    repository.mkdir(parents=True, exist_ok=True)
    # Hidden, and a level too shallow to be taken for an artifact.
    with tempfile.TemporaryDirectory(prefix=".export-", dir=repository) as scratch, _one_thread():
        draft = Path(scratch) / "draft"
        draft.mkdir()  # not the scratch folder itself, which only its owner may read
        models = _export_graphs(card, graphs, state or {}, draft)
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "name": name,
            "version": version,
            **_describe_model(name, card, models),
            "licence": licence,
            "graphs": {graph.name: _describe_graph(graph) for graph in graphs},
            "test_vectors": {"file": VECTORS_FILE, "absolute": ABSOLUTE, "relative": RELATIVE},
            "files": {path.name: _hash_file(path) for path in sorted(draft.iterdir())},
            "quality": [asdict(figure) for figure in quality],
            "splits": dict(splits or {}),
            "provenance": {**(provenance or {}), "exporter": _exporter_versions()},
        }
        _write_manifest(manifest, draft)
        logger.info("  %-25s %.1f MB, all checks passed", "artifact", _megabytes(draft))
        return _move(draft, repository / name / version, Path(scratch) / "previous")


def _export_graphs(
    card: Card, graphs: Sequence[Graph], state: Mapping[str, Tensor], draft: Path
) -> dict[str, ir.Model]:
    """Write graphs, weights and test vectors; raise ExportError where a graph is wrong."""
    inputs = {graph.name: draw_inputs(graph, card) for graph in graphs}
    expected = {graph.name: run_original(graph, inputs[graph.name]) for graph in graphs}
    models = {graph.name: make_model(graph, inputs[graph.name]) for graph in graphs}
    save_models(models, {key: tensor.numpy() for key, tensor in state.items()}, draft)
    for graph in graphs:
        path = draft / f"{graph.name}.onnx"
        agreement = check(graph, path, inputs[graph.name], partial(run_original, graph))
        logger.info("  %-25s %s", graph.name, agreement)
    _write_vectors(graphs, inputs, expected, draft)
    return models


def _refuse_bad_names(name: str, version: str, graphs: Sequence[Graph]) -> None:
    """Names become folders and files, and are how clients ask for a model."""
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ExportError(f"name '{name}': must be lower-case words joined by '-'")
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)*", version):
        raise ExportError(f"version '{version}': must be numbers joined by '.'")
    for graph in graphs:
        if not re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", graph.name):
            raise ExportError(f"graph '{graph.name}': must be lower-case words joined by '_'")


def _refuse_bad_ports(card: Card, graphs: Sequence[Graph]) -> None:
    for graph in graphs:
        names = [port.name for port in (*graph.inputs, *graph.outputs)]
        if not graph.inputs or not graph.outputs:
            raise ExportError(f"graph '{graph.name}': a batch needs an input and an output")
        if repeated := {name for name in names if names.count(name) > 1}:
            raise ExportError(f"graph '{graph.name}': two ports share a name: {sorted(repeated)}")
    decoded = "latent" if card.latent is not None else "codes" if card.codes is not None else None
    if decoded and not {graph.name for graph in graphs} & set(DECODERS):
        raise ExportError(
            f"the card has a {decoded}, but no graph is called {' or '.join(map(repr, DECODERS))}"
        )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sum in the same order each time, so that test vectors come out the same."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _describe_model(name: str, card: Card, models: Mapping[str, ir.Model]) -> dict[str, Any]:
    """Return what the card says, and the latent space: latents of others are never decoded."""
    content = asdict(card)
    for part in ("latent", "codes"):
        if content[part] is not None:
            decoder = next(models[graph] for graph in DECODERS if graph in models)
            space = f"{name}/{hash_weights(decoder)[:12]}"
            content[part] = {"space": space, **content[part]}
    if card.codes is None:
        del content["codes"]  # as manifests without it always were
    return content


def _describe_graph(graph: Graph) -> dict[str, Any]:
    return {
        "file": f"{graph.name}.onnx",
        "inputs": [_describe_port(port) for port in graph.inputs],
        "outputs": [_describe_port(port) for port in graph.outputs],
    }


def _describe_port(port: Port) -> dict[str, Any]:
    content = {**asdict(port), "shape": port.shape_of()}
    del content["batch_axis"]  # the shape says it
    return content


def _exporter_versions() -> dict[str, str]:
    return {package: installed_version(package) for package in EXPORTERS}


def _write_vectors(
    graphs: Sequence[Graph],
    inputs: Mapping[str, Arrays],
    outputs: Mapping[str, Arrays],
    draft: Path,
) -> None:
    arrays = {
        f"{graph.name}/{side}/{port}": values
        for side, every in (("inputs", inputs), ("outputs", outputs))
        for graph in graphs
        for port, values in stored(graph, every[graph.name]).items()
    }
    np.savez_compressed(draft / VECTORS_FILE, allow_pickle=False, **arrays)


def _write_manifest(manifest: dict[str, Any], draft: Path) -> None:
    # Through JSON, so that the digest is of what a reader sees.
    content = json.loads(json.dumps(manifest, allow_nan=False))
    content["artifact_digest"] = artifact_digest(content)
    text = json.dumps(content, indent=2, ensure_ascii=False)
    (draft / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")


def artifact_digest(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a manifest without its `artifact_digest`, as compact sorted JSON."""
    content = {key: value for key, value in manifest.items() if key != "artifact_digest"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e6


def _move(draft: Path, place: Path, aside: Path) -> Path:
    """Put the draft in its place by renaming, so that no reader sees half of it."""
    place.parent.mkdir(exist_ok=True)
    if place.exists():
        place.rename(aside)
    try:
        draft.rename(place)
    except OSError:
        if aside.exists():
            aside.rename(place)
        raise
    return place
