"""The models: find artifacts, verify and load them, say what is ready and why the rest is not."""

import asyncio
import logging
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from service.core.batcher import LoadedGraph
from service.core.calibration import Calibration, read_calibration
from service.core.drift import Watch
from service.core.manifest import (
    MANIFEST_FILE,
    VERSION,
    Arrays,
    Graph,
    Manifest,
    read_manifest,
    read_test_vectors,
    verify_files,
)
from service.errors import ArtifactError, ModelNotFound, ModelUnavailable, OperationNotOffered
from service.metrics import Metrics
from service.runtime.session import OpenSession

CALIBRATIONS = "calibrations"
"""The folder of a model's calibrations, beside those of its versions."""

State = Literal["available", "loading", "ready", "refused"]

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Model:
    """One artifact and where it stands; graphs and calibrations are there once it is ready."""

    folder: Path
    name: str
    version: str
    manifest: Manifest | None = None
    graphs: dict[str, LoadedGraph] = field(default_factory=dict)
    calibrations: dict[str, Calibration] = field(default_factory=dict)  # by id
    watches: dict[str, Watch] = field(default_factory=dict)  # by id of the calibration
    refused_calibrations: dict[str, str] = field(default_factory=dict)  # why, by file name
    state: State = "available"
    reason: str | None = None  # why it is refused
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def refuse(self, reason: str) -> None:
        """Keep the model from serving; the others go on."""
        self.state, self.reason = "refused", reason
        log.error("model refused", extra={"folder": str(self.folder), "reason": reason})

    def check_offers(self, operation: str) -> None:
        """Raise ModelUnavailable where it is refused, OperationNotOffered that names what is."""
        if self.manifest is None:
            raise ModelUnavailable(f"{self.name} was refused and does not serve: {self.reason}")
        if operation not in self.manifest.operations:
            offered = list(self.manifest.operations)
            raise OperationNotOffered(
                f"{self.name} does not offer {operation}; it offers {', '.join(offered)}",
                operations=offered,
            )


class Models:
    """The artifacts of one repository, `<folder>/<name>/<version>/manifest.json`."""

    def __init__(self, repository: Path, open_session: OpenSession, metrics: Metrics) -> None:
        self._open_session = open_session
        self._metrics = metrics
        self._models = [_read(path.parent) for path in repository.glob(f"*/*/{MANIFEST_FILE}")]
        self._models.sort(key=lambda model: (model.name, _version_key(model.version)))
        for model in self._models:
            self._expect(model)

    def _expect(self, model: Model) -> None:
        """Show a model's metrics, from its first moment."""
        labels = model.name, model.version
        self._metrics.model_ready.labels(*labels).set_function(lambda: model.state == "ready")
        self._metrics.model_refused.labels(*labels).set_function(lambda: model.state == "refused")
        if model.manifest is None:
            return
        self._metrics.expect_model(model.name, model.manifest.operations)
        for name, graph in model.manifest.graphs.items():
            if graph.output("levels"):
                self._metrics.expect_painting(model.name, name)
            else:
                self._metrics.expect_batches(model.name, name)

    def all(self) -> list[Model]:
        """Return every model, by name, oldest version first."""
        return list(self._models)

    def find(self, name: str) -> Model:
        """Return the model `name@version`, or the newest version of `name` that is not refused.

        A model whose versions are all refused is found, and refused when it is run. Raises
        ModelNotFound.
        """
        wanted, _, version = name.partition("@")
        found = [
            model
            for model in self._models
            if model.name == wanted and version in ("", model.version)
        ]
        if not found:
            known = sorted({model.name for model in self._models})
            raise ModelNotFound(
                f"there is no model '{name[:100]}'; there are {known}", models=known
            )
        return next((model for model in reversed(found) if model.state != "refused"), found[-1])

    async def load(self, model: Model) -> None:
        """Make a model ready, once, however many ask. Raises ModelUnavailable with the reason."""
        async with model.lock:
            if model.state == "available":
                model.state = "loading"
                await asyncio.to_thread(self._load, model)
        if model.state != "ready":
            raise ModelUnavailable(
                f"{model.name}@{model.version} was refused and does not serve: {model.reason}"
            )

    def _load(self, model: Model) -> None:
        started = time.monotonic()
        try:
            model.manifest, model.graphs = load_artifact(model.folder, self._open_session)
            _load_calibrations(model, model.manifest.artifact_digest, self._metrics)
        except ArtifactError as error:
            model.refuse(str(error))
            return
        except Exception:  # one model must not keep the others from loading
            log.exception("loading failed", extra={"model": model.name})
            model.refuse("loading it failed; the server's log says why")
            return
        seconds = time.monotonic() - started
        self._metrics.model_load_seconds.labels(model.name, model.version).set(seconds)
        model.state = "ready"
        log.info("model ready", extra={"model": model.name, "seconds": round(seconds, 3)})


def _load_calibrations(model: Model, artifact_digest: str, metrics: Metrics) -> None:
    """Load the calibrations beside the artifact; one that is refused keeps nothing from serving."""
    for path in sorted(model.folder.parent.glob(f"{CALIBRATIONS}/*.json")):
        try:
            calibration = read_calibration(path, artifact_digest)
        except ArtifactError as error:
            model.refused_calibrations[path.name] = str(error)
            log.warning("calibration refused", extra={"model": model.name, "reason": str(error)})
        else:
            model.calibrations[calibration.id] = calibration
            model.watches[calibration.id] = Watch(metrics, model.name, calibration)


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


def _read(folder: Path) -> Model:
    """Return the model of an artifact folder, refused where its manifest can't be trusted."""
    model = Model(folder, folder.parent.name, folder.name)
    try:
        model.manifest = read_manifest(folder)
    except ArtifactError as error:
        model.refuse(str(error))
    else:
        _check_folder(model, model.manifest)
    return model


def _check_folder(model: Model, manifest: Manifest) -> None:
    if (manifest.name, manifest.version) != (model.name, model.version):
        model.refuse(
            f"the folder is {model.name}/{model.version}, but its manifest says "
            f"{manifest.name}@{manifest.version}"
        )


def _version_key(version: str) -> tuple[int, ...]:
    """Return what versions are ordered by; a folder that is no version comes first."""
    numbers = re.fullmatch(VERSION, version)
    return tuple(int(part) for part in version.split(".")) if numbers else ()
