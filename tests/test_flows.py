"""Flows: exact inverse, exact log-determinant, and a density that is one."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtri_exp
from torch import Tensor, nn
from torch.nn.functional import softplus

from model_zoo.data import data_directory, load
from model_zoo.family import Batch
from model_zoo.flows import real_nvp
from model_zoo.flows.continuous_layers import ContinuousFlow
from model_zoo.flows.ffjord import FFJORD
from model_zoo.flows.flow_layers import FlowOfLevels, LogitOfLevels, MultiScaleFlow, Squeeze
from model_zoo.flows.glow import ActNorm, AffineCoupling, Glow, InvertibleConvolution
from model_zoo.flows.nice import NICE, logistic_log_density, logistic_of_normal, normal_of_logistic
from model_zoo.flows.real_nvp import Coupling, RealNVP
from model_zoo.recipe import load_trained

TINY = {"image_shape": (1, 8, 8), "widths": (4, 4), "couplings": (6, 4)}
FLOWS: dict[str, Callable[[], FlowOfLevels]] = {
    "ffjord": lambda: FFJORD((1, 8, 8), width=16, steps=20),
    "glow": lambda: Glow((1, 8, 8), widths=(4, 4), steps=(2, 2)),
    "nice": lambda: NICE((1, 8, 8), couplings=3, width=8, layers=2),
    "real_nvp": lambda: RealNVP(**TINY),
}
BITS = math.log(2)


def shake(model: nn.Module, seed: int = 0, size: float = 0.3) -> nn.Module:
    """Move every parameter at random: fresh couplings are the identity and would prove nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return model


def tiny_flow(name: str, seed: int = 0) -> FlowOfLevels:
    torch.manual_seed(seed)
    return shake(FLOWS[name](), seed, size=0.1).double()


def planar_flow(seed: int) -> MultiScaleFlow:
    """A flow over the plane that bends it visibly."""
    torch.manual_seed(seed)
    masks = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])] * 2
    networks = [nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 4)) for _ in masks]
    couplings = [Coupling(mask, net) for mask, net in zip(masks, networks, strict=True)]
    return shake(MultiScaleFlow([2], [couplings]), seed)


def random_levels(count: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, *shape), generator=generator).float()


def autograd_log_determinant(function, x: Tensor) -> Tensor:
    size = x.numel()
    jacobian = torch.autograd.functional.jacobian(function, x).reshape(size, size)
    return torch.linalg.slogdet(jacobian).logabsdet


