"""Codes and fitted priors: what is drawn, encoded and decoded, alike over both transports."""

import io
import itertools
import json
import re
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import onnxruntime
import pytest
import torch
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status
from pydantic import ValidationError
from scipy.stats import chisquare
from sklearn.mixture import GaussianMixture
from torch import Tensor

from export import export_artifact
from model_zoo.autoencoders.ae import Autoencoder
from model_zoo.autoencoders.autoencoder_layers import bernoulli_log_mass
from model_zoo.autoencoders.vq_vae import VectorQuantisedAutoencoder
from model_zoo.autoencoders.vq_vae_2 import HierarchicalVectorQuantisedAutoencoder
from model_zoo.family import Batch, Family
from model_zoo.scan import Scans
from service.core import noise
from service.core.manifest import Manifest
from service.rpc.pb import generation_service_pb2 as pb
from service.rpc.pb.generation_service_pb2_grpc import GenerationServiceStub
from service.settings import Settings
from tests.both_transports import ask_grpc, ask_rest, to_proto

SIDE, LEVELS, CODES, CLASSES = 8, 3, 4, 2
MAPS = torch.tensor(list(itertools.product(range(LEVELS), repeat=CODES)))
"""Every map of 2x2 codes, [81, 4]."""


def vector_quantised() -> VectorQuantisedAutoencoder:
    """The smallest model: few enough codes to sum over every map of them."""
    torch.manual_seed(0)
    model = VectorQuantisedAutoencoder(
        (1, SIDE, SIDE),
        classes=CLASSES,
        levels=LEVELS,
        code_size=2,
        width=4,
        prior_layers=2,
        prior_channels=4,
    )
    with torch.no_grad():
        model.codebook.vectors.copy_(torch.tensor([[0.1, 0.0], [0.0, 0.1], [-0.1, -0.1]]))
        for parameter in (*model.prior.head.parameters(), *model.decoder.parameters()):
            parameter *= 1.5  # fresh heads are nearly uniform and would prove little
    return model.eval().requires_grad_(False)


def fitted_autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    model = Autoencoder(
        (1, SIDE, SIDE), latent_size=2, width=4, residual_blocks=1, components=3
    ).eval()
    with torch.no_grad():
        model.encoder[-1].weight *= 20  # latents about one apart
    images = torch.randint(0, 256, (500, 1, SIDE, SIDE), generator=generator()).float()
    model.conclude(Batch(images, torch.zeros(500)), generator())
    return model


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codes")
    models: dict[str, Family] = {"tiny-vq": vector_quantised(), "tiny-ae": fitted_autoencoder()}
    for name, model in models.items():
        export_artifact(
            folder,
            name=name,
            version="1",
            card=model.card(),
            graphs=model.graphs(),
            licence="Apache-2.0",
        )
    return folder


@pytest.fixture
def settings(repository: Path) -> Settings:
    return Settings(
        model_repository=repository, default_models=("tiny-vq", "tiny-ae"), maximum_count=32
    )


def pictures(count: int = 3) -> Tensor:
    bits = torch.rand(count, 1, SIDE, SIDE, generator=generator(1)) < 0.5
    return bits.float()


def as_levels(x: Tensor) -> list[Any]:
    return (255 * x).permute(0, 2, 3, 1).int().tolist()


# The distributions


@pytest.mark.parametrize("weights", [(0.0, 0.0), (1.0, 0.0), (0.5, 0.5)])
def test_probabilities_of_all_maps_of_codes_sum_to_one(weights: tuple[float, ...]) -> None:
    assert prior_of_every_map(vector_quantised(), weights).sum().item() == pytest.approx(1, 1e-5)


def prior_of_every_map(model: VectorQuantisedAutoencoder, weights: tuple[float, ...]) -> Tensor:
    condition = torch.tensor(weights).expand(len(MAPS), CLASSES)
    return model.log_prior(MAPS, condition).exp()


