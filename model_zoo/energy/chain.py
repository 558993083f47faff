"""Markov chains over binary pictures, as graphs: what every family here is sampled by.

A state is a flat vector of zeros and ones, its first coordinates the pixels in raster order, the
others hidden units. `start` draws one from noise, `transition` makes some steps of the chain.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from model_zoo.cards import BINARISATION, image_event, image_preprocess
from model_zoo.family import Card, Function, Graph, Port
from model_zoo.layers import uniform_noise

MOST_STEPS = 5000
STEPS_A_CALL = 5  # fewer, and calls cost more than what they compute; more, and a batch waits


class MarkovChain(Protocol):
    """What a family of images [1, height, width] that draws by a chain has, beside the contract."""

    image_shape: tuple[int, ...]
    pixels: int
    """How many coordinates of a state are pixels."""
    uniforms: int
    """How many uniforms one step takes."""
    start_rates: Tensor
    """How often each coordinate is on in the state that a chain starts from, [state size]."""

    def step(self, state: Tensor, uniforms: Tensor, temperature: Tensor | None) -> Tensor:
        """Return the next states [N, state size], by uniforms [N, self.uniforms].

        A `temperature` [N, 1] is what the energy is divided by; None where there is no energy.
        """
        ...


class BoltzmannMachine(MarkovChain, Protocol):
    """A chain whose distribution is known but for its normaliser."""

    log_partition_error: Tensor
    """The standard error of the estimated log Z, in nats."""

    def hidden_means(self, v: Tensor) -> Tensor:
        """Return the means of the hidden units next to pixels [N, D], [N, units]."""
        ...

    def visible_logits(self, h: Tensor, /) -> Tensor:
        """Return the log odds of every pixel being on, [N, D], given those units or their means."""
        ...

    def log_probability(self, v: Tensor) -> Tensor:
        """Return log p(v), or a bound on it, in nats, [N], by the estimated log Z."""
        ...


class Start(nn.Module):
    """Graph: noise to the state that a chain starts from."""

    def __init__(self, model: MarkovChain):
        super().__init__()
        self.model = model

    def forward(self, noise: Tensor) -> Tensor:
        """Map uniforms [N, state size] to zeros and ones of the same shape."""
        return (noise < self.model.start_rates).float()


class Transition(nn.Module):
    """Graph: a state to the one some steps later, its known pixels clamped all the while."""

    def __init__(self, model: MarkovChain):
        super().__init__()
        self.model = model

    def forward(
        self,
        state: Tensor,
        steps: Tensor,
        noise: Tensor,
        forced: Tensor,
        temperature: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Map [N, state size], and pixels forced [N, H, W], to the next state and its pixels.

        `steps` [N] says how many steps are made, 0 to STEPS_A_CALL, the first of the noise
        [N, STEPS_A_CALL, uniforms].
        """
        pixels, forced = self.model.pixels, forced.flatten(1)
        state = torch.cat([clamp(state[:, :pixels], forced), state[:, pixels:]], dim=1)
        if temperature is not None:
            temperature = temperature.unsqueeze(1)
        for index in range(STEPS_A_CALL):
            moved = self.model.step(state, noise[:, index], temperature)
            moved = torch.cat([clamp(moved[:, :pixels], forced), moved[:, pixels:]], dim=1)
            state = torch.where((index < steps).unsqueeze(1), moved, state)
        return state, state[:, :pixels].reshape(-1, *self.model.image_shape[1:]).long()


def clamp(pixels: Tensor, forced: Tensor) -> Tensor:
    """Return pixels [N, D], but those forced where they are not negative."""
    return torch.where(forced >= 0, forced.float(), pixels)


def chain_graphs(model: MarkovChain, tempered: bool) -> tuple[Graph, ...]:
    """Return `start` and `transition`, which takes a temperature where it is `tempered`."""
    size = (len(model.start_rates),)
    state, next_state = Port("state", "cache", size), Port("next_state", "cache", size)
    temperature = (Port("temperature", "control", ()),) if tempered else ()
    return (
        Graph(
            "start",
            Start(model).eval(),
            (Port("noise", "noise", size, "float32", "uniform", "chain_start"),),
            (next_state,),
        ),
        Graph(
            "transition",
            Transition(model).eval(),
            (
                state,
                Port("steps", "steps", (), "int64"),
                Port(
                    "noise",
                    "noise",
                    (STEPS_A_CALL, model.uniforms),
                    "float32",
                    "uniform",
                    "chain_step",
                ),
                Port("forced", "forced", model.image_shape[1:], "int64"),
                *temperature,
            ),
            (next_state, Port("levels", "levels", model.image_shape[1:], "int64")),
        ),
    )


