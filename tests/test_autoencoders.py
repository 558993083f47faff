"""Autoencoders: bounds that are bounds, of a distribution that sums to one."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from model_zoo.autoencoders.autoencoder_layers import bernoulli_log_mass
from model_zoo.autoencoders.cvae import ConditionalVariationalAutoencoder
from model_zoo.autoencoders.vae import VariationalAutoencoder
from model_zoo.family import Batch
from model_zoo.layers import binarise
from model_zoo.recipe import load_trained

TINY = {"image_shape": (1, 8, 8), "latent_size": 2, "width": 8, "residual_blocks": 1}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smallest_model() -> VariationalAutoencoder:
    """Pictures of 4x4 and one latent coordinate: small enough to sum over every picture."""
    torch.manual_seed(0)
    return VariationalAutoencoder((1, 4, 4), latent_size=1, width=8, residual_blocks=1).eval()


def exact_log_mass(model: VariationalAutoencoder, x: Tensor) -> Tensor:
    """Integrate p(x|z) p(z) over a fine grid of the one latent coordinate; nats, [N]."""
    z = torch.linspace(-8, 8, 801)[:, None]  # [Z, 1]
    log_prior = -0.5 * (z.flatten().square() + math.log(2 * math.pi))
    logits = model.decode_logits(z).flatten(1)  # [Z, 16]
    log_given = x.flatten(1) @ logits.T - torch.nn.functional.softplus(logits).sum(1)  # [N, Z]
    return (log_given + log_prior + math.log(0.02)).logsumexp(dim=1)


@torch.no_grad()
def test_probabilities_of_all_pictures_sum_to_one():
    pictures = torch.tensor(list(itertools.product([0.0, 1.0], repeat=16))).reshape(-1, 1, 4, 4)
    total = sum(exact_log_mass(smallest_model(), part).exp().sum() for part in pictures.split(4096))
    assert total.item() == pytest.approx(1, abs=1e-3)


@torch.no_grad()
def test_importance_weights_average_to_the_probability():
    model = smallest_model()
    x = (torch.rand(4, 1, 4, 4, generator=generator()) < 0.5).float()
    noise = torch.randn(20_000, 1, generator=generator(1))
    for row, expected in zip(x, exact_log_mass(model, x), strict=True):
        weights = model.log_weight(row.expand(20_000, 1, 4, 4), noise)
        assert weights.mean() <= expected  # the evidence lower bound
        estimate = weights.logsumexp(0) - math.log(20_000)
        assert estimate.item() == pytest.approx(expected.item(), abs=0.05)


@torch.no_grad()
def test_closed_form_bound_has_the_mean_of_the_weights():
    model = smallest_model()
    x = (torch.rand(1, 1, 4, 4, generator=generator()) < 0.5).float().expand(50_000, 1, 4, 4)
    noise = torch.randn(50_000, 1, generator=generator(1))
    closed, sampled = model.evidence_lower_bound(x, noise), model.log_weight(x, noise)
    assert closed.mean().item() == pytest.approx(sampled.mean().item(), abs=0.02)
    assert not torch.allclose(closed, sampled)


def test_importance_weighted_bound_is_tighter():
    torch.manual_seed(0)
    model = VariationalAutoencoder(**TINY).eval()
    picture = (torch.rand(1, 1, 8, 8, generator=generator()) < 0.5) * 255.0
    images = picture.expand(200, 1, 8, 8)  # the same, as the second figure sees every tenth only
    figures = model.evaluate(Batch(images, torch.zeros(200)), generator())
    elbo, importance = (figure.value for figure in figures)
    assert elbo < importance


@pytest.mark.parametrize("name", ["mnist-vae", "mnist-vae-2d"])
@torch.no_grad()
def test_bundled_bounds_order_as_they_must(name: str):
    """On the model's own samples; more draws, tighter bound."""
    model = load_trained(name)
    latent = torch.randn(50, model.latent_size, generator=generator())
    x = torch.rand(50, 1, 28, 28, generator=generator()) < model.decode_logits(latent).sigmoid()
    noise = torch.randn(16, 50, model.latent_size, generator=generator(1))
    weights = torch.stack([model.log_weight(x.float(), row) for row in noise])  # [16, 50]
    bounds = [
        (weights.reshape(-1, draws, 50).logsumexp(1) - math.log(draws)).mean().item()
        for draws in (1, 4, 16)
    ]
    assert bounds[0] < bounds[1] < bounds[2]


