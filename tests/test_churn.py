"""Models are reloaded over and over, good ones and bad ones, while both transports ask for them."""

import asyncio
import shutil
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import httpx
import pytest

from service.core.manifest import read_manifest
from service.keys import create_key
from service.rpc.pb import generation_service_pb2 as pb
from service.rpc.pb.generation_service_pb2_grpc import GenerationServiceStub
from tests.fakes import SIDE
from tests.live import LiveServer
from tests.repository import add_slow_version, add_version, flip_a_byte

GAN = "toy-gan"
RASTER = "toy-raster"
VAE = "toy-vae"
KEY, LINE = create_key("churn")
METADATA = (("authorization", f"Bearer {KEY}"),)

KINDS = ("good", "corrupted", "slow", "missing", "back", "good", "again")
SLOTS = 16
RASTER_SLOTS = 'genserve_slots{graph="row_step",model="toy-raster"}'
IMAGES = [[[[0]] * SIDE] * SIDE] * 2
SLOW_ROWS = 200_000  # of test vectors

Answered = tuple[str, str]  # the model `name@version`, and the digest of its artifact


class Meant:
    """What a name meant, in order; what a request may be answered by begins with the last."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.versions = ["1"]
        self.newest = 1
        self.settled = 0  # from here on: what was meant before, no new request may get
        self.digests = {"1": read_manifest(folder / "1").artifact_digest}
        self.answers: Counter[str] = Counter()

    def coming(self, version: str) -> None:
        """From now on the name may mean this version."""
        self.versions.append(version)
        self.digests[version] = read_manifest(self.folder / version).artifact_digest

    def settle(self) -> None:
        """From now on the name means the last version only."""
        self.settled = len(self.versions) - 1

    def check(self, since: int, answered: Answered) -> None:
        """Check the answer to a request that began when `since` was settled."""
        name, _, version = answered[0].partition("@")
        allowed = self.versions[since:]
        assert name == self.folder.name and version in allowed, f"{answered[0]}, not of {allowed}"
        assert answered[1] == self.digests[version]
        self.answers[version] += 1


class Asker:
    """Asks both transports of a server all the time."""

    def __init__(self, rest: httpx.AsyncClient, stub: GenerationServiceStub) -> None:
        self._rest = rest
        self._stub = stub

    async def ask_until(
        self, done: asyncio.Event, ask: Callable[[], Awaitable[Answered]], meant: Meant
    ) -> None:
        """Ask until told to stop; anything but an answer from the right version is raised."""
        while not done.is_set():
            since = meant.settled
            meant.check(since, await ask())

    async def rest_sample(self) -> Answered:
        answer = await self._rest.post("/sample", json={"model": GAN, "count": 2})
        assert answer.status_code == 200, answer.text
        return answer.json()["model"], answer.json()["artifact_digest"]

    async def rest_reconstruct(self) -> Answered:
        """Two runs, one after the other: both must be of the same version."""
        body = {"model": VAE, "images": IMAGES}
        answer = await self._rest.post("/reconstruct", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["model"], answer.json()["artifact_digest"]

    async def grpc_sample(self) -> Answered:
        answer = await self._stub.Sample(pb.SampleRequest(model=GAN), metadata=METADATA)
        return answer.model, answer.artifact_digest

    async def grpc_stream(self) -> Answered:
        asked = pb.StreamSampleRequest(request=pb.SampleRequest(model=RASTER, count=4))
        async for message in self._stub.StreamSample(asked, metadata=METADATA):
            last = message
        return last.result.model, last.result.artifact_digest


class Administrator:
    """Changes a repository, and has the server take notice: by a rescan, or by a load."""

    def __init__(self, rest: httpx.AsyncClient, stub: GenerationServiceStub) -> None:
        self._rest = rest
        self._stub = stub

    async def reload(self, meant: Meant, kind: str, *, load: bool) -> None:
        if kind == "again":
            assert await self._load(meant)
        elif kind == "back":
            await self._go_back(meant)
        else:
            meant.newest += 1
            version = str(meant.newest)
            await asyncio.to_thread(write, meant.folder, version, kind)
            sound = kind in ("good", "slow")
            if sound:
                meant.coming(version)
            assert await (self._load if load else self._rescan)(meant) == sound, kind
            meant.settle()
            if not sound:
                shutil.rmtree(meant.folder / version)
                await self._rescan(meant)

    async def _go_back(self, meant: Meant) -> None:
        newest, *older = sorted(meant.folder.glob("[0-9]*"), key=lambda path: -int(path.name))
        if older:
            meant.coming(older[0].name)
            shutil.rmtree(newest)
            await self._rescan(meant)
            meant.settle()

    async def _rescan(self, meant: Meant) -> bool:
        """Return whether anything was loaded."""
        answer = await self._rest.post("/models/rescan")
        assert answer.status_code == 200, answer.text
        return any(change["kind"] == "loaded" for change in answer.json()["changes"])

    async def _load(self, meant: Meant) -> bool:
        try:
            asked = pb.LoadModelRequest(model=meant.folder.name)
            await self._stub.LoadModel(asked, metadata=METADATA)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.FAILED_PRECONDITION, error
            return False
        return True


def write(folder: Path, version: str, kind: str) -> None:
    """Write a version, and drop all but the last few."""
    graph = "log_likelihood.onnx" if folder.name == RASTER else "decode.onnx"
    if kind == "slow" and folder.name == GAN:
        add_slow_version(folder, version, SLOW_ROWS)
    else:
        add_version(folder, version, family=f"toy of version {version}")
    if kind == "corrupted":
        flip_a_byte(folder / version / graph)
    if kind == "missing":
        (folder / version / graph).unlink()
    for path in folder.glob("[0-9]*"):
        if 1 < int(path.name) < int(version) - 8:
            shutil.rmtree(path)


async def churn(
    asker: Asker, administrator: Administrator, meant: dict[str, Meant], reloads: int
) -> None:
    """Reload so many times while seven clients ask without a pause."""
    done = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(asker.ask_until(done, asker.rest_sample, meant[GAN]))
        group.create_task(asker.ask_until(done, asker.grpc_sample, meant[GAN]))
        group.create_task(asker.ask_until(done, asker.grpc_stream, meant[RASTER]))
        for _ in range(4):
            group.create_task(asker.ask_until(done, asker.rest_reconstruct, meant[VAE]))
        for number in range(reloads):
            name = (GAN, VAE, RASTER)[number % 3]
            kind = KINDS[number % len(KINDS)]
            await administrator.reload(meant[name], kind, load=number % 2 == 0)
        done.set()


async def read_figures(rest: httpx.AsyncClient) -> dict[str, float]:
    """Return the server's metrics, by name and labels."""
    lines = (await rest.get("/metrics")).text.splitlines()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


