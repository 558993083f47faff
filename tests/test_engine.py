"""Operations through the engine, on really exported toy models."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from service.core import noise
from service.core.engine import Engine
from service.core.requests import (
    ConditionRequest,
    DecodeRequest,
    EncodeRequest,
    Endpoint,
    InterpolateRequest,
    LikelihoodRequest,
    ReconstructRequest,
    SampleRequest,
)
from service.errors import (
    BinarisationRequired,
    ConditionNotOffered,
    ControlNotOffered,
    DeadlineExceeded,
    InvalidImage,
    InvalidLatent,
    InvalidRequest,
    LatentSpaceMismatch,
    ModelNotFound,
    OperationNotOffered,
    OutOfRange,
    ShuttingDown,
)
from service.metrics import Metrics
from service.server import build_engine
from service.settings import Settings
from tests.fakes import CLASSES, LATENT, PIXELS, SIDE, GatedSession


def pictures(count: int, seed: int = 0) -> np.ndarray:
    """Random grey levels [count, SIDE, SIDE, 1]."""
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 1))


def black_and_white(count: int, seed: int = 0) -> np.ndarray:
    return (pictures(count, seed) > 127) * 255


async def test_samples_are_levels_and_carry_what_made_them(engine: Engine) -> None:
    answer = await engine.run("sample", SampleRequest(count=5, seed=3))
    result = answer.result
    assert answer.model == "toy-gan@1", "the first default model that offers sampling"
    assert result.images.shape == (5, SIDE, SIDE, 1) and result.images.dtype == np.uint8
    assert result.part("latents").shape == (5, LATENT)
    assert result.class_weights.shape == (5, CLASSES)
    assert result.seed == 3


async def test_the_unit_scale_is_the_same_image_before_rounding(engine: Engine) -> None:
    levels = (await engine.run("sample", SampleRequest(count=3, seed=3))).result.images
    unit = (await engine.run("sample", SampleRequest(count=3, seed=3, scale="unit"))).result.images
    assert unit.dtype == np.float32
    assert np.array_equal(np.rint(unit * 255).astype(np.uint8), levels)


async def test_without_a_seed_one_is_drawn_and_repeats_the_answer(engine: Engine) -> None:
    first = (await engine.run("sample", SampleRequest(count=2))).result
    other = (await engine.run("sample", SampleRequest(count=2))).result
    again = (await engine.run("sample", SampleRequest(count=2, seed=first.seed))).result
    assert first.seed != other.seed
    assert np.array_equal(first.images, again.images)


async def test_an_image_is_the_same_for_any_count_and_beside_any_neighbours(
    engine: Engine,
) -> None:
    alone = (await engine.run("sample", SampleRequest(count=1, seed=11))).result.images[0]
    mixed = [
        SampleRequest(count=1 + index % 3, seed=None if index % 2 else index) for index in range(31)
    ]
    mixed.insert(17, SampleRequest(count=32, seed=11))
    answers = await asyncio.gather(*(engine.run("sample", request) for request in mixed))
    assert np.array_equal(answers[17].result.images[0], alone)
    again = await engine.run("sample", SampleRequest(count=3, seed=2))
    assert np.array_equal(answers[2].result.images, again.result.images[: 1 + 2 % 3])


async def test_the_same_seed_gives_the_same_image_after_a_restart(
    engine: Engine, settings: Settings
) -> None:
    before = await engine.run("sample", SampleRequest(count=4, seed=99))
    restarted = build_engine(settings, Metrics(CollectorRegistry()))
    after = await restarted.run("sample", SampleRequest(count=4, seed=99))
    await restarted.drain()
    assert np.array_equal(before.result.images, after.result.images)
    assert before.manifest.artifact_digest == after.manifest.artifact_digest


async def test_a_zero_temperature_gives_one_image_and_truncation_bounds_latents(
    engine: Engine,
) -> None:
    cold = await engine.run(
        "sample", SampleRequest(count=4, seed=1, temperature=0.0, condition=of_class(1))
    )
    assert np.array_equal(cold.result.images[0], cold.result.images[3])
    narrow = await engine.run("sample", SampleRequest(count=32, seed=1, truncation=0.2))
    assert np.abs(narrow.result.part("latents")).max() <= 0.2
    wide = await engine.run("sample", SampleRequest(count=32, seed=1))
    warm = await engine.run("sample", SampleRequest(count=32, seed=1, temperature=2.0))
    assert np.allclose(warm.result.part("latents"), 2.0 * wide.result.part("latents"))


def of_class(*labels: int) -> ConditionRequest:
    return ConditionRequest(classes=labels)


async def test_classes_may_be_one_for_all_or_one_each_or_weights(engine: Engine) -> None:
    async def sample(condition: ConditionRequest) -> np.ndarray:
        request = SampleRequest(count=3, seed=5, condition=condition)
        return (await engine.run("sample", request)).result.images

    ones, each = await sample(of_class(1)), await sample(of_class(0, 1, 2))
    assert np.array_equal(ones[1], each[1])
    assert not np.array_equal(ones[0], each[0])
    weights = ConditionRequest(class_weights=np.array([0.0, 1.0, 0.0]))
    assert np.array_equal(await sample(weights), ones)
    mixture = ConditionRequest(class_weights=np.full(CLASSES, 1 / 3))
    assert not np.array_equal(await sample(mixture), ones)


async def test_a_class_that_is_not_asked_for_is_drawn_from_the_prior(engine: Engine) -> None:
    drawn = [
        (await engine.run("sample", SampleRequest(count=32, seed=seed))).result.class_weights
        for seed in range(30)
    ]
    shares = np.concatenate(drawn).mean(axis=0)
    assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.06)  # 4 deviations of 960 draws


async def test_a_flow_decodes_what_it_encoded(engine: Engine) -> None:
    images = pictures(6)
    encoded = (await engine.run("encode", EncodeRequest(images=images), model="toy-flow")).result
    decoded = await engine.run("decode", DecodeRequest(latents=encoded.latents), model="toy-flow")
    restored = await engine.run("reconstruct", ReconstructRequest(images=images), model="toy-flow")
    assert np.array_equal(decoded.result.images, images)
    assert np.array_equal(restored.result.images, images)


async def test_posterior_draws_follow_the_image_and_the_seed(engine: Engine) -> None:
    images = pictures(4)

    async def encode(images: np.ndarray, seed: int = 1):
        request = EncodeRequest(images=images, draw=True, seed=seed)
        return (await engine.run("encode", request, model="toy-vae")).result

    result, reversed_result = await encode(images), await encode(images[::-1])
    assert np.array_equal(result.draws, reversed_result.draws[::-1])
    assert not np.array_equal(result.draws, (await encode(images, seed=2)).draws)
    standardised = (result.draws - result.latents) / result.deviations
    assert 0.3 < standardised.std() < 2.0


async def test_a_flow_has_nothing_to_draw(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match="nothing to draw"):
        await engine.run("encode", EncodeRequest(images=pictures(1), draw=True), model="toy-flow")


async def test_the_same_image_gets_the_same_score_wherever_it_stands(engine: Engine) -> None:
    images = pictures(8)
    scores = (await engine.run("likelihood", LikelihoodRequest(images=images))).result
    last_first = (await engine.run("likelihood", LikelihoodRequest(images=images[::-1]))).result
    alone = (await engine.run("likelihood", LikelihoodRequest(images=images[3:4]))).result
    assert np.array_equal(scores.log_likelihood, last_first.log_likelihood[::-1])
    assert alone.log_likelihood[0] == scores.log_likelihood[3]


async def test_a_flow_score_is_the_mean_of_its_dequantisation_draws(engine: Engine) -> None:
    """The toy flow's density is known in closed form, so the whole path can be checked."""
    images = pictures(1)
    answer = await engine.run("likelihood", LikelihoodRequest(images=images, seed=4))
    key = np.array([noise.item_key(images.astype(np.uint8)[0].tobytes())], np.uint64)
    draws = noise.uniform(np.array([4], np.uint64), "dequantisation", key, 4 * PIXELS)
    latents = (images.reshape(1, -1) + draws.reshape(4, PIXELS) - 128.0) / 64.0
    constant = 0.5 * np.log(2.0 * np.pi) + np.log(64.0)
    expected = (-0.5 * latents**2 - constant).sum(axis=1)
    result = answer.result
    assert result.log_likelihood[0] == pytest.approx(expected.mean(), rel=1e-5)
    assert result.standard_error[0] == pytest.approx(expected.std(ddof=1) / 2.0, rel=1e-2)
    assert result.bits_per_dim[0] == pytest.approx(
        -expected.mean() / (PIXELS * np.log(2)), rel=1e-5
    )
    assert (result.kind, result.quantity, result.draws) == ("lower_bound", "probability", 4)


