"""A latent that is painted: its density, its sampler, what shows a collapse, and the service."""

import asyncio
import itertools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnxruntime import InferenceSession

from export import export_artifact
from model_zoo.autoencoders.pixel_vae import PixelVAE
from model_zoo.family import Batch
from service.core import noise
from service.core.engine import Answer, Engine
from service.core.manifest import Manifest
from service.core.painting.streaming import Rows
from service.core.requests import (
    CompleteRequest,
    DecodeRequest,
    EncodeRequest,
    Endpoint,
    InterpolateRequest,
    LikelihoodRequest,
    ReconstructRequest,
    SampleRequest,
    StreamRequest,
)
from service.errors import (
    ControlNotOffered,
    InvalidLatent,
    InvalidRequest,
    OperationNotOffered,
    ResumeMismatch,
)
from service.settings import Settings

MODEL = "tiny"
SIDE, PIXELS = 4, 16
DRAWS = 100_000


def smallest() -> PixelVAE:
    """Pictures of 4x4 and one latent coordinate, which change the pixels a good deal."""
    torch.manual_seed(1)
    model = PixelVAE((1, 4, 4), latent_size=1, width=4, features=3, channels=4).eval()
    with torch.no_grad():
        for module in (model.decoder, model.looks, model.head):
            for parameter in module.parameters():
                parameter *= 2
    return model


def every_picture() -> torch.Tensor:
    """Return all pictures of 4x4, [65536, 1, 4, 4]."""
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=16))).reshape(-1, 1, 4, 4)


def log_mass(model: PixelVAE, picture: torch.Tensor) -> float:
    """Integrate p(x|z) p(z) over a fine grid of the one latent coordinate; nats."""
    grid = torch.linspace(-8, 8, 401)
    with torch.no_grad():
        given = model.log_mass_given(picture.expand(401, 1, SIDE, SIDE), grid[:, None])
    prior = -0.5 * (grid.square() + math.log(2 * math.pi))
    return (given + prior + math.log(0.04)).logsumexp(0).item()


def log_masses(model: PixelVAE, pictures: torch.Tensor, z: float) -> torch.Tensor:
    """Return log p(x|z) of all pictures, float64 [N]."""
    with torch.no_grad():
        return model.log_mass_given(pictures, torch.full((len(pictures), 1), z)).double()


# The density


def test_probabilities_of_all_pictures_sum_to_one_given_any_latent() -> None:
    pictures, model = every_picture(), smallest()
    logs = [log_masses(model, pictures, z) for z in (-1.5, 0.3)]
    for each in logs:
        assert each.exp().sum().item() == pytest.approx(1, abs=1e-5)
    distance = 0.5 * (logs[0].exp() - logs[1].exp()).abs().sum().item()
    assert distance > 0.1, "the latent must count, or nothing is proved of it"


