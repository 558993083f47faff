"""Markov chains: what they converge to, what is clamped, and that no picture depends on others."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from export import Card, Graph, export_artifact
from model_zoo.energy import chain
from model_zoo.energy.deep_boltzmann_machine import DeepBoltzmannMachine
from model_zoo.energy.gsn import GenerativeStochasticNetwork
from model_zoo.energy.rbm import RestrictedBoltzmannMachine
from service.core.artifact import load_artifact
from service.core.calls import Call
from service.core.engine import Engine
from service.core.manifest import Manifest, artifact_digest, read_manifest
from service.core.operations import begin
from service.core.requests import (
    CompleteRequest,
    ConditionRequest,
    EncodeRequest,
    GenerationResult,
    LikelihoodRequest,
    Limits,
    ReconstructRequest,
    SampleRequest,
)
from service.errors import (
    ArtifactError,
    BinarisationRequired,
    ConditionNotOffered,
    ControlNotOffered,
    DeadlineExceeded,
    InvalidRequest,
    OperationNotOffered,
    OutOfRange,
)
from service.rpc.pb.generation_service_pb2_grpc import GenerationServiceStub
from service.runtime.onnx_session import OnnxSession
from service.settings import Settings
from tests.both_transports import ask_grpc, ask_rest
from tests.test_energy import every, exact_log_partition, joint_energies

ARTIFACTS = Path(__file__).parent.parent / "artifacts"
HEIGHT, WIDTH = 2, 3
PIXELS = HEIGHT * WIDTH
IMAGES = 2**PIXELS
DRAWS = 60_000
LIMITS = Limits(count=DRAWS, draws=1, rows=DRAWS)


def restricted() -> RestrictedBoltzmannMachine:
    model = RestrictedBoltzmannMachine((1, HEIGHT, WIDTH), hidden_units=4)
    _randomise(model)
    model.log_partition.fill_(exact_log_partition(model))
    model.log_partition_error.fill_(0.25)
    return model


def deep() -> DeepBoltzmannMachine:
    model = DeepBoltzmannMachine((1, HEIGHT, WIDTH), hidden_units=(4, 3))
    _randomise(model)
    model.log_partition.fill_((-joint_energies(model)).flatten().logsumexp(dim=0))
    model.log_partition_error.fill_(0.25)
    return model


def _randomise(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.7, generator=generator)


def stochastic() -> GenerativeStochasticNetwork:
    torch.manual_seed(0)
    return GenerativeStochasticNetwork((1, HEIGHT, WIDTH), hidden_units=(5, 4))


FAMILIES = {"tiny-rbm": restricted, "tiny-dbm": deep, "tiny-gsn": stochastic}


def export(folder: Path, name: str, card: Card, graphs: Sequence[Graph]) -> Path:
    return export_artifact(
        folder, name=name, version="1", card=card, graphs=graphs, licence="Apache-2.0"
    )


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chains")
    for name, build in FAMILIES.items():
        model = build()
        export(folder, name, model.card(), model.graphs())
    return folder


@pytest.fixture
def settings(repository: Path) -> Settings:
    return Settings(model_repository=repository, default_models=tuple(FAMILIES), workers=2)


def run(folder: Path, operation: str, request: Any) -> GenerationResult:
    """The answer of an operation, its calls made one by one."""
    open_session = partial(OnnxSession, provider="cpu")
    manifest, graphs = load_artifact(folder, open_session)
    steps, outputs = begin(operation, manifest, [], request, LIMITS), None
    while True:
        try:
            step = steps.send(outputs)
        except StopIteration as end:
            return end.value
        assert isinstance(step, Call)
        outputs = graphs[step.graph].session.run(step.inputs)


def exact(name: str, temperature: float = 1.0) -> NDArray[np.float64]:
    """The probability of every image, by enumeration of all states."""
    model = FAMILIES[name]()
    with torch.no_grad():
        if isinstance(model, RestrictedBoltzmannMachine):
            v, h = every(PIXELS), every(4)
            energies = -(
                (v @ model.visible_bias)[:, None] + h @ model.hidden_bias + v @ model.weight.T @ h.T
            )
        else:
            energies = joint_energies(model)
        log_mass = (-energies.double() / temperature).flatten(1).logsumexp(dim=1)
        return log_mass.softmax(dim=0).numpy()


def numbers(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The place of each image among all there are: its first pixel is the lowest bit."""
    bits = images.reshape(len(images), PIXELS) // 255
    return bits.astype(np.int64) @ (1 << np.arange(PIXELS))


