"""Unmodified tritonclient loads and unloads models; what it saw goes to standard output as JSON.

Runs in a virtual environment of its own: `python tritonclient_repository.py HTTP GRPC KEY`.
"""

import json
import sys

import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

VAE, DECODE = "mnist-vae", "mnist-vae.decode"


def administer(client, headers):
    """Return whether a model was ready after each step, and why others were refused."""
    ready = [client.is_model_ready(DECODE, headers=headers)]
    for step, name in (
        (client.unload_model, VAE),
        (client.load_model, VAE),
        (client.unload_model, VAE),
        (client.load_model, DECODE),
    ):
        step(name, headers=headers)
        ready.append(client.is_model_ready(DECODE, headers=headers))
    calls = {
        "unload of a graph": lambda: client.unload_model(DECODE, headers=headers),
        "config": lambda: client.load_model(VAE, headers=headers, config="{}"),
        "no key": lambda: client.load_model(VAE),
    }
    refused = {}
    for name, call in calls.items():
        try:
            call()
        except InferenceServerException as error:
            refused[name] = error.message()
    return {"ready": ready, "refused": refused}


def main():
    headers = {"authorization": f"Bearer {sys.argv[3]}"}
    http = tritonclient.http.InferenceServerClient(sys.argv[1])
    grpc = tritonclient.grpc.InferenceServerClient(sys.argv[2])
    print(json.dumps({"http": administer(http, headers), "grpc": administer(grpc, headers)}))


if __name__ == "__main__":
    main()
