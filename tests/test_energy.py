"""Energy models: densities that sum to one, normalisers like those of enumeration, and training."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model_zoo.energy.annealing import AnnealingPath, Effort, forward, mean_weight, reverse
from model_zoo.energy.annealing import schedule as annealing_schedule
from model_zoo.energy.chain import bernoulli
from model_zoo.energy.deep_boltzmann_machine import AnnealedMachine as AnnealedDeepMachine
from model_zoo.energy.deep_boltzmann_machine import DeepBoltzmannMachine
from model_zoo.energy.gsn import GenerativeStochasticNetwork
from model_zoo.energy.rbm import AnnealedMachine, RestrictedBoltzmannMachine
from model_zoo.family import Batch
from model_zoo.recipe import Recipe
from model_zoo.train import round_to_half
from tests.test_train import ADAM, TINY, equal, run, stop_at_step

EFFORT = Effort(steps=1500, chains=100)


def every(bits: int) -> Tensor:
    """All binary vectors, [2^bits, bits]."""
    numbers = torch.arange(2**bits)
    return ((numbers[:, None] >> torch.arange(bits)) & 1).float()


def randomised(model, deviation: float):
    """The model with normal weights, as far from independent units as training brings it."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, deviation, generator=generator)
    return model.eval()


@torch.no_grad()
def exact_log_partition(model: RestrictedBoltzmannMachine) -> float:
    """Sum over all hidden units, in parts that fit into memory; pixels have a closed form."""
    parts = [
        (h @ model.hidden_bias).double()
        + torch.nn.functional.softplus(model.visible_logits(h).double()).sum(dim=1)
        for h in every(model.hidden_units).split(2**16)
    ]
    return torch.cat(parts).logsumexp(dim=0).item()


@torch.no_grad()
def joint_energies(model: DeepBoltzmannMachine) -> Tensor:
    """The energy of every state, [pixels, first layer, second layer]."""
    sizes = (model.pixels, model.first, model.second)
    states = every(sum(sizes))
    # The lowest bits vary fastest: second layer last.
    h2, h1, v = states.split(sizes[::-1], dim=1)
    return model.energy(v, h1, h2).reshape(*(2**size for size in sizes)).double()


def machine(hidden: int = 5, side: int = 3, deviation: float = 1.0) -> RestrictedBoltzmannMachine:
    return randomised(RestrictedBoltzmannMachine((1, side, side), hidden), deviation)


def deep_machine(deviation: float = 1.0) -> DeepBoltzmannMachine:
    model = DeepBoltzmannMachine((1, 3, 3), hidden_units=(4, 3))
    model.visible_offset.copy_(torch.linspace(0.1, 0.9, 9))
    return randomised(model, deviation)


# Densities


@torch.no_grad()
def test_the_free_energy_sums_the_hidden_units_out() -> None:
    model, h = machine(), every(5)
    for v in every(9)[[0, 100, 511]]:
        exponents = v @ model.visible_bias + h @ model.hidden_bias + h @ model.weight @ v
        assert -model.free_energy(v[None]).item() == pytest.approx(
            exponents.logsumexp(dim=0).item(), abs=1e-4
        )


@torch.no_grad()
def test_probabilities_of_all_images_sum_to_one() -> None:
    model = machine()
    model.log_partition.fill_(exact_log_partition(model))
    assert model.log_probability(every(9)).exp().sum().item() == pytest.approx(1, abs=1e-4)


@torch.no_grad()
def test_the_mean_field_bounds_the_probability_from_below_and_nearly_reaches_it() -> None:
    model = deep_machine(deviation=0.5)
    energies = joint_energies(model)
    exact = (-energies).flatten(1).logsumexp(dim=1)
    gap = exact - model.bound(every(9))
    assert gap.min() > -1e-4 and gap.max() < 0.5
    # Without anything between the layers the posterior is the mean field.
    model.upper_weight.zero_()
    exact = (-joint_energies(model)).flatten(1).logsumexp(dim=1)
    torch.testing.assert_close(model.bound(every(9)).double(), exact, rtol=0, atol=1e-4)


# Normalisers