def chain_controls(burn_in: int, thinning: int, tempered: bool) -> dict[str, dict[str, Any]]:
    """Describe how long a chain runs unless asked otherwise, and at most MOST_STEPS at a time."""
    controls: dict[str, dict[str, Any]] = {
        "burn_in": {
            "meaning": "steps of the chain before the first image",
            "minimum": 0.0,
            "maximum": float(MOST_STEPS),
            "default": float(burn_in),
        },
        "thinning": {
            "meaning": "steps between images of one chain",
            "minimum": 1.0,
            "maximum": float(MOST_STEPS),
            "default": float(thinning),
        },
        "chains": {
            "meaning": "chains that the images are taken from in turn; off: one for each image",
            "minimum": 1.0,
            "maximum": 256.0,
            "default": None,
        },
    }
    if tempered:
        controls["temperature"] = {
            "meaning": "what the energy is divided by",
            "minimum": 0.1,
            "maximum": 10.0,
            "default": 1.0,
        }
    return controls


def machine_card(
    model: BoltzmannMachine,
    *,
    family: str,
    units: int,
    estimator: str,
    controls: dict[str, dict[str, Any]],
) -> Card:
    """Describe a Boltzmann machine, whose latent is the means of so many hidden `units`.

    `estimator` says how its likelihood is estimated, by a normaliser with an error of its own.
    """
    return Card(
        family=family,
        event=image_event(model.image_shape),
        preprocess=image_preprocess(0.0, 1.0, binarisation=BINARISATION),
        latent={"shape": [units], "prior": "none"},
        controls=controls,
        operations={
            "sample": {},
            "complete": {},
            "encode": {},
            "decode": {},
            "reconstruct": {},
            "likelihood": {
                "quantity": "probability",
                "kind": "estimate",
                "base_measure": "counting",
                "estimator": estimator,
                "draws": 1,
                "conditioning": "none",
                "normaliser_standard_error": model.log_partition_error.item(),
            },
        },
        program="markov_chain",
    )


def machine_graphs(model: BoltzmannMachine, units: int) -> tuple[Graph, ...]:
    """Return the chain, encode, decode, reconstruct and log_likelihood; sets eval mode."""
    data, mean = (Port(name, "data", model.image_shape) for name in ("data", "mean"))
    latent = Port("latent", "latent", (units,))
    log_likelihood = Port("log_likelihood", "log_likelihood", ())

    def encode(images: Tensor) -> Tensor:
        return model.hidden_means(images.flatten(1))

    def decode(means: Tensor) -> Tensor:
        return torch.sigmoid(model.visible_logits(means)).reshape(-1, *model.image_shape)

    def reconstruct(images: Tensor) -> Tensor:
        return decode(encode(images))

    def log_probability(images: Tensor) -> Tensor:
        return model.log_probability(images.flatten(1))

    functions = {
        "encode": (encode, data, latent),
        "decode": (decode, latent, mean),
        "reconstruct": (reconstruct, data, mean),
        "log_likelihood": (log_probability, data, log_likelihood),
    }
    return (
        *chain_graphs(model, tempered=True),
        *(
            Graph(name, Function(model, function).eval(), (taken,), (given,))
            for name, (function, taken, given) in functions.items()
        ),
    )


def smoothed_mean(v: Tensor) -> Tensor:
    """Return how often each coordinate of v [N, D] is on, pulled a little towards one half, [D].

    What was never on in some pictures may still be in others.
    """
    return 0.95 * v.mean(dim=0) + 0.025


def bernoulli(probability: Tensor, generator: torch.Generator) -> Tensor:
    """Draw 1 with the probability of each element, else 0."""
    return (uniform_noise(tuple(probability.shape), generator) < probability).float()
