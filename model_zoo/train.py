"""The training loop, one for all families: a recipe in, weights and measured figures out.

Run `python -m model_zoo.train RECIPE`, or without a recipe for all of them; with `--measure` what
was trained before is measured again, and its record says so. A run lives in
`runs/<model>/`: a checkpoint after every epoch, from which a run that was stopped goes on bit for
bit; `log.jsonl` with the figures on the `select` split; sample sheets. When the last epoch is
over, the weights kept are rounded to float16, measured once on the test split and written to
`model_zoo/weights/` with a record of what they are. The same recipe gives the same weights, for
one build of torch and one number of threads.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from tqdm import tqdm

from model_zoo.data import DataError, Examples, describe_splits, load_splits
from model_zoo.family import Family, Figure, Objective, Trainable
from model_zoo.recipe import (
    PACKAGE,
    WEIGHTS,
    OptimiserRecipe,
    Recipe,
    RecipeError,
    build,
    read_recipe,
    recipe_names,
    trained_state,
)
from model_zoo.sheets import write_sample_sheet

RUNS = PACKAGE.parent / "runs"
EVALUATION_SEED = 0  # the same draws for every epoch, so that epochs can be compared


class TrainingError(Exception):
    """A run that cannot go on: what happened, and what to do."""


class Run:
    """The state of one training run and its folder."""

    def __init__(self, recipe: Recipe, splits: Mapping[str, Examples], folder: Path):
        """Start afresh, or from the checkpoint in `folder` if there is one.

        Raises TrainingError where the checkpoint belongs to another recipe.
        """
        torch.manual_seed(recipe.seed)  # initial weights
        self.recipe, self.folder = recipe, folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.splits = {name: examples.to(self.device) for name, examples in splits.items()}
        self.model = build(recipe).to(self.device, memory_format=torch.channels_last)
        self.average = deepcopy(self.model)
        self.generator = torch.Generator(self.device).manual_seed(recipe.seed)
        self.objectives = self.model.objectives()
        self.optimisers = {
            name: torch.optim.Adam(objective.parameters, betas=recipe.optimisers[name].betas)
            for name, objective in self.objectives.items()
        }
        self.epoch = 0
        self.best: float | None = None
        self._earlier_seconds = 0.0
        self._started = time.process_time()
        self._resume()

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the fit split; what is left over waits for another shuffle."""
        return len(self.splits["fit"]) // self.recipe.batch_size

    @property
    def processor_seconds(self) -> float:
        """What the run has cost so far, on all cores together, measurements between epochs too."""
        return self._earlier_seconds + time.process_time() - self._started

    def train(self) -> None:
        """Run the epochs that are left."""
        with self._progress() as progress:
            while self.epoch < self.recipe.epochs:
                self._train_epoch(progress)
                self.epoch += 1
                self._close_epoch()

    def _train_epoch(self, progress: tqdm) -> None:
        self.model.train()
        for step, indices in enumerate(self._shuffled_batches()):
            batch = self.splits["fit"].batch(indices)
            losses = {
                name: self._descend(name, objective, batch, self._global_step(step))
                for name, objective in self.objectives.items()
                if self._global_step(step) % objective.interval == 0
            }
            self._update_average(self._global_step(step))
            progress.set_postfix({name: f"{loss:.4g}" for name, loss in losses.items()})
            progress.update()

    def _shuffled_batches(self) -> Iterator[torch.Tensor]:
        order = torch.randperm(
            len(self.splits["fit"]), generator=self.generator, device=self.device
        )
        whole = self.steps_per_epoch * self.recipe.batch_size
        return iter(order[:whole].split(self.recipe.batch_size))

    def _global_step(self, step: int) -> int:
        return self.epoch * self.steps_per_epoch + step

    def _descend(self, name: str, objective: Objective, batch: Any, step: int) -> float:
        """Take one optimiser step on one objective and return its loss."""
        optimiser, settings = self.optimisers[name], self.recipe.optimisers[name]
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(settings, step, self.recipe.epochs * self.steps_per_epoch)
        half = self.recipe.precision == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
            loss = objective.loss(batch, self.generator)
        if not math.isfinite(loss.item()):
            raise TrainingError(
                f"{self.recipe.name}: loss of {name} is {loss.item()} at step {step}; lower its "
                "learning rate or its gradient norm in the recipe"
            )
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters, settings.gradient_norm)
        optimiser.step()
        return loss.item()

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        """Move the averaged weights and statistics towards those of this step.

        Early on the average is short, so that it forgets the initial weights.
        """
        new_share = 1 - min(self.recipe.average_decay, (1 + step) / (10 + step))
        averages = self.average.state_dict().values()
        for average, current in zip(averages, self.model.state_dict().values(), strict=True):
            if average.is_floating_point():
                average.lerp_(current, new_share)
            else:
                average.copy_(current)

    # After an epoch

    def _close_epoch(self) -> None:
        figures = self.measure(self.average, "select")
        if isinstance(self.average, Family):
            write_sample_sheet(self.average, self.folder / "samples" / f"{self.epoch:03}.png")
        if self._is_best(figures[0].value):
            self.best = figures[0].value
            write_atomically(
                self.folder / "kept.safetensors", lambda path: save_model(self.average, path)
            )
        write_atomically(
            self.folder / "checkpoint.pt", lambda path: torch.save(self._state(), path)
        )
        self._log(figures)  # last, so that an epoch done twice is logged once

    def conclude(self) -> Trainable:
        """Return the model of the epoch kept, with what no gradient fits."""
        if self.recipe.epochs:
            load_model(self.average, self.folder / "kept.safetensors")
        generator = torch.Generator(self.device).manual_seed(self.recipe.seed)
        self.average.eval().conclude(self.splits["fit"].batch(), generator)
        return self.average

    def measure(self, model: Trainable, split: str) -> list[Figure]:
        """Evaluate a model on a split with fixed draws."""
        return measure(model, self.splits[split])

    def _is_best(self, value: float) -> bool:
        if self.best is None or self.recipe.keep == "last":
            return True
        return value > self.best if self.recipe.keep == "highest" else value < self.best

    def _log(self, figures: list[Figure]) -> None:
        line = {"epoch": self.epoch} | {figure.name: figure.value for figure in figures}
        with open(self.folder / "log.jsonl", "a") as log:
            log.write(json.dumps(line) + "\n")

    def _progress(self) -> tqdm:
        return tqdm(
            total=self.recipe.epochs * self.steps_per_epoch,
            initial=self.epoch * self.steps_per_epoch,
            desc=self.recipe.name,
            unit="step",
            mininterval=1.0,
        )

    # Stopping and going on

    def _state(self) -> dict[str, Any]:
        return {
            "recipe": asdict(self.recipe),
            "epoch": self.epoch,
            "best": self.best,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimisers": {name: opt.state_dict() for name, opt in self.optimisers.items()},
            "buffers": dict(self.model.named_buffers()),  # those too that are no weights
            "generator": self.generator.get_state(),
            "processor_seconds": self.processor_seconds,
        }

    def _resume(self) -> None:
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["recipe"] != asdict(self.recipe):
            raise TrainingError(
                f"{path} was made by another version of the recipe {self.recipe.name}: restore "
                f"the recipe, or delete {self.folder} to start afresh"
            )
        self.epoch, self.best = state["epoch"], state["best"]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for name, buffer in self.model.named_buffers():
            buffer.copy_(state["buffers"][name])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        self.generator.set_state(state["generator"])
        self._earlier_seconds = state["processor_seconds"]


