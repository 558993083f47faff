"""VAE/GAN: three networks, each with its own loss, and samples that a judge may look at."""

import pytest
import torch
from torch import Tensor

from model_zoo.autoencoders import vae_gan
from model_zoo.autoencoders.vae_gan import AdversarialAutoencoder, to_unit
from model_zoo.family import Batch, Figure


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(judge: str | None = None) -> AdversarialAutoencoder:
    torch.manual_seed(0)
    return AdversarialAutoencoder((1, 8, 8), latent_size=2, width=4, judge=judge)


@pytest.fixture
def batch() -> Batch:
    images = torch.randint(256, (12, 1, 8, 8), generator=generator()).float()
    return Batch(images, torch.zeros(12, dtype=torch.int64))


@pytest.mark.parametrize("name", ["encoder", "decoder", "discriminator"])
def test_each_loss_reaches_its_own_network(batch: Batch, name: str) -> None:
    model = build()
    objective = model.objectives()[name]
    objective.loss(batch, generator()).backward()
    own = list(getattr(model, name).parameters())
    assert {id(each) for each in objective.parameters} == {id(each) for each in own}
    assert all(parameter.grad is not None for parameter in own)


def test_the_discriminator_learns_to_tell_both_kinds_of_fakes(batch: Batch) -> None:
    model = build()
    descend(model, "discriminator", batch, steps=60)
    with torch.no_grad():
        real = to_unit(batch.images)
        rebuilt, made = model._pictures(real, generator(1))
        scores = [model.discriminator(images).mean() for images in (real, rebuilt, made)]
    assert scores[0] > max(scores[1:]) + 1


def test_the_decoder_learns_to_fool_the_discriminator(batch: Batch) -> None:
    model = build()
    descend(model, "discriminator", batch, steps=60)
    before = mean_score(model)
    descend(model, "decoder", batch, steps=60)
    assert mean_score(model) > before + 1


@torch.no_grad()
def test_unlikeness_is_half_a_squared_distance_in_the_hidden_layer(batch: Batch) -> None:
    model = build().eval()
    one, other = to_unit(batch.images), -to_unit(batch.images)
    assert torch.all(model._unlikeness(one, one) == 0)
    apart = (model.discriminator.hidden(one) - model.discriminator.hidden(other)).flatten(1)
    expected = 0.5 * apart.norm(dim=1) ** 2
    torch.testing.assert_close(model._unlikeness(one, other), expected)


def test_a_judge_sees_one_sample_for_each_image(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Witness:
        def __init__(self, name: str, device: torch.device) -> None:
            self.name = name

        def compare(self, levels: Tensor) -> list[Figure]:
            assert levels.shape == batch.images.shape
            assert levels.min() >= 0 and levels.max() <= 255 and torch.all(levels == levels.round())
            return [Figure("precision", 0.5, "share", f"seen by {self.name}")]

    monkeypatch.setattr(vae_gan, "Judge", Witness)
    alone = ["squared_error", "kl_divergence"]
    assert [figure.name for figure in build().eval().evaluate(batch, generator())] == alone
    judged = build(judge="somebody").eval().evaluate(batch, generator())
    assert [figure.name for figure in judged] == [*alone, "precision"]
    assert judged[-1].protocol == "seen by somebody"


def descend(model: AdversarialAutoencoder, name: str, batch: Batch, steps: int) -> None:
    objective = model.train().objectives()[name]
    optimiser = torch.optim.Adam(objective.parameters, lr=0.01)
    for step in range(steps):
        loss = objective.loss(batch, generator(step))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@torch.no_grad()
def mean_score(model: AdversarialAutoencoder) -> float:
    """Return how real samples of the prior look."""
    return model.discriminator(model._sample(64, generator(2))).mean().item()
