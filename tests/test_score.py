"""The score operation: what a discriminator says, and which way up, over both transports."""

from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from export import export_artifact
from model_zoo.cards import LATENT_CONTROLS, class_condition, image_event, image_preprocess
from model_zoo.family import Card, Graph, Port
from service.core.manifest import read_manifest
from service.errors import ArtifactError
from service.rpc.pb import generation_service_pb2 as pb
from service.rpc.pb.generation_service_pb2_grpc import GenerationServiceStub
from service.settings import Settings
from tests.both_transports import ask_rest, to_proto

SIDE, CLASSES = 4, 3
SHAPE = (1, SIDE, SIDE)
MEANING = {"higher_means": "less_real", "unit": "grey", "meaning": "mean of x, less the class"}
DATA, SCORE = Port("data", "data", SHAPE), Port("score", "score", ())
LATENT, CLASS = Port("latent", "latent", (2,)), Port("class_weights", "condition", (CLASSES,))


class Blank(nn.Module):
    """Any latent to a blank image: what decodes is of no interest here."""

    def forward(self, latent: Tensor) -> Tensor:
        return (0 * latent.sum(dim=1)).reshape(-1, 1, 1, 1).expand(-1, *SHAPE)


class MeanLessClass(nn.Module):
    """The mean of an image, less the number of its class."""

    def forward(self, data: Tensor, class_weights: Tensor | None = None) -> Tensor:
        mean = data.flatten(1).mean(dim=1)
        if class_weights is None:
            return mean
        return mean - (class_weights * torch.arange(CLASSES)).sum(dim=1)


def write(
    folder: Path,
    name: str,
    *,
    classes: bool = False,
    optional: bool = False,
    judged: bool = True,
    meaning: dict[str, str] = MEANING,
) -> Path:
    """Export a model whose critic is told the class where there are some and it is `judged`."""
    inputs = (DATA, CLASS) if classes and judged else (DATA,)
    card = Card(
        family="toy critic",
        event=image_event(SHAPE),
        preprocess=image_preprocess(0.0, 1.0),
        latent={"shape": [2], "prior": "standard_normal"},
        condition=class_condition(CLASSES, optional) if classes else None,
        controls=LATENT_CONTROLS,
        operations={"sample": {}, "score": meaning},
    )
    return export_artifact(
        folder,
        name=name,
        version="1",
        card=card,
        graphs=(
            Graph("decode", Blank(), (LATENT,), (DATA,)),
            Graph("score", MeanLessClass(), inputs, (SCORE,)),
        ),
        licence="Apache-2.0",
    )


@pytest.fixture(scope="session")
def critics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("critics")
    write(folder, "plain")
    write(folder, "told", classes=True)
    write(folder, "free", classes=True, optional=True)
    write(folder, "untold", classes=True, judged=False)
    return folder


@pytest.fixture
def settings(critics: Path) -> Settings:
    return Settings(model_repository=critics, default_models=("plain", "told"), workers=1)


def pictures() -> np.ndarray:
    """Levels of which the means are 0, 51 and 255."""
    means = np.array([0, 51, 255], np.uint8).reshape(3, 1, 1, 1)
    return np.broadcast_to(means, (3, SIDE, SIDE, 1))


async def ask(client: httpx.AsyncClient, **fields: object) -> httpx.Response:
    return await client.post("/score", json={"images": pictures().tolist(), **fields})


async def test_scores_come_with_what_they_mean(client: httpx.AsyncClient) -> None:
    answer = (await ask(client)).json()
    assert answer["score"] == pytest.approx([0.0, 0.2, 1.0], abs=1e-6)
    assert {name: answer[name] for name in MEANING} == MEANING
    assert (answer["model"], answer["conditioning"]) == ("plain@1", "none")


async def test_both_transports_say_the_same(
    client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    body = {"model": "told", "images": pictures().tolist(), "class_label": [0, 1, 2]}
    over_rest = (await client.post("/score", json=body)).json()
    over_grpc = await stub.Score(pb.ScoreRequest(**to_proto(body)))
    assert over_rest["score"] == list(over_grpc.score)
    assert over_rest["score"] == pytest.approx([0.0, -0.8, -1.0], abs=1e-6)
    for name in ("model", "artifact_digest", "noise_scheme", "seed", "unit", "meaning"):
        assert over_rest[name] == getattr(over_grpc, name), name
    assert over_grpc.higher_means == pb.HIGHER_MEANS_LESS_REAL
    assert over_grpc.conditioning == pb.CONDITIONING_GIVEN
    assert over_rest["conditioning"] == "given"


async def test_npy_holds_the_scores_and_the_headers_what_they_mean(
    client: httpx.AsyncClient,
) -> None:
    body = {"images": pictures().tolist()}
    assert await ask_rest(client, "score", body) == pytest.approx([0.0, 0.2, 1.0], abs=1e-6)
    answer = await client.post("/score", json=body, headers={"Accept": "application/x-npy"})
    assert answer.headers["X-Genserve-Higher-Means"] == "less_real"
    assert answer.headers["X-Genserve-Meaning"] == "mean of x, less the class"
    png = await client.post("/score", json=body, headers={"Accept": "image/png"})
    assert (png.status_code, png.json()["reason"]) == (406, "NOT_ACCEPTABLE")


async def test_a_critic_that_did_without_a_class_may_be_told_none(
    client: httpx.AsyncClient,
) -> None:
    answer = (await ask(client, model="free")).json()
    assert answer["conditioning"] == "none"
    assert answer["score"] == pytest.approx([0.0, 0.2, 1.0], abs=1e-6)


@pytest.mark.parametrize(
    ("fields", "reason", "says"),
    [
        ({"model": "told"}, "CONDITION_REQUIRED", "give class_label"),
        ({"model": "plain", "class_label": 1}, "CONDITION_NOT_OFFERED", "without a condition"),
        ({"model": "untold", "class_label": 1}, "CONDITION_NOT_OFFERED", "without a condition"),
        ({"model": "told", "class_label": 3}, "OUT_OF_RANGE", "0 to 2"),
        ({"model": "plain", "images": []}, "OUT_OF_RANGE", "1 to"),
        ({"model": "plain", "seed": 1}, "INVALID_REQUEST", "unknown field 'seed'"),
    ],
)
async def test_what_can_t_be_scored_is_refused_by_name(
    client: httpx.AsyncClient, fields: dict[str, object], reason: str, says: str
) -> None:
    answer = await ask(client, **fields)
    assert (answer.status_code, answer.json()["reason"]) == (422, reason)
    assert says in answer.json()["detail"]


@pytest.mark.parametrize("missing", sorted(MEANING))
def test_a_manifest_that_leaves_out_what_a_score_means_is_refused(
    tmp_path: Path, missing: str
) -> None:
    meaning = {name: said for name, said in MEANING.items() if name != missing}
    folder = write(tmp_path, "vague", meaning=meaning)
    with pytest.raises(ArtifactError, match=rf"'score' must state \['{missing}'\]"):
        read_manifest(folder)