def train(
    recipe: Recipe,
    splits: Mapping[str, Examples] | None = None,
    runs: Path = RUNS,
    weights: Path = WEIGHTS,
) -> None:
    """Train by a recipe, or go on where a stopped run was, and write weights and record.

    `splits` are the recipe's data set unless given. Raises DataError, RecipeError, TrainingError.
    """
    splits = splits or load_splits(recipe.dataset)
    folder = runs / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(recipe, splits, folder)
    run.train()
    model = run.conclude()
    seconds = run.processor_seconds
    halves = round_to_half(model)
    weights.mkdir(parents=True, exist_ok=True)
    write_atomically(weights / f"{recipe.name}.safetensors", lambda path: save_model(halves, path))
    record = make_record(recipe, model, run.measure(model, "test"), splits, seconds)
    text = json.dumps(record, indent=2) + "\n"
    write_atomically(weights / f"{recipe.name}.json", lambda path: path.write_text(text))


def measure(model: Trainable, examples: Examples) -> list[Figure]:
    """Evaluate a model with fixed draws."""
    generator = torch.Generator(examples.images.device).manual_seed(EVALUATION_SEED)
    return model.eval().evaluate(examples.batch(), generator)


def measure_again(
    recipe: Recipe, splits: Mapping[str, Examples] | None = None, weights: Path = WEIGHTS
) -> None:
    """Measure trained weights on the test split as the family does now, and rewrite the figures.

    What else their record says stays. Raises DataError, RecipeError.
    """
    state = trained_state(recipe.name, weights)
    if not state:
        raise RecipeError(f"{recipe.name} has no weights to measure: train it first")
    model = build(recipe)
    model.load_state_dict(state)
    path = weights / f"{recipe.name}.json"
    record = json.loads(path.read_text())
    figures = measure(model, (splits or load_splits(recipe.dataset))["test"])
    record["figures"] = [asdict(_beside_its_own(figure, recipe.dataset)) for figure in figures]
    text = json.dumps(record, indent=2) + "\n"
    write_atomically(path, lambda path: path.write_text(text))


