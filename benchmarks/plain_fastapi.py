"""The opponent in serving: a plain FastAPI app that runs the session once for each request.

It is what one writes in an afternoon: a pydantic body, a `def` endpoint on the framework's thread
pool, numpy in between. It checks less than the service, draws with numpy's own generator, and knows
no batches. What to serve is in the environment: PLAIN_ARTIFACTS, folders of artifacts joined by
':', and PLAIN_THREADS, those of a session, 0 for the runtime's default.
"""

import io
import os
from pathlib import Path

import numpy as np
import onnxruntime
from fastapi import Body, FastAPI, Response
from pydantic import BaseModel, Field

from benchmarks.generators import LATENT_SIZE

NPY = "application/x-npy"


class SampleRequest(BaseModel):
    """What the benchmark asks of the service too."""

    model: str
    count: int = Field(1, ge=1, le=256)
    seed: int = 0


def open_sessions() -> dict[str, onnxruntime.InferenceSession]:
    """Return the session of each model, by its name."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ["PLAIN_THREADS"])
    sessions = {}
    for folder in map(Path, os.environ["PLAIN_ARTIFACTS"].split(":")):
        for graph in ("decode", "log_likelihood"):
            if (path := folder / f"{graph}.onnx").exists():
                sessions[folder.parent.name] = onnxruntime.InferenceSession(path, options)
    return sessions


app, sessions = FastAPI(), open_sessions()


@app.post("/sample")
def sample(request: SampleRequest) -> Response:
    """Draw images: uint8 [count, height, width, channels]."""
    generator = np.random.default_rng(request.seed)
    latent = generator.standard_normal((request.count, LATENT_SIZE), np.float32)
    (images,) = sessions[request.model].run(["images"], {"latent": latent})
    # [N, C, H, W] in [-1, 1] -> levels [N, H, W, C]
    return to_npy(np.rint((images + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1))


@app.post("/likelihood")
def likelihood(model: str, content: bytes = Body(media_type=NPY)) -> Response:
    """Score images, uint8 [N, height, width, channels], without a class: float64 [N], nats."""
    levels = np.load(io.BytesIO(content))
    inputs = {
        "data": levels.transpose(0, 3, 1, 2).astype(np.float32),
        "class_weights": np.zeros((len(levels), 10), np.float32),
    }
    (scores,) = sessions[model].run(["log_likelihood"], inputs)
    return to_npy(scores.astype(np.float64))


def to_npy(array: np.ndarray) -> Response:
    """Return an array as the body of an answer."""
    file = io.BytesIO()
    np.save(file, array)
    return Response(file.getvalue(), media_type=NPY)
