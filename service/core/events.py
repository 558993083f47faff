"""The events of a model as rows: images as levels, or vectors as they are.

Operations read what they are given here, feed it to graphs, and show what graphs give; which of the
two it is, only the manifest knows.
"""

from typing import Any, Protocol

import numpy as np

from service.core.manifest import Manifest
from service.core.manifest_parts import VectorEvent
from service.core.preprocess import Values, read_images, to_images, to_values
from service.core.requests import EventPart, EventRows, EventsRequest, Limits, Scale
from service.core.scoring.scores import CODEC, Floats, Statistic, codec_bits
from service.errors import InvalidRequest, InvalidVector, OutOfRange


class Events(Protocol):
    """What a model's events are: each with the same questions, answered in its own way."""

    part: EventPart
    """What they are called in requests and answers."""
    codec: str
    """The lossless codec whose bits are a statistic of them."""

    def read(self, request: EventsRequest, limits: Limits) -> EventRows:
        """Return what a request gives, checked; raises an InvalidRequest where it does not fit."""
        ...

    def to_values(self, rows: EventRows) -> Values:
        """Map rows to graph values."""
        ...

    def shown(self, values: Values, scale: Scale) -> dict[str, Any]:
        """Map graph values to what is answered, an array by its name in GenerationResult."""
        ...

    def statistics(self, rows: EventRows) -> dict[Statistic, Floats]:
        """Return what rows say of themselves for anomaly scores, without the model, [N]."""
        ...


def events_of(manifest: Manifest) -> Events:
    """Return what the model's events are."""
    if isinstance(manifest.event, VectorEvent):
        return _Vectors(manifest)
    return _Images(manifest)


def check_scale(manifest: Manifest, scale: Scale) -> None:
    """Raise InvalidRequest where a scale of images is asked of a model that has none."""
    if scale == "unit" and isinstance(manifest.event, VectorEvent):
        raise InvalidRequest(
            f"{manifest.name} is a model of vectors, which have one scale; leave out scale"
        )


class _Images:
    part: EventPart = "images"
    codec = CODEC

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def read(self, request: EventsRequest, limits: Limits) -> EventRows:
        """Return levels, uint8 [N, H, W, C]."""
        _check_given(request)
        if request.images is None:
            height, width, channels = self._manifest.image.shape
            raise InvalidRequest(
                f"{self._manifest.name} is a model of images; give images of shape "
                f"[count, {height}, {width}, {channels}], not vectors"
            )
        return read_images(self._manifest, request.images, request.scale, limits)

    def to_values(self, rows: EventRows) -> Values:
        """Map levels to graph values."""
        return to_values(self._manifest, rows)

    def shown(self, values: Values, scale: Scale) -> dict[str, Any]:
        """Return images."""
        return {"images": to_images(self._manifest, values, scale)}

    def statistics(self, rows: EventRows) -> dict[Statistic, Floats]:
        """Return the bits that the codec needs for each image."""
        return {"codec_bits": codec_bits(rows)}


class _Vectors:
    part: EventPart = "vectors"
    codec = "none"

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def read(self, request: EventsRequest, limits: Limits) -> EventRows:
        """Return vectors, float32 [N, D], without negative zeros: equal ones have equal noise."""
        _check_given(request)
        size, vectors = self._manifest.event.dimensions, request.vectors
        if vectors is None:
            raise InvalidRequest(
                f"{self._manifest.name} is a model of vectors; give vectors of shape "
                f"[count, {size}], not images"
            )
        if vectors.ndim != 2 or vectors.shape[1] != size:
            raise InvalidVector(
                f"vectors have shape {list(vectors.shape)}; {self._manifest.name} takes "
                f"[count, {size}]"
            )
        if not 1 <= len(vectors) <= limits.count:
            raise OutOfRange(f"{len(vectors)} vectors were sent; allowed are 1 to {limits.count}")
        if vectors.dtype.kind not in "fiu" or not np.all(np.isfinite(vectors)):
            raise InvalidVector("vectors must be finite real numbers")
        with np.errstate(over="ignore"):
            rows = vectors.astype(np.float32)
        if not np.all(np.isfinite(rows)):
            raise InvalidVector("vectors must be finite in float32: at most 3.4e38 in magnitude")
        return rows + np.float32(0)

    def to_values(self, rows: EventRows) -> Values:
        """Return vectors as they are."""
        return rows

    def shown(self, values: Values, scale: Scale) -> dict[str, Any]:
        """Return vectors."""
        return {"vectors": values}

    def statistics(self, rows: EventRows) -> dict[Statistic, Floats]:
        """Return nothing: no codec knows which reals are simple."""
        return {}


def _check_given(request: EventsRequest) -> None:
    if (request.images is None) == (request.vectors is None):
        raise InvalidRequest("give images, or vectors to a model of these, and not both")
