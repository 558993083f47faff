"""The generators that serving is measured with: DCGANs of two widths, with random weights.

What a generator computes does not matter here, only how long it takes. They are real artifacts in a
repository of their own, so that the server loads, checks and serves them as it does any other.
"""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.exports import ROOT, export_folder

LATENT_SIZE = 100
SIDE = 28


@dataclass(frozen=True)
class Generator:
    """A generator of grey images, SIDE x SIDE, from normal latents."""

    name: str
    width: int  # channels at half the resolution, twice that at a quarter
    size: str

    def folder(self, repository: Path) -> Path:
        """Return its artifact in the repository of `export_generators`."""
        return repository / self.name / "1"


SMALL = Generator("random-dcgan-small", 152, "about 0.45 ms an image on one core")
MEDIUM = Generator("random-dcgan-medium", 424, "about 4 ms an image on one core")


def export_generators() -> Path:
    """Return a repository that holds both, made where it is missing."""
    repository = export_folder([Path(__file__), ROOT / "export"])
    for generator in (SMALL, MEDIUM):
        if not generator.folder(repository).exists():
            _export(generator, repository)
    return repository


def _export(generator: Generator, repository: Path) -> None:
    # Torch is imported where something is to be exported, and there only: it takes seconds.
    import torch

    from export import export_artifact
    from model_zoo.cards import image_event, image_preprocess, normal_latent
    from model_zoo.family import Card, Graph, Port

    torch.manual_seed(1)
    shape = (1, SIDE, SIDE)
    latent = Port("latent", "latent", (LATENT_SIZE,))
    images = Port("images", "data", shape)
    export_artifact(
        repository,
        name=generator.name,
        version="1",
        card=Card(
            family="generative adversarial network",
            event=image_event(shape),
            preprocess=image_preprocess(-1.0, 1.0),
            latent=normal_latent(LATENT_SIZE),
            operations={"sample": {}, "decode": {}},
        ),
        graphs=(Graph("decode", _make(generator.width), (latent,), (images,)),),
        licence="Apache-2.0",
    )


def _make(width: int):
    from torch import nn

    return nn.Sequential(
        nn.Linear(LATENT_SIZE, 2 * width * (SIDE // 4) ** 2, bias=False),
        nn.Unflatten(1, (2 * width, SIDE // 4, SIDE // 4)),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1, bias=False),  # 7 -> 14
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1),  # 14 -> 28
        nn.Tanh(),
    )
