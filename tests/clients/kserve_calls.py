"""KServe's unmodified clients against a server; what they got goes to standard output as JSON.

Runs in a virtual environment of its own: `python kserve_calls.py HTTP GRPC LATENTS`.
"""

import asyncio
import json
import sys

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

VAE = "mnist-vae.decode"


def request_for(latents, *, binary):
    array = np.array(latents, np.float32)
    tensor = InferInput("latent", list(array.shape), "FP32")
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


async def main():
    url = f"http://{sys.argv[1]}"
    rest, grpc = InferenceRESTClient(RESTConfig(protocol="v2")), InferenceGRPCClient(sys.argv[2])
    latents = json.loads(sys.argv[3])
    up = [
        await rest.is_server_live(url),
        await rest.is_server_ready(url),
        await rest.is_model_ready(url, VAE),
        await grpc.is_server_live(),
        await grpc.is_server_ready(),
        await grpc.is_model_ready(VAE),
    ]
    in_json = InferRequest(VAE, [request_for(latents, binary=False)])
    in_bytes = InferRequest(
        VAE, [request_for(latents, binary=True)], parameters={"binary_data_output": True}
    )
    over_grpc = InferRequest(VAE, [request_for(latents, binary=True)])
    answers = {
        "rest json": await rest.infer(url, in_json, model_name=VAE),
        "rest binary": await rest.infer(url, in_bytes, model_name=VAE),
        "grpc": await grpc.infer(over_grpc),
    }
    decoded = {how: answer.outputs[0].as_numpy().tolist() for how, answer in answers.items()}
    try:
        await rest.infer(url, InferRequest(VAE, []), model_name=VAE)
    except Exception as error:
        refused = str(error)
    await grpc.close()
    print(json.dumps({"up": up, "decoded": decoded, "refused": refused}))


if __name__ == "__main__":
    asyncio.run(main())
