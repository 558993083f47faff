"""The command `calibrate`: from files of normal images to a calibration beside the artifact."""

import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from service import images as files
from service.core.batcher import LoadedGraph
from service.core.events import events_of
from service.core.manifest import Manifest
from service.core.manifest_parts import ImageEvent
from service.core.requests import (
    Array,
    EventRows,
    EventsRequest,
    LikelihoodRequest,
    Limits,
    as_array,
)
from service.core.scoring.calibration import (
    Calibration,
    Data,
    Protocol,
    check_counts,
    digests,
    identify,
    in_halves,
    make_calibration,
)
from service.core.scoring.likelihood import measure, rows_for_image
from service.core.scoring.scores import Floats, Statistic
from service.errors import GenserveError, InvalidImage, InvalidRequest, StartupError
from service.progress import counted

_UNLIMITED = Limits(count=sys.maxsize, draws=1, rows=sys.maxsize)  # of files, of which all is read

Measured = tuple[Protocol, dict[Statistic, Floats]]


@dataclass(frozen=True)
class NormalImages:
    """Images or vectors to fit on and to be compared with, and in words where they are from."""

    score_fit: EventRows
    calibrate: EventRows
    source: str

    @property
    def copies(self) -> int:
        """How many of the images equal one before them, in either set."""
        both = [*digests(self.score_fit), *digests(self.calibrate)]
        return len(both) - len(set(both))


def read_folder(manifest: Manifest, path: Path) -> NormalImages:
    """Read normal images from one folder or npy file, and divide them; raises as `read_sets`."""
    score_fit, calibrate = in_halves(_read(manifest, path))
    return NormalImages(score_fit, calibrate, path.resolve().name)


def read_sets(manifest: Manifest, score_fit: Path, calibrate: Path) -> NormalImages:
    """Read normal images that were divided before.

    Raises StartupError for a file that can't be opened, InvalidImage that names the one that does
    not fit the model, and InvalidRequest where every image to compare with was fitted on.
    """
    fitted, compared = _read(manifest, score_fit), _read(manifest, calibrate)
    if set(digests(compared)) <= set(digests(fitted)):
        raise InvalidRequest(
            f"every image of {calibrate} is in {score_fit} too; p-values hold only for scores of "
            "images that nothing was fitted on"
        )
    source = f"{score_fit.resolve().name} and {calibrate.resolve().name}"
    return NormalImages(fitted, compared, source)


def _read(manifest: Manifest, path: Path) -> EventRows:
    """Return the images of a folder of PNG files, or the images or vectors of an npy file."""
    if path.suffix == ".npy":
        return _read_npy(manifest, path)
    if not path.is_dir():
        raise StartupError(f"{path} is no folder of PNG files and no .npy file")
    found = files.png_files(path)
    if not found:
        raise StartupError(f"{path} holds no PNG files")
    return np.concatenate([_read_png(manifest, file) for file in found])


def _read_npy(manifest: Manifest, path: Path) -> EventRows:
    """Return the rows of an npy file.

    Images are [N, H, W, C], or [N, H, W] where there is one channel.
    """
    content = _read_bytes(path)
    try:
        array = files.npy_to_array(content, maximum_bytes=len(content))
        return events_of(manifest).read(_given(manifest, array), _UNLIMITED)
    except GenserveError as error:
        raise type(error)(f"{path}: {error.message}") from error


def _given(manifest: Manifest, array: Array) -> EventsRequest:
    if not isinstance(manifest.event, ImageEvent):
        return EventsRequest(vectors=array)
    if array.ndim == 3 and manifest.event.shape[2] == 1:
        array = array[..., None]
    return EventsRequest(images=array, scale="unit" if array.dtype.kind == "f" else "levels")


def _read_png(manifest: Manifest, path: Path) -> EventRows:
    try:
        given = EventsRequest(images=[_read_bytes(path)])
        return events_of(manifest).read(given, _UNLIMITED)
    except InvalidImage as error:
        raise InvalidImage(f"{path}: {error.message}") from error


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StartupError(f"{path} can't be read: {error.strerror}") from error


def calibrate(
    manifest: Manifest,
    graphs: Mapping[str, LoadedGraph],
    images: NormalImages,
    request: LikelihoodRequest,
    *,
    limits: Limits,
    workers: int,
    batch_rows: int,
) -> Calibration:
    """Calibrate a model with normal images, by the protocol of a request that has none yet.

    `workers` threads run the graphs, on about `batch_rows` rows at once. Raises OutOfRange for too
    few images, and whatever the likelihood operation would refuse.
    """
    check_counts(len(images.score_fit), len(images.calibrate))
    both = np.concatenate([images.score_fit, images.calibrate])
    part = events_of(manifest).part
    size = max(1, min(batch_rows // rows_for_image(manifest, request), limits.count))

    def measured(start: int) -> tuple[int, Measured]:
        chunk = both[start : start + size]
        given: dict[str, Any] = {part: chunk}
        return len(chunk), _measure(manifest, graphs, replace(request, **given), limits)

    with ThreadPoolExecutor(workers) as pool:
        chunks = pool.map(measured, range(0, len(both), size))
        parts = list(counted(chunks, len(both), part))
    columns = [statistics for _, statistics in parts]
    statistics = {name: np.concatenate([each[name] for each in columns]) for name in columns[0]}
    fitted = len(images.score_fit)
    return make_calibration(
        artifact_digest=manifest.artifact_digest,
        protocol=parts[0][0],
        data=Data(
            source=images.source,
            score_fit=identify(images.score_fit),
            calibrate=identify(images.calibrate),
        ),
        score_fit={name: column[:fitted] for name, column in statistics.items()},
        calibrate={name: column[fitted:] for name, column in statistics.items()},
    )


def _measure(
    manifest: Manifest,
    graphs: Mapping[str, LoadedGraph],
    request: LikelihoodRequest,
    limits: Limits,
) -> Measured:
    steps = measure(manifest, request, limits)
    call = next(steps)
    while True:
        inputs = {name: as_array(rows) for name, rows in call.inputs.items()}
        outputs = graphs[call.graph].session.run(inputs)
        try:
            call = steps.send(outputs)
        except StopIteration as end:
            result: Measured = end.value
            return result