def round_to_half(model: Trainable) -> Trainable:
    """Round weights to numbers that float16 holds, in place, and return a copy of that type.

    Files are half as large, and what is measured is what is served: in float32, with these numbers.
    A buffer of float64 asks for its precision and keeps it.
    Raises TrainingError where a weight is beyond float16's range.
    """
    halves = deepcopy(model)
    for tensor in (*halves.parameters(), *halves.buffers()):
        if tensor.dtype == torch.float32:
            tensor.data = tensor.data.half()
    state = halves.state_dict()
    if not all(torch.isfinite(tensor).all() for tensor in state.values()):
        raise TrainingError("a weight is above 65504, the largest of float16: train it smaller")
    model.load_state_dict(state)
    return halves


def make_record(
    recipe: Recipe,
    model: Trainable,
    figures: list[Figure],
    splits: Mapping[str, Examples],
    processor_seconds: float,
) -> dict[str, Any]:
    """Return what there is to know about trained weights: figures, splits and provenance."""
    return {
        "model": recipe.name,
        "figures": [asdict(_beside_its_own(figure, recipe.dataset)) for figure in figures],
        "splits": describe_splits(splits),
        "provenance": {
            "recipe": recipe.name,
            "family": recipe.family,
            "dataset": recipe.dataset,
            "seed": recipe.seed,
            "epochs": recipe.epochs,
            "torch": torch.__version__,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "processor_seconds": round(processor_seconds, 1),
        },
    }


def _beside_its_own(figure: Figure, dataset: str) -> Figure:
    """Return a figure without the published one where that is of other data."""
    if figure.published is None or figure.published["dataset"] != dataset:
        return replace(figure, published=None)
    published = {key: figure.published[key] for key in ("value", "source")}
    return replace(figure, published=published)


def learning_rate(settings: OptimiserRecipe, step: int, steps: int) -> float:
    """Return the rate at a step: a line up over the warm-up, then half a cosine down."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    height = 0.5 * (1 + math.cos(math.pi * progress))  # 1 -> 0
    first, last = settings.learning_rate, settings.final_learning_rate
    return last + (first - last) * height


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a file beside `path`, then put it in place, so none is ever half written."""
    partial = path.with_name(path.name + ".partial")
    write(partial)
    partial.chmod(0o644)  # safetensors writes files that only their owner can read
    os.replace(partial, path)


def training_order() -> list[str]:
    """Return all bundled recipes, judges of others first."""
    recipes = [read_recipe(name) for name in recipe_names()]
    judges = {recipe.model.get("judge") for recipe in recipes}
    return sorted((recipe.name for recipe in recipes), key=lambda name: (name not in judges, name))


def main() -> None:
    """Train the recipes named on the command line, or all of them, or measure them again."""
    parser = argparse.ArgumentParser(
        prog="python -m model_zoo.train",
        description="Train models by their recipes. A stopped run goes on where it was.",
    )
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="a name or a .toml file")
    parser.add_argument("--measure", action="store_true", help="measure what is trained already")
    arguments = parser.parse_args()
    work = measure_again if arguments.measure else train
    try:
        for name in arguments.recipes or training_order():
            work(read_recipe(name))
    except (DataError, RecipeError, TrainingError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
