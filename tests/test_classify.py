"""The classify operation: Bayes over the likelihoods given each class, over both transports."""

from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from export import export_artifact
from model_zoo.autoregressive.gated_pixelcnn import GatedPixelCNN
from service.core.manifest import read_manifest
from service.errors import ArtifactError
from service.rpc.pb import generation_service_pb2 as pb
from service.rpc.pb.generation_service_pb2_grpc import GenerationServiceStub
from service.settings import Settings
from tests.both_transports import ask_rest, to_proto

SIDE, CLASSES = 6, 3
PRIOR = [0.5, 0.3, 0.2]


def write(folder: Path, name: str, **changes: object) -> Path:
    """Export a tiny PixelCNN whose classes differ, and are not equally likely."""
    torch.manual_seed(0)
    model = GatedPixelCNN((1, SIDE, SIDE), CLASSES, layers=1, channels=4, head_width=8).eval()
    with torch.no_grad():
        for parameter in (*model.head.parameters(), model.layers[0].condition.weight):
            parameter *= 2
    card = model.card()
    assert card.condition is not None
    card = replace(card, condition={**card.condition, "prior": PRIOR})
    return export_artifact(
        folder,
        name=name,
        version="1",
        card=replace(card, **changes),
        graphs=model.graphs(),
        licence="Apache-2.0",
    )


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classified")
    write(folder, "classes")
    write(folder, "no-operation", operations={"likelihood": CARD_LIKELIHOOD})
    return folder


CARD_LIKELIHOOD = GatedPixelCNN(layers=1).card().operations["likelihood"]


@pytest.fixture
def settings(models: Path) -> Settings:
    return Settings(
        model_repository=models, default_models=("classes",), workers=1, maximum_queued_rows=60
    )


def pictures() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (5, SIDE, SIDE, 1), np.uint8)


async def ask(client: httpx.AsyncClient, **fields: object) -> httpx.Response:
    return await client.post("/classify", json={"images": pictures().tolist(), **fields})


async def test_the_posterior_is_that_of_likelihoods_given_each_class(
    client: httpx.AsyncClient,
) -> None:
    images = pictures().tolist()
    given = [
        await ask_rest(client, "likelihood", {"images": images, "class_label": label})
        for label in range(CLASSES)
    ]
    joint = np.stack(given, axis=1) + np.log(PRIOR)
    total = np.logaddexp.reduce(joint, axis=1)
    answer = (await ask(client)).json()
    np.testing.assert_allclose(answer["posterior"], np.exp(joint - total[:, None]), atol=1e-6)
    np.testing.assert_allclose(answer["log_likelihood"], total, rtol=1e-6)
    assert np.sum(answer["posterior"], axis=1) == pytest.approx(np.ones(5))
    assert answer["class_label"] == joint.argmax(axis=1).tolist()
    assert len(set(answer["class_label"])) > 1, "or nothing is told apart"
    assert answer["class_names"] == ["0", "1", "2"]
    assert (answer["kind"], answer["estimator"], answer["draws"]) == ("exact", "exact", 1)


async def test_both_transports_say_the_same(
    client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    body = {"images": pictures().tolist(), "seed": 7}
    over_rest = (await client.post("/classify", json=body)).json()
    over_grpc = await stub.Classify(pb.ClassifyRequest(**to_proto(body)))
    assert np.ravel(over_rest["posterior"]).tolist() == list(over_grpc.posterior)
    for name in ("model", "artifact_digest", "seed", "estimator", "draws"):
        assert over_rest[name] == getattr(over_grpc, name), name
    for name in ("class_label", "class_names", "log_likelihood"):
        assert over_rest[name] == list(getattr(over_grpc, name)), name
    assert over_grpc.kind == pb.LIKELIHOOD_KIND_EXACT


async def test_npy_holds_the_posterior_and_the_headers_the_classes(
    client: httpx.AsyncClient,
) -> None:
    answer = await client.post(
        "/classify", json={"images": pictures().tolist()}, headers={"Accept": "application/x-npy"}
    )
    labels = (await ask(client)).json()["class_label"]
    assert answer.headers["X-Genserve-Class-Label"] == ",".join(map(str, labels))
    assert (await ask_rest(client, "classify", {"images": pictures().tolist()})).shape == (5, 3)


@pytest.mark.parametrize(
    ("fields", "status", "reason", "says"),
    [
        ({"images": 21 * [pictures()[0].tolist()]}, 422, "OUT_OF_RANGE", "times 3 classes"),
        ({"images": []}, 422, "OUT_OF_RANGE", "1 to"),
        ({"class_label": 1}, 422, "INVALID_REQUEST", "unknown field 'class_label'"),
        ({"model": "no-operation"}, 422, "OPERATION_NOT_OFFERED", "likelihood"),
    ],
)
async def test_what_can_t_be_classified_is_refused_by_name(
    client: httpx.AsyncClient, fields: dict[str, object], status: int, reason: str, says: str
) -> None:
    answer = await ask(client, **fields)
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)
    assert says in answer.text


def test_a_manifest_without_likelihoods_offers_no_classes(tmp_path: Path) -> None:
    folder = write(tmp_path, "vague", operations={"classify": {}})
    with pytest.raises(ArtifactError, match="'classify' needs an operation 'likelihood'"):
        read_manifest(folder)