def test_bernoulli_log_mass_stays_exact_for_extreme_logits():
    logits = torch.tensor([200.0, -200.0, 200.0]).reshape(3, 1, 1, 1)
    x = torch.tensor([1.0, 0.0, 0.0]).reshape(3, 1, 1, 1)
    assert bernoulli_log_mass(x, logits).tolist() == [0.0, 0.0, -200.0]


def test_binarising_keeps_black_and_white_and_draws_grey():
    levels = torch.tensor([0.0, 255.0, 51.0]).reshape(3, 1, 1, 1).expand(3, 1, 100, 100)
    black, white, grey = binarise(levels, generator()).flatten(1).mean(dim=1).tolist()
    assert (black, white) == (0.0, 1.0)
    assert grey == pytest.approx(0.2, abs=0.02)


def test_graphs_agree_with_each_other():
    torch.manual_seed(0)
    model = VariationalAutoencoder(**TINY)
    graphs = {graph.name: graph.module for graph in model.graphs()}
    x = (torch.rand(3, 1, 8, 8, generator=generator()) < 0.5).float()
    noise = torch.randn(3, 2, generator=generator())
    with torch.no_grad():
        mean, deviation = graphs["encode"](x)
        latent = mean + deviation * noise
        picture = graphs["decode"](latent)
        given = torch.distributions.Bernoulli(picture).log_prob(x).flatten(1).sum(1)
        prior = torch.distributions.Normal(0, 1).log_prob(latent).sum(1)
        posterior = torch.distributions.Normal(mean, deviation).log_prob(latent).sum(1)
        weight, error, divergence, norm = graphs["log_likelihood"](x, noise)
        mass = graphs["log_mass_given_latent"](x, latent)
    assert torch.allclose(weight, given + prior - posterior, atol=1e-3)
    assert torch.allclose(mass, given, atol=1e-3)
    assert torch.allclose(error, -given, atol=1e-3)
    normals = torch.distributions.Normal(mean, deviation), torch.distributions.Normal(0, 1)
    expected = torch.distributions.kl_divergence(*normals).sum(1)
    assert torch.allclose(divergence, expected, atol=1e-4)
    assert torch.allclose(norm, torch.linalg.vector_norm(mean, dim=1))


@torch.no_grad()
def test_statistics_add_up_to_minus_the_bound():
    model = smallest_model()
    x = (torch.rand(8, 1, 4, 4, generator=generator()) < 0.5).float()
    noise = torch.randn(8, 1, generator=generator(1))
    weight, error, divergence, _ = model.log_weight_and_statistics(x, noise)
    assert torch.equal(weight, model.log_weight(x, noise))
    assert torch.equal(-error - divergence, model.evidence_lower_bound(x, noise))


@torch.no_grad()
def test_probabilities_given_latents_of_the_prior_average_to_the_probability():
    model = smallest_model()
    x = (torch.rand(4, 1, 4, 4, generator=generator()) < 0.5).float()
    latent = torch.randn(20_000, 1, generator=generator(1))
    for row, expected in zip(x, exact_log_mass(model, x), strict=True):
        given = model.log_mass_given(row.expand(20_000, 1, 4, 4), latent)
        estimate = given.logsumexp(0) - math.log(20_000)
        assert estimate.item() == pytest.approx(expected.item(), abs=0.05)


