"""Loading an artifact: it proves itself by its hashes and test vectors, or it does not load."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.core.batcher import LoadedGraph
from service.core.manifest import MANIFEST_FILE, Manifest, read_manifest
from service.core.manifest_parts import Graph
from service.core.scoring.calibration import Calibration, list_calibrations, read_calibration
from service.errors import ArtifactError
from service.runtime.session import OpenSession

Arrays = dict[str, NDArray[Any]]

CALIBRATIONS = "calibrations"
"""The folder of a model's calibrations, beside those of its versions."""


def load_calibrations(
    folder: Path, artifact_digest: str
) -> tuple[list[Calibration], dict[str, str]]:
    """Return the calibrations beside an artifact, and why others are refused, by file name."""
    held, refused = [], {}
    for path in sorted(list_calibrations(folder.parent / CALIBRATIONS)):
        try:
            held.append(read_calibration(path, artifact_digest))
        except ArtifactError as error:
            refused[path.name] = str(error)
    return held, refused


def load_artifact(
    folder: Path, open_session: OpenSession
) -> tuple[Manifest, dict[str, LoadedGraph]]:
    """Load an artifact that proves itself: manifest, hashes, ports and test vectors.

    Raises ArtifactError that names what is wrong.
    """
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    graphs = {}
    for name, graph in manifest.graphs.items():
        inputs = [port.name for port in graph.inputs]
        outputs = [port.name for port in graph.outputs]
        session = open_session(folder / graph.file, inputs, outputs)
        graphs[name] = LoadedGraph(manifest.name, manifest.version, name, session)
    _check_test_vectors(folder, manifest, graphs.values())
    return manifest, graphs


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Check the hash of every file of the artifact, and that there is no other.

    Raises ArtifactError that names the file.
    """
    there = {path.name for path in folder.iterdir() if path.is_file()} - {MANIFEST_FILE}
    if unknown := there - manifest.files.keys():
        raise ArtifactError(f"{sorted(unknown)} are in no hash of the manifest; remove them")
    for name, expected in manifest.files.items():
        try:
            with (folder / name).open("rb") as file:
                actual = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ArtifactError(f"{name} can't be read: {error.strerror}") from error
        if actual != expected:
            raise ArtifactError(f"{name} is altered: it hashes to {actual}, not {expected}")


def read_test_vectors(folder: Path, manifest: Manifest) -> dict[str, tuple[Arrays, Arrays]]:
    """Return the (inputs, expected outputs) of each graph. Raises ArtifactError if incomplete."""
    name = manifest.test_vectors.file
    try:
        # Opened here: numpy leaves a file open that turns out to be broken.
        with (folder / name).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            vectors = {
                graph_name: (
                    {
                        port.name: archive[f"{graph_name}/inputs/{port.name}"]
                        for port in graph.inputs
                    },
                    {
                        port.name: archive[f"{graph_name}/outputs/{port.name}"]
                        for port in graph.outputs
                    },
                )
                for graph_name, graph in manifest.graphs.items()
            }
    except Exception as error:  # numpy and zipfile raise whatever a broken archive provokes
        raise ArtifactError(f"{name}: test vectors are incomplete: {error}") from error
    if not all(
        array.size for parts in vectors.values() for part in parts for array in part.values()
    ):
        raise ArtifactError(f"{name}: test vectors without rows prove nothing")
    return vectors


def _check_test_vectors(folder: Path, manifest: Manifest, graphs: Iterable[LoadedGraph]) -> None:
    """Run every graph on its test vectors, which also warms it."""
    vectors, tolerance = read_test_vectors(folder, manifest), manifest.test_vectors
    for graph in graphs:
        inputs, expected = vectors[graph.name]
        try:
            # The body of a loop has its memory planned for the number of rows that it sees first:
            # let that be one, where it gains most (a sixth of the time of a row step).
            graph.session.run(_first_row(manifest.graphs[graph.name], inputs))
            actual = graph.session.run(inputs)
        except Exception as error:  # whatever a runtime raises
            raise ArtifactError(f"graph {graph.name} does not run: {error}") from error
        for name, values in expected.items():
            bound = tolerance.absolute + tolerance.relative * np.abs(values)
            # Written so that NaN is a difference too.
            if actual[name].shape != values.shape or not np.all(
                np.abs(actual[name] - values) <= bound
            ):
                raise ArtifactError(
                    f"graph {graph.name} contradicts its test vectors at output {name}"
                )


def _first_row(graph: Graph, inputs: Arrays) -> Arrays:
    return {port.name: inputs[port.name].take([0], axis=port.batch_axis) for port in graph.inputs}
