"""What a stream tells its reader of images that are being painted: new rows, or previews of all.

`due_images` and `is_preview_due` decide, in pure code; `Reader` keeps what has been told.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.core.manifest import Manifest
from service.core.manifest_parts import ImageEvent
from service.core.painting.lanes import PaintJob
from service.core.painting.paint import Paint
from service.core.painting.resumption import fingerprint, read_token, write_token
from service.core.requests import SampleRequest, StreamRequest, check_range

RowCounts = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A step of a stream, and how far its reader is with it."""

    rows_done: int  # that the reader has with this step, over all images, resumed ones included
    rows_total: int
    resume_token: str  # goes on after this step


@dataclass(frozen=True, kw_only=True)
class Rows(Progress):
    """Rows of one image that were painted since the last ones of it were told."""

    image: int
    first_row: int
    levels: NDArray[np.uint8]  # [rows, W]


@dataclass(frozen=True, kw_only=True)
class Preview(Progress):
    """All images as far as they are painted; the rest is level 0."""

    manifest: Manifest
    images: NDArray[np.uint8]  # [N, H, W, 1]


def due_images(done: RowCounts, told: RowCounts, every_rows: int, height: int) -> list[int]:
    """Return the images, of N, with so many new rows, or with their last ones."""
    new = done - told
    images: list[int] = np.flatnonzero(
        (new >= every_rows) | ((new > 0) & (done == height))
    ).tolist()
    return images


def is_preview_due(done: RowCounts, told: RowCounts, every_rows: int, height: int) -> bool:
    """Return whether the images have so many new rows on average, or all of their rows.

    Not while an image has fewer rows than its reader was told of it before the stream was cut: a
    preview never takes back what an earlier one showed.
    """
    if np.any(done < told):
        return False
    new = int((done - told).sum())
    return new >= every_rows * len(done) or (new > 0 and bool(np.all(done == height)))


class Reader:
    """The reader of one stream: what it asked to be shown, and which rows it has."""

    def __init__(self, manifest: Manifest, stream: StreamRequest) -> None:
        """Raises OutOfRange, InvalidResumeToken, or ResumeMismatch for another artifact."""
        self._manifest, self._stream = manifest, stream
        # A vector comes as a whole.
        self._height = manifest.event.shape[0] if isinstance(manifest.event, ImageEvent) else 1
        check_range("every_rows", stream.every_rows, 1, self._height)
        self._token = None if stream.resume_token is None else read_token(stream.resume_token)
        if self._token is not None:
            self._token.check_artifact(manifest.artifact_digest)

    def seeded(self, request: SampleRequest) -> SampleRequest:
        """Return the request with the seed of the token; raises ResumeMismatch for another."""
        if self._token is None:
            return request
        return replace(request, seed=self._token.seed_for(request.seed))

    def begin(self, paint: Paint) -> None:
        """Take note of what is about to be painted; large canvases take milliseconds.

        Raises ResumeMismatch where it is not what the token is of.
        """
        canvas = paint.canvas
        self._seed, self._fingerprint = paint.seed, fingerprint(canvas)
        self._told: RowCounts = np.zeros(len(canvas), np.int64)
        if self._token is not None:
            self._told = self._token.rows_told(canvas, self._fingerprint)

    def news(self, job: PaintJob) -> Iterator[Progress]:
        """Yield what is due by now; whoever takes it slowly gets more rows of an image at once."""
        every_rows, done = self._stream.every_rows, job.rows_done
        if self._stream.show == "rows":
            for image in due_images(done, self._told, every_rows, self._height):
                first, last = int(self._told[image]), int(done[image])
                self._told[image] = last
                levels = job.levels[image, first:last].copy()
                yield Rows(image=image, first_row=first, levels=levels, **self._progress())
        elif is_preview_due(done, self._told, every_rows, self._height):
            self._told = done.copy()
            images = job.levels[:, :, :, None].copy()
            yield Preview(manifest=self._manifest, images=images, **self._progress())

    def _progress(self) -> dict[str, Any]:
        token = write_token(
            self._manifest.artifact_digest, self._seed, self._fingerprint, self._told
        )
        return {
            "rows_done": int(self._told.sum()),
            "rows_total": len(self._told) * self._height,
            "resume_token": token,
        }