# The core


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_couplings_on_the_plane_invert(seed: int):
    flow = planar_flow(seed).double()
    x = torch.randn(16, 2, dtype=torch.float64)
    assert torch.allclose(flow.inverse(flow(x)[0]), x, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_density_on_the_plane_integrates_to_one(seed: int):
    flow = planar_flow(seed)
    axis = torch.linspace(-15, 15, 601)
    grid = torch.cartesian_prod(axis, axis)
    density = flow.log_density(grid).exp()
    mass = density.sum().item() * (axis[1] - axis[0]).item() ** 2
    assert mass == pytest.approx(1, abs=0.01)
    normal = torch.distributions.Normal(0, 1).log_prob(grid).sum(1).exp()
    assert (density - normal).abs().max() > 0.02, "the flow bends nothing, so this proves nothing"


def test_trained_density_on_the_plane_integrates_to_one():
    """Two bars beside each other: fitted, the mass goes where the data is and stays one."""
    torch.manual_seed(0)
    flow = planar_flow(0)
    optimiser = torch.optim.Adam(flow.parameters(), lr=0.01)
    for _ in range(300):
        x = torch.randn(256, 2) * torch.tensor([0.2, 1.0])
        x[:, 0] += torch.randint(2, (256,)) * 2.0 - 1
        loss = -flow.log_density(x).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    axis = torch.linspace(-8, 8, 801)
    density = flow.log_density(torch.cartesian_prod(axis, axis)).exp().reshape(801, 801)
    assert density.sum().item() * 0.02**2 == pytest.approx(1, abs=0.01)
    gap, bar = density.sum(1)[400], density.sum(1)[450]  # at 0 and at 1
    assert bar > 2 * gap


@pytest.mark.parametrize("mask", [real_nvp.checkerboard_masks(1)[0], real_nvp.channel_masks(4)[0]])
def test_coupling_keeps_what_its_mask_says(mask: Tensor):
    coupling = shake(Coupling(mask, real_nvp.coupling_network(4, width=3, residual_blocks=1)))
    x = torch.randn(2, 4, 3, 3)
    y, _ = coupling(x)
    assert torch.equal(y * mask, x * mask)
    assert (y != x)[:, mask.flatten() == 0].all()


def test_squeezed_masks_are_a_checkerboard():
    mask, _ = real_nvp.checkerboard_masks(1)
    board = Squeeze().inverse(mask.expand(4, 2, 2)[None])[0, 0]
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    assert torch.equal(board, ((rows + columns) % 2 == 0).float())


def test_fresh_couplings_are_the_identity():
    flow = RealNVP(**TINY).flow
    x = torch.randn(2, 1, 8, 8)
    _, log_determinant = flow(x)
    assert torch.equal(log_determinant, torch.zeros(2))
    assert torch.allclose(flow.inverse(flow(x)[0]), x)


# Glow


def test_actnorm_normalises_the_first_batch_and_no_other():
    torch.manual_seed(0)
    model = Glow((1, 8, 8), widths=(4, 4), steps=(2, 2))
    (objective,) = model.objectives().values()
    normalised = []
    for module in model.modules():
        if isinstance(module, ActNorm):
            module.register_forward_hook(lambda _, __, output: normalised.append(output[0]))
    for seed in range(2):
        batch = Batch(random_levels(64, (1, 8, 8), seed), torch.zeros(64, dtype=torch.int64))
        before = [norm.log_scale.clone() for norm in model.modules() if isinstance(norm, ActNorm)]
        objective.loss(batch, torch.Generator().manual_seed(seed))
        after = [norm.log_scale for norm in model.modules() if isinstance(norm, ActNorm)]
        moved = [not torch.equal(*pair) for pair in zip(before, after, strict=True)]
        assert all(moved) if seed == 0 else not any(moved)
    for output in normalised[:4]:
        channels = output.transpose(0, 1).flatten(1)
        assert channels.mean(dim=1).abs().max() < 1e-4
        assert (channels.std(dim=1) - 1).abs().max() < 1e-3


@pytest.mark.parametrize("channels", [2, 4, 8])
def test_convolution_starts_as_a_rotation_and_stays_invertible(channels: int):
    torch.manual_seed(0)
    convolution = InvertibleConvolution(channels).double()
    x = torch.randn(1, channels, 3, 5, dtype=torch.float64)
    y, log_determinant = convolution(x)
    assert y.norm().item() == pytest.approx(x.norm().item(), rel=1e-5)
    assert log_determinant.item() == pytest.approx(0, abs=1e-4)
    shake(convolution)
    y, log_determinant = convolution(x)
    expected = autograd_log_determinant(lambda x: convolution(x)[0], x)
    assert log_determinant.item() == pytest.approx(expected.item(), abs=1e-8)
    assert torch.allclose(convolution.inverse(y), x, atol=1e-8)


def test_folded_convolutions_are_the_same_function():
    model = tiny_flow("glow")
    assert isinstance(model, Glow)
    folded, levels = model.folded(), random_levels(3, (1, 8, 8)).double() + 0.5
    for found, expected in zip(folded.encode(levels), model.encode(levels), strict=True):
        assert torch.allclose(found, expected, atol=1e-6)
    latent = torch.randn(3, 64, dtype=torch.float64)
    assert torch.allclose(folded.decode(latent), model.decode(latent), atol=1e-6)
    assert not any(isinstance(module, InvertibleConvolution) for module in folded.modules())


def test_affine_coupling_keeps_the_first_half_and_inverts():
    torch.manual_seed(0)
    coupling = shake(AffineCoupling(4, width=3))
    x = torch.randn(2, 4, 3, 3)
    y, log_determinant = coupling(x)
    assert torch.equal(y[:, :2], x[:, :2]) and (y != x)[:, 2:].all()
    assert torch.allclose(coupling.inverse(y), x, atol=1e-5)
    first = torch.autograd.functional.jacobian(lambda x: coupling(x)[0][0], x)[:, :, :, 0]
    expected = torch.linalg.slogdet(first.reshape(36, 36)).logabsdet
    assert log_determinant[0].item() == pytest.approx(expected.item(), abs=1e-4)


# NICE


def test_normal_of_the_same_rank_is_that_of_scipy_and_comes_back():
    h = torch.cat([torch.linspace(-30, 30, 1001), torch.tensor([-4000.0, -200.0, 200.0, 4000.0])])
    log_tail = -softplus(h.abs().double())  # of the smaller side, log sigmoid(-|h|)
    expected = -ndtri_exp(log_tail.numpy()) * h.sign().numpy()
    z = normal_of_logistic(h)
    assert np.abs(z.numpy() - expected).max() < 2e-5
    assert torch.allclose(logistic_of_normal(z), h, rtol=1e-5, atol=1e-5)
    assert logistic_of_normal(torch.tensor([3e38])).isfinite().all()


def test_density_of_nice_is_that_of_a_logistic_prior():
    model = tiny_flow("nice").float()
    assert isinstance(model, NICE)
    levels = random_levels(3, (1, 8, 8)) + 0.5
    h = levels.flatten(1) / 256
    for coupling in model.couplings:
        h = coupling(h)
    prior = logistic_log_density(h * model.log_scale.exp())
    expected = prior + model.log_scale.sum() - 64 * math.log(256)
    assert torch.allclose(model.log_density(levels), expected, rtol=1e-5)


def test_density_of_nice_over_two_pixels_integrates_to_one():
    torch.manual_seed(0)
    model = NICE((1, 1, 2), couplings=3, width=8, layers=2)
    with torch.no_grad():
        shake(model)
        model.log_scale.fill_(2.5)  # so that the grid below holds all of the mass
        axis = torch.arange(-1500, 1756, 4.0)
        grid = torch.cartesian_prod(axis, axis).reshape(-1, 1, 1, 2)
        mass = model.log_density(grid).double().exp().sum().item() * 4.0**2
    assert mass == pytest.approx(1, abs=1e-3)


# FFJORD


def continuous_flow(size: int = 2, steps: int = 16, seed: int = 0) -> ContinuousFlow:
    torch.manual_seed(seed)
    flow = shake(ContinuousFlow(size, width=16, steps=steps), seed, size=0.4)
    assert isinstance(flow, ContinuousFlow)
    return flow


@pytest.mark.parametrize("seed", range(3))
def test_continuous_density_on_the_plane_integrates_to_one(seed: int):
    flow = continuous_flow(seed=seed)
    axis = torch.linspace(-15, 15, 301)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        density = flow.log_density(grid).exp()
    assert density.sum().item() * 0.1**2 == pytest.approx(1, abs=0.01)
    normal = torch.distributions.Normal(0, 1).log_prob(grid).sum(1).exp()
    assert (density - normal).abs().max() > 0.02, "the flow bends nothing, so this proves nothing"


@pytest.mark.parametrize("time", [0.0, 0.3, 1.0])
def test_trace_is_that_of_the_jacobian(time: float):
    dynamics = continuous_flow(size=5).double().dynamics
    z, couplings = torch.randn(1, 5, dtype=torch.float64), dynamics.couplings()
    _, trace = dynamics(z, time, couplings)
    jacobian = torch.autograd.functional.jacobian(lambda z: dynamics(z, time, couplings)[0], z)
    assert trace.item() == pytest.approx(jacobian.reshape(5, 5).trace().item(), abs=1e-9)


def test_half_the_step_leaves_a_sixteenth_of_the_error():
    flow = continuous_flow().double()
    x = torch.randn(200, 2, dtype=torch.float64)
    with torch.no_grad():
        exact = flow.log_density(x, steps=256)
        errors = [(flow.log_density(x, steps) - exact).abs().mean().item() for steps in (8, 16, 32)]
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.3)
    assert errors[1] / errors[2] == pytest.approx(16, rel=0.3)