def p_value(found: NDArray[np.int64], probability: NDArray[np.float64]) -> float:
    """Of Pearson's chi-square test of counts; images that can't be drawn must not be."""
    possible = probability > 0
    assert not found[~possible].any()
    expected = found.sum() * probability[possible]
    assert expected.min() > 5  # or the statistic does not follow chi-square
    statistic = ((found[possible] - expected) ** 2 / expected).sum()
    freedom = torch.tensor((possible.sum() - 1) / 2, dtype=torch.float64)
    return torch.special.gammaincc(freedom, torch.tensor(statistic / 2)).item()


def shifted(probability: NDArray[np.float64], variation: float = 0.02) -> NDArray[np.float64]:
    """A distribution at this total variation: the odd possible images have it from the even."""
    possible = np.flatnonzero(probability)
    wrong = probability.copy()
    more, less = possible[1::2], possible[::2]
    wrong[more] *= 1 + variation / wrong[more].sum()
    wrong[less] *= 1 - variation / wrong[less].sum()
    assert np.abs(wrong - probability).sum() / 2 == pytest.approx(variation)
    return wrong


# What chains converge to


@pytest.mark.parametrize("name", ["tiny-rbm", "tiny-dbm"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_chains_converge_to_the_distribution(
    name: str, temperature: float, repository: Path
) -> None:
    request = SampleRequest(count=DRAWS, seed=7, burn_in=60, temperature=temperature)
    drawn = run(repository / name / "1", "sample", request)
    found = np.bincount(numbers(drawn.images), minlength=IMAGES)
    probability = exact(name, temperature)
    assert p_value(found, probability) > 1e-3
    assert p_value(found, shifted(probability)) < 1e-6, "2 % total variation must show"


@pytest.mark.parametrize("name", ["tiny-rbm", "tiny-dbm"])
def test_clamped_chains_converge_to_the_conditional_distribution(
    name: str, repository: Path
) -> None:
    known = np.array([[False, True, False], [True, False, False]])
    image = np.array([[9, 255, 9], [0, 9, 9]], np.uint8)[:, :, None]
    request = CompleteRequest(image=image, known=known, count=DRAWS, seed=3, burn_in=60)
    drawn = run(repository / name / "1", "complete", request)
    assert np.array_equal(
        drawn.images[:, known], np.broadcast_to(image[known], (DRAWS, known.sum(), 1))
    )
    bits = every(PIXELS).numpy().reshape(IMAGES, HEIGHT, WIDTH)
    fits = np.all(bits[:, known] == image[known][:, 0] / 255, axis=1)
    probability = np.where(fits, exact(name), 0)
    probability /= probability.sum()
    found = np.bincount(numbers(drawn.images), minlength=IMAGES)
    assert p_value(found, probability) > 1e-3
    assert p_value(found, shifted(probability)) < 1e-6, "2 % total variation must show"


def test_one_long_chain_visits_images_as_often(repository: Path) -> None:
    request = SampleRequest(count=4000, seed=5, chains=8, burn_in=60, thinning=8)
    drawn = run(repository / "tiny-rbm" / "1", "sample", request)
    found = np.bincount(numbers(drawn.images), minlength=IMAGES) / 4000
    assert np.abs(found - exact("tiny-rbm")).sum() / 2 < 0.06


# Noise


async def sample(engine: Engine, model: str, **fields: Any) -> NDArray[np.uint8]:
    answer = await engine.run("sample", SampleRequest(**fields), model=model)
    assert isinstance(answer.result, GenerationResult)
    return answer.result.images


@pytest.mark.parametrize("name", FAMILIES)
async def test_an_image_depends_on_neither_count_nor_batch_mates(name: str, engine: Engine) -> None:
    alone = await sample(engine, name, count=1, seed=3, burn_in=23)
    answers = await asyncio.gather(
        *(sample(engine, name, count=count, seed=3, burn_in=23) for count in (2, 9, 40)),
        *(sample(engine, name, count=7, seed=seed, burn_in=31) for seed in range(4)),
    )
    most = answers[2]
    assert np.array_equal(most[:1], alone)
    assert np.array_equal(most[:9], answers[1]) and np.array_equal(most[:2], answers[0])
    assert len({image.tobytes() for image in most}) > 10


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("burn_in", "thinning"), [(5, 5), (7, 6), (0, 1), (12, 3)])
async def test_noise_is_of_the_step_since_the_start(
    name: str, burn_in: int, thinning: int, engine: Engine
) -> None:
    chained = await sample(
        engine, name, count=12, chains=4, seed=8, burn_in=burn_in, thinning=thinning
    )
    for visit in range(3):
        steps = burn_in + visit * thinning
        straight = await sample(engine, name, count=4, seed=8, burn_in=steps)
        assert np.array_equal(chained[4 * visit : 4 * visit + 4], straight)


async def test_chains_that_draw_no_more_images_end(engine: Engine) -> None:
    """Seven images of three chains: the last visit is to one of them."""
    fields = {"seed": 8, "burn_in": 6, "thinning": 4, "chains": 3}
    some = await sample(engine, "tiny-rbm", count=7, **fields)
    assert np.array_equal(some, (await sample(engine, "tiny-rbm", count=9, **fields))[:7])
    alone = await sample(engine, "tiny-rbm", count=2, seed=8, burn_in=6, chains=40)
    assert np.array_equal(alone, some[:2])


def test_pictures_are_the_same_however_many_steps_a_call_makes(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "STEPS_A_CALL", 3)
    model, request = restricted(), SampleRequest(count=50, seed=1, burn_in=23)
    card = replace(model.card(), operations={"sample": {}}, latent=None)
    artifact = export(tmp_path, "tiny-rbm", card, chain.chain_graphs(model, tempered=True))
    other = run(artifact, "sample", request)
    assert np.array_equal(
        other.images, run(repository / "tiny-rbm" / "1", "sample", request).images
    )


async def test_a_temperature_near_zero_leaves_the_most_likely_images(engine: Engine) -> None:
    cold = await sample(engine, "tiny-rbm", count=200, seed=1, burn_in=200, temperature=0.1)
    counts = np.bincount(numbers(cold), minlength=IMAGES)
    assert exact("tiny-rbm", 0.1)[counts.argmax()] > 0.1


# Completion


@pytest.mark.parametrize("name", FAMILIES)
async def test_known_pixels_stay_wherever_they_are(name: str, engine: Engine) -> None:
    known = np.array([[False, True, False], [False, False, True]])
    image = np.array([[128, 255, 3], [17, 200, 0]], np.uint8)[:, :, None]
    for burn_in in (0, 4, 11):
        request = CompleteRequest(image=image, known=known, count=20, seed=2, burn_in=burn_in)
        result = (await engine.run("complete", request, model=name)).result
        assert (result.images[:, known] == image[known]).all()
        assert len({picture.tobytes() for picture in result.images}) > 3
        assert result.log_weight is None and result.note is None


async def test_grey_known_pixels_are_refused(engine: Engine) -> None:
    image = np.full((HEIGHT, WIDTH, 1), 128, np.uint8)
    with pytest.raises(BinarisationRequired, match="0 or 255"):
        await engine.run("complete", CompleteRequest(image=image, prefix_rows=1), model="tiny-rbm")


async def test_candidates_are_refused(engine: Engine) -> None:
    image = np.zeros((HEIGHT, WIDTH, 1), np.uint8)
    request = CompleteRequest(image=image, prefix_rows=1, candidates=4)
    with pytest.raises(InvalidRequest, match="leave out candidates"):
        await engine.run("complete", request, model="tiny-rbm")


# Likelihood and the others


async def test_likelihoods_sum_to_one_and_carry_the_error_of_the_normaliser(engine: Engine) -> None:
    images = (255 * every(PIXELS).numpy().astype(np.uint8)).reshape(-1, HEIGHT, WIDTH, 1)
    answer = await engine.run("likelihood", LikelihoodRequest(images=images), model="tiny-rbm")
    assert np.exp(answer.result.log_likelihood).sum() == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(np.exp(answer.result.log_likelihood), exact("tiny-rbm"), rtol=1e-3)
    assert answer.result.kind == "estimate"
    assert np.array_equal(answer.result.standard_error, np.full(IMAGES, 0.25))
    deep = await engine.run("likelihood", LikelihoodRequest(images=images), model="tiny-dbm")
    assert np.exp(deep.result.log_likelihood).sum() < 1, "a bound, by the exact normaliser"


async def test_a_chain_without_a_density_refuses_likelihoods(engine: Engine) -> None:
    image = np.zeros((1, HEIGHT, WIDTH, 1), np.uint8)
    with pytest.raises(OperationNotOffered):
        await engine.run("likelihood", LikelihoodRequest(images=image), model="tiny-gsn")


async def test_hidden_units_and_means_are_those_of_the_machine(engine: Engine) -> None:
    images = (255 * every(PIXELS).numpy().astype(np.uint8)).reshape(-1, HEIGHT, WIDTH, 1)
    model = restricted()
    with torch.no_grad():
        hidden = torch.sigmoid(model.hidden_logits(every(PIXELS)))
        mean = torch.sigmoid(model.visible_logits(hidden)).reshape(images.shape)
    encoded = await engine.run("encode", EncodeRequest(images=images), model="tiny-rbm")
    np.testing.assert_allclose(encoded.result.latents, hidden, atol=1e-5)
    request = ReconstructRequest(images=images)
    again = await engine.run("reconstruct", request, model="tiny-rbm")
    assert np.abs(again.result.images / 255 - mean.numpy()).max() <= 0.5 / 255 + 1e-5
    with pytest.raises(ConditionNotOffered):
        condition = ConditionRequest(classes=[1])
        await engine.run(
            "reconstruct", ReconstructRequest(images=images, condition=condition), model="tiny-rbm"
        )


# Limits and refusals


@pytest.mark.parametrize(
    ("model", "fields", "error", "says"),
    [
        ("tiny-rbm", {"burn_in": -1}, OutOfRange, "burn_in is -1; allowed is 0"),
        ("tiny-rbm", {"burn_in": 10**9}, OutOfRange, "burn_in"),
        ("tiny-rbm", {"thinning": 0}, OutOfRange, "thinning"),
        ("tiny-rbm", {"chains": 0}, OutOfRange, "chains"),
        ("tiny-rbm", {"top_k": 1}, ControlNotOffered, "burn_in"),
        ("tiny-rbm", {"greedy": True}, ControlNotOffered, "greedy"),
        ("tiny-rbm", {"truncation": 1.0}, ControlNotOffered, "truncation"),
        ("tiny-gsn", {"temperature": 1.0}, ControlNotOffered, "temperature"),
        ("tiny-rbm", {"temperature": 0.0}, OutOfRange, "temperature"),
        (
            "tiny-rbm",
            {"condition": ConditionRequest(classes=[0])},
            ConditionNotOffered,
            "condition",
        ),
    ],
)
async def test_what_a_model_does_not_have_is_refused(
    model: str, fields: dict[str, Any], error: type[Exception], says: str, engine: Engine
) -> None:
    with pytest.raises(error, match=says):
        await sample(engine, model, **fields)


@pytest.mark.parametrize("name", ["mnist-dcgan", "mnist-pixelcnn"])
@pytest.mark.parametrize("control", ["burn_in", "thinning", "chains"])
def test_controls_of_chains_are_refused_by_models_that_run_none(name: str, control: str) -> None:
    manifest = read_manifest(ARTIFACTS / name / "1")
    with pytest.raises(ControlNotOffered, match=f"no {control}; it has"):
        next(begin("sample", manifest, [], SampleRequest(**{control: 1}), LIMITS))


async def test_a_deadline_ends_a_long_chain(engine: Engine) -> None:
    request = SampleRequest(count=256, chains=1, burn_in=5000, thinning=5000)
    with pytest.raises(DeadlineExceeded):
        await engine.run("sample", request, model="tiny-rbm", timeout_seconds=0.2)


async def test_controls_of_chains_mean_the_same_over_both_transports(
    client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    fields = {"seed": 4, "count": 6, "burn_in": 9, "thinning": 2, "chains": 2}
    image = (255 * np.eye(HEIGHT, WIDTH, dtype=int)[:, :, None]).tolist()
    requests: Sequence[tuple[str, dict[str, Any]]] = (
        ("sample", fields),
        ("complete", {**fields, "image": image, "prefix_rows": 1}),
    )
    for operation, request in requests:
        request = {"model": "tiny-rbm", **request}
        rest = await ask_rest(client, operation, request)
        assert np.array_equal(rest, await ask_grpc(stub, operation, request))
        for name in ("burn_in", "thinning", "chains"):
            others = {**request, name: 1}
            assert not np.array_equal(rest, await ask_rest(client, operation, others)), name


# Manifests


def broken(manifest: dict[str, Any], **changes: Any) -> dict[str, Any]:
    content = {**manifest, **changes}
    return {**content, "artifact_digest": artifact_digest(content)}


def test_a_chain_that_can_not_go_on_is_refused(repository: Path) -> None:
    text = (repository / "tiny-rbm" / "1" / "manifest.json").read_text()
    manifest = json.loads(text)
    Manifest.model_validate_json(text)
    controls, graphs = manifest["controls"], manifest["graphs"]
    transition, start = graphs["transition"], graphs["start"]

    def without(role: str) -> dict[str, Any]:
        inputs = [port for port in transition["inputs"] if port["role"] != role]
        return {**graphs, "transition": {**transition, "inputs": inputs}}

    wide = {**start["outputs"][0], "shape": ["batch", 99]}
    endless = {key: control for key, control in controls.items() if key != "thinning"}
    cases = {
        "needs a control 'thinning'": {"controls": endless},
        "needs the graphs": {
            "graphs": {key: graph for key, graph in graphs.items() if key != "start"},
            "operations": {},
        },
        "states of one shape": {"graphs": {**graphs, "start": {**start, "outputs": [wide]}}},
        "needs steps": {"graphs": without("steps")},
        "'temperature' where": {"graphs": without("control")},
    }
    for says, changes in cases.items():
        with pytest.raises((ValidationError, ArtifactError), match=says):
            Manifest.model_validate_json(json.dumps(broken(manifest, **changes)))
