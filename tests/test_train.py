"""Training: the same recipe gives the same weights, however often it is stopped on the way."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, load_model
from torch import Tensor, nn

from model_zoo import data, recipe, sheets
from model_zoo import train as training
from model_zoo.autoencoders.vae import VAE_PUBLISHED
from model_zoo.data import Examples
from model_zoo.family import Batch, Family, Figure, Objective, Trainable
from model_zoo.recipe import OptimiserRecipe, Recipe, RecipeError, build
from model_zoo.train import (
    EVALUATION_SEED,
    Run,
    TrainingError,
    learning_rate,
    make_record,
    round_to_half,
    train,
)

MEASURED = sorted((recipe.RECIPES / "measured").glob("*.toml"))
ADAM = OptimiserRecipe(
    learning_rate=1e-3,
    final_learning_rate=1e-4,
    warmup_steps=2,
    betas=(0.9, 0.999),
    gradient_norm=10.0,
)
TINY = Recipe(
    name="tiny",
    family="autoencoders.vae",
    dataset="none",
    seed=1,
    epochs=3,
    batch_size=32,
    precision="float32",
    average_decay=0.9,
    keep="last",
    optimisers={"autoencoder": ADAM},
    model={"image_shape": [1, 8, 8], "latent_size": 2, "width": 4, "residual_blocks": 1},
)
TINY_GAN = replace(
    TINY,
    family="gans.dcgan",
    optimisers={"discriminator": ADAM, "generator": ADAM},
    model={"image_shape": [1, 8, 8], "classes": 3, "latent_size": 4, "width": 4},
)
TINY_FLOW = replace(
    TINY,
    family="flows.real_nvp",
    optimisers={"flow": ADAM},
    model={"image_shape": [1, 8, 8], "widths": [4, 4], "couplings": [2, 2]},
)
TINY_MIXTURE = replace(
    TINY,
    family="baselines.gaussian_mixture",
    epochs=0,
    optimisers={},
    model={"image_shape": [1, 8, 8], "components": 3},
)
FAMILIES = [
    pytest.param(TINY, id="vae"),
    pytest.param(TINY_GAN, id="dcgan"),
    pytest.param(TINY_FLOW, id="real_nvp"),
]


def examples(count: int, seed: int) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Examples(images, torch.arange(count) % 3, torch.arange(count))


WHOLE = examples(240, seed=0)
SPLITS = {
    name: WHOLE.at(torch.from_numpy(indices))
    for name, indices in data.split_indices(len(WHOLE)).items()
} | {"test": examples(20, seed=1)}


def run(folder: Path, tiny: Recipe) -> dict[str, torch.Tensor]:
    train(tiny, SPLITS, runs=folder / "runs", weights=folder / "weights")
    return load_file(folder / "weights" / f"{tiny.name}.safetensors")


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def stop_at_step(monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    """Interrupt training in the middle of an epoch, as Ctrl-C would."""
    original: Callable = Run._descend

    def descend(self: Run, name: str, objective, batch, step: int) -> float:
        if step == stop:
            raise KeyboardInterrupt
        return original(self, name, objective, batch, step)

    monkeypatch.setattr(Run, "_descend", descend)


@pytest.mark.parametrize("tiny", [*FAMILIES, pytest.param(TINY_MIXTURE, id="mixture")])
def test_same_recipe_gives_the_same_weights(tmp_path: Path, tiny: Recipe):
    first = run(tmp_path / "first", tiny)
    assert equal(first, run(tmp_path / "second", tiny))
    assert not equal(first, run(tmp_path / "third", replace(tiny, seed=2)))


@pytest.mark.parametrize("tiny", FAMILIES)
def test_interrupted_run_goes_on_bit_for_bit(
    tmp_path: Path, tiny: Recipe, monkeypatch: pytest.MonkeyPatch
):
    whole = run(tmp_path / "whole", tiny)
    with monkeypatch.context() as patch:
        stop_at_step(patch, 9)  # an epoch has six steps
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped", tiny)
    assert equal(run(tmp_path / "stopped", tiny), whole)
    logs = [
        (tmp_path / which / "runs/tiny/log.jsonl").read_text() for which in ("whole", "stopped")
    ]
    assert logs[0] == logs[1]


def test_finished_run_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = run(tmp_path, TINY)
    monkeypatch.setattr(Run, "_train_epoch", lambda *_: pytest.fail("trained again"))
    assert equal(run(tmp_path, TINY), first)


def test_checkpoint_of_another_recipe_is_refused(tmp_path: Path):
    run(tmp_path, TINY)
    with pytest.raises(TrainingError, match="another version of the recipe tiny"):
        run(tmp_path, replace(TINY, batch_size=4))


def test_loss_that_is_not_finite_stops_the_run(tmp_path: Path):
    wild = replace(ADAM, learning_rate=1e30, warmup_steps=0)
    with pytest.raises(TrainingError, match=r"loss of autoencoder is nan at step \d"):
        run(tmp_path, replace(TINY, optimisers={"autoencoder": wild}))


@pytest.mark.parametrize(("keep", "expected"), [("highest", 1), ("lowest", 2), ("last", 3)])
def test_kept_epoch_is_the_one_the_recipe_asks_for(
    tmp_path: Path, keep: str, expected: int, monkeypatch: pytest.MonkeyPatch
):
    figures = iter([5.0, 1.0, 3.0, 0.0])  # three epochs, then the test split
    original = Run.measure

    def measure(self: Run, model, split: str):
        return [replace(original(self, model, split)[0], value=next(figures))]

    monkeypatch.setattr(Run, "measure", measure)
    kept = run(tmp_path / keep, replace(TINY, keep=keep))
    monkeypatch.undo()
    run_of_all = Run(replace(TINY, keep=keep), SPLITS, tmp_path)
    with run_of_all._progress() as progress:
        for epoch in range(expected):
            run_of_all.epoch = epoch
            run_of_all._train_epoch(progress)
    assert equal(kept, round_to_half(run_of_all.average).state_dict())


def test_average_follows_the_weights(tmp_path: Path):
    """With a decay of 0.9 kept in place, the average is that of the definition."""
    tiny = Run(TINY, SPLITS, tmp_path)
    name, parameter = next(iter(tiny.model.named_parameters()))
    expected = parameter.detach().clone()
    for step in range(20):
        with torch.no_grad():
            parameter += 1.0
        share = min(0.9, (1 + step) / (10 + step))
        expected = share * expected + (1 - share) * parameter.detach()
        tiny._update_average(step)
    assert torch.allclose(dict(tiny.average.named_parameters())[name], expected, atol=1e-5)


class Tortoise(Trainable):
    """One weight descends at every step, the other at every third; a third is fitted at last."""

    def __init__(self):
        super().__init__()
        self.often, self.seldom = (nn.Parameter(torch.zeros(())) for _ in range(2))
        self.register_buffer("brightness", torch.zeros(()))
        self.steps = {"often": 0, "seldom": 0}

    def objectives(self) -> dict[str, Objective]:
        def loss(name: str) -> Tensor:
            self.steps[name] += 1
            return getattr(self, name)

        return {
            "often": Objective([self.often], lambda *_: loss("often")),
            "seldom": Objective([self.seldom], lambda *_: loss("seldom"), interval=3),
        }

    def conclude(self, data: Batch, generator: torch.Generator) -> None:
        self.brightness.copy_(data.images.mean())

    def evaluate(self, data: Batch, generator: torch.Generator) -> list[Figure]:
        return [Figure("brightness", self.brightness.item(), "level", "of the training images")]


@pytest.mark.parametrize("epochs", [0, 4])
def test_some_objectives_wait_and_what_has_a_closed_form_is_fitted_at_last(
    tmp_path: Path, epochs: int, monkeypatch: pytest.MonkeyPatch
):
    made = []
    monkeypatch.setattr(training, "build", lambda _: made.append(Tortoise()) or made[-1])
    optimisers = {"often": ADAM, "seldom": ADAM}
    train(replace(TINY, epochs=epochs, optimisers=optimisers), SPLITS, tmp_path, tmp_path)
    steps = epochs * (len(SPLITS["fit"]) // TINY.batch_size)
    assert made[0].steps == {"often": steps, "seldom": math.ceil(steps / 3)}
    fitted = load_file(tmp_path / "tiny.safetensors")["brightness"].item()
    assert fitted == pytest.approx(SPLITS["fit"].images.float().mean().item(), rel=1e-3)


def test_a_recipe_of_no_epochs_need_not_say_how_to_train():
    fitted = recipe.read_recipe("mnist-ppca")
    assert fitted.epochs == 0 and fitted.optimisers == {} and fitted.keep == "last"


@given(step=st.integers(0, 999))
def test_learning_rate_rises_then_falls_to_its_last_value(step: int):
    settings = replace(ADAM, warmup_steps=100)
    rate, after = (learning_rate(settings, at, 1000) for at in (step, step + 1))
    assert 0 < rate <= 1e-3
    assert after > rate if step < 99 else after <= rate
    assert math.isclose(learning_rate(settings, 1000, 1000), 1e-4)


def test_record_says_what_the_weights_are(tmp_path: Path):
    weights = run(tmp_path, TINY)
    record = json.loads((tmp_path / "weights/tiny.json").read_text())
    assert [figure["name"] for figure in record["figures"]] == ["elbo", "iwae_200"]
    assert all(figure["protocol"] for figure in record["figures"])
    assert record["splits"]["select"]["count"] == 8
    assert record["provenance"]["parameters"] == sum(tensor.numel() for tensor in weights.values())
    assert record["provenance"]["torch"] == torch.__version__
    assert record["provenance"]["processor_seconds"] > 0


def test_measuring_again_changes_the_figures_alone(tmp_path: Path):
    run(tmp_path, TINY)
    path = tmp_path / "weights/tiny.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"figures": []}))
    training.measure_again(TINY, SPLITS, tmp_path / "weights")
    assert json.loads(path.read_text()) == record


@pytest.mark.parametrize(("dataset", "published"), [("mnist", VAE_PUBLISHED["value"]), ("x", None)])
def test_a_published_figure_stands_beside_those_of_its_own_data_only(
    dataset: str, published: float | None
):
    recipe, model = replace(TINY, dataset=dataset), build(TINY)
    figures = [Figure("elbo", -90.0, "nats", "one draw", published=VAE_PUBLISHED)]
    (figure,) = make_record(recipe, model, figures, SPLITS, 0.0)["figures"]
    assert (figure["published"] and figure["published"]["value"]) == published


@pytest.mark.parametrize("tiny", FAMILIES)
def test_what_is_measured_is_what_is_kept(tmp_path: Path, tiny: Recipe):
    weights = run(tmp_path, tiny)
    assert {tensor.dtype for tensor in weights.values()} <= {torch.float16, torch.int64}
    kept = build(tiny)
    load_model(kept, tmp_path / "weights/tiny.safetensors")
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    figures = kept.eval().evaluate(SPLITS["test"].batch(), generator)
    record = json.loads((tmp_path / "weights/tiny.json").read_text())
    assert [figure["value"] for figure in record["figures"]] == [f.value for f in figures]


def test_weights_too_large_for_their_file_are_refused():
    model = build(TINY)
    with torch.no_grad():
        next(model.parameters()).fill_(1e5)
    with pytest.raises(TrainingError, match="65504"):
        round_to_half(model)


@pytest.mark.parametrize("tiny", FAMILIES)
def test_sample_sheets_lie_in_the_run_folder(tmp_path: Path, tiny: Recipe):
    run(tmp_path, replace(tiny, epochs=1))
    with Image.open(tmp_path / "runs/tiny/samples/001.png") as sheet:
        assert sheet.size == (sheets.ROWS * 8, sheets.ROWS * 8)


def test_levels_undo_the_preprocessing_of_the_card():
    card = recipe.build(TINY_GAN).card()
    values = torch.tensor([-1.0, 1.0, -1 + 2 * 7 / 255, 5.0]).reshape(4, 1, 1, 1)
    assert sheets.to_levels(values, card).flatten().tolist() == [0, 255, 7, 255]


# Recipes


@pytest.mark.parametrize("path", sorted(recipe.RECIPES.rglob("*.toml")), ids=lambda p: p.stem)
def test_every_recipe_builds_and_names_its_optimisers(path: Path):
    read = recipe.read_recipe(str(path))
    assert set(recipe.build(read).objectives()) == set(read.optimisers)


@pytest.mark.parametrize("path", sorted(recipe.RECIPES.rglob("*-without-*.toml")), ids=str)
def test_a_model_of_all_classes_but_one_is_like_the_model_of_all(path: Path):
    """But for its data and its classes, so that what differs is what it has seen."""
    read = recipe.read_recipe(str(path))
    whole, label = read.dataset.split("-without-")
    (path,) = recipe.RECIPES.rglob(f"{whole}-pixelcnn.toml")
    like = recipe.read_recipe(str(path))
    assert read.name == f"{read.dataset}-pixelcnn"
    assert read.model["classes"] == int(label), "the classes before it keep their numbers"
    assert read.model | {"classes": like.model["classes"]} == like.model
    assert read.optimisers == like.optimisers


@pytest.mark.parametrize("name", recipe.recipe_names())
def test_bundled_weights_belong_to_their_recipe(name: str):
    bundled = recipe.read_recipe(name)
    model = recipe.load_trained(name)
    record = json.loads((recipe.WEIGHTS / f"{name}.json").read_text())
    provenance = record["provenance"]
    assert (provenance["family"], provenance["epochs"]) == (bundled.family, bundled.epochs)
    assert provenance["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert record["splits"]["fit"]["sha256"] == data.index_hash(data.split_indices(60_000)["fit"])
    if isinstance(model, Family):
        assert not any(graph.module.training for graph in model.graphs())


@pytest.mark.parametrize("path", MEASURED, ids=[path.stem for path in MEASURED])
def test_a_record_without_weights_belongs_to_its_recipe(path: Path):
    """What is measured and not bundled: the record is all there is of it."""
    measured = recipe.read_recipe(str(path))
    record = json.loads((recipe.WEIGHTS / f"{path.stem}.json").read_text())
    provenance, model = record["provenance"], recipe.build(measured)
    assert (provenance["family"], provenance["epochs"]) == (measured.family, measured.epochs)
    assert provenance["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert record["splits"]["fit"]["sha256"] == data.index_hash(data.split_indices(60_000)["fit"])
    assert record["figures"] and path.stem not in recipe.recipe_names()


def test_bundled_figures_reach_what_is_expected():
    figures = {
        (name, figure["name"]): figure["value"]
        for name in recipe.recipe_names()
        for figure in json.loads((recipe.WEIGHTS / f"{name}.json").read_text())["figures"]
    }
    assert figures["mnist-classifier", "accuracy"] >= 0.99
    assert figures["mnist-dcgan", "recognised_as_asked"] >= 0.97
    assert figures["mnist-dcgan", "within_class_distance"] >= 0.8
    assert figures["mnist-cgan", "recognised_as_asked"] >= 0.97
    assert figures["mnist-pixelcnn", "bits_per_dim"] <= 0.95
    assert figures["mnist-realnvp", "bits_per_dim"] <= 1.40
    assert figures["mnist-rbm", "log_likelihood"] >= -87
    assert figures["mnist-rbm", "log_likelihood_reverse"] >= -90
    assert figures["mnist-dbm", "log_likelihood"] >= -95
    assert figures["mnist-vae", "elbo"] >= -97


def test_bundled_samples_lie_among_real_images():
    """Beside what real test images reach by the same protocol."""
    record = json.loads((recipe.WEIGHTS / "mnist-classifier-anchors.json").read_text())
    anchors = {
        (each["images"], figure["name"]): figure["value"]
        for each in record["anchors"]
        for figure in each["figures"]
    }
    assert anchors["real test images", "recall"] > 0.7
    assert anchors["500 training images repeated", "recall"] <= 0.1 + 1e-6
    for name, times in {"mnist-dcgan": 10, "mnist-cgan": 10}.items():
        described = json.loads((recipe.WEIGHTS / f"{name}.json").read_text())
        figures = {figure["name"]: figure["value"] for figure in described["figures"]}
        real = anchors["real test images", "frechet_distance"]
        assert figures["frechet_distance"] <= times * real, name
        assert figures["recall"] >= 0.5, name


def test_a_background_is_named_for_the_model_it_stands_behind():
    assert recipe.background_of("mnist-pixelcnn-background") == "mnist-pixelcnn"
    assert recipe.background_of("mnist-pixelcnn") is None
    assert recipe.background_of("nothing-background") is None


def test_judges_are_trained_before_those_they_judge():
    order = training.training_order()
    assert order.index("mnist-classifier") < order.index("mnist-dcgan")
    assert sorted(order) == recipe.recipe_names()


def recipe_file(folder: Path, old: str = "", new: str = "") -> str:
    text = (recipe.RECIPES / "mnist-vae.toml").read_text()
    path = folder / "changed.toml"
    path.write_text(text.replace(old, new))
    return str(path)


def test_recipe_is_read_from_any_path(tmp_path: Path):
    changed = recipe.read_recipe(recipe_file(tmp_path, "latent_size = 32", "latent_size = 3"))
    assert (changed.name, changed.model["latent_size"]) == ("changed", 3)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed = 1", "", "missing seed"),
        ("seed = 1", "seed = 1\nsead = 1", "unknown sead"),
        ('keep = "highest"', 'keep = "best"', "allowed are highest, lowest, last"),
        ('precision = "bfloat16"', 'precision = "half"', "allowed are float32, bfloat16"),
        ("warmup_steps = 500", "", "missing warmup_steps"),
    ],
)
def test_wrong_recipe_is_refused_by_what_is_wrong(tmp_path: Path, old: str, new: str, message: str):
    with pytest.raises(RecipeError, match=message):
        recipe.read_recipe(recipe_file(tmp_path, old, new))


def test_unknown_recipe_names_those_there_are():
    with pytest.raises(RecipeError, match=r"no recipe 'nothing': there are .*mnist-vae"):
        recipe.read_recipe("nothing")


def test_missing_weights_say_how_to_make_them(tmp_path: Path):
    untrained = recipe_file(tmp_path)
    with pytest.raises(RecipeError, match=rf"python -m model_zoo.train {untrained}"):
        recipe.load_trained(untrained, weights=tmp_path)