def test_the_graph_draws_codes_by_their_probabilities(repository: Path) -> None:
    rows, weights = 100_000, (0.0, 1.0)
    seeds, items = np.full(rows, 3, np.uint64), np.arange(rows, dtype=np.uint64)
    session = onnxruntime.InferenceSession(repository / "tiny-vq" / "1" / "prior.onnx")
    (codes,) = session.run(
        None,
        {
            "uniform": noise.to_float32(noise.uniform(seeds, "codes", items, CODES)),
            "temperature": np.ones(rows, np.float32),
            "class_weights": np.tile(np.array(weights, np.float32), (rows, 1)),
        },
    )
    number = codes @ LEVELS ** np.arange(CODES)[::-1]
    counts = np.bincount(number, minlength=len(MAPS))
    probabilities = prior_of_every_map(vector_quantised(), weights).double().numpy()
    expected = rows * probabilities / probabilities.sum()
    assert expected.min() > 20
    assert chisquare(counts, expected).pvalue > 0.01
    # It would tell them from a distribution that differs by 2 % in total variation.
    other = expected * np.where(np.arange(len(MAPS)) % 2, 1.04, 0.96)
    other *= rows / other.sum()
    assert 0.018 < np.abs(other - expected).sum() / (2 * rows) < 0.022
    assert chisquare(counts, other).pvalue < 1e-3


def test_the_bound_is_one_term_of_the_probability() -> None:
    model, x = vector_quantised(), pictures(20)
    condition = torch.zeros(len(MAPS), CLASSES)
    log_prior = model.log_prior(MAPS, condition)
    logits = model.decode_logits(MAPS)
    bounds, error, rate = model.bound_and_parts(x, torch.zeros(20, CLASSES))
    for picture, bound, codes in zip(x, bounds, model.encode(x), strict=True):
        terms = log_prior + bernoulli_log_mass(picture.expand(len(MAPS), 1, SIDE, SIDE), logits)
        own = (codes == MAPS).all(dim=1)
        assert bound.item() == pytest.approx(terms[own].item(), abs=1e-4)
        assert bound <= terms.logsumexp(dim=0)
    assert torch.allclose(bounds, -error - rate)


def two_levels() -> HierarchicalVectorQuantisedAutoencoder:
    """Two maps of 2x2 codes, of two levels: 256 rows."""
    torch.manual_seed(0)
    model = HierarchicalVectorQuantisedAutoencoder(
        (1, SIDE, SIDE),
        classes=CLASSES,
        levels=2,
        code_size=2,
        width=4,
        prior_layers=2,
        prior_channels=4,
    )
    with torch.no_grad():
        for layer in model.bottom_prior.layers:
            layer.condition.weight *= 8  # so that the top tells
        for parameter in model.bottom_prior.head.parameters():
            parameter *= 1.7
    return model.eval().requires_grad_(False)


def test_the_bottom_is_drawn_given_the_top() -> None:
    model, rows = two_levels(), 240_000
    every = torch.tensor(list(itertools.product(range(2), repeat=2 * CODES)))
    weights = torch.tensor([1.0, 0.0])
    log_prior = model.log_prior(every, weights.expand(len(every), CLASSES))
    assert log_prior.exp().sum().item() == pytest.approx(1, 1e-5)
    uniform = torch.rand(rows, 2 * CODES, generator=generator())
    codes = Scans(model.draws())(uniform, torch.ones(rows), weights.expand(rows, CLASSES))
    expected = rows * log_prior.double().softmax(dim=0).numpy()
    assert expected.min() > 20
    assert chisquare(counts_of(codes), expected).pvalue > 0.01
    # The bottom alone, its top taken from another row, is not what is drawn.
    mixed = torch.cat([codes[:, :CODES].roll(1, dims=0), codes[:, CODES:]], dim=1)
    assert chisquare(counts_of(mixed), expected).pvalue < 1e-3


def counts_of(codes: Tensor) -> np.ndarray:
    """Return how often each row of eight codes of two levels occurs, [256]."""
    return (codes @ 2 ** torch.arange(7, -1, -1)).bincount(minlength=256).numpy()


