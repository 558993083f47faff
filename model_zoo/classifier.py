"""A small digit classifier, trained apart from every generator, that judges their samples.

Plain convolutions with batch normalisation; while training, every picture is moved by up to two
pixels, which is what lifts it above 99 % on MNIST.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from model_zoo.data import in_chunks
from model_zoo.family import Batch, Figure, Objective, Trainable

CHUNK = 500  # images measured at a time


class Classifier(Trainable):
    """Levels to class logits."""

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        classes: int = 10,
        width: int = 32,
        largest_shift: int = 2,
    ):
        """Build for images [channels, height, width] whose sides are multiples of 4.

        `largest_shift` is how far, in pixels, training moves a picture in each direction.
        """
        super().__init__()
        channels, height, width_pixels = image_shape
        self.largest_shift = largest_shift
        self.body = nn.Sequential(
            *_stage(channels, width),  # 28 -> 14
            *_stage(width, 2 * width),  # 14 -> 7
            nn.Flatten(),
            nn.Linear(2 * width * (height // 4) * (width_pixels // 4), classes),
        )

    def forward(self, levels: Tensor) -> Tensor:
        """Map levels 0..255, [N, C, H, W], to logits [N, classes]."""
        return self.body(levels / 127.5 - 1).float()

    def features(self, levels: Tensor) -> Tensor:
        """Map levels to the activations that the logits are linear in, [N, D], none negative."""
        return self.body[:-1](levels / 127.5 - 1).float()

    def classify(self, features: Tensor) -> Tensor:
        """Map features [N, D] to logits [N, classes]."""
        return self.body[-1](features)

    def objectives(self) -> dict[str, Objective]:
        """Return the one loss: cross entropy on moved pictures."""
        return {"classifier": Objective(list(self.parameters()), self._loss)}

    def _loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        moved = self._move(batch.images, generator)
        return cross_entropy(self(moved), batch.labels)

    def _move(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Move the whole batch by one random offset; what enters is black."""
        limit = self.largest_shift
        down, right = torch.randint(
            2 * limit + 1, (2,), generator=generator, device=generator.device
        ).tolist()
        height, width = images.shape[2:]
        padded = pad(images, (limit,) * 4)
        return padded[:, :, down : down + height, right : right + width]

    @torch.no_grad()
    def evaluate(self, data: Batch, generator: torch.Generator) -> list[Figure]:
        """Measure accuracy."""
        seen = torch.cat([self(chunk.images).argmax(1) for chunk in in_chunks(data, CHUNK)])
        accuracy = (seen == data.labels).float().mean().item()
        error = (accuracy * (1 - accuracy) / len(seen)) ** 0.5
        return [Figure("accuracy", accuracy, "share", "share of images classified right", error)]


def _stage(inputs: int, outputs: int) -> list[nn.Module]:
    """Two 3x3 convolutions, then half the resolution."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [
            nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]
    return [*layers, nn.MaxPool2d(2)]
