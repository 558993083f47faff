"""GANs: each network learns its own side, and the class that is asked for is the one painted."""

import math

import pytest
import torch
from torch import Tensor, nn

from model_zoo.family import Batch
from model_zoo.gans.adversarial import Adversarial
from model_zoo.gans.began import BEGAN, convergence
from model_zoo.gans.cgan import ConditionalGAN
from model_zoo.gans.dcgan import DCGAN
from model_zoo.gans.gan import GAN
from model_zoo.gans.lsgan import LSGAN
from model_zoo.gans.wgan import WGAN
from model_zoo.gans.wgan_gp import WGANGP
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


# Losses, on numbers that can be worked out by hand


class MeanPixel(nn.Module):
    """A discriminator whose value is `slope` times the sum of an image, and of its class."""

    def __init__(self, slope: float = 1.0):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, images: Tensor, class_weights: Tensor | None = None) -> Tensor:
        value = self.slope * images.flatten(1).sum(dim=1)
        return value if class_weights is None else value + 10 * class_weights[:, 1]


UNCONDITIONAL = {"image_shape": (1, 4, 4), "latent_size": 2, "width": 2}


def images_that_sum_to(*values: float) -> Tensor:
    images = torch.zeros(len(values), 1, 4, 4)
    images[:, 0, 1, 2] = torch.tensor(values)
    return images


def losses(model: Adversarial, condition: Tensor | None = None) -> tuple[float, float]:
    """Return both losses of real images worth 2 and -1, and fakes worth 1 and 0."""
    model.discriminator = MeanPixel()
    real, fake = images_that_sum_to(2, -1), images_that_sum_to(1, 0)
    own = model.discriminator_loss(real, fake, condition, generator())
    return own.item(), model.generator_loss(fake, condition).item()


def minus_log_sigmoid(value: float) -> float:
    return math.log(1 + math.exp(-value))


def test_the_first_game_is_of_logarithms():
    discriminator, making = losses(GAN(**UNCONDITIONAL))
    real = (minus_log_sigmoid(2) + minus_log_sigmoid(-1)) / 2
    fake = (minus_log_sigmoid(-1) + minus_log_sigmoid(0)) / 2  # 1 - D is the sigmoid of -logit
    assert discriminator == pytest.approx(real + fake)
    assert making == pytest.approx((minus_log_sigmoid(1) + minus_log_sigmoid(0)) / 2)


@pytest.mark.parametrize("family", [ConditionalGAN, DCGAN])
def test_the_conditional_game_shows_the_class_to_the_discriminator(family: type[Adversarial]):
    condition = torch.tensor([[0.0, 1.0], [1.0, 0.0]])  # worth 10 and 0
    discriminator, making = losses(family(classes=2, **UNCONDITIONAL), condition)
    real = (minus_log_sigmoid(12) + minus_log_sigmoid(-1)) / 2
    fake = (minus_log_sigmoid(-11) + minus_log_sigmoid(0)) / 2
    assert discriminator == pytest.approx(real + fake)
    assert making == pytest.approx((minus_log_sigmoid(11) + minus_log_sigmoid(0)) / 2)


def test_least_squares_fit_labels():
    discriminator, making = losses(LSGAN(**UNCONDITIONAL))
    assert discriminator == pytest.approx(((1 + 4) / 2 + (1 + 0) / 2) / 2)
    assert making == pytest.approx(((0 + 1) / 2) / 2)


def test_a_critic_takes_the_difference_of_means():
    discriminator, making = losses(WGAN(**UNCONDITIONAL, clip=2.0))
    assert (discriminator, making) == pytest.approx((0.5 - 0.5, -0.5))


def test_the_critic_is_clipped_before_it_is_used_and_at_the_end(batch: Batch):
    model = WGAN(**UNCONDITIONAL, clip=0.01)
    bounded = [p for p in model.discriminator.parameters() if p.abs().max() > 0.01]
    assert bounded, "or there would be nothing to see"
    images = images_that_sum_to(1, 0)
    model.discriminator_loss(images, images, None, generator())
    assert all(parameter.abs().max() <= 0.01 for parameter in model.discriminator.parameters())
    model.discriminator.body[0].weight.data.fill_(1.0)
    model.conclude(batch, generator())
    assert model.discriminator.body[0].weight.max().item() == pytest.approx(0.01)
    assert model.objectives()["generator"].interval == 5


