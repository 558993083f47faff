"""Where models that are made for benchmarks are exported to: build/, which git ignores."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ARTIFACTS = ROOT / "artifacts"


def export_folder(sources: Iterable[Path]) -> Path:
    """Return the folder for what is made from these files, and files in these folders.

    It goes by a digest of their content, so that what is there needn't be made again.
    """
    files = sorted(
        path
        for source in sources
        for path in (source.rglob("*.*") if source.is_dir() else [source])
        if path.suffix in {".py", ".safetensors"}
    )
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files))
    folder = ROOT / "build" / "benchmarks" / digest.hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    return folder
