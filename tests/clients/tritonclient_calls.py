"""Unmodified tritonclient against a server; what it got goes to standard output as JSON.

Runs in a virtual environment of its own: `python tritonclient_calls.py HTTP GRPC LATENTS`.
"""

import json
import queue
import sys

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

VAE, PIXELCNN = "mnist-vae.decode", "mnist-pixelcnn.sample"
ASKED = {"seed": 7, "count": 2, "class": 3}


def latents_for(library, latents, **how):
    array = np.array(latents, np.float32)
    tensor = library.InferInput("latent", list(array.shape), "FP32")
    tensor.set_data_from_numpy(array, **how)
    return [tensor]


def decode(clients, latents):
    """Return the output of every way that tensors can go."""
    http, grpc = clients
    numbers = [tritonclient.http.InferRequestedOutput("data", binary_data=False)]
    answers = {
        "http binary": http.infer(
            VAE, latents_for(tritonclient.http, latents), timeout=9_000_000, priority=1
        ),
        "http json": http.infer(
            VAE,
            latents_for(tritonclient.http, latents, binary_data=False),
            model_version="1",
            outputs=numbers,
        ),
        "grpc": grpc.infer(
            VAE, latents_for(tritonclient.grpc, latents), timeout=9_000_000, request_id="mine"
        ),
    }
    return {how: answer.as_numpy("data").tolist() for how, answer in answers.items()}


def stream(grpc):
    """Return the rows of each image as they came, the images, and an error in the same stream."""
    answers = queue.Queue()
    grpc.start_stream(lambda result, error: answers.put((result, error)))
    grpc.async_stream_infer(PIXELCNN, [], parameters=ASKED, enable_empty_final_response=True)
    rows = [[] for _ in range(ASKED["count"])]
    while True:
        result, error = answers.get(timeout=60)
        assert error is None, error
        if result.get_response().parameters["triton_final_response"].bool_param:
            break
        (image,), (first,) = result.as_numpy("image"), result.as_numpy("first_row")
        assert len(rows[image]) == first
        rows[image].extend(result.as_numpy("rows").tolist())
    grpc.async_stream_infer("nothing.decode", [])
    _, error = answers.get(timeout=60)
    grpc.stop_stream()
    return {"rows": rows, "images": result.as_numpy("images").tolist(), "error": error.message()}


def refusals(clients, latents):
    """Return the message and the status of each refusal."""
    http, grpc = clients
    calls = {
        "http model": lambda: http.infer("nothing.decode", latents_for(tritonclient.http, latents)),
        "http version": lambda: http.get_model_metadata(VAE, "9"),
        "http tensor": lambda: http.infer(VAE, latents_for(tritonclient.http, [[1.0]])),
        "http parameter": lambda: http.infer(
            VAE, latents_for(tritonclient.http, latents), parameters={"unknown": 1}
        ),
        "http sequence": lambda: http.infer(
            VAE, latents_for(tritonclient.http, latents), sequence_id=1
        ),
        "grpc tensor": lambda: grpc.infer(VAE, latents_for(tritonclient.grpc, [[1.0]])),
        "grpc version": lambda: grpc.get_model_config(VAE, "9"),
    }
    found = {}
    for name, call in calls.items():
        try:
            call()
        except InferenceServerException as error:
            found[name] = [error.status(), error.message()]
    return found


def describe(clients):
    """Return what both say of the server and of its models."""
    http, grpc = clients
    return {
        "up": [
            call
            for client in clients
            for call in (
                client.is_server_live(),
                client.is_server_ready(),
                client.is_model_ready(VAE),
                client.is_model_ready(VAE, "1"),
            )
        ],
        "servers": [http.get_server_metadata()["name"], grpc.get_server_metadata().name],
        "inputs": [
            http.get_model_metadata(VAE)["inputs"][0]["shape"],
            list(grpc.get_model_metadata(VAE).inputs[0].shape),
        ],
        "decoupled": [
            http.get_model_config(PIXELCNN)["model_transaction_policy"]["decoupled"],
            grpc.get_model_config(PIXELCNN).config.model_transaction_policy.decoupled,
        ],
        "statistics": [
            http.get_inference_statistics(VAE)["model_stats"][0]["name"],
            grpc.get_inference_statistics(VAE).model_stats[0].name,
        ],
        "index": [
            [model["name"] for model in http.get_model_repository_index()],
            [model.name for model in grpc.get_model_repository_index().models],
        ],
    }


def fields():
    """Return number, type and label of the fields of every message, by full name."""
    found = {}

    def visit(message):
        for field in message.fields:
            name = f"{message.full_name}.{field.name}"
            found[name] = [field.number, field.type, field.is_repeated]
        for nested in message.nested_types:
            visit(nested)

    for file in (service_pb2.DESCRIPTOR, service_pb2.model__config__pb2.DESCRIPTOR):
        for message in file.message_types_by_name.values():
            visit(message)
    return found


def main():
    clients = (
        tritonclient.http.InferenceServerClient(sys.argv[1]),
        tritonclient.grpc.InferenceServerClient(sys.argv[2]),
    )
    latents = json.loads(sys.argv[3])
    sampled = clients[0].infer(PIXELCNN, [], parameters=ASKED).as_numpy("images").tolist()
    found = {
        "described": describe(clients),
        "decoded": decode(clients, latents),
        "streamed": stream(clients[1]),
        "sampled": sampled,
        "refused": refusals(clients, latents),
        "fields": fields(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
