"""What all adversarial families have in common: two networks, and everything but their losses.

A family states the two losses of its paper; here is who is stepped by which, how samples are
measured, and how both networks are served. Every discriminator or critic here is high for real
pictures.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from model_zoo.cards import (
    LATENT_CONTROLS,
    class_condition,
    image_event,
    image_preprocess,
    normal_latent,
)
from model_zoo.data import in_chunks
from model_zoo.family import Batch, Card, Family, Figure, Function, Graph, Objective, Port
from model_zoo.gans.gan_layers import Generator
from model_zoo.layers import normal_noise
from model_zoo.sample_quality import Judge, diversity_figure

CHUNK = 500  # images made at a time while measuring

Meaning = Mapping[str, Any]
"""What the score of an image is: higher_means, unit and meaning."""

LOGIT: Meaning = {
    "higher_means": "more_real",
    "unit": "nats",
    "meaning": "log D(x) - log(1 - D(x)), the discriminator's log odds of a real image",
}
CRITIC: Meaning = {
    "higher_means": "more_real",
    "unit": "arbitrary",
    "meaning": "the critic's value, of which only differences between images mean something",
}


class Adversarial(Family):
    """A generator, and the network that judges it, both shown the class where there are some."""

    family: str
    """The word for people."""

    meaning: Meaning = LOGIT

    generator_interval = 1
    """Steps of the discriminator for one of the generator."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        generator: Generator,
        discriminator: nn.Module,
        latent_size: int,
        judge: str | None,
    ):
        """Pair two networks. `classes` is 0 where there is no condition.

        `judge` names a trained classifier, in whose features `evaluate` measures the samples.
        """
        super().__init__()
        self.image_shape, self.classes = tuple(image_shape), classes
        self.latent_size, self.judge = latent_size, judge
        self.generator, self.discriminator = generator, discriminator

    @abstractmethod
    def discriminator_loss(
        self, real: Tensor, fake: Tensor, condition: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        """Return the loss that the discriminator descends.

        Images are in [-1, 1], [N, C, H, W], of which `fake` lead no gradient to the generator.
        `condition` is [N, classes] or None.
        """

    @abstractmethod
    def generator_loss(self, fake: Tensor, condition: Tensor | None) -> Tensor:
        """Return the loss that the generator descends through its images, [N, C, H, W]."""

    def score(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return how real images in [-1, 1] look, [N], higher for more real."""
        return self.discriminator(images, condition)

    def generate(self, latent: Tensor, condition: Tensor | None = None) -> Tensor:
        """Map z [N, latent] and weights of the classes [N, classes] to images in [-1, 1]."""
        return self.generator(latent, condition).float()

    def objectives(self) -> dict[str, Objective]:
        """Return the discriminator's loss, then the generator's."""
        return {
            "discriminator": Objective(
                list(self.discriminator.parameters()), self._discriminator_objective
            ),
            "generator": Objective(
                list(self.generator.parameters()),
                self._generator_objective,
                self.generator_interval,
            ),
        }

    def _discriminator_objective(self, batch: Batch, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            fake, condition = self._sample(batch.labels, generator)
        real = batch.images / 127.5 - 1  # 0..255 -> [-1, 1]
        return self.discriminator_loss(real, fake, condition, generator)

    def _generator_objective(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return self.generator_loss(*self._sample(batch.labels, generator))

    def _sample(self, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Draw one image for each label, which counts where there are classes."""
        latent = normal_noise((len(labels), self.latent_size), generator)
        condition = one_hot(labels, self.classes).float() if self.classes else None
        return self.generate(latent, condition), condition

    @torch.no_grad()
    def evaluate(self, data: Batch, generator: torch.Generator) -> list[Figure]:
        """Make one image for every image of `data`, of its class, and compare the two sets."""
        labels = data.labels
        made = [self._sample(chunk.labels, generator)[0] for chunk in in_chunks(data, CHUNK)]
        levels = ((torch.cat(made) + 1) * 127.5).round()  # as they are served
        fake = Batch(levels, labels)
        diversity = diversity_figure(fake, data, within_classes=bool(self.classes))
        if self.judge is None:
            return [diversity]
        judge = Judge(self.judge, levels.device)
        return [*judge.compare(levels, asked=labels if self.classes else None), diversity]

    def card(self) -> Card:
        """Describe the model to those who serve it."""
        return Card(
            family=self.family,
            event=image_event(self.image_shape),
            preprocess=image_preprocess(-1.0, 1.0),
            latent=normal_latent(self.latent_size),
            condition=class_condition(self.classes) if self.classes else None,
            controls=LATENT_CONTROLS,
            operations={"sample": {}, "decode": {}, "interpolate": {}, "score": self.meaning},
        )

    def graphs(self) -> tuple[Graph, ...]:
        """Return decode and score; switches the model to eval mode."""
        latent = Port("latent", "latent", (self.latent_size,))
        images = Port("images", "data", self.image_shape)
        score = Port("score", "score", ())
        condition: tuple[Port, ...] = ()
        if self.classes:
            condition = (Port("class_weights", "condition", (self.classes,)),)
        return (
            Graph("decode", Function(self, self.generate).eval(), (latent, *condition), (images,)),
            Graph("score", Function(self, self.score).eval(), (images, *condition), (score,)),
        )
