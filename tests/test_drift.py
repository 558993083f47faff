"""What the metrics say of verdicts: images that are as ever raise no alarm, others do."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service.core.engine import Engine
from service.core.scoring.drift import WINDOW
from service.metrics import Metrics
from tests.calibrated import normal_images
from tests.test_anomaly import open_engine, score

MODEL = "toy-flow"
ALARM = 4  # as the documentation of the metric says


@pytest.fixture
async def engine(calibrated: tuple[Path, Any], metrics: Metrics) -> AsyncIterator[Engine]:
    async for built in open_engine(calibrated[0], metrics):
        yield built


def verdicts(metrics: Metrics) -> dict[str, float]:
    """Every sample of the metrics of verdicts, by name and by verdict or bucket."""
    found = {}
    for family in text_string_to_metric_families(generate_latest(metrics.registry).decode()):
        for sample in family.samples:
            labels = dict(sample.labels)
            created = sample.name.endswith("_created")
            if labels.pop("calibration", None) and labels.pop("model") == MODEL and not created:
                found["/".join([sample.name.removeprefix("genserve_"), *labels.values()])] = (
                    sample.value
                )
    return found


async def judge(engine: Engine, images: np.ndarray, **fields: Any) -> None:
    for start in range(0, len(images), 100):
        await score(engine, images[start : start + 100], MODEL, **fields)


async def test_everything_is_there_and_zero_before_the_first_image(
    engine: Engine, metrics: Metrics
) -> None:
    found = verdicts(metrics)
    assert {"judged_images_total/anomalous", "judged_images_total/normal"} < found.keys()
    assert {"score_drift", "score_drift_images", "p_value_bucket/0.01"} < found.keys()
    assert set(found.values()) == {0.0}


async def test_normal_images_raise_no_alarm(engine: Engine, metrics: Metrics) -> None:
    await judge(engine, normal_images(1000, 256, seed=4), false_positive_rate=0.05)
    found = verdicts(metrics)
    assert abs(found["score_drift"]) < ALARM
    assert found["score_drift_images"] == WINDOW
    judged = {name: found[f"judged_images_total/{name}"] for name in ("anomalous", "normal")}
    assert sum(judged.values()) == found["p_value_count"] == found["p_value_bucket/1.0"] == 1000
    assert judged["anomalous"] == found["p_value_bucket/0.05"]
    slack = 3 * np.sqrt((1 / 200 + 1 / 1000) / 4)
    assert abs(found["p_value_bucket/0.5"] / 1000 - 0.5) < slack, "p-values are about uniform"


async def test_a_shift_raises_an_alarm_until_images_are_as_ever_again(
    engine: Engine, metrics: Metrics
) -> None:
    normal, brighter = normal_images(WINDOW, 256, seed=4), normal_images(WINDOW, 256, seed=5) + 18
    await judge(engine, normal)
    assert abs(verdicts(metrics)["score_drift"]) < ALARM
    before = verdicts(metrics)["judged_images_total/anomalous"]
    await judge(engine, brighter)
    assert verdicts(metrics)["score_drift"] > ALARM
    alone = verdicts(metrics)["judged_images_total/anomalous"] - before
    assert alone / WINDOW < 0.2, "few are anomalous by themselves"
    await judge(engine, normal)
    assert abs(verdicts(metrics)["score_drift"]) < ALARM


async def test_images_that_are_all_too_usual_raise_an_alarm_too(
    engine: Engine, metrics: Metrics
) -> None:
    images = normal_images(100, 256, seed=4)
    found = (await score(engine, images, MODEL)).anomaly
    assert found is not None
    usual = images[np.argmax(found.p_value)]
    await judge(engine, np.repeat(usual[None], WINDOW, axis=0))
    assert verdicts(metrics)["score_drift"] < -ALARM


async def test_likelihoods_without_a_verdict_leave_no_trace(
    engine: Engine, metrics: Metrics
) -> None:
    await judge(engine, normal_images(20, 256), parts=["log_likelihood"])
    await judge(engine, normal_images(20, 256), samples=3)
    assert set(verdicts(metrics).values()) == {0.0}