@torch.no_grad()
def test_a_pixel_depends_on_those_before_it_and_on_no_others() -> None:
    model = smallest()
    x = (torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    features = model.decoder(torch.zeros(20, 1))
    logits = model.logits(x, features).flatten(1)
    for pixel in range(15):
        other = x.flatten(1).clone()
        other[:, pixel] = 1 - other[:, pixel]
        changed = model.logits(other.view_as(x), features).flatten(1) != logits
        assert not changed[:, : pixel + 1].any()
        assert changed[:, pixel + 1 :].any()


@torch.no_grad()
def test_weights_of_posterior_draws_average_to_the_probability() -> None:
    model = smallest()
    x = (torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    draws = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(1))
    for picture in x[:, None]:
        exact = log_mass(model, picture)
        many = picture.expand(20_000, 1, 4, 4)
        weights, error, divergence, _ = model.log_weight_and_statistics(many, draws)
        assert weights.mean() <= exact
        assert weights.logsumexp(0).item() - math.log(20_000) == pytest.approx(exact, abs=0.05)
        bound = (-error - divergence).mean().item()
        assert bound == pytest.approx(weights.mean().item(), abs=0.02)


def test_figures_tell_of_a_collapsed_posterior() -> None:
    model = smallest()
    data = Batch(torch.randint(0, 256, (20, 1, 4, 4)).float(), torch.zeros(20))
    used = {each.name: each for each in model.evaluate(data, torch.Generator())}
    assert used["active_dimensions"].value == 1
    assert used["kl"].value > 0.01
    with torch.no_grad():
        for parameter in model.encoder[-1].parameters():
            parameter.zero_()
    collapsed = {each.name: each for each in model.evaluate(data, torch.Generator())}
    assert collapsed["active_dimensions"].value == collapsed["kl"].value == 0
    assert collapsed["kl"].protocol.endswith("largest first: 0.00")


# The sampler


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, model = tmp_path_factory.mktemp("painted"), smallest()
    card, graphs = model.card(), model.graphs()
    export_artifact(folder, name=MODEL, version="1", card=card, graphs=graphs, licence="Apache-2.0")
    return folder


def paint(folder: Path, z: float, count: int) -> np.ndarray:
    """Return what the graphs paint of one latent, [count, 16]."""
    sessions = {
        name: InferenceSession(folder / f"{name}.onnx") for name in ("features", "row_step")
    }
    (features,) = sessions["features"].run(None, {"latent": np.full((1, 1), z, np.float32)})
    items = np.arange(count, dtype=np.uint64)
    uniforms = noise.uniform(np.full(count, 3, np.uint64), "pixels", items, 16)
    uniforms = noise.to_float32(uniforms).reshape(count, 4, 4)
    caches = {
        port.name: np.zeros([count if isinstance(n, str) else n for n in port.shape], np.float32)
        for port in sessions["row_step"].get_inputs()
        if port.name in ("rows_above", "activations")
    }
    rows = []
    for row in range(4):
        of_row = np.repeat(features[0, row][:, None], count, axis=1)  # [W, count, F]
        levels, _, *after = sessions["row_step"].run(
            None,
            {
                **caches,
                "features": of_row,
                "temperature": np.ones(count, np.float32),
                "forced": np.full((4, count), -1, np.int64),
                "uniform": uniforms[:, row].T,
            },
        )
        caches = dict(zip(caches, after, strict=True))
        rows.append(levels.T)
    return np.concatenate(rows, axis=1)


def statistic(counts: np.ndarray, probability: np.ndarray) -> float:
    """Pearson's chi-square, in deviations from its mean; rare events count as one."""
    order = np.argsort(probability)
    counts, expected = counts[order], DRAWS * probability[order]
    rare = int(np.searchsorted(expected.cumsum(), 25)) + 1
    counts = np.concatenate([[counts[:rare].sum()], counts[rare:]])
    expected = np.concatenate([[expected[:rare].sum()], expected[rare:]])
    freedom = len(counts) - 1
    value = ((counts - expected) ** 2 / expected).sum()
    return float((value - freedom) / np.sqrt(2 * freedom))


def test_what_is_painted_is_distributed_as_the_model_says(repository: Path) -> None:
    """Chi-square over the 256 upper and the 256 lower halves of a picture, given one latent."""
    z = 0.3
    painted = paint(repository / MODEL / "1", z, DRAWS)
    masses = log_masses(smallest(), every_picture(), z).exp().numpy().reshape(256, 256)
    places = 1 << np.arange(8)[::-1]
    for half, probability in ((slice(8), masses.sum(axis=1)), (slice(8, 16), masses.sum(axis=0))):
        counts = np.bincount(painted[:, half] @ places, minlength=256)
        assert statistic(counts, probability) < 4

        # A distribution at a distance of 2 % would be told from it.
        likely = np.sort(probability)[::-1]
        first = probability >= likely[np.searchsorted(likely.cumsum(), 0.5)]
        moved = np.where(first, -probability / probability[first].sum(), 0)
        moved += np.where(first, 0, probability / probability[~first].sum())
        assert statistic(counts, probability + 0.02 * moved) > 4


# The service


@pytest.fixture
def settings(repository: Path) -> Settings:
    return Settings(model_repository=repository, default_models=(MODEL,), workers=2)


async def run(engine: Engine, operation: str, request: Any) -> Any:
    return (await engine.run(operation, request)).result


async def sample(engine: Engine, **fields: Any) -> Any:
    return await run(engine, "sample", SampleRequest(**fields))


def digits(count: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    return 255 * generator.integers(0, 2, (count, SIDE, SIDE, 1), np.uint8)


@pytest.mark.parametrize("controls", [{}, {"temperature": 0.5}, {"truncation": 0.7}])
async def test_every_pixel_is_the_one_that_a_full_pass_draws(
    controls: Mapping[str, float], engine: Engine
) -> None:
    family = smallest()
    drawn = await sample(engine, count=24, seed=7, **controls)
    x = torch.from_numpy(drawn.images[..., 0] // 255).float()[:, None]
    with torch.no_grad():
        features = family.decoder(torch.from_numpy(drawn.latents))
        logits = family.logits(x, features)[:, 0].double().numpy()
    off = 1 / (1 + np.exp(logits / controls.get("temperature", 1.0)))
    items = np.arange(24, dtype=np.uint64)
    uniforms = noise.uniform(np.full(24, 7, np.uint64), "pixels", items, PIXELS)
    uniforms = uniforms.reshape(24, SIDE, SIDE)
    near = np.abs(uniforms - off) < 1e-4
    assert (near | ((uniforms >= off) == x[:, 0].numpy())).all() and near.mean() < 0.01
    assert np.abs(drawn.latents).max() <= controls.get("truncation", 10)


async def test_a_sample_is_what_its_latent_decodes_to(engine: Engine) -> None:
    drawn = await sample(engine, count=5, seed=7)
    decoded = await run(engine, "decode", DecodeRequest(latents=drawn.latents, seed=7))
    assert np.array_equal(decoded.images, drawn.images)
    other = await run(engine, "decode", DecodeRequest(latents=drawn.latents, seed=8))
    assert not np.array_equal(other.images, drawn.images), "another seed, other pixels"
    fewer = await sample(engine, count=2, seed=7)
    assert np.array_equal(fewer.images, drawn.images[:2])


async def test_reconstructions_are_what_encoded_images_decode_to(engine: Engine) -> None:
    encoded = await run(engine, "encode", EncodeRequest(images=digits(4)))
    assert encoded.latents.shape == encoded.deviations.shape == (4, 1)
    again = await run(engine, "reconstruct", ReconstructRequest(images=digits(4), seed=2))
    decoded = await run(engine, "decode", DecodeRequest(latents=encoded.latents, seed=2))
    assert np.array_equal(again.images, decoded.images)


async def test_all_along_a_path_the_noise_of_pixels_is_the_same(engine: Engine) -> None:
    here, there = (Endpoint(latent=np.array([z])) for z in (-4.0, 4.0))
    still = await run(
        engine, "interpolate", InterpolateRequest(start=here, end=here, steps=4, seed=3)
    )
    assert (still.images == still.images[0]).all()
    path = await run(
        engine, "interpolate", InterpolateRequest(start=here, end=there, steps=6, seed=3)
    )
    assert np.array_equal(path.images[0], still.images[0])
    assert not np.array_equal(path.images[0], path.images[-1])


async def test_requests_that_share_steps_get_what_each_would_alone(engine: Engine) -> None:
    requests = [SampleRequest(count=count, seed=count) for count in (40, 1, 3, 25)]
    alone = [await run(engine, "sample", each) for each in requests]
    together = await asyncio.gather(*(run(engine, "sample", each) for each in requests))
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one.images, other.images)


async def test_likelihoods_are_bounds_by_posterior_draws(engine: Engine) -> None:
    drawn = await sample(engine, count=3, seed=1)
    request = LikelihoodRequest(images=drawn.images, samples=400)
    scored = await run(engine, "likelihood", request)
    assert (scored.kind, scored.estimator, scored.draws) == ("lower_bound", "iwae", 400)
    prior = await run(
        engine,
        "likelihood",
        LikelihoodRequest(images=drawn.images, samples=400, estimator="monte_carlo"),
    )
    x = torch.from_numpy(drawn.images[..., 0] // 255).float()[:, None]
    for picture, *estimates in zip(x, scored.log_likelihood, prior.log_likelihood, strict=True):
        assert estimates == pytest.approx([log_mass(smallest(), picture)] * 2, abs=0.2)


async def test_streams_show_rows_and_go_on_after_a_cut(engine: Engine) -> None:
    request, images = SampleRequest(count=3, seed=8, truncation=1.0), np.zeros((3, SIDE, SIDE))
    *told, answer = [event async for event in engine.stream("sample", request)]
    cut = len(told) // 2
    stream = StreamRequest(resume_token=told[cut - 1].resume_token)
    *rest, again = [event async for event in engine.stream("sample", request, stream=stream)]
    for event in (*told[:cut], *rest):
        assert isinstance(event, Rows)
        images[event.image, event.first_row :][: len(event.levels)] += event.levels  # each once
    for last in (answer, again):
        assert isinstance(last, Answer)
        assert np.array_equal(last.result.images[..., 0], images)
    other = SampleRequest(count=3, seed=8, truncation=2.0)
    with pytest.raises(ResumeMismatch, match="another request"):
        _ = [event async for event in engine.stream("sample", other, stream=stream)]


async def test_what_it_does_not_have_is_refused(engine: Engine) -> None:
    image = digits(1)[0]
    with pytest.raises(OperationNotOffered):
        await run(engine, "complete", CompleteRequest(image=image, prefix_rows=2))
    with pytest.raises(ControlNotOffered):
        await sample(engine, top_k=1)
    with pytest.raises(InvalidRequest, match="there is only images, latents"):
        (await sample(engine)).part("log_likelihood")
    for wrong in (np.zeros((1, 2)), np.full((1, 1), 3e38)):
        with pytest.raises(InvalidLatent):
            await run(engine, "decode", DecodeRequest(latents=wrong))


# The manifest


def without_features(manifest: dict[str, Any]) -> None:
    del manifest["graphs"]["features"]


def step_is_told_nothing(manifest: dict[str, Any]) -> None:
    step = manifest["graphs"]["row_step"]
    step["inputs"] = [port for port in step["inputs"] if port["role"] != "features"]


def features_of_another_size(manifest: dict[str, Any]) -> None:
    manifest["graphs"]["features"]["outputs"][0]["shape"] = ["batch", SIDE, SIDE + 1, 3]


def features_of_another_number(manifest: dict[str, Any]) -> None:
    manifest["graphs"]["features"]["outputs"][0]["shape"] = ["batch", SIDE, SIDE, 4]


def no_latent(manifest: dict[str, Any]) -> None:
    manifest["latent"] = None
    manifest["operations"] = {"sample": {}}
    del manifest["graphs"]["log_mass_given_latent"]


def completions(manifest: dict[str, Any]) -> None:
    manifest["operations"]["complete"] = {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_features, "needs a graph 'features'"),
        (step_is_told_nothing, r"'row_step' must take \[width, features\]"),
        (features_of_another_size, r"must give \[height, width, features\]"),
        (features_of_another_number, r"'row_step' must take \[width, features\]"),
        (no_latent, "a latent of raster_rows, and no other, needs a graph 'features'"),
        (completions, "no operation 'complete'"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    change: Callable[[dict[str, Any]], None], message: str, repository: Path
) -> None:
    manifest = json.loads((repository / MODEL / "1" / "manifest.json").read_text())
    change(manifest)
    with pytest.raises(ValueError, match=message):
        Manifest.model_validate_json(json.dumps(manifest))
