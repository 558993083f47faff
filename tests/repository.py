"""What happens to a model repository: versions that come, go, and are not what they should be."""

import contextlib
import json
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np

from service.core.manifest import artifact_digest


def flip_a_byte(path: Path) -> None:
    """Alter a file in its middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def rewrite_manifest(folder: Path, **changes: object) -> None:
    """Change a manifest and give it the digest of what it now says, where there can be one."""
    path = folder / "manifest.json"
    content = {**json.loads(path.read_text()), **changes}
    with contextlib.suppress(ValueError):  # NaN has no digest
        content["artifact_digest"] = artifact_digest(content)
    path.write_text(json.dumps(content))


def add_version(model: Path, version: str, **changes: object) -> Path:
    """Add a version that says something else in its manifest; as a whole, by a move at the end."""
    hidden = shutil.copytree(model / "1", model / f".{version}")
    rewrite_manifest(hidden, version=version, **changes)
    return hidden.rename(model / version)


def add_slow_version(model: Path, version: str, rows: int) -> Path:
    """Add a version whose test vectors have many rows, so that it takes long to verify."""
    folder = add_version(model, version)
    with np.load(folder / "vectors.npz") as archive:
        arrays = {name: _repeat(array, rows) for name, array in archive.items()}
    np.savez(folder / "vectors.npz", **arrays)
    digest = "sha256:" + sha256((folder / "vectors.npz").read_bytes()).hexdigest()
    files = json.loads((folder / "manifest.json").read_text())["files"]
    rewrite_manifest(folder, files={**files, "vectors.npz": digest})
    return folder


def _repeat(array: np.ndarray, rows: int) -> np.ndarray:
    return np.resize(array, (rows, *array.shape[1:]))