def test_the_bound_of_two_levels_is_below_the_probability() -> None:
    model, x = two_levels(), pictures(10)
    every = torch.tensor(list(itertools.product(range(2), repeat=2 * CODES)))
    log_prior = model.log_prior(every, torch.zeros(len(every), CLASSES))
    logits = model.decode_logits(every)
    bounds, _, _ = model.bound_and_parts(x, torch.zeros(10, CLASSES))
    for picture, bound in zip(x, bounds, strict=True):
        terms = log_prior + bernoulli_log_mass(picture.expand(len(every), 1, SIDE, SIDE), logits)
        assert bound <= terms.logsumexp(dim=0)
        assert (terms - bound).abs().min() < 1e-3  # it is one of them


def test_the_nearest_vector_is_the_code_and_gradients_pass_it() -> None:
    model = vector_quantised()
    z = torch.randn(2, 2, 3, 3, generator=generator()).requires_grad_()
    codes = model.codebook.nearest(z)
    distances = torch.cdist(z.permute(0, 2, 3, 1).reshape(-1, 2), model.codebook.vectors)
    assert torch.equal(codes.flatten(), distances.argmin(dim=1))
    vectors, _ = model.codebook.quantise(z)
    assert torch.allclose(vectors, model.codebook.look_up(codes))
    (2 * vectors).sum().backward()
    assert torch.equal(z.grad, torch.full_like(z, 2.0))


def test_the_fitted_mixture_is_a_density_and_draws_from_it() -> None:
    model = fitted_autoencoder()
    side = torch.linspace(-15, 15, 601)
    points = torch.cartesian_prod(side, side)
    mass = model.mixture_log_density(points).exp().sum() * 0.05**2
    assert mass.item() == pytest.approx(1, abs=1e-3)
    draws = 200_000
    latents = model.draw_latent(
        torch.rand(draws, generator=generator()),
        torch.randn(draws, 2, generator=generator(1)),
        torch.ones(draws),
    )
    mean, covariance = mixture_moments(model)
    spread = covariance.diagonal().sqrt()
    assert ((latents.mean(dim=0) - mean).abs() < 4 * spread / draws**0.5).all()
    assert torch.allclose(latents.T.cov(), covariance, rtol=0.03, atol=0.03 * spread.max() ** 2)
    assert not torch.allclose(mean, model.mixture_means, atol=0.1)  # one is not like another


def mixture_moments(model: Autoencoder) -> tuple[Tensor, Tensor]:
    weights, means = model.mixture_weights, model.mixture_means
    within = (weights[:, None, None] * model.mixture_factors @ model.mixture_factors.mT).sum(0)
    mean = weights @ means
    away = means - mean
    return mean, within + (weights[:, None] * away).T @ away


def test_the_mixture_is_the_one_that_was_fitted() -> None:
    model = fitted_autoencoder()
    fitted = GaussianMixture(3)
    fitted.weights_ = model.mixture_weights.double().numpy()
    fitted.means_ = model.mixture_means.double().numpy()
    factors = model.mixture_factors.double()
    fitted.covariances_ = (factors @ factors.mT).numpy()
    fitted.precisions_cholesky_ = torch.linalg.inv(factors).mT.numpy()
    points = torch.randn(50, 2, generator=generator())
    expected = torch.from_numpy(fitted.score_samples(points.double().numpy())).float()
    assert torch.allclose(model.mixture_log_density(points), expected, atol=1e-3)


# The service


