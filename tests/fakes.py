"""Small honest fakes: toy models that export to real artifacts in a second, and slow sessions."""

import hashlib
import json
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from export import Card, Graph, Port, export_artifact
from service.core.manifest import artifact_digest

SIDE = 4
"""Toy images are SIDE x SIDE grey levels."""
PIXELS = SIDE * SIDE
LATENT = 4
CLASSES = 3
RASTER_LEVELS = 8
"""Grey levels of the toy raster model."""

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
    """log N(z; 0, 1) + log |dz/dx|, in nats, and the length of z."""

    def forward(self, data: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        latent = ((data + noise - 128.0) / 64.0).flatten(1)
        constant = 0.5 * np.log(2.0 * np.pi) + np.log(64.0)
        return (-0.5 * latent.square() - constant).sum(1), latent.square().sum(1).sqrt()


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
        Graph("log_likelihood", AffineDensity(), (data, uniform), (_SCORE, _NORM)),
    )


_SCORE = Port("log_likelihood", "log_likelihood", ())
_NORM = Port("latent_norm", "statistic", ())


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


class RowStep(nn.Module):
    """A raster model: the logits of a pixel follow from those above, to the left, and the class.

    Temperature 0 is greedy; of equally likely levels the lower counts as the likelier.
    """

    def __init__(self) -> None:
        super().__init__()
        self.above = nn.Linear(SIDE, SIDE * RASTER_LEVELS)
        self.older = nn.Linear(SIDE, SIDE * RASTER_LEVELS)
        self.left = nn.Linear(1, RASTER_LEVELS)
        self.classes = nn.Linear(CLASSES, RASTER_LEVELS, bias=False)

    def forward(
        self,
        rows_above: Tensor,  # [1, W, B]
        activations: Tensor,  # [1, W, B, 1]
        class_weights: Tensor,  # [B, K]
        temperature: Tensor,  # [B]
        *rest: Tensor,  # top_k and top_p [B] where it filters, forced and uniform [W, B]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        *filters, forced, uniform = rest
        coming = self.above(rows_above[0].T) + self.older(activations[0, :, :, 0].T)
        coming = coming.reshape(-1, SIDE, RASTER_LEVELS) + self.classes(class_weights)[:, None]
        left, levels, log_probability = torch.zeros_like(temperature)[:, None], [], []
        for column in range(SIDE):
            logits = 3.0 * (coming[:, column] + self.left(left))
            probability = (logits / temperature.clamp(min=1e-6)[:, None]).softmax(1)
            if filters:
                probability = _keep_likely(probability, *filters)
            sums = probability.cumsum(1)
            level = (sums <= uniform[column][:, None] * sums[:, -1:]).sum(1)
            level = torch.where(forced[column] < 0, level, forced[column])
            levels.append(level)
            log_probability.append(logits.log_softmax(1).gather(1, level[:, None])[:, 0])
            left = level[:, None] / (RASTER_LEVELS - 1.0)
        row = torch.stack(levels)
        values = row[None] / (RASTER_LEVELS - 1.0)
        next_activations = 0.5 * activations + rows_above[:, :, :, None]
        return row, torch.stack(log_probability), values, next_activations


def _keep_likely(probability: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Set to zero what top-k and then top-p leave out, [B, levels]."""
    this, other = probability[:, :, None], probability[:, None, :]
    lower = torch.ones(RASTER_LEVELS, RASTER_LEVELS).tril(-1) > 0
    likelier = (other > this) | ((other == this) & lower)  # [B, this, other]
    kept = torch.where(likelier.sum(2) < top_k[:, None], probability, 0.0)
    before = torch.where(likelier, kept[:, None, :], 0.0).sum(2)
    share = torch.where(top_p >= 1.0, 2.0, top_p) * kept.sum(1)
    return torch.where(before < share[:, None], kept, 0.0)


class RasterDensity(nn.Module):
    """The log-probability of levels, row by row with every pixel forced, in nats, and its map."""

    def __init__(self, step: RowStep) -> None:
        super().__init__()
        self.step = step

    def forward(self, data: Tensor, class_weights: Tensor) -> tuple[Tensor, Tensor]:
        levels = data[:, 0].permute(1, 2, 0)  # [N, 1, H, W] -> [H, W, N]
        temperature = torch.ones_like(levels[0, 0])
        rows_above, rows = torch.zeros_like(levels[:1]), []
        activations = torch.zeros_like(rows_above)[:, :, :, None]
        for row in range(SIDE):
            forced = levels[row].round().to(torch.int64)
            _, log_probability, rows_above, activations = self.step(
                rows_above, activations, class_weights, temperature, forced, forced * 0.5
            )
            rows.append(log_probability)
        pixels = torch.stack(rows).permute(2, 0, 1)  # [H, W, N] -> [N, H, W]
        return pixels.flatten(1).sum(1), pixels


class Background(nn.Module):
    """The log-probability of pixels that know nothing of each other, in nats."""

    def forward(self, data: Tensor, class_weights: Tensor) -> Tensor:
        return -(1.0 + 0.1 * data).flatten(1).sum(1) + 0.0 * class_weights.sum(1)


_ROW, _CACHE = [SIDE, "batch"], [1, SIDE, "batch"]
_STEP_INPUTS: dict[str, dict[str, Any]] = {
    "rows_above": {"role": "cache", "dtype": "float32", "shape": _CACHE},
    "activations": {"role": "cache", "dtype": "float32", "shape": [*_CACHE, 1]},
    "class_weights": {"role": "condition", "dtype": "float32", "shape": ["batch", CLASSES]},
    "temperature": {"role": "control", "dtype": "float32", "shape": ["batch"]},
    "top_k": {"role": "control", "dtype": "int64", "shape": ["batch"]},
    "top_p": {"role": "control", "dtype": "float32", "shape": ["batch"]},
    "forced": {"role": "forced", "dtype": "int64", "shape": _ROW},
    "uniform": {
        "role": "noise", "dtype": "float32", "shape": _ROW,
        "distribution": "uniform", "purpose": "pixels",
    },
}  # fmt: skip
_STEP_OUTPUTS: dict[str, dict[str, Any]] = {
    "levels": {"role": "levels", "dtype": "int64", "shape": _ROW},
    "log_probability": {"role": "log_likelihood_map", "dtype": "float32", "shape": _ROW},
    "next_rows_above": {"role": "cache", "dtype": "float32", "shape": _CACHE},
    "next_activations": {"role": "cache", "dtype": "float32", "shape": [*_CACHE, 1]},
}
_DENSITY_INPUTS: dict[str, dict[str, Any]] = {
    "data": {"role": "data", "dtype": "float32", "shape": ["batch", *_DATA]},
    "class_weights": _STEP_INPUTS["class_weights"],
}
_BACKGROUND_OUTPUTS = {
    "log_likelihood": {"role": "log_likelihood", "dtype": "float32", "shape": ["batch"]}
}
_DENSITY_OUTPUTS = _BACKGROUND_OUTPUTS | {
    "pixels": {"role": "log_likelihood_map", "dtype": "float32", "shape": ["batch", SIDE, SIDE]}
}


def _control(meaning: str, minimum: float, maximum: float, default: float | None) -> dict[str, Any]:
    return {"meaning": meaning, "minimum": minimum, "maximum": maximum, "default": default}


def write_toy_raster(repository: Path) -> None:
    """Write toy-raster, version 1: a tiny model that is painted row by row."""
    torch.manual_seed(1)
    folder = repository / "toy-raster" / "1"
    folder.mkdir(parents=True)
    step = RowStep().eval()
    plain = {name: port for name, port in _STEP_INPUTS.items() if not name.startswith("top")}
    traced = {
        "row_step": _trace(folder, "row_step", step, plain, _STEP_OUTPUTS),
        "row_step_filtered": _trace(folder, "row_step_filtered", step, _STEP_INPUTS, _STEP_OUTPUTS),
        "log_likelihood": _trace(
            folder, "log_likelihood", RasterDensity(step).eval(), _DENSITY_INPUTS, _DENSITY_OUTPUTS
        ),
        "background_log_likelihood": _trace(
            folder, "background_log_likelihood", Background(), _DENSITY_INPUTS, _BACKGROUND_OUTPUTS
        ),
    }
    vectors = {name: array for _, arrays in traced.values() for name, array in arrays.items()}
    np.savez(folder / "vectors.npz", **vectors)
    manifest = {
        "schema_version": 1,
        "name": "toy-raster",
        "version": "1",
        "family": "toy raster",
        "licence": "Apache-2.0",
        "event": {**_EVENT, "levels": RASTER_LEVELS},
        "preprocess": _preprocess(0.0, RASTER_LEVELS - 1.0),
        "latent": None,
        "condition": {
            "kinds": ["class", "class_weights"],
            "names": [str(label) for label in range(CLASSES)],
            "prior": [0.5, 0.25, 0.25],
            "optional": True,
        },
        "program": "raster_rows",
        "controls": {
            "temperature": _control("what logits are divided by", 0.01, 10.0, 1.0),
            "top_k": _control("most likely levels to draw from", 1, RASTER_LEVELS, None),
            "top_p": _control("share of probability to draw from", 0.01, 1.0, None),
            "greedy": _control("whether to take the most likely level", 0, 1, 0),
        },
        "operations": {
            "sample": {},
            "complete": {},
            "likelihood": {
                "quantity": "probability", "kind": "exact", "base_measure": "counting",
                "estimator": "exact", "conditioning": "none",
            },
        },
        "graphs": {name: graph for name, (graph, _) in traced.items()},
        "test_vectors": {"file": "vectors.npz", "absolute": 1e-4, "relative": 1e-4},
        "files": {
            path.name: "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.iterdir()
        },
        "quality": [],
        "splits": {},
        "provenance": {},
    }  # fmt: skip
    manifest["artifact_digest"] = artifact_digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _trace(
    folder: Path,
    name: str,
    module: nn.Module,
    inputs: dict[str, dict[str, Any]],
    outputs: dict[str, dict[str, Any]],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Write a graph whose batch lies on any axis; return its description and test vectors."""
    tensors = [_test_input(name, port) for name, port in inputs.items()]
    batch = torch.export.Dim("batch")
    axes = tuple({port["shape"].index("batch"): batch} for port in inputs.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they speak of torch's own internals
        program = torch.onnx.export(
            Positional(module).eval(),
            tuple(tensors),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=(axes,),
            dynamo=True,
            verbose=False,
        )
    program.save(folder / f"{name}.onnx")
    with torch.no_grad():
        results = module(*tensors)
    results = results if isinstance(results, tuple) else (results,)
    arrays = dict(zip((f"{name}/inputs/{port}" for port in inputs), tensors, strict=True))
    arrays |= dict(zip((f"{name}/outputs/{port}" for port in outputs), results, strict=True))
    described = {
        "file": f"{name}.onnx",
        "inputs": [{"name": port, **facts} for port, facts in inputs.items()],
        "outputs": [{"name": port, **facts} for port, facts in outputs.items()],
    }
    return described, {key: tensor.numpy() for key, tensor in arrays.items()}


class Positional(nn.Module):
    """Takes its inputs by position, as dynamic shapes are given."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.module(*inputs)


def _test_input(name: str, port: dict[str, Any]) -> Tensor:
    """Three rows of what a port takes."""
    shape = [3 if size == "batch" else size for size in port["shape"]]
    if name == "forced":
        return torch.full(shape, -1)
    if name == "top_k":
        return torch.tensor([1, 3, RASTER_LEVELS])
    if name == "data":
        return torch.randint(RASTER_LEVELS, shape).float()
    return torch.rand(shape) * 0.9 + 0.05


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
