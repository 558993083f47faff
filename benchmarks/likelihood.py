"""`make bench TARGET=likelihood`: what scoring images costs, beside bare ONNX Runtime and FastAPI.

It writes benchmarks/results/likelihood.md in under three minutes, and refuses to run beside other
load.
"""

import base64
import io
import json
from contextlib import ExitStack

import numpy as np

from benchmarks import machine, pages
from benchmarks.exports import ARTIFACTS
from benchmarks.floor import Floor
from benchmarks.load import JSON, NPY, GrpcRequest, RestRequest, describe_clients, post
from benchmarks.pages import Target
from benchmarks.plain import VARIANTS, Plain, running_plain
from benchmarks.processes import ServerFailed
from benchmarks.server import Server, running_server
from benchmarks.side_by_side import (
    OVER_PLAIN,
    SHARE,
    Case,
    Comparison,
    case_table,
    compare,
    explain,
    floor_table,
    grpc_case,
    over_plain,
    rest_case,
    tail,
)
from service.images import levels_to_png
from service.rpc.pb import generation_service_pb2 as pb

MODEL = "mnist-pixelcnn"
IMAGES = 4
"""Images a request."""

ROUNDS = 3
SECONDS = 3
LIKELIHOODS = {"model": MODEL, "return": ["log_likelihood"]}
PARAMETERS = f"?model={MODEL}&return=log_likelihood"
REST, PNG, ARRAYS = "REST, npy both ways", "REST, JSON with PNG", "REST, JSON with arrays"
SCORES, GRPC = "REST, JSON with PNG, anomaly scores too", "gRPC"


def measure() -> None:
    """Run everything and write it down. Raises OtherLoad, writing nothing, if others joined."""
    work, clients = machine.OtherWork(), describe_clients()
    artifact = ARTIFACTS / MODEL / "1"
    floor = Floor(artifact, "log_likelihood")
    with ExitStack() as stack:
        service = stack.enter_context(running_server(default_models=MODEL))
        plain = [stack.enter_context(running_plain(variant, [artifact])) for variant in VARIANTS]
        check_answers(service, plain)
        comparison = compare(floor, cases(service, plain), IMAGES, ROUNDS)
    parts = [
        f"# What scoring images costs\n\n{pages.head('likelihood')}",
        f"{IMAGES} images a request, scored by `{MODEL}`: its exact log-likelihood, one run of one "
        f"graph.\n{explain(clients, ROUNDS)}",
        "## Targets\n\nAs for samples of the medium generator.\n",
        pages.target_table(targets(comparison)),
        f"## Measured\n\n{floor_table(comparison)}\n{case_table(comparison)}",
        f"*{SCORES}* runs a second graph and packs each image as a PNG: it is no share of the same "
        f"work.\n\nOther processes: {machine.refuse_other_work(work):.2f} cores meanwhile.\n",
    ]
    pages.write("likelihood", "\n".join(parts))


def make_images() -> np.ndarray:
    """Return soft discs, levels [IMAGES, 28, 28, 1]: smooth, as what is scored is."""
    y, x = np.mgrid[0:28, 0:28]
    radius = np.arange(4, 4 + IMAGES).reshape(-1, 1, 1)
    brightness = np.exp(-((y - 14) ** 2 + (x - 13) ** 2) / radius**2)
    return np.rint(255 * brightness).astype(np.uint8)[..., None]


def npy_request() -> RestRequest:
    """Return the images as npy, to be answered as npy; the plain app reads it too."""
    file = io.BytesIO()
    np.save(file, make_images())
    return RestRequest(f"/likelihood{PARAMETERS}", file.getvalue(), NPY, NPY)


def json_request(images: object, **fields: object) -> RestRequest:
    """Return images in JSON, to be answered in JSON."""
    body = json.dumps({**LIKELIHOODS, "images": images, **fields})
    return RestRequest("/likelihood", body.encode(), JSON)


def png_images() -> list[str]:
    """Return each image as base64 PNG."""
    return [base64.b64encode(levels_to_png(image, 256)).decode() for image in make_images()]


def grpc_request() -> GrpcRequest:
    """Return the images as levels."""
    images = make_images()
    count, height, width, channels = images.shape
    message = pb.LikelihoodRequest(
        model=MODEL,
        images=pb.Images(
            count=count, height=height, width=width, channels=channels, levels=images.tobytes()
        ),
        returns=[pb.LIKELIHOOD_PART_LOG_LIKELIHOOD],
    )
    return GrpcRequest("Likelihood", message.SerializeToString())


def check_answers(service: Server, plain: list[Plain]) -> None:
    """Ask each once, so that nothing wrong is timed: they agree. Raises ServerFailed."""
    scores = [np.load(io.BytesIO(post(one.http_port, npy_request()))) for one in (service, *plain)]
    for other in scores[1:]:
        if other.shape != (IMAGES,) or not np.allclose(other, scores[0], rtol=1e-4):
            raise ServerFailed(f"the same images scored {scores[0]} and {other}")


def cases(service: Server, plain: list[Plain]) -> list[Case]:
    """Return the loads, those to be compared with each other side by side."""
    pictures = png_images()
    forms = {
        REST: npy_request(),
        PNG: json_request(pictures),
        ARRAYS: json_request(make_images().tolist()),
        SCORES: json_request(pictures, **{"return": ["log_likelihood", "scores"]}),
    }
    made = [rest_case(name, service, forms[name], 32, SECONDS) for name in forms]
    made.append(grpc_case(GRPC, service, grpc_request(), 32, SECONDS))
    made += [rest_case(one.variant.name, one, forms[REST], 32, SECONDS) for one in plain]
    for number in (8, 1):
        made.append(rest_case(REST, service, forms[REST], number, SECONDS))
    made.append(grpc_case(GRPC, service, grpc_request(), 1, SECONDS))
    return made


def targets(comparison: Comparison) -> list[Target]:
    """Return what was measured beside what it is to be."""
    rest = comparison.case(REST, 32)
    return [
        Target(f"32 connections, {SHARE}", rest.share, 0.96),
        Target(f"8 connections, {SHARE}", comparison.case(REST, 8).share, 0.80),
        Target(f"1 connection, {SHARE}", comparison.case(REST, 1).share, 0.62),
        Target(f"32 connections, JSON with PNG, {SHARE}", comparison.case(PNG, 32).share, 0.75),
        Target(f"32 connections, JSON arrays, {SHARE}", comparison.case(ARRAYS, 32).share, 0.75),
        Target(f"32 connections, {OVER_PLAIN}", over_plain(rest, comparison.cases), 1.2),
        Target("32 connections, p99 / p50", tail(rest), 1.5, at_least=False),
        Target("gRPC over REST at 32", comparison.case(GRPC, 32).share / rest.share, 0.85),
    ]
