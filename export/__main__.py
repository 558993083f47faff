"""Export trained models: `python -m export [MODEL ...]`, all that have weights if none is named.

A background (see `model_zoo.recipe`) is no model to be served, but a graph of the model that it is
the background of. Where it has no weights, the model goes without. Models that have likelihoods are
calibrated with images of their data set.

Weights of a model that is exported to artifacts/ move into its artifact, from which it can be
exported again.
"""

import argparse
import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from export.artifact import export_artifact
from export.calibrations import calibrate
from export.errors import ExportError
from model_zoo.family import Family, Figure, Graph
from model_zoo.recipe import (
    ARTIFACTS,
    BACKGROUND,
    BACKGROUND_STATE,
    VERSION,
    WEIGHTS,
    RecipeError,
    background_of,
    load_trained,
    read_recipe,
    recipe_names,
    trained_state,
)

LICENCE = "Apache-2.0"

logger = logging.getLogger("export")


def main() -> None:
    """Export the models named on the command line, or all that have been trained."""
    parser = argparse.ArgumentParser(prog="python -m export", description="Models to artifacts.")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="a name or a .toml file")
    parser.add_argument(
        "--repository", type=Path, default=ARTIFACTS, help="the folder to export to: artifacts/"
    )
    arguments = parser.parse_args()
    _show_progress()
    try:
        for name in arguments.models or _trained_models():
            _export(name, arguments.repository)
    except (ExportError, RecipeError) as error:
        sys.exit(f"error: {error}")


def _show_progress() -> None:
    logger.addHandler(logging.StreamHandler(sys.stdout))
    logger.setLevel(logging.INFO)
    logging.getLogger("torch").setLevel(logging.ERROR)  # warns of torchvision, which nobody needs


def _trained_models() -> list[str]:
    names = recipe_names()
    trained = [name for name in names if trained_state(name, WEIGHTS)]
    for name in sorted(set(names) - set(trained)):
        logger.info("%s: skipped, it has no weights yet: make train", name)
    return trained


def _export(recipe_name: str, repository: Path) -> None:
    recipe = read_recipe(recipe_name)
    name = recipe.name
    if model_name := background_of(name):
        logger.info("%s: skipped, it is served inside %s", name, model_name)
        return
    model = load_trained(recipe_name, WEIGHTS)
    if not isinstance(model, Family):
        logger.info("%s: skipped, it generates nothing and has no graphs to serve", name)
        return
    record = _read_record(name)
    graphs, provenance = model.graphs(), record["provenance"]
    state = model.state_dict()
    if trained_state(background_name := name + BACKGROUND, WEIGHTS):
        background = load_trained(background_name, WEIGHTS)
        assert isinstance(background, Family)
        graphs += _background_graphs(background)
        state |= {BACKGROUND_STATE + key: value for key, value in background.state_dict().items()}
        provenance |= {"background": _describe_background(background_name, record)}
    folder = export_artifact(
        repository,
        name=name,
        version=VERSION,
        card=model.card(),
        graphs=graphs,
        licence=LICENCE,
        state=state,
        quality=[Figure(**figure) for figure in record["figures"]],
        splits={key: _split(**split) for key, split in record["splits"].items()},
        provenance=provenance,
    )
    if repository.resolve() == ARTIFACTS:  # which holds them now
        for each in (name, background_name):
            (WEIGHTS / f"{each}.safetensors").unlink(missing_ok=True)
    calibrate(folder, recipe.dataset)


def _background_graphs(background: Family) -> tuple[Graph, ...]:
    """Return the log_likelihood graph of a background, under the name it has beside the model's."""
    return tuple(
        replace(graph, name="background_log_likelihood")
        for graph in background.graphs()
        if graph.name == "log_likelihood"
    )


def _describe_background(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return provenance and figures of a background, which are not the model's own quality.

    Raises ExportError where it has seen other images than the model: ratios would mean nothing.
    """
    described = _read_record(name)
    if described["splits"] != record["splits"]:
        raise ExportError(f"{name} was trained on other splits than {record['model']}: make train")
    return {**described["provenance"], "figures": described["figures"]}


def _read_record(name: str) -> dict[str, Any]:
    """Return what training wrote beside the weights: figures, splits and provenance."""
    record: dict[str, Any] = json.loads((WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))
    return record


def _split(count: int, sha256: str) -> dict[str, Any]:
    return {"count": count, "sha256": f"sha256:{sha256}"}


if __name__ == "__main__":
    main()
