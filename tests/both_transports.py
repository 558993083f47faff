"""The same request, given as JSON, over either transport; the answer's main array comes back."""

import io
from typing import Any

import httpx
import numpy as np

from service.metrics import Metrics
from service.rpc.pb import generation_service_pb2 as pb
from service.rpc.pb.generation_service_pb2_grpc import GenerationServiceStub


async def ask_rest(client: httpx.AsyncClient, operation: str, body: dict[str, Any]) -> np.ndarray:
    """Return images uint8 [N, H, W, C], vectors or latents float32 or codes int64 [N, D], numbers
    [N] or probabilities [N, K]."""
    headers = {"Accept": "application/x-npy"}
    answer = await client.post(f"/{operation}", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return np.load(io.BytesIO(answer.content), allow_pickle=False)


async def ask_grpc(stub: GenerationServiceStub, operation: str, body: dict[str, Any]) -> np.ndarray:
    """Return what `ask_rest` returns, for the same body."""
    request = getattr(pb, f"{operation.capitalize()}Request")(**to_proto(body))
    answer = await getattr(stub, operation.capitalize())(request)
    if operation == "likelihood":
        return np.array(answer.log_likelihood)
    if operation == "score":
        return np.array(answer.score)
    if operation == "classify":
        return np.array(answer.posterior).reshape(-1, len(answer.class_names))
    if operation == "encode":
        coded = answer.HasField("codes")
        found = answer.codes if coded else answer.latents
        dtype = np.int64 if coded else np.float32
        return np.array(found.values, dtype).reshape(found.count, found.size)
    if operation != "complete" and answer.HasField("vectors"):
        found = answer.vectors
        return np.array(found.values, np.float32).reshape(found.count, found.size)
    images = answer.images
    shape = (images.count, images.height, images.width, images.channels)
    return np.frombuffer(images.levels, np.uint8).reshape(shape)


def counts(metrics: Metrics) -> dict[tuple[str, str, str], float]:
    """Return how many requests were answered, by model, operation and code; no zeros."""
    (family,) = metrics.requests.collect()
    return {
        (sample.labels["model"], sample.labels["operation"], sample.labels["code"]): sample.value
        for sample in family.samples
        if sample.name == "genserve_requests_total" and sample.value
    }


def to_proto(body: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a request's message, of those of its JSON body."""
    fields = dict(body)
    if "images" in fields:
        fields["images"] = _images(fields["images"])
    if "image" in fields:
        fields["image"] = _images([fields["image"]])
    for name, rows in (("latents", pb.Latents), ("codes", pb.Codes), ("vectors", pb.Vectors)):
        if name in fields:
            array = np.array(fields[name])
            count, size = array.shape
            fields[name] = rows(count=count, size=size, values=array.ravel().tolist())
    for name in ("start", "end"):
        if name in fields:
            fields[name] = pb.Endpoint(**fields[name])
    return fields


def _images(levels: list[Any]) -> pb.Images:
    array = np.array(levels, np.uint8)
    sizes = dict(zip(("count", "height", "width", "channels"), array.shape, strict=True))
    return pb.Images(**sizes, levels=array.tobytes())
