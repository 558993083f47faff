"""The contract of an artifact: every operation that its manifest offers, over both transports."""

from typing import Any

import httpx
import numpy as np

from service.core.manifest import Manifest
from service.rpc.pb.generation_service_pb2_grpc import GenerationServiceStub
from tests.both_transports import ask_grpc, ask_rest

ROWS = 3


async def check_operation(
    manifest: Manifest, operation: str, client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    """Ask for three rows; both transports must give the same, finite and of the right shape."""
    request = request_for(manifest, operation)
    rest = await ask_rest(client, operation, request)
    grpc = await ask_grpc(stub, operation, request)
    assert rest.dtype == grpc.dtype and np.array_equal(rest, grpc)
    assert len(rest) == ROWS
    assert np.all(np.isfinite(rest))
    if operation in ("sample", "decode", "reconstruct", "interpolate", "complete"):
        kind = np.uint8 if manifest.event.kind == "image" else np.float32
        assert rest.shape == (ROWS, *manifest.event.shape) and rest.dtype == kind


def request_for(manifest: Manifest, operation: str) -> dict[str, Any]:
    """Return a request for three rows, as JSON."""
    bodies: dict[str, dict[str, Any]] = {
        "sample": {"count": ROWS},
        "decode": latents_or_codes(manifest),
        "interpolate": {"start": {"seed": 1}, "end": {"seed": 2}, "steps": ROWS},
    }
    if operation == "complete":
        body: dict[str, Any] = {"image": pictures(manifest)[0], "prefix_rows": 4, "count": ROWS}
    else:
        body = bodies.get(operation) or images_or_vectors(manifest)
    if operation == "score" and manifest.condition:
        body["class_label"] = [0, 2, 1]
    if operation not in ("encode", "likelihood", "score", "classify"):
        body["seed"] = 5
    return {"model": manifest.name, **body}


def latents_or_codes(manifest: Manifest) -> dict[str, Any]:
    """Return three rows of what a model decodes, by the name of their field."""
    draws = np.random.default_rng(2)
    if manifest.codes:
        parts = [
            draws.integers(each.levels, size=(ROWS, each.size)) for each in manifest.codes.maps
        ]
        return {"codes": np.hstack(parts).tolist()}
    if manifest.latent:
        return {"latents": draws.normal(size=(ROWS, *manifest.latent.shape)).round(3).tolist()}
    return {}


def images_or_vectors(manifest: Manifest) -> dict[str, Any]:
    """Return three of what it is a model of, by the name of their field."""
    if manifest.event.kind == "vector":
        draws = np.random.default_rng(1).normal(size=(ROWS, *manifest.event.shape))
        return {"vectors": draws.round(3).tolist()}
    return {"images": pictures(manifest)}


def pictures(manifest: Manifest) -> list[Any]:
    """Return three black and white images: the levels that every model takes."""
    bits = np.random.default_rng(1).integers(0, 2, (ROWS, *manifest.event.shape))
    return ((manifest.event.levels - 1) * bits).tolist()
