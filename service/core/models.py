"""The models: what is in the repository, what serves, and how one version takes over from another.

A model that serves is never changed. A new one is verified and warmed beside it, and then takes its
place in the table in one step: who asks from there on gets the new one, and requests in flight end
on the one that they began with. When the last of them has ended, that one is freed.
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from service.core.artifact import CALIBRATIONS, load_artifact, load_calibrations
from service.core.batcher import LoadedGraph
from service.core.compatibility import Compatibility, compare
from service.core.events import events_of
from service.core.manifest import MANIFEST_FILE, Manifest, read_manifest
from service.core.manifest_parts import VERSION
from service.core.scoring.calibration import Calibration, list_calibrations
from service.core.scoring.drift import Watch
from service.errors import (
    ArtifactError,
    ArtifactRefused,
    ModelNotFound,
    ModelUnavailable,
    ModelUnloaded,
    OperationNotOffered,
)
from service.metrics import Metrics
from service.runtime.session import OpenSession

State = Literal["available", "loading", "ready", "refused", "unloaded"]

ChangeKind = Literal["loaded", "found", "refused", "removed", "kept"]

Stamp = tuple[tuple[str, int, int], ...]
"""Name, size and time of change of each file that a model is made of."""

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Model:
    """One artifact and where it stands; graphs and calibrations are there once it is ready."""

    folder: Path
    name: str
    version: str
    stamp: Stamp
    manifest: Manifest | None = None
    graphs: dict[str, LoadedGraph] = field(default_factory=dict)
    calibrations: dict[str, Calibration] = field(default_factory=dict)  # by id
    watches: dict[str, Watch] = field(default_factory=dict)  # by id of the calibration
    refused_calibrations: dict[str, str] = field(default_factory=dict)  # why, by file name
    compatibility: Compatibility | None = None  # with the version before, once it is ready
    state: State = "available"
    reason: str | None = None  # why it, or what its folder holds now, is refused
    refused_stamp: Stamp | None = None  # of what its folder holds now, where that is refused
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _requests: int = 0
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def order(self) -> tuple[str, tuple[int, ...]]:
        """What models are ordered by: their names, then oldest version first."""
        return self.name, _version_key(self.version)

    @property
    def loaded(self) -> bool:
        """Whether it serves, or will when it is verified."""
        return self.state in ("ready", "loading")

    @property
    def usable(self) -> bool:
        """Whether a name without a version may mean it."""
        return self.state not in ("refused", "unloaded")

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep its graphs until the end of this block, whatever takes its place meanwhile."""
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1
            if not self._requests:
                self._idle.set()

    async def until_idle(self) -> None:
        """Return once no request uses it, and none loads it."""
        async with self.lock:
            pass
        while self._requests:
            self._idle.clear()
            await self._idle.wait()

    def afresh(self, state: State) -> "Model":
        """Return the same artifact as it was before it was loaded."""
        return Model(self.folder, self.name, self.version, self.stamp, self.manifest, state=state)

    def refuse(self, reason: str) -> None:
        """Keep the model from serving; the others go on."""
        self.state, self.reason = "refused", reason
        log.error("model refused", extra={"folder": str(self.folder), "reason": reason})

    def check_offers(self, operation: str) -> None:
        """Raise ModelUnloaded, ModelUnavailable, or OperationNotOffered that names what is."""
        if self.state == "unloaded":
            raise ModelUnloaded(f"{self} was unloaded; ask for another version, or load it again")
        if self.manifest is None:
            raise ModelUnavailable(f"{self.name} was refused and does not serve: {self.reason}")
        if operation not in self.manifest.operations:
            offered = list(self.manifest.operations)
            raise OperationNotOffered(
                f"{self.name} does not offer {operation}; it offers {', '.join(offered)}",
                operations=offered,
            )


@dataclass(frozen=True)
class Change:
    """What a rescan did about one version."""

    model: str  # `name@version`
    kind: ChangeKind
    reason: str | None = None  # why it is refused, or kept


