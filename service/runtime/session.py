"""The session protocol: all that the rest of the service knows of a runtime."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


class Session(Protocol):
    """One loaded graph. `run` is called from several threads at once."""

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Map inputs by name to outputs by name; the first axis of each is the batch."""
        ...


class OpenSession(Protocol):
    """How a graph is loaded."""

    def __call__(self, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> Session:
        """Load the graph at `path`, which takes exactly `inputs` and has at least `outputs`.

        Its runs return `outputs`, no more. Raises ArtifactError where that can't be done.
        """
        ...
