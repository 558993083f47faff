"""Recipes: what to train and how, one TOML file a model, and where the trained weights lie.

A recipe names its network by a dotted module name, `family = "flows.real_nvp"`. The class is the
one subclass of Trainable that the module defines: there is no register to add to.

A recipe `<model>-background` trains the background of a model: one of the same family that sees
the nearest pixels alone. The ratio of both likelihoods leaves out what smooth or dark areas make
likely in any picture (Ren et al. 2019, arXiv:1906.02845). It is served inside the model's artifact.

Training writes to `weights/`. The export of a bundled model moves what it finds there into the
artifact, whose weights file holds the state of the model, and under `background/` that of its
background. Networks without an artifact keep theirs in `weights/`; those that would take too much
room leave there only the record of what was measured, and their recipes lie in `recipes/measured/`.
"""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from model_zoo.family import Trainable

PACKAGE = Path(__file__).resolve().parent
RECIPES = PACKAGE / "recipes"
WEIGHTS = PACKAGE / "weights"
ARTIFACTS = PACKAGE.parent / "artifacts"
VERSION = "1"
"""Of every bundled artifact."""
UNTRAINED: Mapping[str, Any] = {
    "batch_size": 1,
    "precision": "float32",
    "average_decay": 0.0,
    "keep": "last",
    "optimisers": {},
}
"""What a recipe of no epochs need not say: its model is fitted at once, and takes no steps."""
KEEP = ("highest", "lowest", "last")
PRECISIONS = ("float32", "bfloat16")
BACKGROUND = "-background"
BACKGROUND_STATE = "background/"
"""What the names of a background's tensors start with in the artifact of its model."""


class RecipeError(Exception):
    """A recipe that cannot be read, or that names what does not exist."""


@dataclass(frozen=True)
class OptimiserRecipe:
    """Adam with a warm-up, then a cosine from one learning rate down to another."""

    learning_rate: float
    final_learning_rate: float
    warmup_steps: int
    betas: tuple[float, float]
    gradient_norm: float
    """Gradients longer than this are shortened to it."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run, so that the same recipe gives the same weights."""

    name: str
    family: str
    dataset: str
    seed: int
    epochs: int
    batch_size: int
    precision: str
    """bfloat16 computes the network's products in it; weights and figures stay float32."""
    average_decay: float
    """Share of the running average of the weights that survives a step; 0 serves the last step."""
    keep: str
    """The epoch to keep: where the first figure on `select` is highest or lowest, or the last."""
    optimisers: Mapping[str, OptimiserRecipe]
    model: Mapping[str, Any]


def recipe_names() -> list[str]:
    """Return the names of all bundled recipes, sorted."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def background_of(name: str) -> str | None:
    """Return the model whose background a bundled recipe trains, or None."""
    model = name.removesuffix(BACKGROUND)
    return model if model != name and model in recipe_names() else None


def read_recipe(name: str) -> Recipe:
    """Read a bundled recipe by its name, or any other by the path of its .toml file.

    Raises RecipeError that names what is missing, unknown or out of range.
    """
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    if not path.is_file():
        raise RecipeError(f"no recipe {name!r}: there are {', '.join(recipe_names())}")
    table = tomllib.loads(path.read_text()) | {"name": path.stem}
    if table.get("epochs") == 0:
        table = {**UNTRAINED, **table}
    _check_keys(table, Recipe, path)
    for optimiser in table["optimisers"].values():
        _check_keys(optimiser, OptimiserRecipe, path)
    for key, allowed in (("keep", KEEP), ("precision", PRECISIONS)):
        if table[key] not in allowed:
            raise RecipeError(f"{path}: {key} is {table[key]!r}, allowed are {', '.join(allowed)}")
    optimisers = {key: OptimiserRecipe(**value) for key, value in table["optimisers"].items()}
    return Recipe(**table | {"optimisers": optimisers})


def build(recipe: Recipe) -> Trainable:
    """Return the recipe's network with fresh weights."""
    module = importlib.import_module(f"model_zoo.{recipe.family}")
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Trainable)
        and value.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise RecipeError(f"model_zoo.{recipe.family} defines {len(classes)} Trainables, not one")
    return classes[0](**recipe.model)


def trained_state(name: str, weights: Path = WEIGHTS) -> dict[str, Tensor]:
    """Return the trained tensors of a recipe's network by their names, or none of them.

    What was trained anew and has not been exported yet goes before what the artifact holds.
    """
    trained = weights / f"{name}.safetensors"
    if trained.is_file():
        return load_file(trained)
    model = background_of(name)
    bundled = ARTIFACTS / (model or name) / VERSION / "weights.safetensors"
    if not bundled.is_file():
        return {}
    prefix = BACKGROUND_STATE if model else ""
    state = {
        key.removeprefix(prefix): tensor
        for key, tensor in load_file(bundled).items()
        if key.startswith(prefix)
    }
    # Those of the background and of graphs have a slash.
    return {key: tensor for key, tensor in state.items() if "/" not in key}


def load_trained(name: str, weights: Path = WEIGHTS) -> Trainable:
    """Return a trained network in eval mode, by the name of its recipe.

    Raises RecipeError where there are no weights yet.
    """
    recipe = read_recipe(name)
    state = trained_state(recipe.name, weights)
    if not state:
        raise RecipeError(
            f"no weights of {recipe.name} in {weights} or {ARTIFACTS}: run "
            f"`python -m model_zoo.train {name}` first"
        )
    model = build(recipe)
    model.load_state_dict(state)
    return model.eval()


def _check_keys(table: Mapping[str, Any], kind: type, path: Path) -> None:
    known = {field.name for field in fields(kind)}
    if missing := known - set(table):
        raise RecipeError(f"{path}: missing {', '.join(sorted(missing))}")
    if unknown := set(table) - known:
        raise RecipeError(f"{path}: unknown {', '.join(sorted(unknown))}")