class Models:
    """The artifacts of one repository, `<folder>/<name>/<version>/manifest.json`."""

    def __init__(
        self,
        repository: Path,
        open_session: OpenSession,
        metrics: Metrics,
        *,
        pinned: Collection[str] = (),
        forget: Callable[[LoadedGraph], None] | None = None,
        update: Callable[[], None] | None = None,
    ) -> None:
        """Read what is there; nothing is loaded yet.

        `update` brings the folder up to date before each look, where it mirrors a repository that
        is elsewhere.

        A model that `pinned` names, by `name` or `name@version`, stays when its folder goes, and a
        version when a newer one takes over. `forget` is told of each graph that nothing uses
        any more.
        """
        self._repository = repository
        self._open_session = open_session
        self._metrics = metrics
        self._pinned = pinned
        self._forget = forget
        self._update = update
        self._changing = asyncio.Lock()  # held while the table may change
        self._coming: list[Model] = []  # being verified, to take a place in the table
        self._leaving: set[asyncio.Task[None]] = set()
        self._table: list[Model] = []  # in order
        for model in self._scan():
            self._add(model)

    def _expect(self, model: Model) -> None:
        """Show a model's metrics, from its first moment."""

        def is_in(state: str) -> bool:
            return model.state == state and model in self._table

        labels = model.name, model.version
        self._metrics.model_ready.labels(*labels).set_function(partial(is_in, "ready"))
        self._metrics.model_refused.labels(*labels).set_function(partial(is_in, "refused"))
        if model.manifest is None:
            return
        events = self._metrics.events(events_of(model.manifest).part)
        self._metrics.expect_model(*labels, model.manifest.operations, events)
        for name, graph in model.manifest.graphs.items():
            if graph.output("levels"):
                self._metrics.expect_painting(*labels, name)
            else:
                self._metrics.expect_batches(*labels, name)

    def all(self) -> list[Model]:
        """Return every model, by name, oldest version first."""
        there = {str(model) for model in self._table}
        coming = [model for model in self._coming if str(model) not in there]
        return sorted([*self._table, *coming], key=lambda model: model.order)

    def find(self, name: str) -> Model:
        """Return the model `name@version`, or the newest version of `name` that may serve.

        A model whose versions are all refused or unloaded is found, and refused when it is run.
        Raises ModelNotFound.
        """
        found = self._matching(name, self._table)
        if not found:
            known = sorted({model.name for model in self._table})
            raise ModelNotFound(
                f"there is no model '{name[:100]}'; there are {known}", models=known
            )
        return next((model for model in reversed(found) if model.usable), found[-1])

    async def load(self, model: Model) -> None:
        """Make a model ready, once, however many ask. Raises ModelUnavailable with the reason."""
        async with model.lock:
            if model.state == "available":
                model.state = "loading"
                await asyncio.to_thread(self._load, model, self._before(model))
        if model.state != "ready":
            raise ModelUnavailable(f"{model} was refused and does not serve: {model.reason}")

    async def reload(self, name: str) -> Model:
        """Load `name@version`, or the newest version of `name`, anew from the repository.

        It takes the place of what served before. Raises ModelNotFound; raises ArtifactRefused with
        the reason, and then what served before serves on.
        """
        async with self._changing:
            found = self._matching(name, await asyncio.to_thread(self._scan))
            if not found:
                raise ArtifactRefused(f"{self.find(name)} has no folder in the repository any more")
            change = await self._take_over(found[-1])
        if change.kind == "refused":
            raise ArtifactRefused(f"{change.model} was refused and not loaded: {change.reason}")
        return found[-1]

    async def unload(self, name: str) -> list[Model]:
        """Refuse new requests to `name@version`, or to all versions of `name`, and free them.

        Returns once the requests in flight have ended. What the name means without that version is
        loaded before. Raises ModelNotFound.
        """
        async with self._changing:
            self.find(name)
            leaving = self._matching(name, self._table)
            await self._load_heir(leaving)
            freed = [
                self._replace(model, model.afresh("unloaded")) for model in leaving if model.usable
            ]
            unloaded = self._matching(name, self._table)
        await asyncio.gather(*freed)
        return unloaded

    async def rescan(self) -> list[Change]:
        """Take over what is new or changed in the repository, and drop what is gone.

        A version that is newer than the one that serves is loaded and takes over from it; others
        wait for their first use. One that is refused changes nothing for requests.
        """
        async with self._changing:
            found = await asyncio.to_thread(self._scan)
            # Newest first: an older one need not be loaded where a newer one has taken over.
            changes = [await self._consider(model) for model in reversed(found)]
            there = {str(model) for model in found}
            gone = [model for model in self._table if str(model) not in there]
            changes += [await self._remove(model) for model in gone]
        return [change for change in changes if change is not None]

    def _scan(self) -> list[Model]:
        if self._update is not None:
            self._update()
        # A hidden folder is a copy under way, which will be moved to its name.
        folders = self._repository.glob(f"[!.]*/[!.]*/{MANIFEST_FILE}")
        found = [_read(path.parent) for path in folders]
        return sorted(found, key=lambda model: model.order)

    def _matching(self, name: str, models: Sequence[Model]) -> list[Model]:
        wanted, _, version = name.partition("@")
        return [
            model for model in models if model.name == wanted and version in ("", model.version)
        ]

    def _known(self, model: Model) -> Model | None:
        return next((known for known in self._table if str(known) == str(model)), None)

    def _before(self, model: Model) -> Model | None:
        """Return what a model comes after: another artifact of its version, or an older version."""
        assert model.manifest is not None, "what is loaded has a manifest"
        for known in reversed(self._table):
            if known.name == model.name and known.order <= model.order and known.manifest:
                same = known.manifest.artifact_digest == model.manifest.artifact_digest
                if known.state != "refused" and not same:
                    return known
        return None

    async def _consider(self, model: Model) -> Change | None:
        """Decide what a version that is in the repository means for the table."""
        known = self._known(model)
        if known is not None and known.state == "unloaded":
            return None
        if known is not None and known.stamp == model.stamp:
            if known.state != "refused":
                known.reason = known.refused_stamp = None  # what was wrong is right again
            return None
        if known is not None and known.refused_stamp == model.stamp:
            return None
        versions = self._matching(model.name, self._table)
        serving = next((other for other in reversed(versions) if other.loaded), None)
        if (known is not None and known.loaded) or (serving and serving.order < model.order):
            return await self._take_over(model)
        self._put(model)
        return _refusal(model) if model.state == "refused" else Change(str(model), "found")

    async def _take_over(self, model: Model) -> Change:
        """Load a model beside what serves, and give it its place, or say why not."""
        meant = self.find(model.name) if self._matching(model.name, self._table) else None
        self._coming.append(model)
        try:
            with suppress(ModelUnavailable):  # the refusal has been logged
                await self.load(model)
        finally:
            self._coming.remove(model)
        known = self._known(model)
        if model.state == "refused":
            if known is None or not known.loaded:
                self._put(model)
            else:
                known.reason = f"what its folder holds now was refused: {model.reason}"
                known.refused_stamp = model.stamp
            return _refusal(model)
        self._put(model)
        if meant and meant is not known and self.find(model.name) is model:
            self._supersede(meant)
        return Change(str(model), "loaded")

    def _supersede(self, model: Model) -> None:
        """Free a version that its name means no more; who asks for it by its number loads it."""
        if model.loaded and str(model) not in self._pinned:
            self._replace(model, model.afresh("available"))

    async def _remove(self, model: Model) -> Change | None:
        """Drop a version whose folder is gone, unless nothing else can answer to its name."""
        await self._load_heir([model])
        others = [other for other in self._matching(model.name, self._table) if other is not model]
        inherited = any(other.usable for other in others)
        pinned = str(model) in self._pinned or (model.name in self._pinned and not others)
        if pinned or (model.loaded and not inherited):
            return _keep(model)
        self._replace(model, None)
        return Change(str(model), "removed")

    async def _load_heir(self, leaving: Sequence[Model]) -> None:
        """Make ready what a name will mean without these, so that no request waits for it."""
        name = leaving[0].name
        if self.find(name) not in leaving or not self.find(name).loaded:
            return
        for heir in reversed(self._matching(name, self._table)):
            if heir not in leaving and heir.usable:
                with suppress(ModelUnavailable):  # then the next one inherits
                    await self.load(heir)
                    return

    def _add(self, model: Model) -> None:
        self._table = sorted([*self._table, model], key=lambda model: model.order)
        self._expect(model)

    def _replace(self, old: Model, new: Model | None) -> asyncio.Task[None]:
        """Change the table in one step; what leaves it is freed once its last request has ended."""
        self._table.remove(old)
        if new is not None:
            self._add(new)
        task = asyncio.get_running_loop().create_task(self._free_when_idle(old))
        self._leaving.add(task)  # the loop itself keeps only a weak reference
        task.add_done_callback(self._leaving.discard)
        return task

    def _put(self, model: Model) -> None:
        """Give a model its place in the table."""
        known = self._known(model)
        if known is None:
            self._add(model)
        else:
            self._replace(known, model)

    async def _free_when_idle(self, model: Model) -> None:
        await model.until_idle()
        if not model.graphs:
            return  # it was never loaded
        for graph in model.graphs.values():
            if self._forget is not None:
                self._forget(graph)
        model.graphs.clear()
        log.info("model freed", extra={"model": str(model)})

    def _load(self, model: Model, before: Model | None) -> None:
        started = time.monotonic()
        try:
            model.manifest, model.graphs = load_artifact(model.folder, self._open_session)
            _check_folder(model, model.manifest)
            self._load_calibrations(model, model.manifest)
            self._compare(model, model.manifest, before)
        except ArtifactError as error:
            model.refuse(str(error))
        except Exception:  # one model must not keep the others from loading
            log.exception("loading failed", extra={"model": model.name})
            model.refuse("loading it failed; the server's log says why")
        else:
            seconds = time.monotonic() - started
            self._metrics.model_load_seconds.labels(model.name, model.version).set(seconds)
            model.state = "ready"
            log.info("model ready", extra={"model": model.name, "seconds": round(seconds, 3)})
        self._metrics.model_loads.labels(model.name, model.state).inc()

    def _load_calibrations(self, model: Model, manifest: Manifest) -> None:
        """Load the calibrations beside it; one that is refused keeps nothing from serving."""
        held, refused = load_calibrations(model.folder, manifest.artifact_digest)
        model.calibrations = {made.id: made for made in held}
        model.watches = {made.id: Watch(self._metrics, model.name, made) for made in held}
        model.refused_calibrations = refused
        for reason in refused.values():
            log.warning("calibration refused", extra={"model": model.name, "reason": reason})

    def _compare(self, model: Model, manifest: Manifest, before: Model | None) -> None:
        if before is not None and before.manifest is not None:
            held, _ = load_calibrations(before.folder, before.manifest.artifact_digest)
            ours = list(model.calibrations.values())
            model.compatibility = compare(manifest, ours, before.manifest, held)


