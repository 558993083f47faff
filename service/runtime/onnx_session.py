"""ONNX Runtime sessions. The only file that imports onnxruntime."""

import os
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from service.errors import ArtifactError, StartupError
from service.runtime.session import Arrays

# From 1.31 on it identifies the machine by a file in ~/.cache and holds an address to report to. It
# reads this when it is imported; its own function to disable it comes too late for the file.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

Provider = Literal["cpu", "cuda"]

_PROVIDER_NAMES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxSession:
    """One graph, run on one thread by each caller."""

    def __init__(
        self, path: Path, inputs: Sequence[str], outputs: Sequence[str], provider: Provider
    ) -> None:
        import onnxruntime  # here, so that `check_installation` can speak first

        name = _PROVIDER_NAMES[provider]
        try:
            self._session = onnxruntime.InferenceSession(
                path, _options(onnxruntime.SessionOptions(), provider), providers=[name]
            )
        except Exception as error:  # the runtime's own exceptions share no base class
            reason = str(error).replace(f"{path.parent}/", "")  # clients read it
            raise ArtifactError(f"{path.name}: can't be loaded on {provider}: {reason}") from error
        if self._session.get_providers()[0] != name:
            raise ArtifactError(f"{path.name}: {provider} was asked for and is not used")
        actual = {port.name for port in self._session.get_inputs()}
        if actual != set(inputs):
            raise ArtifactError(f"{path.name}: takes {sorted(actual)}, not {sorted(inputs)}")
        actual = {port.name for port in self._session.get_outputs()}
        if missing := set(outputs) - actual:
            raise ArtifactError(f"{path.name}: has no output {sorted(missing)}")
        self._outputs = list(outputs)

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Run the graph; see `Session.run`."""
        values = self._session.run(self._outputs, dict(inputs))
        return dict(zip(self._outputs, values, strict=True))


def _options(options: Any, provider: Provider) -> Any:
    # Parallelism comes from the workers that share a session; threads of its own would fight
    # them, and spinning burns a core while idle.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if provider == "cuda":
        # Without this, a session that can't use the GPU quietly becomes a CPU session.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def check_installation() -> None:
    """Refuse to start with no ONNX Runtime, or with both of its packages.

    Both install into the same folder and the last one wins, so a GPU build can silently be a CPU
    build. Raises StartupError that names the cure.
    """
    installed = [name for name in ("onnxruntime", "onnxruntime-gpu") if _is_installed(name)]
    if not installed:
        raise StartupError(
            "ONNX Runtime is missing; pip install 'genserve[cpu]' or 'genserve[gpu]'"
        )
    if len(installed) == 2:
        raise StartupError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; run "
            "pip uninstall -y onnxruntime onnxruntime-gpu, then install the one you want"
        )


def _is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True
