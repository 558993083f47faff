"""GANs: each network learns its own side, and the class that is asked for is the one painted."""

import pytest
import torch

from model_zoo.family import Batch
from model_zoo.gans.dcgan import DCGAN
from model_zoo.recipe import load_trained
from model_zoo.sample_quality import diversity_figure

TINY = {"image_shape": (1, 8, 8), "classes": 3, "latent_size": 4, "width": 4}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def model() -> DCGAN:
    torch.manual_seed(0)
    return DCGAN(**TINY)


@pytest.fixture
def batch() -> Batch:
    images = torch.randint(256, (12, 1, 8, 8), generator=generator()).float()
    return Batch(images, torch.arange(12) % 3)


@pytest.mark.parametrize("name", ["discriminator", "generator"])
def test_objective_reaches_its_own_network(model: DCGAN, batch: Batch, name: str):
    objective = model.objectives()[name]
    objective.loss(batch, generator()).backward()
    assert all(parameter.grad is not None for parameter in getattr(model, name).parameters())
    own = {id(parameter) for parameter in objective.parameters}
    assert own == {id(parameter) for parameter in getattr(model, name).parameters()}


def test_discriminator_step_leaves_no_gradient_in_the_generator(model: DCGAN, batch: Batch):
    model.objectives()["discriminator"].loss(batch, generator()).backward()
    assert all(parameter.grad is None for parameter in model.generator.parameters())


def test_discriminator_learns_high_logits_for_real(model: DCGAN, batch: Batch):
    objective = model.objectives()["discriminator"]
    optimiser = torch.optim.Adam(objective.parameters, lr=0.01)
    for _ in range(40):
        loss = objective.loss(batch, generator())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    condition = torch.nn.functional.one_hot(batch.labels, 3).float()
    with torch.no_grad():
        fake = model.generate(torch.randn(12, 4, generator=generator()), condition)
        real_logit = model.discriminator(batch.images / 127.5 - 1, condition)
        fake_logit = model.discriminator(fake, condition)
    assert real_logit.mean() > 0 > fake_logit.mean()


def test_generator_step_makes_fakes_look_more_real(model: DCGAN, batch: Batch):
    objective = model.objectives()["generator"]
    optimiser = torch.optim.Adam(objective.parameters, lr=0.01)
    losses = []
    for _ in range(20):
        loss = objective.loss(batch, generator())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_class_weights_change_the_picture_and_may_be_mixed(model: DCGAN):
    graph, _ = model.graphs()
    weights = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0.5, 0.5, 0]])
    latent = torch.randn(1, 4, generator=generator()).expand(3, 4)
    with torch.no_grad():
        first, second, mixture = graph.module(latent, weights)
    assert not torch.equal(first, second)
    assert not torch.equal(first, mixture)
    assert not torch.equal(second, mixture)


def test_row_does_not_depend_on_its_batch(model: DCGAN):
    graph, _ = model.graphs()
    latent = torch.randn(5, 4, generator=generator())
    weights = torch.eye(3)[[0, 1, 2, 0, 1]]
    with torch.no_grad():
        together = graph.module(latent, weights)
        alone = graph.module(latent[3:4], weights[3:4])
    assert torch.allclose(together[3:4], alone, atol=1e-6)
    assert together.abs().max() <= 1


@pytest.mark.parametrize("within_classes", [True, False])
def test_distance_ratio_is_one_for_the_real_images_and_zero_for_collapse(
    batch: Batch, within_classes: bool
):
    same = diversity_figure(batch, batch, within_classes)
    assert same.value == pytest.approx(1)
    chosen = [0, 1, 2] * 4 if within_classes else [0] * 12  # one picture a class, or one at all
    collapsed = Batch(batch.images[chosen], batch.labels)
    assert diversity_figure(collapsed, batch, within_classes).value == pytest.approx(0)


def test_without_a_judge_only_the_distance_is_measured(model: DCGAN, batch: Batch):
    figures = model.eval().evaluate(batch, generator())
    assert [figure.name for figure in figures] == ["within_class_distance"]


@torch.no_grad()
def test_bundled_generator_paints_the_class_that_is_asked():
    graph, _ = load_trained("mnist-dcgan").graphs()
    labels = torch.arange(500) % 10
    latent = torch.randn(500, 64, generator=generator())
    images = graph.module(latent, torch.eye(10)[labels])
    seen = load_trained("mnist-classifier")((images + 1) * 127.5).argmax(1)
    assert (seen == labels).float().mean() >= 0.95
