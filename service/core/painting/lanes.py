"""Lanes: images that share every step of one graph, each at a row of its own.

Three hands share what is here. Pictures, events and futures are the event loop's alone. Who holds
which slots is guarded by the scheduler's lock. A lane's arrays are those of the worker that drives
the lane.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.core.batcher import LoadedGraph
from service.core.manifest_parts import Graph, Port
from service.tracing import WorkTrace

Array = NDArray[Any]

log = logging.getLogger(__name__)

Departure = Literal["finished", "cancelled", "deadline", "failed"]
"""Why an image leaves its slot."""

_PIXELS = ("noise", "forced", "features")  # roles of ports that get another row at every step


@dataclass(frozen=True)
class Canvas:
    """What to paint: arrays for N images of H rows of W pixels, known before the first row."""

    uniforms: NDArray[np.float32]  # [N, H, W], strictly inside (0, 1)
    forced: NDArray[np.int64]  # [N, H, W], a known pixel's level of the model, -1 where it is free
    class_weights: NDArray[np.float32] | None  # [N, K]
    controls: dict[str, Array]  # by name of the port, [N]
    level_step: int = 1  # of an image, for one of the model: 255 where it draws black and white
    latents: NDArray[np.float32] | None = None  # [N, D]
    features: NDArray[np.float32] | None = None  # [N, H, W, F], that follow from the latents

    def __len__(self) -> int:
        return len(self.uniforms)


@dataclass(eq=False)
class PaintJob:
    """One request: its canvas, and what has been painted so far.

    `changed` is set with every new row, and when the future ends; `follow` clears it.
    """

    canvas: Canvas
    deadline: float  # on the scheduler's clock, seconds
    future: asyncio.Future[None]
    submitted: float
    trace: WorkTrace = field(default_factory=WorkTrace)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    finished: int = 0  # images

    # Guarded by the scheduler's lock:
    joined: int = 0  # images that have got a slot; the next one to join
    held: int = 0  # slots
    parked: list["Slot"] = field(default_factory=list)  # begun, and without a slot for now
    failure: Exception | None = None  # which the event loop will pass on to the future

    def __post_init__(self) -> None:
        count, self.height, width = self.canvas.uniforms.shape
        self.levels = np.zeros((count, self.height, width), np.uint8)
        self.log_probability = np.zeros(self.levels.shape, np.float32)  # nats, temperature 1
        self.rows_done = np.zeros(count, np.int64)

    @property
    def ended(self) -> bool:
        """Whether nothing more of it is to be painted; any thread may ask."""
        return self.failure is not None or self.future.done()

    @property
    def waiting(self) -> int:
        """Images without a slot."""
        return 0 if self.ended else len(self.canvas) - self.joined + len(self.parked)


@dataclass(eq=False)
class Slot:
    """An image in a lane, or one that was parked."""

    job: PaintJob
    image: int
    row: int = 0  # to be painted next
    caches: dict[str, Array] | None = None  # by port, while it is parked


class PaintedRows(NamedTuple):
    """A row of each of B images: what one step painted."""

    slots: list[Slot]
    rows: list[int]  # which row of its image each is
    levels: NDArray[np.uint8]  # [B, W], as images show them
    log_probability: NDArray[np.float32]  # [B, W]


class Lane:
    """Images that share every step of one graph, with all that the graph asks about them."""

    def __init__(self, graph: LoadedGraph, ports: Graph) -> None:
        self.graph = graph
        # Guarded by the scheduler's lock; a step may put the slots in another order.
        self.slots: list[Slot] = []
        self.running = False
        levels, likelihood = ports.output("levels"), ports.output("log_likelihood_map")
        assert levels and likelihood, "the manifest was checked for both"
        self._levels, self._log_probability = levels.name, likelihood.name
        self._graph_ports = ports
        self._ports = ports.inputs
        self._caches = [port for port in ports.inputs if port.role == "cache"]
        self._pixels = [port for port in ports.inputs if port.role in _PIXELS]
        # By port: caches and choices as the graph takes them, pixels [B, H, W] or [B, H, W, F].
        # Laid out when an image joins, since every row would pay for it again.
        self._arrays: dict[str, Array] = {}
        self._laid_out: list[Slot] = []  # in the order of the arrays

    def leave(self, now: float) -> list[Departure]:
        """Drop slots that are painted, failed, cancelled or late; return why each one left."""
        reasons = [departure(slot, now) for slot in self.slots]
        left = [reason for reason in reasons if reason]
        if left:
            self._drop([slot for slot, reason in zip(self.slots, reasons, strict=True) if reason])
        return left

    def park(self, job: PaintJob, images: int) -> None:
        """Put aside the images of a job that have most rows to go; they can join and go on."""
        ours = [slot for slot in self.slots if slot.job is job]
        parked = sorted(ours, key=lambda slot: (-slot.row, slot.image))[-images:]
        self._give_caches(parked)
        job.parked += parked
        self._drop(parked)

    def join(self, slots: Sequence[Slot]) -> None:
        """Add images: new ones at their first row, parked ones where they stood."""
        self.slots = [*self.slots, *slots]
        for slot in slots:
            slot.job.held += 1

    def clear(self) -> None:
        """Forget the arrays of images that have left."""
        self._laid_out, self._arrays = [], {}

    def empty(self) -> int:
        """Drop every slot, and return how many there were."""
        count = len(self.slots)
        self._drop(self.slots)
        self.clear()
        return count

    def step_apart(self) -> tuple[list[PaintedRows], list[PaintJob]]:
        """Paint one row of every slot, each job's alone; return them, and the jobs that fail.

        For when a step of all has failed: a lone job is the one to blame. What nobody waits for is
        not painted. The slots stay, those of failing jobs too.
        """
        jobs = list({slot.job: None for slot in self.slots if not slot.job.ended})
        if len(jobs) == 1:
            log.exception("painting a row failed")
            return [], jobs
        self._give_caches(self.slots)
        self.clear()
        painted, failing = [], []
        for job in jobs:
            alone = Lane(self.graph, self._graph_ports)
            alone.slots = [slot for slot in self.slots if slot.job is job]
            try:
                painted.append(alone.step())
            except BaseException:  # whatever a runtime raises
                log.exception("painting a row failed")
                failing.append(job)
            else:
                alone._give_caches(alone.slots)
        return painted, failing

    def step(self) -> PaintedRows:
        """Paint one row of every slot, on a worker's thread. The slots must not change meanwhile.

        The caller needs no lock: nobody else reads or writes the arrays. Where it raises, whatever
        the reason, every image is still at its row.
        """
        self._lay_out()
        slots, rows = self._laid_out, [slot.row for slot in self._laid_out]
        outputs = self.graph.session.run(self._inputs(rows))
        self._check_shapes(outputs)
        # Copies: the event loop reads them while the lane may write into the outputs it keeps.
        levels = outputs[self._levels].T.astype(np.uint8, order="C") * self._level_steps
        log_probability = outputs[self._log_probability].T.copy()
        for port in self._caches:
            self._arrays[port.name] = outputs[f"next_{port.name}"]
        for slot in slots:
            slot.row += 1
        return PaintedRows(slots, rows, levels, log_probability)

    def _check_shapes(self, outputs: Mapping[str, Array]) -> None:
        """Raise ValueError where a step has not answered for every image."""
        row = self._laid_out[0].job.levels.shape[2], len(self._laid_out)
        shapes = dict.fromkeys((self._levels, self._log_probability), row)
        for port in self._caches:
            shapes[f"next_{port.name}"] = self._arrays[port.name].shape
        for name, shape in shapes.items():
            if outputs[name].shape != shape:
                raise ValueError(f"output {name} has shape {outputs[name].shape}, not {shape}")

    def _give_caches(self, slots: list[Slot]) -> None:
        """Let images take their caches along; those not laid out have what they brought."""
        for slot in slots:
            if slot in self._laid_out:
                index = self._laid_out.index(slot)
                slot.caches = {
                    port.name: self._arrays[port.name].take(index, port.batch_axis)
                    for port in self._caches
                }

    def _drop(self, slots: list[Slot]) -> None:
        self.slots = [slot for slot in self.slots if slot not in slots]
        for slot in slots:
            slot.job.held -= 1

    def _lay_out(self) -> None:
        """Bring the arrays up to date with the slots.

        Newcomers take the places of those who left, so that nobody else need move.
        """
        if self._laid_out == self.slots:
            return
        staying, before = set(self.slots), set(self._laid_out)
        newcomers = [slot for slot in self.slots if slot not in before]
        left = [index for index, slot in enumerate(self._laid_out) if slot not in staying]
        filled = dict(zip(left, newcomers, strict=False))
        added = newcomers[len(filled) :]
        kept = [index for index in range(len(self._laid_out)) if index not in left[len(filled) :]]
        # All or nothing: what an image brings along may not fit.
        self._arrays = {port.name: self._changed(port, filled, kept, added) for port in self._ports}
        places = [filled.get(index, slot) for index, slot in enumerate(self._laid_out)]
        self._laid_out = self.slots = [*(places[index] for index in kept), *added]
        for slot in self._laid_out:
            slot.caches = None
        self._level_steps = np.array(
            [[slot.job.canvas.level_step] for slot in self._laid_out], np.uint8
        )

    def _changed(
        self, port: Port, filled: dict[int, Slot], kept: list[int], added: list[Slot]
    ) -> Array:
        """Write newcomers over places in a port's array, then keep some places and add others.

        What is written over is of images that have left.
        """
        axis = 0 if port.role in _PIXELS else port.batch_axis
        arrays = []
        if self._laid_out:
            array = self._arrays[port.name]
            for index, slot in filled.items():
                array[(slice(None),) * axis + (index,)] = _brought(slot, port)
            arrays.append(array if len(kept) == len(self._laid_out) else array.take(kept, axis))
        if added:
            joining = np.stack([_brought(slot, port) for slot in added], axis)
            arrays.append(joining.astype(port.dtype))
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis)

    def _inputs(self, rows: list[int]) -> dict[str, Array]:
        inputs = dict(self._arrays)
        at = np.arange(len(rows)), np.array(rows)
        for port in self._pixels:
            row = self._arrays[port.name][at]  # [B, W], features [B, W, F]
            inputs[port.name] = row.swapaxes(0, 1) if port.batch_axis else row
        return inputs


def next_slot(job: PaintJob) -> Slot:
    """Return the next image of a job that waits for a slot; those that have begun go first."""
    if job.parked:
        return job.parked.pop(0)
    job.joined += 1
    return Slot(job, job.joined - 1)


def departure(slot: Slot, now: float) -> Departure | None:
    """Return why an image leaves its slot now, or None where it stays."""
    job = slot.job
    if slot.row == job.height:
        return "finished"
    if job.deadline <= now:  # first, for it also fails the job, or its request is cancelled
        return "deadline"
    if not job.ended:
        return None
    return "cancelled" if job.future.cancelled() else "failed"


def keep_rows(painted: PaintedRows) -> None:
    """Write rows into their jobs, and answer those that are complete; on the event loop."""
    for slot, row, levels, log_probability in zip(*painted, strict=True):
        job, image = slot.job, slot.image
        job.levels[image, row] = levels
        job.log_probability[image, row] = log_probability
        job.rows_done[image] = row + 1
        job.changed.set()
        if row + 1 == job.height:
            job.finished += 1
            if job.finished == len(job.canvas) and not job.future.done():
                job.future.set_result(None)


def _brought(slot: Slot, port: Port) -> Array:
    """Return what an image brings along for a port: zeros are what lies above its first row."""
    canvas, image = slot.job.canvas, slot.image
    if port.role == "cache":
        return np.zeros(port.row_shape, np.float32) if not slot.caches else slot.caches[port.name]
    if port.role == "condition":
        assert canvas.class_weights is not None, "the manifest describes the condition"
        return np.asarray(canvas.class_weights[image])
    if port.role == "control":
        return np.asarray(canvas.controls[port.name][image])
    if port.role == "features":
        assert canvas.features is not None, "the manifest describes the latent"
        return np.asarray(canvas.features[image])
    return np.asarray((canvas.uniforms if port.role == "noise" else canvas.forced)[image])
