"""The command `score`: many PNG files through a running service, as rows of CSV."""

import csv
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import TextIO

from service.client import ClientError, Score
from service.errors import InvalidImage, StartupError
from service.images import png_files

COLUMNS = ("image", *(field.name for field in fields(Score) if field.name != "name"), "error")

Ask = Callable[[Sequence[tuple[str, bytes]]], list[Score]]
"""Scores PNG images, given with their names, in order. Raises ClientError."""

_CHUNK_ROWS = 512  # images times draws in one request: seconds at most, and far below the limits
_CHUNK_IMAGES = 32
_ATTEMPTS = 8  # at a request that the service asks to be sent later
_SHORTEST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.1, 30.0


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Return files, and in place of folders all PNG files in them; raises StartupError."""
    found: list[Path] = []
    for path in paths:
        inside = png_files(path) if path.is_dir() else [path]
        if not inside:
            raise StartupError(f"{path} holds no PNG files")
        if not path.exists():
            raise StartupError(f"{path} can't be read: there is no such file")
        found += inside
    return found


def score_files(
    paths: Sequence[Path],
    ask: Ask,
    samples: int | None,
    wait: Callable[[float], None] = time.sleep,
) -> Iterator[tuple[int, list[dict[str, object]]]]:
    """Yield rows of the files in order, a request's at a time, with their number.

    A file that can't be read, or is no image that the model takes, gets a row with an error, and
    the others their scores. A request that the service has no room for is sent again, some times,
    after the seconds that it asks for. Whatever else is refused raises ClientError.
    """
    size = max(1, min(_CHUNK_IMAGES, _CHUNK_ROWS // max(1, samples or 1)))
    for start in range(0, len(paths), size):
        chunk = paths[start : start + size]
        yield len(chunk), _score_chunk(chunk, partial(_ask_patiently, ask, wait))


def _ask_patiently(
    ask: Ask, wait: Callable[[float], None], images: Sequence[tuple[str, bytes]]
) -> list[Score]:
    for _ in range(_ATTEMPTS - 1):
        try:
            return ask(images)
        except ClientError as error:
            if error.retry_after_seconds is None:
                raise
            hint = error.retry_after_seconds
        # A hint of 0 would be asked for again and again before anything has changed.
        wait(min(max(hint, _SHORTEST_WAIT_SECONDS), _LONGEST_WAIT_SECONDS))
    return ask(images)


def _score_chunk(paths: Sequence[Path], ask: Ask) -> list[dict[str, object]]:
    try:
        return [_row(score) for score in ask([(str(path), path.read_bytes()) for path in paths])]
    except (ClientError, OSError) as error:
        if isinstance(error, ClientError) and error.reason != InvalidImage.reason:
            raise
        if len(paths) > 1:  # only the guilty get an error
            return [row for path in paths for row in _score_chunk([path], ask)]
        message = error.strerror if isinstance(error, OSError) else str(error)
        return [{"image": paths[0], "error": message}]


def _row(score: Score) -> dict[str, object]:
    cells: dict[str, object] = {name: _cell(value) for name, value in asdict(score).items()}
    return {"image": cells.pop("name"), **cells}


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.7g}"
    return value


def write_rows(file: TextIO, chunks: Iterator[list[dict[str, object]]]) -> tuple[int, int]:
    """Write rows as they come; return how many there are, and how many of them hold errors."""
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    rows = failed = 0
    for chunk in chunks:
        writer.writerows(chunk)
        file.flush()
        rows += len(chunk)
        failed += sum("error" in row for row in chunk)
    return rows, failed