def test_step_halving_error_is_measured_and_the_likelihood_called_an_estimate():
    model = FFJORD((1, 8, 8), width=16, steps=4)
    data = Batch(random_levels(6, (1, 8, 8)), torch.zeros(6, dtype=torch.int64))
    at_rest = model.evaluate(data, torch.Generator().manual_seed(0))[1]
    assert (at_rest.name, at_rest.value) == ("step_halving_error", 0)
    assert shake(model).evaluate(data, torch.Generator().manual_seed(0))[1].value > 1e-4
    assert model.card().operations["likelihood"]["kind"] == "estimate"


# Levels and images


@pytest.mark.parametrize("margin", [1e-3, 0.05])
def test_logit_of_levels_has_the_density_of_its_mass(margin: float):
    """Integrated over all levels, the density is the normal mass of the interval they reach."""
    logit = shake(LogitOfLevels(margin, channels=1)).double()
    levels = (torch.arange(2_000_000, dtype=torch.float64) + 0.5) * 256 / 2_000_000
    x, log_determinant = logit(levels.reshape(-1, 1, 1, 1))
    normal = torch.distributions.Normal(0, 1)
    density = (normal.log_prob(x.flatten()) + log_determinant).exp()
    ends, _ = logit(torch.tensor([0.0, 256.0], dtype=torch.float64).reshape(2, 1, 1, 1))
    low, high = normal.cdf(ends.flatten())
    assert density.mean().item() * 256 == pytest.approx((high - low).item(), rel=1e-5)


@pytest.mark.parametrize("name", FLOWS)
def test_log_determinant_is_that_of_autograd(name: str):
    model = tiny_flow(name)
    levels = random_levels(1, (1, 8, 8)).double() + 0.5
    _, log_determinant = model.encode(levels)
    expected = autograd_log_determinant(lambda x: model.encode(x)[0], levels)
    error = 1e-3 if name == "nice" else 1e-6  # slopes of Giles's polynomials are less exact
    assert log_determinant.item() == pytest.approx(expected.item(), abs=error)