@pytest.mark.parametrize("reloads", [15, pytest.param(200, marks=pytest.mark.slow)])
async def test_no_request_fails_or_gets_another_version_than_its_name_means(
    repository: Path, tmp_path: Path, reloads: int
) -> None:
    copy = shutil.copytree(repository, tmp_path / "repository")
    (tmp_path / "keys").write_text(LINE)
    settings = {"default_models": f"{GAN},{RASTER},{VAE}", "api_key_hashes": str(tmp_path / "keys")}
    settings |= {"workers": "2", "row_slots": str(SLOTS)}
    with LiveServer(copy, **settings) as server:
        server.wait_until_ready()
        meant = {name: Meant(copy / name) for name in (GAN, RASTER, VAE)}
        async with (
            httpx.AsyncClient(base_url=server.url, headers=dict(METADATA), timeout=60) as rest,
            grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
        ):
            stub = GenerationServiceStub(channel)
            await churn(Asker(rest, stub), Administrator(rest, stub), meant, reloads)
            await Asker(rest, stub).grpc_stream()  # of the last version: only it has lanes
            async with asyncio.timeout(20):
                while (figures := await read_figures(rest))[RASTER_SLOTS] != 2 * SLOTS:
                    await asyncio.sleep(0.05)
            assert (await rest.get("/readyz")).status_code == 200
        assert server.stop() == 0
        errors = [entry for entry in server.log if entry["level"] in ("error", "not JSON")]
        assert {entry["message"] for entry in errors} == {"model refused"}
    for name in meant:
        assert sum(meant[name].answers.values()) > reloads and len(meant[name].answers) > 1
    answered = [
        name
        for name, count in figures.items()
        if name.startswith("genserve_requests_total") and count
    ]
    assert answered and all('code="OK"' in name for name in answered)
