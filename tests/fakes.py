"""Small honest fakes: toy models that export to real artifacts in a second, and slow sessions."""

import threading
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from export import Card, Graph, Port, export_artifact

SIDE = 4
"""Toy images are SIDE x SIDE grey levels."""
PIXELS = SIDE * SIDE
LATENT = 4
CLASSES = 3

_EVENT = {"kind": "image", "shape": [SIDE, SIDE, 1], "levels": 256, "base_measure": "counting"}
_CONTROLS = {
    "temperature": {
        "meaning": "standard deviation of the latent prior",
        "minimum": 0.0,
        "maximum": 2.0,
        "default": 1.0,
    },
    "truncation": {
        "meaning": "largest absolute value of a latent coordinate before the temperature",
        "minimum": 0.01,
        "maximum": 10.0,
        "default": None,
    },
}
_DATA = (1, SIDE, SIDE)


def _preprocess(low: float, high: float, **changes: object) -> dict[str, object]:
    return {
        "range": [low, high],
        "mean": [0.0],
        "deviation": [1.0],
        "layout": "NCHW",
        "padding": [0, 0, 0, 0],
        "binarisation": None,
        "dequantisation": None,
        **changes,
    }


class Generator(nn.Module):
    """A latent and class weights to an image in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(LATENT, PIXELS)
        self.classes = nn.Linear(CLASSES, PIXELS, bias=False)

    def forward(self, latent: Tensor, class_weights: Tensor) -> Tensor:
        values = torch.tanh(self.body(latent) + 2.0 * self.classes(class_weights))
        return values.reshape(-1, *_DATA)


class Encoder(nn.Module):
    """An image in [0, 1] to the mean and the deviation of its latent."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Linear(PIXELS, LATENT)
        self.log_deviation = nn.Linear(PIXELS, LATENT)

    def forward(self, data: Tensor) -> tuple[Tensor, Tensor]:
        flat = data.flatten(1)
        return self.mean(flat), torch.exp(self.log_deviation(flat))


class Decoder(nn.Module):
    """A latent to pixel intensities in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(LATENT, PIXELS)

    def forward(self, latent: Tensor) -> Tensor:
        return torch.sigmoid(self.body(latent)).reshape(-1, *_DATA)


class LogWeight(nn.Module):
    """log p(x | z) + log p(z) - log q(z | x) at z = mean + deviation * noise."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, data: Tensor, noise: Tensor) -> Tensor:
        mean, deviation = self.encoder(data)
        latent = mean + deviation * noise
        intensity = self.decoder(latent)
        reconstruction = data * torch.log(intensity) + (1.0 - data) * torch.log(1.0 - intensity)
        prior = -0.5 * latent.square()
        posterior = -0.5 * noise.square() - torch.log(deviation)
        return reconstruction.flatten(1).sum(1) + (prior - posterior).sum(1)


class Affine(nn.Module):
    """The flow z = (x + u - 128) / 64, pixel by pixel: encode takes u = 1/2."""

    def forward(self, data: Tensor) -> Tensor:
        return ((data + 0.5 - 128.0) / 64.0).flatten(1)


class InverseAffine(nn.Module):
    """The inverse of `Affine`."""

    def forward(self, latent: Tensor) -> Tensor:
        return (latent * 64.0 + 128.0 - 0.5).reshape(-1, *_DATA)


class AffineDensity(nn.Module):
    """log N(z; 0, 1) + log |dz/dx|, in nats."""

    def forward(self, data: Tensor, noise: Tensor) -> Tensor:
        latent = ((data + noise - 128.0) / 64.0).flatten(1)
        constant = 0.5 * np.log(2.0 * np.pi) + np.log(64.0)
        return (-0.5 * latent.square() - constant).sum(1)


def write_toys(repository: Path) -> None:
    """Export toy-gan, toy-vae and toy-flow, version 1, with fixed weights."""
    torch.manual_seed(0)
    _write_gan(repository)
    _write_vae(repository)
    _write_flow(repository)