def test_the_gradient_penalty_of_a_linear_critic_is_that_of_its_slope():
    model = WGANGP(**UNCONDITIONAL, penalty=10.0)
    model.discriminator = MeanPixel(slope=0.5)  # of which each of 16 pixels has the gradient 1/2
    real, fake = images_that_sum_to(2, -1), images_that_sum_to(1, 0)
    slope = 0.5 * math.sqrt(16)
    penalty = model.gradient_penalty(real, fake, generator())
    assert penalty.item() == pytest.approx((slope - 1) ** 2)
    (gradient,) = torch.autograd.grad(penalty, model.discriminator.slope)
    assert gradient.item() == pytest.approx(2 * (slope - 1) * math.sqrt(16))
    loss = model.discriminator_loss(real, fake, None, generator())
    assert loss.item() == pytest.approx(10 * (slope - 1) ** 2 - 0.5 * (0.5 - 0.5))


def test_the_gradient_penalty_is_that_of_finite_differences():
    torch.manual_seed(0)
    model = WGANGP(**UNCONDITIONAL).double()
    images = torch.randn(2, 1, 1, 4, 4, generator=generator()).double()
    share = torch.rand((1, 1, 1, 1), generator=generator())
    between = share * images[0] + (1 - share) * images[1]
    moves = 1e-6 * torch.eye(16).double().reshape(16, 1, 4, 4)
    score = model.discriminator.body  # before it is rounded to float32
    slopes = (score(between + moves) - score(between - moves)) / 2e-6
    penalty = model.gradient_penalty(images[0], images[1], generator())
    assert penalty.item() == pytest.approx((slopes.norm().item() - 1) ** 2, rel=1e-4)


class Halve(nn.Module):
    """An autoencoder that restores half of an image."""

    def forward(self, images: Tensor) -> Tensor:
        return images / 2


def test_the_boundary_equilibrium_weighs_fakes_by_k():
    model = BEGAN(**UNCONDITIONAL, diversity=0.5, balance_rate=0.1)
    model.discriminator = Halve()
    real, fake = images_that_sum_to(32, -64), images_that_sum_to(8, 0)  # errors 1 and 2, 1/4 and 0
    model.balance.fill_(0.2)
    own = model.discriminator_loss(real, fake, None, generator())
    assert own.item() == pytest.approx(1.5 - 0.2 * 0.125)
    assert model.generator_loss(fake, None).item() == pytest.approx(0.125)
    assert model.balance.item() == pytest.approx(0.2 + 0.1 * (0.5 * 1.5 - 0.125))


@torch.no_grad()
def test_pictures_are_bounded_and_what_the_autoencoder_makes_of_them_is_not():
    model = BEGAN(**UNCONDITIONAL)
    for network in (model.generator, model.discriminator.decoder):
        convolution = [part for part in network.body if isinstance(part, nn.ConvTranspose2d)][-1]
        convolution.bias.fill_(5.0)
    latent = torch.zeros(2, UNCONDITIONAL["latent_size"])
    assert model.generate(latent).abs().max() <= 1
    assert model.discriminator.decoder(latent).min() > 1


def test_the_balance_moves_towards_equilibrium_within_bounds():
    model = BEGAN(**UNCONDITIONAL, diversity=0.5, balance_rate=0.1)
    one, two, none = torch.tensor(1.0), torch.tensor(2.0), torch.tensor(0.0)
    model.update_balance(one, two)  # fakes are restored too badly to be weighed
    assert model.balance == 0
    model.update_balance(two, one)  # gamma L(x) = L(G(z))
    assert model.balance == 0
    model.update_balance(two, none)
    assert model.balance.item() == pytest.approx(0.1)
    for _ in range(20):
        model.update_balance(two, none)
    assert model.balance == 1


def test_convergence_is_of_the_error_and_of_the_balance():
    measured = convergence(0.5, torch.tensor(0.2), torch.tensor(0.3))
    assert measured.value == pytest.approx(0.2 + abs(0.1 - 0.3))


@torch.no_grad()
def test_bundled_generator_paints_the_class_that_is_asked():
    graph, _ = load_trained("mnist-dcgan").graphs()
    labels = torch.arange(500) % 10
    latent = torch.randn(500, 64, generator=generator())
    images = graph.module(latent, torch.eye(10)[labels])
    seen = load_trained("mnist-classifier")((images + 1) * 127.5).argmax(1)
    assert (seen == labels).float().mean() >= 0.95