async def ask(client: httpx.AsyncClient, operation: str, **fields: Any) -> dict[str, Any]:
    answer = await client.post(f"/{operation}", json={"model": "tiny-vq", **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_codes_of_a_sample_decode_to_it(client: httpx.AsyncClient) -> None:
    drawn = await ask(
        client, "sample", count=5, seed=1, class_label=1, **{"return": ["images", "codes"]}
    )
    assert np.array(drawn["codes"]).shape == (5, CODES)
    given = {"codes": drawn["codes"], "latent_space": drawn["latent_space"]}
    assert (await ask(client, "decode", **given))["images"] == drawn["images"]


async def test_an_image_is_encoded_to_what_reconstructs_it(client: httpx.AsyncClient) -> None:
    images = as_levels(pictures())
    encoded = await ask(client, "encode", images=images)
    assert encoded["codes"] == vector_quantised().encode(pictures()).tolist()
    rebuilt = await ask(client, "reconstruct", images=images, **{"return": ["images", "codes"]})
    assert rebuilt["codes"] == encoded["codes"]
    assert (await ask(client, "decode", codes=encoded["codes"]))["images"] == rebuilt["images"]


async def test_a_sample_does_not_depend_on_how_many_there_are(client: httpx.AsyncClient) -> None:
    for model in ("tiny-vq", "tiny-ae"):
        many = await ask(client, "sample", model=model, count=9, seed=4)
        few = await ask(client, "sample", model=model, count=2, seed=4)
        assert many["images"][:2] == few["images"]


async def test_cold_codes_are_the_likeliest(client: httpx.AsyncClient) -> None:
    cold = await ask(client, "sample", count=8, seed=1, temperature=0.01, **{"return": "codes"})
    assert len({tuple(row) for row in cold["codes"]}) == 1
    warm = await ask(client, "sample", count=8, seed=1, **{"return": "codes"})
    assert len({tuple(row) for row in warm["codes"]}) > 1


async def test_a_seed_names_the_same_latent_of_a_fitted_prior_everywhere(
    client: httpx.AsyncClient,
) -> None:
    drawn = await ask(client, "sample", model="tiny-ae", seed=6, **{"return": "latents"})
    path = await ask(
        client,
        "interpolate",
        model="tiny-ae",
        start={"seed": 6},
        end={"seed": 7},
        steps=3,
        **{"return": "latents"},
    )
    assert path["latents"][0] == drawn["latents"][0]


async def test_the_fitted_prior_is_said_to_be_one(
    client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    over_rest = (await client.get("/models/tiny-ae")).json()["latent"]
    over_grpc = (await stub.GetModel(pb.GetModelRequest(model="tiny-ae"))).model.latent
    assert over_rest["prior"] == over_grpc.prior == "graph"
    assert over_rest["prior_meaning"] == over_grpc.prior_meaning
    assert "fitted" in over_grpc.prior_meaning


async def test_the_codes_are_described(
    client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    over_rest = (await client.get("/models/tiny-vq")).json()
    over_grpc = (await stub.GetModel(pb.GetModelRequest(model="tiny-vq"))).model
    assert over_rest["latent"] is None and not over_grpc.HasField("latent")
    assert over_rest["codes"]["maps"] == [{"name": "codes", "shape": [2, 2], "levels": LEVELS}]
    assert over_grpc.codes.size == CODES and over_grpc.codes.space == over_rest["codes"]["space"]
    (each,) = over_grpc.codes.maps
    assert (each.name, list(each.shape), each.levels) == ("codes", [2, 2], LEVELS)


async def test_codes_are_the_same_over_both_transports(
    client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    body = {"model": "tiny-vq", "images": as_levels(pictures())}
    rest, grpc_ = await ask_rest(client, "encode", body), await ask_grpc(stub, "encode", body)
    assert rest.dtype == np.int64 and np.array_equal(rest, grpc_)
    drawn = {"model": "tiny-vq", "seed": 2, "count": 3}
    headers = {"Accept": "application/x-npy"}
    answer = await client.post("/sample", json={**drawn, "return": "codes"}, headers=headers)
    assert answer.headers["X-Genserve-Latent-Space"].startswith("tiny-vq/")
    message = pb.SampleRequest(**drawn, returns=["GENERATION_PART_CODES"])
    reply = await stub.Sample(message)
    assert np.load(io.BytesIO(answer.content)).ravel().tolist() == list(reply.codes.values)
    assert answer.headers["X-Genserve-Latent-Space"] == reply.latent_space


REFUSED: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "a code that is too high": ("decode", {"codes": [[0, 1, 2, 3]]}, "INVALID_CODES", "0 to 2"),
    "a negative code": ("decode", {"codes": [[0, -1, 2, 0]]}, "INVALID_CODES", "code 1 of row 0"),
    "too few codes": ("decode", {"codes": [[0, 1]]}, "INVALID_CODES", "[count, 4]"),
    "latents for codes": ("decode", {"latents": [[0.0, 1.0]]}, "INVALID_LATENT", "give codes"),
    "codes for latents": (
        "decode",
        {"model": "tiny-ae", "codes": [[0, 1, 2, 0]]},
        "INVALID_CODES",
        "give latents",
    ),
    "codes and latents": (
        "decode",
        {"codes": [[0, 1, 2, 0]], "latents": [[0.0]]},
        "INVALID_REQUEST",
        "exactly one",
    ),
    "neither": ("decode", {}, "INVALID_REQUEST", "exactly one"),
    "codes of another space": (
        "decode",
        {"codes": [[0, 1, 2, 0]], "latent_space": "other/1"},
        "LATENT_SPACE_MISMATCH",
        "tiny-vq/",
    ),
    "a path between codes": (
        "interpolate",
        {"start": {"seed": 1}, "end": {"seed": 2}},
        "OPERATION_NOT_OFFERED",
        "interpolate",
    ),
    "a control of normal priors": (
        "sample",
        {"truncation": 1.0},
        "CONTROL_NOT_OFFERED",
        "temperature",
    ),
    "a temperature out of range": ("sample", {"temperature": 99.0}, "OUT_OF_RANGE", "10.0"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_wrong_with_codes_is_refused_alike(
    name: str, client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    operation, fields, reason, word = REFUSED[name]
    body = {"model": "tiny-vq", **fields}
    over_rest = await client.post(f"/{operation}", json=body)
    assert over_rest.json()["reason"] == reason and word in over_rest.json()["detail"]
    request = getattr(pb, f"{operation.capitalize()}Request")(**to_proto(body))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await getattr(stub, operation.capitalize())(request)
    info = ErrorInfo()
    assert rpc_status.from_call(refused.value).details[0].Unpack(info)
    assert info.reason == reason and word in refused.value.details()


@pytest.mark.parametrize("part", ["latents", "draws"])
async def test_parts_that_a_model_of_codes_has_not_are_refused(
    client: httpx.AsyncClient, part: str
) -> None:
    body = {"model": "tiny-vq", "images": as_levels(pictures()), "return": part}
    answer = await client.post("/encode", json=body)
    assert answer.status_code == 422 and answer.json()["reason"] == "INVALID_REQUEST"


async def test_codes_are_whole_numbers(client: httpx.AsyncClient) -> None:
    body = {"model": "tiny-vq", "codes": [[0, 1, 0.5, 0]]}
    answer = await client.post("/decode", json=body)
    assert answer.status_code == 422 and answer.json()["reason"] == "INVALID_CODES"


# The manifest

MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "codes and a latent": (
        {"latent": {"space": "x", "shape": [2], "prior": "graph"}},
        "not both",
    ),
    "controls that the prior does not take": ({"controls": {}}, "must take the controls"),
    "a path between codes": ({"operations": {"interpolate": {}}}, "nothing is between codes"),
    "codes without what draws them": ({"graphs": None}, "needs a graph 'prior'"),
    "more codes than the ports": (
        {"codes": {"maps": [{"name": "codes", "shape": [3], "levels": 3}]}},
        "by the manifest codes is (3,)",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_manifest_that_contradicts_itself_is_refused(name: str, repository: Path) -> None:
    content = json.loads((repository / "tiny-vq" / "1" / "manifest.json").read_text())
    changes, words = MISTAKES[name]
    if changes.get("graphs", 0) is None:
        changes = {"graphs": {k: v for k, v in content["graphs"].items() if k != "prior"}}
    if "codes" in changes:
        changes = {"codes": {**content["codes"], **changes["codes"]}}
    with pytest.raises(ValidationError, match=re.escape(words)):
        Manifest.model_validate_json(json.dumps(content | changes))
