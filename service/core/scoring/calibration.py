"""The calibration contract: scores of normal images in a file beside the artifact, and its reader.

`<repository>/<name>/calibrations/<id>.json.xz` is bound to one artifact by its digest. Several may
stand side by side; a model is not changed by being calibrated. As sorted digits, scores compress to
a quarter; JSON that is not compressed, `<id>.json`, is read too.
"""

import functools
import hashlib
import json
import lzma
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from service.core.manifest_parts import Digest, Part, Split, check_part
from service.core.requests import EventRows
from service.core.scoring import scores as scoring
from service.core.scoring.scores import Fit, Floats, Score, Statistics
from service.errors import ArtifactError, InvalidRequest, OutOfRange

MINIMUM_IMAGES = 99
"""Fewest images to fit on, and fewest to calibrate with: 99 resolve a rate of 0.01."""
_MAXIMUM_BYTES = 2**28  # of a calibration's JSON: 7 scores of 3 million images
_MAXIMUM_WINDOW = 2**27  # bytes that decompression may take; what `xz -9` writes takes half


class Protocol(Part):
    """How statistics were computed; p-values hold only for scores that were computed alike."""

    conditioning: Literal["given", "none", "marginal"]
    binarisation: Literal["threshold", "stochastic"] | None
    estimator: str
    draws: int = Field(ge=1, description="noise draws for one image")
    seed: int | None = Field(ge=0, description="null where nothing is drawn")
    codec: str

    def difference(self, other: "Protocol") -> str | None:
        """Return in words what differs from another protocol, or None."""
        ours, theirs = self.model_dump(), other.model_dump()
        words = [
            f"{name} is {ours[name]}, not {theirs[name]}"
            for name in ours
            if ours[name] != theirs[name]
        ]
        return " and ".join(words) or None


class Data(Part):
    """The normal images: where they came from, and which were fitted on and which compared.

    The hash of a split is the SHA-256 of the sorted SHA-256 digests of the numbers of its
    images or vectors.
    """

    source: str
    score_fit: Split
    calibrate: Split


class Calibration(Part):
    """What was fitted on the score_fit images, and the sorted scores of the calibrate images."""

    schema_version: Literal[1]
    id: str = Field(pattern=r"^[0-9a-f]{12}$", description="of the content's SHA-256")
    artifact_digest: Digest
    protocol: Protocol
    data: Data
    fit: Fit
    decision: Score
    scores: dict[Score, tuple[float, ...]] = Field(description="ascending, 7 significant digits")

    @model_validator(mode="after")
    def _scores_are_those_of_the_fit(self) -> Self:
        if set(self.scores) != set(self.fit.scores) or self.decision not in self.scores:
            raise ValueError(f"scores must be {sorted(self.fit.scores)}, one of them the decision")
        if min(self.data.score_fit.count, self.data.calibrate.count) < MINIMUM_IMAGES:
            raise ValueError(f"data must have at least {MINIMUM_IMAGES} images in each split")
        for name, values in self.sorted_scores.items():
            if len(values) != self.count:
                raise ValueError(f"{name} has {len(values)} scores of {self.count} images")
            if np.any(values[1:] < values[:-1]) or not np.array_equal(
                values, scoring.rounded(values)
            ):
                raise ValueError(f"{name} must be ascending, with at most 7 significant digits")
        return self

    @property
    def count(self) -> int:
        """n, the number of images that new ones are compared with."""
        return self.data.calibrate.count

    @functools.cached_property
    def sorted_scores(self) -> dict[Score, Floats]:
        """The scores as arrays [n]."""
        return {name: np.array(values) for name, values in self.scores.items()}


def check_counts(score_fit: int, calibrate: int) -> None:
    """Raise OutOfRange for too few images to fit on, or to compare with."""
    if min(score_fit, calibrate) < MINIMUM_IMAGES:
        raise OutOfRange(
            f"{score_fit} + {calibrate} images can't calibrate; give at least "
            f"{2 * MINIMUM_IMAGES}: {MINIMUM_IMAGES} are fitted on, {MINIMUM_IMAGES} others "
            "resolve a rate of 0.01"
        )