@pytest.mark.parametrize("name", FLOWS)
def test_levels_come_back_from_their_latents(name: str):
    model, levels = tiny_flow(name).float(), random_levels(4, (1, 8, 8))
    graphs = {graph.name: graph.module for graph in model.graphs()}
    with torch.no_grad():
        assert torch.equal(graphs["decode"](graphs["encode"](levels)).round(), levels)


def test_scales_with_colour_invert_and_have_the_log_determinant_of_autograd():
    torch.manual_seed(0)
    model = shake(RealNVP((2, 4, 4), widths=(4, 4)), size=0.1).double()
    levels = random_levels(1, (2, 4, 4)).double() + 0.5
    latent, log_determinant = model.encode(levels)
    assert latent.shape == (1, 32)
    assert torch.allclose(model.decode(latent), levels, atol=1e-8)
    expected = autograd_log_determinant(lambda x: model.encode(x)[0], levels)
    assert log_determinant.item() == pytest.approx(expected.item(), abs=1e-8)


@pytest.mark.parametrize("name", FLOWS)
def test_log_density_is_prior_plus_log_determinant_whatever_the_batch(name: str):
    model = tiny_flow(name)
    levels = random_levels(5, (1, 8, 8)).double() + 0.5
    together = model.log_density(levels)
    alone = torch.cat([model.log_density(row[None]) for row in levels])
    assert torch.allclose(together, alone, atol=1e-9)
    latent, log_determinant = model.encode(levels)
    prior = torch.distributions.Normal(0, 1).log_prob(latent).sum(1)
    assert torch.allclose(together, prior + log_determinant, atol=1e-9)


@pytest.mark.parametrize("name", FLOWS)
def test_bits_per_dimension_are_minus_log_density_in_bits(name: str):
    model = tiny_flow(name).float()
    data = Batch(random_levels(6, (1, 8, 8)), torch.zeros(6, dtype=torch.int64))
    (figure, *_) = model.evaluate(data, torch.Generator().manual_seed(0))
    graph = {graph.name: graph for graph in model.graphs()}["log_likelihood"]
    noise = torch.rand(data.images.shape, generator=torch.Generator().manual_seed(0))
    nats, _ = graph.module(data.images, noise)
    assert figure.value == pytest.approx(-nats.mean().item() / (64 * BITS), rel=1e-5)


@pytest.mark.parametrize("name", FLOWS)
def test_the_length_of_the_latent_is_all_that_the_prior_knows_of_it(name: str):
    model = tiny_flow(name).float()
    graph = {graph.name: graph for graph in model.graphs()}["log_likelihood"]
    levels, noise = random_levels(5, (1, 8, 8)), torch.full((5, 1, 8, 8), 0.25)
    log_density, norm = graph.module(levels, noise)
    latent, log_determinant = model.encode(levels + noise)
    assert torch.allclose(norm, torch.linalg.vector_norm(latent, dim=1))
    log_prior = -0.5 * (norm.square() + 64 * math.log(2 * math.pi))
    assert torch.allclose(log_density, log_prior + log_determinant, rtol=1e-4)


@pytest.mark.parametrize("name", FLOWS)
def test_a_few_steps_of_training_lower_the_bits(name: str):
    torch.manual_seed(0)
    model = FLOWS[name]()
    generator = torch.Generator().manual_seed(0)
    stripes = torch.zeros(64, 1, 8, 8)
    stripes[:, :, ::2] = 200.0
    batch = Batch(stripes, torch.zeros(64, dtype=torch.int64))
    (objective,) = model.objectives().values()
    optimiser = torch.optim.Adam(objective.parameters, lr=0.01)
    losses = []
    for _ in range(30):
        loss = objective.loss(batch, generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1


# The bundled model


def assert_decoding_returns(images: Tensor) -> None:
    graphs = {graph.name: graph.module for graph in load_trained("mnist-realnvp").graphs()}
    with torch.no_grad():
        returned = graphs["decode"](graphs["encode"](images))
    assert (returned - images).abs().max() / 255 < 1e-4
    assert torch.equal(returned.round(), images)


def test_bundled_flow_returns_its_own_samples():
    graphs = {graph.name: graph.module for graph in load_trained("mnist-realnvp").graphs()}
    latent = torch.randn(16, 784, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        samples = graphs["decode"](latent).round().clamp(0, 255)
    assert_decoding_returns(samples)


def test_bundled_flow_returns_real_digits():
    if not (data_directory() / "mnist").is_dir():
        pytest.skip("no mnist in the data directory; set GENSERVE_DATA_DIR to run this")
    assert_decoding_returns(load("mnist", "test").batch(slice(0, 64)).images)