@pytest.mark.parametrize(("hidden", "deviation"), [(4, 1.0), (12, 0.7), (20, 0.3)])
def test_annealing_agrees_with_enumeration(hidden: int, deviation: float) -> None:
    model = machine(hidden, side=5, deviation=deviation)
    model.start_rates.copy_(torch.linspace(0.1, 0.9, 25))
    found = model.estimate_log_partition(EFFORT, torch.Generator().manual_seed(0))
    exact = exact_log_partition(model)
    assert found.value == pytest.approx(exact, abs=0.1)
    assert abs(found.value - exact) < 5 * found.standard_error + 1e-3


def test_annealing_a_deep_machine_agrees_with_enumeration() -> None:
    model = deep_machine()
    model.start_rates[:9] = torch.linspace(0.2, 0.8, 9)
    found = model.estimate_log_partition(EFFORT, torch.Generator().manual_seed(0))
    exact = (-joint_energies(model)).flatten().logsumexp(dim=0).item()
    assert found.value == pytest.approx(exact, abs=0.1)


@torch.no_grad()
def test_annealing_either_way_brackets_the_normaliser() -> None:
    """Of few steps, so that each estimate is visibly on its own side."""
    model, generator = machine(8, deviation=2.0), torch.Generator().manual_seed(0)
    exact, path, steps = exact_log_partition(model), AnnealedMachine(model), 20
    v = every(9)
    probability = (-model.free_energy(v).double() - exact).exp()
    drawn = v[torch.multinomial(probability, 4000, replacement=True, generator=generator)]
    above = reverse(path, steps, drawn, generator).mean().item()
    below = mean_log_weight(path, steps, 4000, generator)
    assert below + 0.2 < exact < above - 0.2
    assert below < forward(path, Effort(steps, 4000), generator).value < above
    some = v[probability.argsort(descending=True)[:50]]
    conservative = -model.free_energy(some) - reverse(path, 1000, some, generator)
    truth = -model.free_energy(some) - exact
    assert conservative.mean() < truth.mean() + 0.05
    assert conservative.mean() > truth.mean() - 0.5


