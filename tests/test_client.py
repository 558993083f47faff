"""The client that the commands use, against a real gRPC server."""

import asyncio
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service import client
from service.core.engine import Engine
from service.images import levels_to_png
from service.metrics import Metrics
from service.rpc.pb import generation_service_pb2 as pb
from service.rpc.pb.generation_service_pb2_grpc import GenerationServiceStub
from service.score import score_files
from service.settings import Settings
from tests.fakes import SIDE, GatedSession


def square(level: int) -> bytes:
    return levels_to_png(np.full((SIDE, SIDE, 1), level, np.uint8), 256)


async def test_samples_are_one_picture_about_as_wide_as_high(
    address: str, stub: GenerationServiceStub
) -> None:
    content = await asyncio.to_thread(
        client.sample,
        client.Service(address),
        model="toy-gan",
        count=5,
        seed=1,
        class_label=2,
        temperature=0.5,
    )
    picture = np.asarray(Image.open(io.BytesIO(content)))
    answer = await stub.Sample(pb.SampleRequest(count=5, seed=1, class_label=[2], temperature=0.5))
    images = np.frombuffer(answer.images.levels, np.uint8).reshape(5, -1)
    assert picture.shape == (2 * SIDE, 3 * SIDE)
    assert np.array_equal(picture[:SIDE, :SIDE].ravel(), images[0])
    assert np.array_equal(picture[SIDE:, SIDE : 2 * SIDE].ravel(), images[4])


async def test_scores_carry_names_and_follow_the_images(address: str) -> None:
    images = [("black.png", square(0)), ("white.png", square(255))]
    there = await asyncio.to_thread(
        client.score, client.Service(address), model="toy-vae", images=images
    )
    back = await asyncio.to_thread(
        client.score, client.Service(address), model="toy-vae", images=images[::-1]
    )
    assert [row.name for row in there] == ["black.png", "white.png"]
    assert there == back[::-1]
    assert there[0].kind == "lower_bound" and there[0] != there[1]
    dimensions = SIDE * SIDE
    bits = -there[0].log_likelihood / (dimensions * np.log(2))
    assert there[0].bits_per_dim == pytest.approx(bits)


async def test_scoring_options_reach_the_service(address: str) -> None:
    grey = [("grey.png", square(100))]
    (row,) = await asyncio.to_thread(
        client.score,
        client.Service(address),
        model="toy-vae",
        images=grey,
        binarisation="threshold",
        samples=2,
    )
    (black,) = await asyncio.to_thread(
        client.score, client.Service(address), model="toy-vae", images=[("", square(0))], samples=2
    )
    assert row.log_likelihood == black.log_likelihood, "below half the highest level is black"


async def test_a_refusal_is_a_sentence_with_its_reason(address: str) -> None:
    with pytest.raises(client.ClientError, match="OUT_OF_RANGE: count is 0; allowed is 1 to 32"):
        await asyncio.to_thread(client.sample, client.Service(address), count=0)


async def test_a_number_that_does_not_fit_is_a_sentence_too(address: str) -> None:
    with pytest.raises(client.ClientError, match="can't be sent"):
        await asyncio.to_thread(client.sample, client.Service(address), seed=2**70)


def test_a_service_that_is_not_there_is_named() -> None:
    with pytest.raises(client.ClientError, match=r"127\.0\.0\.1:1 answered UNAVAILABLE"):
        client.sample(client.Service("127.0.0.1:1"))


def test_whoever_is_asked_to_wait_for_ever_gives_up(tmp_path: Path) -> None:
    picture = tmp_path / "black.png"
    picture.write_bytes(square(0))
    full, waits = client.ClientError("QUEUE_FULL: full", "QUEUE_FULL", 1e9), []

    def refuse(images: object) -> list[client.Score]:
        raise full

    with pytest.raises(client.ClientError) as refused:
        list(score_files([picture], refuse, None, waits.append))
    assert refused.value is full
    assert 0 < len(waits) < 20 and max(waits) <= 60


class TestFullQueue:
    """One worker, and a queue for 8 rows: two images of 4 draws."""

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"maximum_queued_rows": 8, "workers": 1})

    async def test_scoring_waits_as_long_as_it_is_asked_to(
        self,
        address: str,
        stub: GenerationServiceStub,
        engine: Engine,
        metrics: Metrics,
        tmp_path: Path,
    ) -> None:
        picture = tmp_path / "black.png"
        picture.write_bytes(square(0))
        model = engine.models.find("toy-flow")
        session = GatedSession(model.graphs["log_likelihood"].session)
        model.graphs["log_likelihood"] = replace(model.graphs["log_likelihood"], session=session)
        images = pb.Images(png=pb.PngFiles(files=[square(1)] * 2))
        others = [stub.Likelihood(pb.LikelihoodRequest(model="toy-flow", images=images))]
        async with asyncio.timeout(30):
            while not metrics.registry.get_sample_value("genserve_queued_rows"):
                await asyncio.sleep(0)
        waits = []

        def wait(seconds: float) -> None:
            waits.append(seconds)
            session.gate.set()
            asyncio.run_coroutine_threadsafe(answered(), loop).result(30)

        async def answered() -> None:
            await asyncio.gather(*others)

        def ask(images: object) -> list[client.Score]:
            return client.score(client.Service(address), model="toy-flow", images=images)

        loop = asyncio.get_running_loop()
        ((count, (row, _)),) = await asyncio.to_thread(
            lambda: list(score_files([picture] * 2, ask, None, wait))
        )
        assert count == 2 and row["log_likelihood"] and "error" not in row
        assert len(waits) == 1 and 0 < waits[0] <= 30