def in_halves(images: EventRows) -> tuple[EventRows, EventRows]:
    """Divide images, or vectors, into N // 2 to fit on and the rest, to be compared with.

    They are put in the order of the SHA-256 of their numbers, followed by how many copies of the
    image went before (8 bytes, little-endian): names, files and times have no part in it. So the
    copies of an image are divided like images that differ. Where normal images do repeat, p-values
    hold only if the calibration repeats them as often, which neither dropping copies nor keeping
    them in one half would leave it to do.
    """
    seen: Counter[bytes] = Counter()
    keys = []
    for image, digest in zip(images, digests(images), strict=True):
        copy = seen[digest].to_bytes(8, "little")
        keys.append(hashlib.sha256(image.tobytes() + copy).digest())
        seen[digest] += 1
    order = sorted(range(len(keys)), key=keys.__getitem__)
    half = len(order) // 2
    return images[order[:half]], images[order[half:]]


def identify(images: EventRows) -> Split:
    """Return the count and the hash of a split of images, or vectors, whatever their order."""
    content = b"".join(sorted(digests(images)))
    return Split(count=len(images), sha256=f"sha256:{hashlib.sha256(content).hexdigest()}")


def digests(images: EventRows) -> list[bytes]:
    """Return the SHA-256 of the numbers of each image or vector: equal ones have equal ones."""
    return [hashlib.sha256(image.tobytes()).digest() for image in images]


def make_calibration(
    *,
    artifact_digest: str,
    protocol: Protocol,
    data: Data,
    score_fit: Statistics,
    calibrate: Statistics,
) -> Calibration:
    """Make a calibration of the statistics of two sets of normal images that share no image.

    Raises OutOfRange for too few images, InvalidRequest where the statistics can't be fitted.
    """
    check_counts(data.score_fit.count, data.calibrate.count)
    fit = scoring.fit(score_fit)
    scores = {name: np.sort(values) for name, values in fit.score(calibrate).items()}
    for name, values in scores.items():
        if not np.isfinite(values[-1]):
            raise InvalidRequest(f"{name} is not finite for an image; calibrate without that image")
    content = {
        "schema_version": 1,
        "artifact_digest": artifact_digest,
        "protocol": protocol.model_dump(mode="json"),
        "data": data.model_dump(mode="json"),
        "fit": fit.model_dump(mode="json"),
        "decision": "combined",
        "scores": {name: values.tolist() for name, values in scores.items()},
    }
    return Calibration.model_validate_json(json.dumps({**content, "id": _identity(content)}))


def _identity(content: Mapping[str, Any]) -> str:
    """Return the id of a calibration: 12 hex digits of the SHA-256 of its content without it.

    The content is hashed as JSON with sorted keys, no spaces and non-ASCII characters escaped.
    """
    content = {key: value for key, value in content.items() if key != "id"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def save_calibration(folder: Path, calibration: Calibration) -> Path:
    """Write `<folder>/<id>.json.xz`, whole or not at all, and return its path. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{calibration.id}.json.xz"
    partial = path.with_suffix(".part")
    try:
        partial.write_bytes(lzma.compress(calibration.model_dump_json().encode() + b"\n"))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def list_calibrations(folder: Path) -> Iterator[Path]:
    """Return the files of a folder, if it is there, that are calibrations by their names."""
    return (path for path in folder.glob("*") if path.name.endswith((".json.xz", ".json")))


def read_calibration(path: Path, artifact_digest: str) -> Calibration:
    """Read and check a calibration of the artifact with this digest.

    Raises ArtifactError where it is unreadable, inconsistent, altered, or of another artifact.
    """
    calibration, content = check_part(path.name, _read_text(path), Calibration)
    if calibration.id != _identity(content):
        raise ArtifactError(f"{path.name} contradicts its id; calibrate again")
    if calibration.artifact_digest != artifact_digest:
        raise ArtifactError(
            f"{path.name} is of artifact {calibration.artifact_digest}, not of {artifact_digest}; "
            "calibrate this one"
        )
    return calibration


def _read_text(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        if path.suffix != ".xz":
            return content
        decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MAXIMUM_WINDOW)
        text = decompressor.decompress(content, _MAXIMUM_BYTES)
    except OSError as error:
        raise ArtifactError(f"{path.name} can't be read: {error.strerror}") from error
    except lzma.LZMAError as error:
        raise ArtifactError(f"{path.name} can't be decompressed: {error}") from error
    if not decompressor.eof:
        raise ArtifactError(f"{path.name} is cut short, or holds more than {_MAXIMUM_BYTES} bytes")
    return text


def json_schema() -> str:
    """Return the published JSON Schema of a calibration, as text."""
    return json.dumps(Calibration.model_json_schema(), indent=2) + "\n"


if __name__ == "__main__":
    print(json_schema(), end="")
