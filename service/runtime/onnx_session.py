"""ONNX Runtime sessions. The only file that imports onnxruntime."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from service.errors import ArtifactError, StartupError
from service.runtime.session import Arrays, Session

Provider = Literal["cpu", "cuda"]

_PROVIDER_NAMES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxSession:
    """One graph, run on one thread by each caller."""

    def __init__(self, path: Path, provider: Provider) -> None:
        import onnxruntime  # here, so that `check_installation` can speak first

        options = onnxruntime.SessionOptions()
        # Parallelism comes from the workers that share a session; threads of its own would fight
        # them, and spinning burns a core while idle.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if provider == "cuda":
            # Without this, a session that can't use the GPU quietly becomes a CPU session.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        name = _PROVIDER_NAMES[provider]
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=[name])
        except Exception as error:  # the runtime's own exceptions share no base class
            raise ArtifactError(f"{path}: can't be loaded on {provider}: {error}") from error
        if self._session.get_providers()[0] != name:
            raise ArtifactError(f"{path}: {provider} was asked for and is not used")
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Run the graph; see `Session.run`."""
        values = self._session.run(self._outputs, dict(inputs))
        return dict(zip(self._outputs, values, strict=True))


def open_onnx_session(path: Path, provider: Provider) -> Session:
    """Load an ONNX graph on one provider. Raises ArtifactError where that can't be done."""
    return OnnxSession(path, provider)


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