async def test_the_importance_weighted_bound_is_above_the_mean(engine: Engine) -> None:
    images = black_and_white(16)

    async def score(samples: int | None):
        request = LikelihoodRequest(images=images, samples=samples)
        return (await engine.run("likelihood", request, model="toy-vae")).result

    elbo, iwae = await score(None), await score(200)
    assert (elbo.estimator, iwae.estimator) == ("elbo", "iwae")
    assert iwae.log_likelihood.mean() > elbo.log_likelihood.mean()
    assert (await score(1)).standard_error is None


async def test_grey_levels_are_refused_by_a_binary_model_unless_a_rule_is_given(
    engine: Engine,
) -> None:
    grey = pictures(2)
    with pytest.raises(BinarisationRequired, match="threshold"):
        await engine.run("likelihood", LikelihoodRequest(images=grey), model="toy-vae")
    by_rule = LikelihoodRequest(images=grey, binarisation="threshold")
    by_hand = LikelihoodRequest(images=(grey >= 128) * 255)
    scores = [
        (await engine.run("likelihood", request, model="toy-vae")).result.log_likelihood
        for request in (by_rule, by_hand)
    ]
    assert np.array_equal(*scores)


async def test_unit_images_score_as_the_levels_they_are(engine: Engine) -> None:
    images = pictures(3)
    levels = await engine.run("likelihood", LikelihoodRequest(images=images))
    unit = await engine.run("likelihood", LikelihoodRequest(images=images / 255, scale="unit"))
    assert np.array_equal(levels.result.log_likelihood, unit.result.log_likelihood)


