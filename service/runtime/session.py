"""The session protocol: all that the rest of the service knows of a runtime."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


class Session(Protocol):
    """One loaded graph. `run` is called from several threads at once."""

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Map inputs by name to all outputs by name; the first axis of each is the batch."""
        ...


OpenSession = Callable[[Path], Session]
"""Load a graph from a file. Raises ArtifactError where the file can't be loaded."""
