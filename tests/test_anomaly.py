"""What the likelihood operation says of anomalies, and what it refuses to say."""

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.core.engine import Engine
from service.core.requests import ConditionRequest, LikelihoodRequest, LikelihoodResult
from service.core.scoring.calibration import Calibration
from service.core.scoring.conformal import GROUPS
from service.errors import InvalidRequest, NotCalibrated, OutOfRange
from service.metrics import Metrics
from service.server import build_engine
from service.settings import Settings
from tests.calibrated import calibrate, normal_images
from tests.fakes import RASTER_LEVELS, SIDE


async def open_engine(repository: Path, metrics: Metrics) -> AsyncIterator[Engine]:
    settings = Settings(
        model_repository=repository, default_models=("toy-flow",), workers=2, maximum_count=256
    )
    built = build_engine(settings, metrics)
    await built.load_default_models()
    yield built
    await built.drain()


@pytest.fixture
async def engine(calibrated: tuple[Path, Any], metrics: Metrics) -> AsyncIterator[Engine]:
    async for built in open_engine(calibrated[0], metrics):
        yield built


@pytest.fixture
def spoilt(calibrated: tuple[Path, Any], tmp_path: Path) -> Path:
    """A copy of the calibrated repository that a test may change."""
    return shutil.copytree(calibrated[0], tmp_path / "repository")


async def score(
    engine: Engine, images: np.ndarray, model: str = "toy-flow", **fields: Any
) -> LikelihoodResult:
    request = LikelihoodRequest(images=images, **fields)
    result = (await engine.run("likelihood", request, model=model)).result
    assert isinstance(result, LikelihoodResult)
    return result


# Answers


@pytest.mark.parametrize(
    ("model", "levels", "names"),
    [
        ("toy-flow", 256, {"typicality", "complexity_adjusted", "latent_norm", "combined"}),
        (
            "toy-raster",
            RASTER_LEVELS,
            {"typicality", "complexity_adjusted", "likelihood_ratio", "combined"},
        ),
    ],
)
async def test_a_calibrated_model_answers_scores_and_valid_p_values(
    engine: Engine, calibrated: tuple[Path, Any], model: str, levels: int, names: set[str]
) -> None:
    found = (await score(engine, normal_images(256, levels, seed=1), model)).anomaly
    assert found is not None
    assert found.scores.keys() == found.p_values.keys() == names
    assert found.calibration == calibrated[1][model].id
    assert (found.count, found.decision, found.false_positive_rate) == (200, "combined", 0.01)
    low, high = found.realised_rate
    assert 0.0 < low < 2 / 201 < high < 0.05
    rate = 0.1
    slack = 3 * np.sqrt(rate * (1 - rate) * (1 / 200 + 1 / 256))
    for p in found.p_values.values():
        assert np.mean(p <= rate) <= rate + slack
    assert np.array_equal(found.anomalous, found.p_value <= 0.01)
    assert np.all(found.q_value >= found.p_value)
    assert found.group_p_value is None


async def test_images_of_another_kind_are_anomalous(engine: Engine) -> None:
    # Brighter than any normal image, and simpler than any.
    others = np.concatenate([np.full((1, SIDE, SIDE, 1), 255), np.zeros((1, SIDE, SIDE, 1))])
    found = (await score(engine, others.astype(np.int64), false_positive_rate=0.02)).anomaly
    assert found is not None
    assert found.anomalous.tolist() == [True, True]
    assert found.percentile[0] == 100.0


async def test_a_score_does_not_depend_on_the_rest_of_the_request(engine: Engine) -> None:
    images = normal_images(9, RASTER_LEVELS, seed=2)
    together = (await score(engine, images, "toy-raster")).anomaly
    alone = (await score(engine, images[4:5], "toy-raster")).anomaly
    assert together and alone
    for name, values in alone.scores.items():
        assert values[0] == pytest.approx(together.scores[name][4], rel=1e-4)


async def test_a_group_is_one_test(engine: Engine) -> None:
    normal = (await score(engine, normal_images(60, 256, seed=3), group=True)).anomaly
    brighter = normal_images(60, 256, seed=3) + 60
    leaning = (await score(engine, brighter, group=True)).anomaly
    assert normal and leaning and normal.group_p_value and leaning.group_p_value
    assert normal.group_p_value > 0.05
    assert leaning.group_p_value == 1 / (GROUPS + 1)


async def test_the_map_is_the_log_likelihood_pixel_by_pixel(engine: Engine) -> None:
    images = normal_images(3, RASTER_LEVELS)
    result = await score(engine, images, "toy-raster", parts=["log_likelihood_map"])
    assert result.log_likelihood_map is not None and result.log_likelihood_map.shape == (3, 4, 4)
    assert np.allclose(result.log_likelihood_map.sum(axis=(1, 2)), result.log_likelihood)
    assert (await score(engine, images, "toy-raster")).log_likelihood_map is None


async def test_scores_are_left_out_where_the_parts_leave_them_out(engine: Engine) -> None:
    result = await score(engine, normal_images(2, 256), parts=["log_likelihood"])
    assert result.anomaly is None


# Where there is no calibration that applies