async def test_a_path_starts_and_ends_at_its_endpoints(engine: Engine) -> None:
    start, end = Endpoint(seed=1), Endpoint(seed=2)
    condition = of_class(2)
    path = await engine.run(
        "interpolate", InterpolateRequest(start=start, end=end, steps=7, condition=condition)
    )
    for index, seed in ((0, 1), (-1, 2)):
        sample = await engine.run("sample", SampleRequest(seed=seed, condition=condition))
        assert np.array_equal(path.result.images[index], sample.result.images[0])


async def test_a_spherical_path_keeps_its_length(engine: Engine) -> None:
    start, end = np.array([3.0, 0, 0, 0]), np.array([0, 2.0, 0, 5**0.5])
    request = InterpolateRequest(start=Endpoint(latent=start), end=Endpoint(latent=end), steps=9)
    latents = (await engine.run("interpolate", request)).result.latents
    assert np.linalg.norm(latents, axis=1) == pytest.approx(np.full(9, 3.0), rel=1e-6)


async def test_a_linear_path_has_equal_steps(engine: Engine) -> None:
    request = InterpolateRequest(start=Endpoint(seed=1), end=Endpoint(seed=2), steps=5, mode="lerp")
    steps = np.diff((await engine.run("interpolate", request)).result.latents, axis=0)
    assert np.allclose(steps, steps[0], atol=1e-6)


async def test_a_path_between_parallel_latents_falls_back_to_a_line(engine: Engine) -> None:
    start, end = Endpoint(latent=np.ones(LATENT)), Endpoint(latent=np.zeros(LATENT))
    request = InterpolateRequest(start=start, end=end, steps=3)
    latents = (await engine.run("interpolate", request)).result.latents
    assert np.allclose(latents, [[1.0] * LATENT, [0.5] * LATENT, [0.0] * LATENT])


async def test_images_are_endpoints_where_the_model_encodes(engine: Engine) -> None:
    images = pictures(2)
    start, end = Endpoint(image=images[0]), Endpoint(image=images[1])
    request = InterpolateRequest(start=start, end=end, steps=3)
    result = (await engine.run("interpolate", request, model="toy-flow")).result
    assert np.array_equal(result.images[[0, -1]], images)
    with pytest.raises(OperationNotOffered, match="can't encode"):
        await engine.run("interpolate", request, model="toy-gan")


async def test_a_grid_has_its_corners_at_its_corners(engine: Engine) -> None:
    corners = [Endpoint(seed=seed) for seed in range(4)]
    request = InterpolateRequest(corners=corners, steps=4, condition=of_class(0))
    result = (await engine.run("interpolate", request)).result
    assert (len(result.images), result.columns) == (16, 4)
    for index, seed in zip((0, 3, 12, 15), range(4), strict=True):
        sample = await engine.run("sample", SampleRequest(seed=seed, condition=of_class(0)))
        assert np.array_equal(result.images[index], sample.result.images[0])


async def test_arithmetic_adds_and_subtracts_latents(engine: Engine) -> None:
    a, b, c = np.random.default_rng(0).normal(size=(3, LATENT))
    request = InterpolateRequest(
        plus=[Endpoint(latent=a), Endpoint(latent=c)], minus=[Endpoint(latent=b)]
    )
    latents = (await engine.run("interpolate", request)).result.latents
    assert np.allclose(latents, [a - b + c], atol=1e-6)