def _write_gan(repository: Path) -> None:
    names = [str(label) for label in range(CLASSES)]
    card = Card(
        family="toy generator",
        event=_EVENT,
        preprocess=_preprocess(-1.0, 1.0),
        latent={"shape": [LATENT], "prior": "standard_normal"},
        condition={
            "kinds": ["class", "class_weights"],
            "names": names,
            "prior": [0.5, 0.25, 0.25],
        },
        controls=_CONTROLS,
        operations={"sample": {}, "decode": {}, "interpolate": {}},
    )
    decode = Graph(
        "decode",
        Generator(),
        (Port("latent", "latent", (LATENT,)), Port("class_weights", "condition", (CLASSES,))),
        (Port("data", "data", _DATA),),
    )
    _export(repository, "toy-gan", card, decode)


def _write_vae(repository: Path) -> None:
    encoder, decoder = Encoder(), Decoder()
    binarisation = {
        "levels": 2,
        "rules": ["threshold", "stochastic"],
        "required_by": ["likelihood"],
    }
    card = _density_card(
        "toy autoencoder", _preprocess(0.0, 1.0, binarisation=binarisation), LATENT
    )
    data, latent = Port("data", "data", _DATA), Port("latent", "latent", (LATENT,))
    deviation = Port("latent_deviation", "latent_deviation", (LATENT,))
    normal = Port("noise", "noise", (LATENT,), distribution="normal", purpose="posterior")
    _export(
        repository,
        "toy-vae",
        card,
        Graph("encode", encoder, (data,), (latent, deviation)),
        Graph("decode", decoder, (latent,), (data,)),
        Graph("log_likelihood", LogWeight(encoder, decoder), (data, normal), (_SCORE,)),
    )


def _write_flow(repository: Path) -> None:
    card = _density_card("toy flow", _preprocess(0.0, 255.0, dequantisation="uniform"), PIXELS)
    data, latent = Port("data", "data", _DATA), Port("latent", "latent", (PIXELS,))
    uniform = Port("noise", "noise", _DATA, distribution="uniform", purpose="dequantisation")
    _export(
        repository,
        "toy-flow",
        card,
        Graph("encode", Affine(), (data,), (latent,)),
        Graph("decode", InverseAffine(), (latent,), (data,)),
        Graph("log_likelihood", AffineDensity(), (data, uniform), (_SCORE,)),
    )


_SCORE = Port("log_likelihood", "log_likelihood", ())


def _density_card(family: str, preprocess: dict[str, object], latent: int) -> Card:
    bound = {
        "quantity": "probability",
        "kind": "lower_bound",
        "base_measure": "counting",
        "estimator": "elbo",
        "draws": 4,
        "importance_estimator": "iwae",
        "conditioning": "none",
    }
    names = ("sample", "encode", "decode", "reconstruct", "interpolate")
    return Card(
        family=family,
        event=_EVENT,
        preprocess=preprocess,
        latent={"shape": [latent], "prior": "standard_normal"},
        controls={"temperature": _CONTROLS["temperature"]},
        operations={**{name: {} for name in names}, "likelihood": bound},
    )


def _export(repository: Path, name: str, card: Card, *graphs: Graph) -> None:
    export_artifact(
        repository, name=name, version="1", card=card, graphs=graphs, licence="Apache-2.0"
    )


class GatedSession:
    """A session whose runs wait until `gate` is set; `started` says that one is waiting."""

    def __init__(self, session: object) -> None:
        self._session = session
        self.gate = threading.Event()
        self.started = threading.Event()
        self.batches: list[int] = []

    def run(self, inputs):
        """Wait for the gate, then run; remembers the rows of each batch."""
        self.batches.append(len(next(iter(inputs.values()))))
        self.started.set()
        self.gate.wait()
        return self._session.run(inputs)
