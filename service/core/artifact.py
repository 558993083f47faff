"""Loading an artifact: it proves itself by its hashes and test vectors, or it does not load."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from service.core.batcher import LoadedGraph
from service.core.manifest import (
    Arrays,
    Graph,
    Manifest,
    read_manifest,
    read_test_vectors,
    verify_files,
)
from service.core.scoring.calibration import Calibration, list_calibrations, read_calibration
from service.errors import ArtifactError
from service.runtime.session import OpenSession

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
