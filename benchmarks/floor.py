"""The floor: bare ONNX Runtime on the graph that is served, in a loop, with no server around it."""

import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.machine import core_count

BATCHES = (1, 4, 32)
_PROVIDER = "CPUExecutionProvider"


@dataclass(frozen=True)
class Mode:
    """A way to use all cores: so many runs at a time, each on so many threads, of one session."""

    name: str
    runs: int
    threads: int


ONE_RUN = Mode(f"one run on {core_count()} threads", 1, core_count())
RUN_A_CORE = Mode(f"{core_count()} runs at once, a thread each", core_count(), 1)
MODES = (ONE_RUN, RUN_A_CORE)


@dataclass(frozen=True)
class Setting:
    """How the graph is run."""

    mode: Mode
    batch: int


SETTINGS = tuple(Setting(mode, batch) for mode in MODES for batch in BATCHES)


class Floor:
    """One graph of an artifact, run as fast as it goes, on its own test vectors."""

    def __init__(self, artifact: Path, graph: str) -> None:
        self._sessions = {mode: _open(artifact / f"{graph}.onnx", mode) for mode in MODES}
        prefix = f"{graph}/inputs/"
        with np.load(artifact / "vectors.npz") as vectors:
            self._rows = {
                name.removeprefix(prefix): vectors[name]
                for name in vectors.files
                if name.startswith(prefix)
            }

    def rows_per_second(self, setting: Setting, seconds: float) -> float:
        """Run batches for about `seconds`."""
        mode = setting.mode
        with ThreadPoolExecutor(mode.runs) as pool:
            started = time.perf_counter()
            threads = [
                pool.submit(lambda: sum(1 for _ in self._run_seconds(setting, seconds)))
                for _ in range(mode.runs)
            ]
            runs = sum(thread.result() for thread in threads)
            return setting.batch * runs / (time.perf_counter() - started)

    def find_best(self, passes: int, seconds: float) -> tuple[Setting, dict[Setting, list[float]]]:
        """Return the fastest setting by its median over passes, and rows/s of all settings."""
        rates: dict[Setting, list[float]] = {setting: [] for setting in SETTINGS}
        for _ in range(passes):
            for setting, seen in rates.items():
                seen.append(self.rows_per_second(setting, seconds))
        return max(rates, key=lambda setting: statistics.median(rates[setting])), rates

    def milliseconds(self, seconds: float) -> float:
        """Return the median time of a run of one row, in the faster of the modes."""
        return 1000 * min(
            statistics.median(self._run_seconds(Setting(mode, 1), seconds / len(MODES)))
            for mode in MODES
        )

    def _run_seconds(self, setting: Setting, seconds: float) -> Iterator[float]:
        session = self._sessions[setting.mode]
        inputs = {
            name: np.resize(rows, (setting.batch, *rows.shape[1:]))
            for name, rows in self._rows.items()
        }
        ended = time.perf_counter()
        stop = ended + seconds
        while ended < stop:
            started = ended
            session.run(None, inputs)
            ended = time.perf_counter()
            yield ended - started


def describe() -> str:
    """Return runtime and provider in a few words."""
    return f"ONNX Runtime {onnxruntime.__version__}, {_PROVIDER}"


def _open(path: Path, mode: Mode) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = mode.threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=[_PROVIDER])