def _keep(model: Model) -> Change | None:
    reason = "its folder is gone; it stays as it is until it is unloaded"
    if model.reason == reason:
        return None
    model.reason = reason
    return Change(str(model), "kept", reason)


def _refusal(model: Model) -> Change:
    return Change(str(model), "refused", model.reason)


def _read(folder: Path) -> Model:
    """Return the model of an artifact folder, refused where its manifest can't be trusted."""
    model = Model(folder, folder.parent.name, folder.name, _stamp(folder))
    try:
        manifest = read_manifest(folder)
        _check_folder(model, manifest)
    except ArtifactError as error:
        model.refuse(str(error))
    else:
        model.manifest = manifest
    return model


def _stamp(folder: Path) -> Stamp:
    """Return what changes where a file of the artifact or of its calibrations does."""
    stamp = []
    with suppress(OSError):  # a file was there a moment ago
        for path in (*folder.iterdir(), *list_calibrations(folder.parent / CALIBRATIONS)):
            facts = path.stat()
            stamp.append((path.name, facts.st_size, facts.st_mtime_ns))
    return tuple(sorted(stamp))


def _check_folder(model: Model, manifest: Manifest) -> None:
    if (manifest.name, manifest.version) != (model.name, model.version):
        raise ArtifactError(
            f"the folder is {model.name}/{model.version}, but its manifest says "
            f"{manifest.name}@{manifest.version}"
        )


def _version_key(version: str) -> tuple[int, ...]:
    """Return what versions are ordered by; a folder that is no version comes first."""
    numbers = re.fullmatch(VERSION, version)
    return tuple(int(part) for part in version.split(".")) if numbers else ()
