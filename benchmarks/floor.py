"""The floor: bare ONNX Runtime on the graph that is served, in a loop, with no server around it.

One single-thread session shared by one Python thread a core, which is the fastest way to use the
cores that we know of (`run` releases the GIL), and the way that the server runs graphs.
"""

import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime

from benchmarks.machine import core_count
from benchmarks.requests import MODEL
from benchmarks.server import ROOT

_GRAPH = ROOT / "artifacts" / MODEL.replace("@", "/") / "decode.onnx"
_PROVIDER = "CPUExecutionProvider"


class Floor:
    """The small generator, run as fast as it goes."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(_GRAPH, options, providers=[_PROVIDER])

    def images_per_second(self, batch: int, seconds: float) -> float:
        """Run batches on one thread a core for about `seconds`."""
        with ThreadPoolExecutor(core_count()) as pool:
            started = time.perf_counter()
            threads = [
                pool.submit(lambda: sum(1 for _ in self._run_seconds(batch, seconds)))
                for _ in range(core_count())
            ]
            runs = sum(thread.result() for thread in threads)
            return batch * runs / (time.perf_counter() - started)

    def median_milliseconds(self, batch: int, seconds: float) -> float:
        """Return the median time of one run, on one thread."""
        return 1000 * statistics.median(self._run_seconds(batch, seconds))

    def describe(self) -> str:
        """Return runtime and provider in a few words."""
        return f"ONNX Runtime {onnxruntime.__version__}, {self._session.get_providers()[0]}"

    def _run_seconds(self, batch: int, seconds: float) -> Iterator[float]:
        inputs = self._draw_inputs(batch)
        ended = time.perf_counter()
        stop = ended + seconds
        while ended < stop:
            started = ended
            self._session.run(None, inputs)
            ended = time.perf_counter()
            yield ended - started

    def _draw_inputs(self, batch: int) -> dict[str, np.ndarray]:
        generator = np.random.default_rng(1)
        return {
            port.name: generator.standard_normal((batch, *port.shape[1:]), np.float32)
            for port in self._session.get_inputs()
        }