IMAGE = pictures(1)
REFUSALS = [
    ("sample", SampleRequest(count=0), OutOfRange, "1 to 32"),
    ("sample", SampleRequest(count=33), OutOfRange, "1 to 32"),
    ("sample", SampleRequest(seed=-1), OutOfRange, "seed"),
    ("sample", SampleRequest(seed=2**53), OutOfRange, "9007199254740991"),
    ("sample", SampleRequest(temperature=float("nan")), OutOfRange, "temperature"),
    ("sample", SampleRequest(temperature=2.5), OutOfRange, "0.0 to 2.0"),
    ("sample", SampleRequest(truncation=0.0), OutOfRange, "truncation"),
    ("sample", SampleRequest(condition=of_class(3)), OutOfRange, "0 to 2"),
    ("sample", SampleRequest(condition=of_class(-1)), OutOfRange, "0 to 2"),
    ("sample", SampleRequest(condition=of_class()), InvalidRequest, "give 1 or 1"),
    ("sample", SampleRequest(count=3, condition=of_class(0, 1)), InvalidRequest, "1 or 3"),
    ("sample", SampleRequest(condition=ConditionRequest(class_weights=np.array([0.5, 0.5, 0.5]))),
     OutOfRange, "sum to 1"),
    ("sample", SampleRequest(condition=ConditionRequest(class_weights=np.full(3, np.nan))),
     OutOfRange, "sum to 1"),
    ("sample", SampleRequest(condition=ConditionRequest(class_weights=np.ones((2, 2)) / 2)),
     InvalidRequest, r"\[3\]"),
    ("decode", DecodeRequest(latents=np.zeros((1, 3))), InvalidLatent, r"\[count, 4\]"),
    ("decode", DecodeRequest(latents=np.zeros(4)), InvalidLatent, r"\[count, 4\]"),
    ("decode", DecodeRequest(latents=np.full((1, 4), np.inf)), InvalidLatent, "finite"),
    ("decode", DecodeRequest(latents=np.full((1, 4), 1e39)), InvalidLatent, "float32"),
    ("decode", DecodeRequest(latents=np.zeros((0, 4))), OutOfRange, "1 to 32"),
    ("interpolate", InterpolateRequest(plus=[Endpoint(latent=np.full(4, 3e38))] * 2),
     InvalidLatent, "finite"),
    ("decode", DecodeRequest(latents=np.zeros((1, 4)), latent_space="other/0"),
     LatentSpaceMismatch, "other/0"),
    ("encode", EncodeRequest(images=IMAGE[:, :3]), InvalidImage, r"\[count, 4, 4, 1\]"),
    ("encode", EncodeRequest(images=IMAGE[0]), InvalidImage, r"\[count, 4, 4, 1\]"),
    ("encode", EncodeRequest(images=IMAGE[:0]), OutOfRange, "1 to 32"),
    ("encode", EncodeRequest(images=IMAGE + 256), InvalidImage, "0 to 255"),
    ("encode", EncodeRequest(images=IMAGE - 256), InvalidImage, "0 to 255"),
    ("encode", EncodeRequest(images=IMAGE * 1.0), InvalidImage, "whole levels"),
    ("encode", EncodeRequest(images=IMAGE * np.nan, scale="unit"), InvalidImage, "NaN"),
    ("encode", EncodeRequest(images=IMAGE + 2.0, scale="unit"), InvalidImage, "0 to 1"),
    ("encode", EncodeRequest(images=IMAGE * 0 + 0.1234, scale="unit"), InvalidImage, "whole"),
    ("encode", EncodeRequest(images=IMAGE, binarisation="threshold"), InvalidRequest, "binary"),
    ("likelihood", LikelihoodRequest(images=IMAGE, samples=0), OutOfRange, "1 to 1000"),
    ("likelihood", LikelihoodRequest(images=IMAGE, samples=1001), OutOfRange, "1 to 1000"),
    ("likelihood", LikelihoodRequest(images=pictures(32), samples=1000), OutOfRange, "8192"),
    ("interpolate", InterpolateRequest(start=Endpoint(seed=1)), InvalidRequest, "both"),
    ("interpolate", InterpolateRequest(), InvalidRequest, "exactly one"),
    ("interpolate", InterpolateRequest(corners=[Endpoint(seed=1)] * 3), InvalidRequest, "4"),
    ("interpolate", InterpolateRequest(corners=[Endpoint(seed=1)] * 4, steps=6), OutOfRange,
     "2 to 5"),
    ("interpolate", InterpolateRequest(start=Endpoint(seed=1), end=Endpoint()), InvalidRequest,
     "exactly one"),
    ("interpolate", InterpolateRequest(start=Endpoint(seed=1), end=Endpoint(seed=2), steps=1),
     OutOfRange, "2 to 32"),
    ("interpolate", InterpolateRequest(minus=[Endpoint(seed=1)]), InvalidRequest, "to add"),
]  # fmt: skip


