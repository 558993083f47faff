"""Lanes: images that share every step of one graph, each at a row of its own."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from service.core.batcher import LoadedGraph
from service.core.manifest import Graph, Port

Array = NDArray[Any]

Departure = Literal["finished", "cancelled", "deadline", "failed"]
"""Why an image leaves its slot."""

_PIXELS = ("noise", "forced")  # roles of ports that get another row at every step


@dataclass(frozen=True)
class Canvas:
    """What to paint: arrays for N images of H rows of W pixels, known before the first row."""

    uniforms: NDArray[np.float32]  # [N, H, W], strictly inside (0, 1)
    forced: NDArray[np.int64]  # [N, H, W], a known pixel's level of the model, -1 where it is free
    class_weights: NDArray[np.float32] | None  # [N, K]
    controls: dict[str, Array]  # by name of the port, [N]
    level_step: int = 1  # of an image, for one of the model: 255 where it draws black and white

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
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    joined: int = 0  # images that have got a slot; the next one to join
    held: int = 0  # slots
    parked: list["Slot"] = field(default_factory=list)  # begun, and without a slot for now
    finished: int = 0

    def __post_init__(self) -> None:
        count, height, width = self.canvas.uniforms.shape
        self.levels = np.zeros((count, height, width), np.uint8)
        self.log_probability = np.zeros((count, height, width), np.float32)  # nats, temperature 1
        self.rows_done = np.zeros(count, np.int64)

    @property
    def waiting(self) -> int:
        """Images without a slot."""
        return 0 if self.future.done() else len(self.canvas) - self.joined + len(self.parked)


@dataclass(eq=False)
class Slot:
    """An image in a lane; its next row is `job.rows_done[image]`."""

    job: PaintJob
    image: int
    caches: dict[str, Array] | None = None  # by port, of an image that was parked


class Lane:
    """Images that share every step of one graph, with all that the graph asks about them."""

    def __init__(self, graph: LoadedGraph, ports: Graph) -> None:
        self.slots: list[Slot] = []
        self.running = False
        self._session = graph.session
        self._ports = ports
        # By port: caches and choices as the graph takes them, pixels [B, H, W]. Laid out when an
        # image joins, since every row would pay for it again.
        self._arrays: dict[str, Array] = {}

    def leave(self, now: float) -> list[Departure]:
        """Drop slots that are painted, failed, cancelled or late; return why each one left."""
        reasons = [departure(slot, now) for slot in self.slots]
        self._keep([index for index, reason in enumerate(reasons) if reason is None])
        return [reason for reason in reasons if reason is not None]

    def park(self, job: PaintJob, images: int) -> None:
        """Put aside the images of a job that joined last; they can join again and go on."""
        indices = [index for index, slot in enumerate(self.slots) if slot.job is job][-images:]
        for index in indices:
            self.slots[index].caches = {
                port.name: self._arrays[port.name].take(index, port.batch_axis)
                for port in self._ports.inputs
                if port.role == "cache"
            }
            job.parked.append(self.slots[index])
        self._keep([index for index in range(len(self.slots)) if index not in indices])

    def clear(self) -> None:
        """Drop every slot."""
        self._keep([])

    def _keep(self, indices: list[int]) -> None:
        if len(indices) == len(self.slots):
            return
        for slot in self.slots:
            slot.job.held -= 1
        self.slots = [self.slots[index] for index in indices]
        for slot in self.slots:
            slot.job.held += 1
        for port in self._ports.inputs:
            self._arrays[port.name] = self._arrays[port.name].take(indices, _slot_axis(port))

    def join(self, slots: Sequence[Slot]) -> None:
        """Add images: new ones at their first row, parked ones where they stood."""
        if not slots:
            return
        for port in self._ports.inputs:
            axis = _slot_axis(port)
            joining = np.stack([_brought(slot, port) for slot in slots], axis).astype(port.dtype)
            if self.slots:
                joining = np.concatenate([self._arrays[port.name], joining], axis)
            self._arrays[port.name] = joining
        self.slots.extend(slots)
        for slot in slots:
            slot.job.held += 1
            slot.caches = None

    def step(self) -> tuple[Array, Array]:
        """Paint one row of every slot; return levels and log-probabilities, [W, B].

        Runs on a worker's thread. The lane must not change meanwhile.
        """
        outputs = self._session.run(self._inputs())
        for port in self._ports.inputs:
            if port.role == "cache":
                self._arrays[port.name] = outputs[f"next_{port.name}"]
        levels = self._ports.output("levels")
        likelihood = self._ports.output("log_likelihood_map")
        assert levels and likelihood, "the manifest was checked for both"
        return outputs[levels.name], outputs[likelihood.name]

    def _inputs(self) -> dict[str, Array]:
        inputs = dict(self._arrays)
        slots = np.arange(len(self.slots))
        rows = [slot.job.rows_done[slot.image] for slot in self.slots]
        for port in self._ports.inputs:
            if port.role in _PIXELS:
                inputs[port.name] = np.moveaxis(inputs[port.name][slots, rows], 0, port.batch_axis)
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
    if job.rows_done[slot.image] == _height(job):
        return "finished"
    if job.deadline <= now:  # first, for it also fails the job, or its request is cancelled
        return "deadline"
    if job.future.cancelled():
        return "cancelled"
    return "failed" if job.future.done() else None


def _height(job: PaintJob) -> int:
    return job.levels.shape[1]


def keep_row(slot: Slot, levels: Array, log_probability: Array) -> None:
    """Write a row [W] into the job, as images show it, and answer the job when it was its last."""
    job, image = slot.job, slot.image
    row = job.rows_done[image]
    job.levels[image, row] = levels * job.canvas.level_step
    job.log_probability[image, row] = log_probability
    job.rows_done[image] = row + 1
    job.changed.set()
    if row + 1 == _height(job):
        job.finished += 1
        if job.finished == len(job.canvas) and not job.future.done():
            job.future.set_result(None)


def _slot_axis(port: Port) -> int:
    """Return the axis of a lane's array that its slots are on."""
    return 0 if port.role in _PIXELS else port.batch_axis


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
    return np.asarray((canvas.uniforms if port.role == "noise" else canvas.forced)[image])