def test_a_few_steps_of_training_raise_the_bound():
    torch.manual_seed(0)
    model = VariationalAutoencoder(**TINY)
    draws = generator()
    stripes = torch.zeros(64, 1, 8, 8)
    stripes[:, :, ::2] = 255.0
    batch = Batch(stripes, torch.zeros(64, dtype=torch.int64))
    (objective,) = model.objectives().values()
    optimiser = torch.optim.Adam(objective.parameters, lr=0.01)
    losses = []
    for _ in range(30):
        loss = objective.loss(batch, draws)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# Conditional


def smallest_conditional_model() -> ConditionalVariationalAutoencoder:
    """Two classes, one latent coordinate, and a prior for each class that is not the other's."""
    torch.manual_seed(0)
    model = ConditionalVariationalAutoencoder(
        (1, 4, 4), classes=2, latent_size=1, width=8, residual_blocks=1
    ).eval()
    model.prior_means.copy_(torch.tensor([[1.0], [-2.0]]))
    model.prior_factors.copy_(torch.tensor([[[0.5]], [[1.5]]]))
    return model


@torch.no_grad()
def test_conditional_weights_average_to_the_probability_given_the_class():
    model = smallest_conditional_model()
    x = (torch.rand(1, 1, 4, 4, generator=generator()) < 0.5).float()
    z = torch.linspace(-12, 12, 2401)[:, None]
    for label, (mean, deviation) in enumerate(((1.0, 0.5), (-2.0, 1.5))):
        weights = torch.eye(2)[label]
        log_prior = torch.distributions.Normal(mean, deviation).log_prob(z[:, 0])
        logits = model.decode_logits(z, weights.expand(len(z), 2))
        log_given = bernoulli_log_mass(x.expand(len(z), 1, 4, 4), logits)
        exact = (log_prior + log_given + math.log(0.01)).logsumexp(dim=0).item()
        noise = torch.randn(50_000, 1, generator=generator(1))
        draws, _ = model.log_weight_and_error(
            x.expand(50_000, 1, 4, 4),
            weights.expand(50_000, 2),
            noise,
            torch.linalg.inv(model.prior_factors),
        )
        assert draws.mean() <= exact  # the evidence lower bound
        estimate = draws.logsumexp(dim=0).item() - math.log(50_000)
        assert estimate == pytest.approx(exact, abs=0.05)


@torch.no_grad()
def test_the_prior_of_a_class_is_drawn_as_its_density_says():
    model, count = smallest_conditional_model(), 100_000
    uniform = torch.rand(count, generator=generator())
    noise = torch.randn(count, 1, generator=generator(1))
    weights = torch.tensor([0.25, 0.75]).expand(count, 2)
    latent = model.draw_latent(uniform, noise, torch.ones(count), weights)
    edges = torch.linspace(-7, 4, 45)
    middle = (edges[:-1] + edges[1:]) / 2
    whiteners = torch.linalg.inv(model.prior_factors)
    density = model.log_prior(middle[:, None], weights[: len(middle)], whiteners).exp()
    assert (density.sum() * 0.25).item() == pytest.approx(1, abs=5e-3)
    share = latent.flatten().histc(bins=44, min=-7, max=4) / count
    assert (share - density * 0.25).abs().sum().item() < 0.03
    one = model.draw_latent(uniform, noise, torch.zeros(count), torch.eye(2)[1].expand(count, 2))
    assert torch.equal(one, torch.full_like(one, -2.0))


@torch.no_grad()
def test_the_fitted_prior_of_each_class_raises_the_bound():
    torch.manual_seed(0)
    model = ConditionalVariationalAutoencoder(classes=2, **TINY).eval()
    model.encoder[-1].weight *= 10
    images = torch.randint(0, 2, (400, 1, 8, 8), generator=generator()) * 255.0
    images[::2, :, :4] = 0
    batch = Batch(images, torch.arange(400) % 2)
    before = model.evaluate(batch, generator())[0].value
    model.conclude(batch, generator())
    assert model.evaluate(batch, generator())[0].value > before + 0.1
    assert not torch.allclose(model.prior_means[0], model.prior_means[1], atol=0.1)
