"""Markov chains: images drawn by repeating the graph `transition`, free or with known pixels.

A chain starts in the state that the graph `start` makes of noise. Every call makes a few steps, and
its noise is keyed by the chain and by the step since its start: how many steps a call makes, or how
many chains run beside it, changes no picture.
"""

from collections.abc import Generator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from service.core.calls import Call, Outputs, feed, noise_of_port, output
from service.core.conditions import class_weights
from service.core.controls import control, refuse_controls
from service.core.manifest import Manifest
from service.core.manifest_parts import Port
from service.core.requests import Array, GenerationResult, SampleRequest

LENGTHS = ("burn_in", "thinning", "chains")
"""The controls that say how long chains run, and how many."""

START, TRANSITION = "start", "transition"
FREE = -1
"""What a pixel that is not known is forced to be."""

Levels = NDArray[np.int64]


def chained(
    manifest: Manifest, request: SampleRequest, forced: Levels, seed: int
) -> Generator[Call, Outputs, GenerationResult]:
    """Draw images by chains whose known pixels are clamped to `forced`, [H, W], FREE elsewhere.

    They are levels of the model. Image i is of chain i % chains: the first of a chain is what it
    shows after burn_in steps, the next one what it shows after thinning more.
    """
    refuse_controls(manifest, request, ("temperature", *LENGTHS))
    count = request.count
    class_weights(manifest, request.condition, count, seed)  # refuses what there is not
    burn_in, thinning, chains = _lengths(manifest, request)
    run = _Run(manifest, forced, control(manifest, "temperature", request.temperature), seed)
    state = yield from run.start(min(chains, count))
    drawn, made = [], 0
    for first in range(0, count, chains):
        state = state[: count - first]  # chains that draw no more images end
        steps = thinning if first else burn_in
        state, levels = yield from run.move(state, made, made + steps)
        drawn.append(levels)
        made += steps
    images = (np.concatenate(drawn)[..., None] * manifest.level_step).astype(np.uint8)
    return GenerationResult(
        images=images
        if request.scale == "levels"
        else images / np.float32(manifest.image.levels - 1),
        latents=None,
        class_weights=None,
        seed=seed,
    )


def rows_of_a_call(manifest: Manifest) -> int:
    """Return how many images' worth of values one call takes for one chain, at least 1."""
    return max(1, int(np.prod(_step_noise(manifest).row_shape)) // manifest.event.dimensions)


def _lengths(manifest: Manifest, request: SampleRequest) -> tuple[int, int, int]:
    """Return burn_in, thinning, and the number of chains: one an image unless asked otherwise."""
    burn_in, thinning, chains = (
        control(manifest, name, getattr(request, name)) for name in LENGTHS
    )
    assert burn_in is not None and thinning is not None, "the manifest was checked for defaults"
    return int(burn_in), int(thinning), int(chains or request.count)


def _step_noise(manifest: Manifest) -> Port:
    """Return the port that takes the noise of a call: [steps, values of one step]."""
    port = manifest.graphs[TRANSITION].input("noise")
    assert port is not None, "the manifest was checked for the noise of a transition"
    return port


@dataclass(frozen=True)
class _Run:
    """What all chains of a request have in common."""

    manifest: Manifest
    forced: Levels
    temperature: float | None
    seed: int

    def start(self, chains: int) -> Generator[Call, Outputs, Array]:
        """Return the states that so many chains start from, [N, size]."""
        graph = self.manifest.graphs[START]
        inputs = feed(graph, partial(self._noise, chains=chains, position=0))
        return output(graph, (yield Call(START, inputs)), "cache")

    def move(
        self, state: Array, first: int, end: int
    ) -> Generator[Call, Outputs, tuple[Array, Levels]]:
        """Make the steps from `first` up to `end`; return states [N, size], levels [N, H, W].

        Where there are none to make, one call makes none: it clamps the known pixels.
        """
        graph, chains = self.manifest.graphs[TRANSITION], len(state)
        longest, *values = _step_noise(self.manifest).row_shape
        while True:
            steps = min(longest, end - first)
            inputs = feed(
                graph,
                partial(self._noise, chains=chains, position=first * int(np.prod(values))),
                {"temperature": np.full(chains, self.temperature)},
                cache=state,
                steps=np.full(chains, steps),
                forced=np.repeat(self.forced[None], chains, axis=0),
            )
            outputs = yield Call(TRANSITION, inputs)
            state, first = output(graph, outputs, "cache"), first + steps
            if first == end:
                return state, output(graph, outputs, "levels")

    def _noise(self, port: Port, chains: int, position: int) -> Array:
        """Return [N, ...] of each chain's stream, from an absolute position on."""
        seeds, keys = np.full(chains, self.seed, np.uint64), np.arange(chains, dtype=np.uint64)
        flat = noise_of_port(port, seeds, keys, 1, position)
        return flat.reshape(chains, *port.row_shape)
