"""A model repository at a URL, mirrored into a local folder that is made of hashed files.

What a manifest names by hash is downloaded once, whatever versions and repositories share it, and
is checked on the way. The mirror is what a repository in a folder is, and is read as one; so an
object that is altered or missing is refused there, by its name.
"""

import hashlib
import os
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.core.artifact import CALIBRATIONS
from service.core.manifest import MANIFEST_FILE, read_manifest
from service.core.manifest_parts import NAME, VERSION
from service.errors import ArtifactError, RepositoryUnavailable, StartupError

SCHEMES = ("s3", "gs", "abfs")
"""Stores that are read: of objects, which are whole or not there."""

Listing = dict[str, Mapping[str, Any]]
"""What a store says of the files of one folder, by their names."""

_STAMP = {"etag", "size", "lastmodified", "last_modified", "mtime", "updated"}
"""Of which at least some change with an object's content; each store has names of its own."""
_FOLDER = re.compile(f"{CALIBRATIONS}|{VERSION}")
_CALIBRATION = re.compile(r"[0-9a-f]{12}\.json(\.xz)?")


class Mirror:
    """Copies a repository at a URL of fsspec into `<cache>/<hash of the URL>`."""

    def __init__(self, url: str, cache: Path) -> None:
        """Raise StartupError for a scheme that is not allowed, or that nothing installed reads."""
        scheme = url.partition("://")[0]
        if scheme not in SCHEMES or "::" in url:  # a chain of several
            raise StartupError(
                f"GENSERVE_MODEL_REPOSITORY is of the scheme '{scheme}'; it is a folder, or a URL "
                f"of {', '.join(SCHEMES)}"
            )
        try:
            from fsspec.core import url_to_fs  # an extra: most repositories are folders

            self._store, self._root = url_to_fs(url)
        except ImportError as error:
            raise StartupError(
                f"{scheme}:// can't be read: {error}; pip install 'genserve[remote]' reads s3"
            ) from error
        self._url = url
        self._stamps: dict[Path, object] = {}  # of versions, when they were last copied
        self._files = cache / "files"
        self.folder = cache / hashlib.sha256(url.encode()).hexdigest()[:16]
        for folder in (self._files, self.folder):
            folder.mkdir(parents=True, exist_ok=True)

    def update(self) -> None:
        """Make the folder what the repository holds now; what is there already is not read again.

        Raises RepositoryUnavailable, and may then have done a part of it.
        """
        try:
            there = self._list()
            for name, version in there:
                if version == CALIBRATIONS:
                    self._update_calibrations(name, there[name, version])
                elif MANIFEST_FILE in there[name, version]:
                    self._update_version(name, version, there[name, version])
        except Exception as error:  # stores share no base class of errors
            raise RepositoryUnavailable(f"{self._url} can't be read: {error}") from error
        for path in self.folder.glob("*/*"):
            if (path.parent.name, path.name) not in there:
                shutil.rmtree(path)
        for path in self._files.iterdir():
            if path.stat().st_nlink == 1:  # no version holds it any more
                path.unlink()

    def _list(self) -> dict[tuple[str, str], Listing]:
        """Return what is known of files, by the folders that may be of a repository."""
        self._store.invalidate_cache()
        there: dict[tuple[str, str], Listing] = defaultdict(dict)
        for path, facts in self._store.find(self._root, detail=True).items():
            parts = path.removeprefix(self._root).strip("/").split("/")
            if len(parts) == 3 and re.fullmatch(NAME, parts[0]) and _FOLDER.fullmatch(parts[1]):
                there[parts[0], parts[1]][parts[2]] = facts
        return there

    def _update_version(self, name: str, version: str, there: Listing) -> None:
        content = self._store.cat_file(f"{self._root}/{name}/{version}/{MANIFEST_FILE}")
        folder = self.folder / name / version
        manifest = folder / MANIFEST_FILE
        same = manifest.is_file() and manifest.read_bytes() == content
        # A file that is not what its hash says would be so again, until somebody replaces it.
        if same and (self._whole(folder) or self._stamps.get(folder) == _stamp(there)):
            return
        folder.parent.mkdir(exist_ok=True)
        hidden = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
        (hidden / MANIFEST_FILE).write_bytes(content)
        try:
            files = read_manifest(hidden).files
        except ArtifactError:
            files = {}  # whoever reads the mirror says why
        for file, digest in files.items():
            self._place(f"{self._root}/{name}/{version}/{file}", hidden / file, digest)
        if folder.exists():
            shutil.rmtree(folder)
        hidden.rename(folder)
        self._stamps[folder] = _stamp(there)

    def _whole(self, folder: Path) -> bool:
        """Whether every file that the manifest names was found and is what its hash says."""
        try:
            files = read_manifest(folder).files
        except ArtifactError:
            return True  # as whole as it gets
        return all(
            self._cached(digest).exists() and (folder / file).exists()
            for file, digest in files.items()
        )

    def _cached(self, digest: str) -> Path:
        return self._files / digest.removeprefix("sha256:")

    def _place(self, source: str, target: Path, digest: str) -> None:
        """Put a file into a version: out of the cache, where it is what its hash says."""
        cached = self._cached(digest)
        if not cached.exists():
            try:
                self._store.get_file(source, str(target))
            except FileNotFoundError:
                return
            with target.open("rb") as file:
                actual = hashlib.file_digest(file, "sha256").hexdigest()
            if actual == cached.name:
                os.replace(target, cached)
        if cached.exists():
            os.link(cached, target)

    def _update_calibrations(self, name: str, there: Listing) -> None:
        """Copy what is new: the names of calibrations are hashes of their content."""
        folder = self.folder / name / CALIBRATIONS
        folder.mkdir(parents=True, exist_ok=True)
        for file, facts in there.items():
            path, size = folder / file, facts["size"]
            if _CALIBRATION.fullmatch(file) and not (path.exists() and path.stat().st_size == size):
                partial = path.with_suffix(".part")
                self._store.get_file(f"{self._root}/{name}/{CALIBRATIONS}/{file}", str(partial))
                os.replace(partial, path)
        for path in folder.iterdir():
            if path.name not in there:
                path.unlink()


def _stamp(there: Listing) -> object:
    """Return what changes where an object is replaced."""
    return {
        file: {name: str(fact) for name, fact in facts.items() if name.lower() in _STAMP}
        for file, facts in there.items()
    }
