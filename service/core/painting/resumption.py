"""Resume tokens: where a stream was cut, as a text that any replica can go on from.

A picture follows from its artifact and its canvas, so to go on is to paint it again and leave out
the rows that the reader has; nothing is kept on the server. A token needs no signature: whoever
forges one is shown fewer rows of a picture of their own.

As base64url without padding, little-endian:

    version      1 byte
    artifact     8 bytes, the first of the artifact's digest
    seed         8 bytes
    fingerprint  8 bytes, of the canvas
    runs         8 bytes each: how many images, and how many rows the reader has of each of them
    checksum     4 bytes, CRC-32 of all before it, against mangled text

Images that share their steps have the same rows, so there are few runs.
"""

import base64
import hashlib
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.core.painting.lanes import Canvas
from service.errors import InvalidResumeToken, OutOfRange, ResumeMismatch

_VERSION = 1
_HEAD = struct.Struct("<B8sQ8s")
_CHECKSUM = struct.Struct("<I")
_RUN = np.dtype("<u4")
_MAXIMUM_TEXT = 32 * 1024  # characters; far more than any stream's images need

_NOT_A_TOKEN = "resume_token is not one of this service; send the last one of the stream, unaltered"


@dataclass(frozen=True)
class ResumeToken:
    """What a token says; `check_artifact`, `seed_for` and `rows_told` compare it with a request."""

    artifact: bytes
    seed: int
    fingerprint: bytes
    runs: NDArray[np.uint32]  # [R, 2], images and the rows of each

    def check_artifact(self, digest: str) -> None:
        """Raise ResumeMismatch where the token is not of the artifact with this digest."""
        artifact = _of_digest(digest)
        if self.artifact != artifact:
            raise ResumeMismatch(
                f"resume_token is of the artifact {self.artifact.hex()}, and this is "
                f"{artifact.hex()}; name the exact model, or start anew without resume_token"
            )

    def seed_for(self, asked: int | None) -> int:
        """Return the token's seed; raises ResumeMismatch where another is asked for."""
        if asked is not None and asked != self.seed:
            raise ResumeMismatch(
                f"resume_token is of the seed {self.seed}, and the request has the seed {asked}; "
                "leave out seed, or send the seed of the token"
            )
        return self.seed

    def rows_told(self, canvas: Canvas, of_canvas: bytes) -> NDArray[np.int64]:
        """Return how many rows of each image the reader has, [N].

        `of_canvas` is the canvas's fingerprint. Raises ResumeMismatch where the canvas is another
        than the token's, and InvalidResumeToken or OutOfRange for rows that it can't have.
        """
        if self.fingerprint != of_canvas:
            raise ResumeMismatch(
                "resume_token is of another request; repeat the one that it came from: the same "
                "count or candidates, classes, controls, and image with its known pixels"
            )
        count, height, _ = canvas.uniforms.shape
        images, rows = self.runs.astype(np.int64).T
        if images.sum() != count:
            raise InvalidResumeToken(_NOT_A_TOKEN)
        if rows.max() > height:
            raise OutOfRange(f"resume_token has {rows.max()} rows; allowed is 0 to {height}")
        return np.repeat(rows, images)


def fingerprint(canvas: Canvas) -> bytes:
    """Return 8 bytes of the SHA-256 of all that a picture follows from, beside the artifact."""
    # 1 and 1.0 are the same control.
    arrays: dict[str, NDArray[Any]] = {
        name: values.astype(np.float64) for name, values in canvas.controls.items()
    }
    arrays |= {"uniforms": canvas.uniforms, "forced": canvas.forced}
    if canvas.class_weights is not None:
        arrays["class_weights"] = canvas.class_weights
    if canvas.latents is not None:
        arrays["latents"] = canvas.latents
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()[:8]


def write_token(digest: str, seed: int, of_canvas: bytes, rows_told: NDArray[np.int64]) -> str:
    """Return the token of a reader that has `rows_told` rows of each image, [N].

    `digest` is the artifact's, `of_canvas` the fingerprint of the canvas.
    """
    starts = np.flatnonzero(np.diff(rows_told, prepend=-1))
    images = np.diff(starts, append=len(rows_told))
    runs = np.stack([images, rows_told[starts]], axis=1).astype(_RUN)
    content = _HEAD.pack(_VERSION, _of_digest(digest), seed, of_canvas) + runs.tobytes()
    content += _CHECKSUM.pack(zlib.crc32(content))
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def read_token(text: str) -> ResumeToken:
    """Return what a token says. Raises InvalidResumeToken."""
    content = _decode(text)
    body, checksum = content[: -_CHECKSUM.size], content[-_CHECKSUM.size :]
    runs = len(body) - _HEAD.size
    if runs <= 0 or runs % (2 * _RUN.itemsize) or checksum != _CHECKSUM.pack(zlib.crc32(body)):
        raise InvalidResumeToken(_NOT_A_TOKEN)
    version, artifact, seed, of_canvas = _HEAD.unpack_from(body)
    if version != _VERSION:
        raise InvalidResumeToken(
            f"resume_token has the format {version}, and this server reads {_VERSION}; "
            "start anew without it"
        )
    numbers = np.frombuffer(body, _RUN, offset=_HEAD.size)
    return ResumeToken(artifact, seed, of_canvas, numbers.reshape(-1, 2))


def _decode(text: str) -> bytes:
    if len(text) > _MAXIMUM_TEXT:
        raise InvalidResumeToken(_NOT_A_TOKEN)
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars="-_", validate=True)
    except ValueError:
        raise InvalidResumeToken(_NOT_A_TOKEN) from None


def _of_digest(digest: str) -> bytes:
    """Return the first 8 bytes of an artifact's digest, `sha256:` and hexadecimal digits."""
    return bytes.fromhex(digest.removeprefix("sha256:"))[:8]