async def test_without_a_calibration_the_answer_is_the_likelihood(engine: Engine) -> None:
    images = np.zeros((2, SIDE, SIDE, 1), np.int64)
    result = await score(engine, images, "toy-vae")
    assert result.anomaly is None and np.all(np.isfinite(result.log_likelihood))


async def test_under_another_protocol_the_answer_is_the_likelihood(engine: Engine) -> None:
    images = normal_images(2, 256)
    assert (await score(engine, images, seed=1)).anomaly is None
    assert (await score(engine, images, samples=4)).anomaly is None
    given = ConditionRequest(classes=[1])
    raster = normal_images(2, RASTER_LEVELS)
    assert (await score(engine, raster, "toy-raster", condition=given)).anomaly is None
    # Nothing is drawn by this model, so that its scores have no seed.
    assert (await score(engine, raster, "toy-raster", seed=1)).anomaly is not None


IMAGES = normal_images(2, RASTER_LEVELS)
REFUSALS: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("toy-vae", {"images": IMAGES * 0, "false_positive_rate": 0.05}, NotCalibrated,
     "no calibration.*genserve calibrate, or leave out false_positive_rate"),
    ("toy-vae", {"images": IMAGES * 0, "parts": ["scores"]}, NotCalibrated, "leave out scores"),
    ("toy-vae", {"images": IMAGES * 0, "parts": ["log_likelihood_map"]}, InvalidRequest,
     "answers no log_likelihood_map"),
    ("toy-flow", {"false_positive_rate": 0.05, "samples": 4}, NotCalibrated,
     "estimator is iwae, not elbo"),
    ("toy-raster", {"group": True, "condition": ConditionRequest(classes=[1])}, NotCalibrated,
     "conditioning is given, not none"),
    ("toy-flow", {"calibration": "0123456789ab"}, NotCalibrated, "no calibration 0123456789ab"),
    ("toy-flow", {"group": True, "parts": ["log_likelihood"]}, InvalidRequest, "add scores"),
    ("toy-flow", {"false_positive_rate": 0.0}, OutOfRange, "more than 0 and less than 1"),
    ("toy-flow", {"false_positive_rate": 1.0}, OutOfRange, "more than 0 and less than 1"),
    ("toy-flow", {"false_positive_rate": float("nan")}, OutOfRange, "more than 0"),
    ("toy-flow", {"false_positive_rate": 0.0049}, OutOfRange, "resolve rates from 0.004975"),
    ("toy-flow", {"images": normal_images(201, 256), "group": True}, OutOfRange, "1 to 200"),
    ("toy-flow", {"images": IMAGES[:0], "group": True}, OutOfRange, "0 images were sent"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "fields", "error", "message"), REFUSALS)
async def test_wishes_that_can_not_be_met_are_refused_with_what_to_do(
    engine: Engine, model: str, fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        await score(engine, **{"images": IMAGES, "model": model, **fields})


# Several calibrations, and broken ones


async def test_of_several_calibrations_a_wish_must_name_one(spoilt: Path, metrics: Metrics) -> None:
    other = calibrate(
        spoilt / "toy-flow" / "1", LikelihoodRequest(images=normal_images(400, 256, seed=9))
    )
    async for engine in open_engine(spoilt, metrics):
        images = normal_images(2, 256)
        assert (await score(engine, images)).anomaly is None
        with pytest.raises(InvalidRequest, match=f"{other.id}.*name one"):
            await score(engine, images, false_positive_rate=0.05)
        named = (await score(engine, images, calibration=other.id)).anomaly
        assert named is not None and named.calibration == other.id


async def test_calibrations_of_different_protocols_stand_side_by_side(
    spoilt: Path, metrics: Metrics
) -> None:
    request = LikelihoodRequest(images=normal_images(400, 256), samples=8)
    other = calibrate(spoilt / "toy-flow" / "1", request)
    async for engine in open_engine(spoilt, metrics):
        images = normal_images(2, 256)
        plain = (await score(engine, images)).anomaly
        weighted = (await score(engine, images, samples=8)).anomaly
        assert plain and weighted and plain.calibration != weighted.calibration == other.id


async def test_a_broken_calibration_is_refused_by_name_and_the_model_serves(
    spoilt: Path,
    metrics: Metrics,
    calibrated: tuple[Path, dict[str, Calibration]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    sound = calibrated[1]["toy-flow"]
    folder = spoilt / "toy-flow" / "calibrations"
    (folder / "broken.json").write_text("{")
    stale = json.loads(sound.model_dump_json())
    (folder / "altered.json").write_text(json.dumps({**stale, "id": "0" * 12}))
    shutil.copy(next((spoilt / "toy-raster" / "calibrations").iterdir()), folder / "other.json.xz")
    async for engine in open_engine(spoilt, metrics):
        model = engine.models.find("toy-flow")
        assert model.state == "ready"
        assert list(model.calibrations) == [sound.id]
        assert model.refused_calibrations.keys() == {"broken.json", "altered.json", "other.json.xz"}
        assert "of artifact" in model.refused_calibrations["other.json.xz"]
        assert "contradicts its id" in model.refused_calibrations["altered.json"]
        assert (await score(engine, normal_images(1, 256))).anomaly is not None
    refused = [record.reason for record in caplog.records if "calibration" in record.message]
    assert len(refused) == 3