@pytest.mark.parametrize(("operation", "request_", "error", "message"), REFUSALS)
async def test_bad_requests_are_refused_with_what_is_allowed(
    engine: Engine, operation: str, request_: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        await engine.run(operation, request_)


async def test_latents_that_decode_to_infinity_are_refused(engine: Engine) -> None:
    request = DecodeRequest(latents=np.full((1, PIXELS), 3e38), scale="unit")
    with pytest.raises(InvalidLatent, match="not finite"):
        await engine.run("decode", request, model="toy-flow")


async def test_models_and_operations_that_are_not_there_are_refused_by_name(
    engine: Engine,
) -> None:
    with pytest.raises(ModelNotFound, match="toy-vae"):
        await engine.run("sample", SampleRequest(), model="toy-diffusion")
    with pytest.raises(ModelNotFound, match="toy-gan@9"):
        await engine.run("sample", SampleRequest(), model="toy-gan@9")
    with pytest.raises(OperationNotOffered, match="sample, decode, interpolate"):
        await engine.run("likelihood", LikelihoodRequest(images=IMAGE), model="toy-gan")
    with pytest.raises(ControlNotOffered, match="temperature"):
        await engine.run("sample", SampleRequest(truncation=1.0), model="toy-vae")
    with pytest.raises(ConditionNotOffered, match="unconditional"):
        await engine.run("sample", SampleRequest(condition=of_class(1)), model="toy-vae")


async def test_requests_are_counted_by_outcome(engine: Engine, metrics: Metrics) -> None:
    await engine.run("sample", SampleRequest(count=3, seed=1))
    with pytest.raises(OutOfRange):
        await engine.run("sample", SampleRequest(count=0))

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, labels)

    where = {"model": "toy-gan", "operation": "sample"}
    assert value("genserve_requests_total", **where, version="1", code="OK") == 1
    assert value("genserve_requests_total", **where, version="1", code="OUT_OF_RANGE") == 1
    assert value("genserve_images_total", **where) == 3
    labels = {"model": "toy-gan", "version": "1", "graph": "decode"}
    assert value("genserve_batch_rows_sum", **labels) == 3
    assert value("genserve_requests_in_flight") == 0
    assert value("genserve_model_ready", model="toy-gan", version="1") == 1


async def test_a_model_outside_the_default_set_loads_on_first_use(
    settings: Settings, metrics: Metrics
) -> None:
    engine = build_engine(settings.model_copy(update={"default_models": ("toy-gan",)}), metrics)
    await engine.load_default_models()
    assert engine.ready
    assert engine.models.find("toy-flow").state == "available"
    requests = (engine.run("sample", SampleRequest(seed=1), model="toy-flow") for _ in range(5))
    answers = await asyncio.gather(*requests)
    assert engine.models.find("toy-flow").state == "ready"
    assert all(answer.model == "toy-flow@1" for answer in answers)
    await engine.drain()


async def test_draining_lets_a_request_with_two_graph_calls_finish(
    settings: Settings, metrics: Metrics
) -> None:
    engine = build_engine(settings, metrics)
    await engine.load_default_models()
    graph = engine.models.find("toy-flow").graphs["encode"]
    gated = GatedSession(graph.session)
    engine.models.find("toy-flow").graphs["encode"] = replace(graph, session=gated)
    request = ReconstructRequest(images=pictures(2))
    running = asyncio.create_task(engine.run("reconstruct", request, model="toy-flow"))
    await asyncio.to_thread(gated.started.wait)
    draining = asyncio.create_task(engine.drain())
    await asyncio.sleep(0)
    with pytest.raises(ShuttingDown):
        await engine.run("sample", SampleRequest())
    gated.gate.set()
    assert np.array_equal((await running).result.images, pictures(2))
    await draining


async def test_draining_ends_readiness_before_anything_else(
    settings: Settings, metrics: Metrics
) -> None:
    engine = build_engine(settings, metrics)
    await engine.load_default_models()
    assert engine.ready
    await engine.drain()
    assert not engine.ready


async def test_a_deadline_that_has_passed_is_refused(engine: Engine) -> None:
    with pytest.raises(DeadlineExceeded):
        await engine.run("sample", SampleRequest(), timeout_seconds=1e-9)