def mean_log_weight(
    path: AnnealingPath, steps: int, chains: int, generator: torch.Generator
) -> float:
    """The mean that `forward` would give of single chains."""
    values = [forward(path, Effort(steps, 1), generator).value for _ in range(chains // 20)]
    return sum(values) / len(values)


def test_the_schedule_spends_most_steps_near_the_model() -> None:
    places = annealing_schedule(1000)
    assert places[0] == 0 and places[-1] == 1 and len(places) == 1001
    assert places == sorted(set(places))
    assert sum(place > 0.9 for place in places) > 600


def test_the_error_of_a_mean_weight_is_that_of_its_logarithm() -> None:
    generator = torch.Generator().manual_seed(0)
    many = [mean_weight(torch.randn(400, generator=generator).double() / 2) for _ in range(400)]
    spread = torch.tensor([each.value for each in many]).std().item()
    stated = sum(each.standard_error for each in many) / len(many)
    assert stated == pytest.approx(spread, rel=0.15)
    assert sum(each.value for each in many) / 400 == pytest.approx(0.125, abs=0.01)


@pytest.mark.parametrize("kind", [AnnealedMachine, AnnealedDeepMachine])
@torch.no_grad()
def test_moves_keep_every_distribution_on_the_way(kind: type[AnnealingPath]) -> None:
    """Of states drawn from f_b, as many stay as they were, within noise, wherever they move."""
    model = machine(4, deviation=1.5) if kind is AnnealedMachine else deep_machine(1.5)
    path, generator, count = kind(model), torch.Generator().manual_seed(0), 50_000
    states = every(path.start(1, generator).shape[1])
    log_mass = path.log_ratio(states, 0.0, 0.6).double() + start_log_mass(path, states)
    probability = log_mass.softmax(dim=0)
    drawn = torch.multinomial(probability, count, replacement=True, generator=generator)
    moved = path.move(states[drawn], 0.6, generator)
    powers = 2.0 ** torch.arange(states.shape[1])
    found = torch.bincount((moved @ powers).long(), minlength=len(states)) / count
    assert (found - probability).abs().sum() / 2 < 3 * math.sqrt(len(states) / count) / 2
    assert (moved != states[drawn]).any(dim=1).float().mean() > 0.3


def start_log_mass(path: AnnealingPath, states: Tensor) -> Tensor:
    """log p_0 of every state, up to a constant: pixels by their start, first layers by none."""
    if isinstance(path, AnnealedMachine):
        return states @ path.start_bias
    return torch.zeros(len(states))


# Training


BARS = torch.tensor([[1, 1, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 0, 0, 0]]).float()


def bars(count: int) -> Batch:
    """One of two rows of three by three pixels."""
    images = 255 * BARS[torch.arange(count) % 2].reshape(count, 1, 3, 3)
    return Batch(images, torch.arange(count) % 2)


def trained(model, steps: int, learning_rate: float):
    generator = torch.Generator().manual_seed(0)
    (objective,) = model.objectives().values()
    optimiser = torch.optim.Adam(list(objective.parameters), lr=learning_rate, betas=(0.0, 0.99))
    for _ in range(steps):
        optimiser.zero_grad()
        objective.loss(bars(40), generator).backward()
        optimiser.step()
    return model.eval()


@torch.no_grad()
def test_a_restricted_machine_learns_bars() -> None:
    torch.manual_seed(0)
    model = trained_with_gradients(RestrictedBoltzmannMachine((1, 3, 3), 4, chains=40), 600, 0.03)
    model.log_partition.fill_(exact_log_partition(model))
    assert model.log_probability(BARS).exp().sum() > 0.8  # of 2^-8 for independent pixels


@torch.no_grad()
def test_a_deep_machine_learns_bars() -> None:
    torch.manual_seed(0)
    model = trained_with_gradients(
        DeepBoltzmannMachine((1, 3, 3), hidden_units=(4, 3), chains=40), 600, 0.03
    )
    mass = (-joint_energies(model)).flatten(1).logsumexp(dim=1)
    numbers = (BARS @ 2.0 ** torch.arange(9)).long()
    assert mass.softmax(dim=0)[numbers].sum() > 0.8


def test_a_stochastic_network_learns_bars_and_its_chain_visits_both() -> None:
    torch.manual_seed(0)
    model = GenerativeStochasticNetwork((1, 3, 3), hidden_units=(24, 16), corruption=0.2)
    trained(model, 800, 0.01)
    generator = torch.Generator().manual_seed(0)
    state = bernoulli(torch.full((500, 9), 0.5), generator)
    with torch.no_grad():
        for _ in range(30):
            state = model.step(state, model._noise(500, generator), None)
    for bar in BARS:
        assert (state == bar).all(dim=1).float().mean() > 0.25  # by chance 1 in 512


@torch.enable_grad()
def trained_with_gradients(model, steps: int, learning_rate: float):
    return trained(model, steps, learning_rate)


MACHINE = {"image_shape": [1, 8, 8], "hidden_units": 5, "chains": 8, "annealing_steps": 50}


@pytest.fixture
def recipe() -> Recipe:
    return replace(TINY, family="energy.rbm", model=MACHINE, epochs=2, optimisers={"machine": ADAM})


def test_chains_go_on_where_a_stopped_run_was(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", recipe)
    with monkeypatch.context() as patch:
        stop_at_step(patch, 8)  # an epoch has six steps
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped", recipe)
    assert equal(run(tmp_path / "stopped", recipe), whole)
    assert "chains" not in whole, "they are no part of what is served"


def test_the_normaliser_is_of_the_weights_that_are_stored(tmp_path: Path, recipe: Recipe) -> None:
    state = run(tmp_path, recipe)
    assert state["weight"].dtype == torch.float16
    assert state["log_partition"].dtype == torch.float64
    model = RestrictedBoltzmannMachine(**MACHINE)
    model.load_state_dict(state)
    stored = model.log_partition.item()
    assert stored == pytest.approx(exact_log_partition(model), abs=0.05)
    round_to_half(model)
    assert model.log_partition.item() == stored


def test_states_of_chains_are_pictures_first() -> None:
    model = deep_machine()
    noise = torch.rand(7, model.uniforms)
    states = model.step(bernoulli(torch.full((7, 12), 0.5), torch.Generator()), noise, None)
    assert states.shape == (7, 12) and set(states.unique().tolist()) <= {0.0, 1.0}


def test_enumeration_is_complete() -> None:
    assert sorted(map(tuple, every(3).tolist())) == sorted(itertools.product([0.0, 1.0], repeat=3))
