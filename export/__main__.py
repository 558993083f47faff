"""Export trained models: `python -m export [MODEL ...]`, all that have weights if none is named."""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from export.artifact import export_artifact
from export.errors import ExportError
from model_zoo.family import Family, Figure
from model_zoo.recipe import WEIGHTS, RecipeError, load_trained, recipe_names

REPOSITORY = Path(__file__).resolve().parent.parent / "artifacts"
VERSION = "1"
LICENCE = "Apache-2.0"

logger = logging.getLogger("export")


def main() -> None:
    """Export the models named on the command line, or all that have been trained."""
    parser = argparse.ArgumentParser(prog="python -m export", description="Models to artifacts.")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="the name of a recipe")
    _show_progress()
    try:
        for name in parser.parse_args().models or _trained_models():
            _export(name)
    except (ExportError, RecipeError) as error:
        sys.exit(f"error: {error}")


def _show_progress() -> None:
    logger.addHandler(logging.StreamHandler(sys.stdout))
    logger.setLevel(logging.INFO)
    logging.getLogger("torch").setLevel(logging.ERROR)  # warns of torchvision, which nobody needs


def _trained_models() -> list[str]:
    names = recipe_names()
    trained = [name for name in names if (WEIGHTS / f"{name}.safetensors").is_file()]
    for name in sorted(set(names) - set(trained)):
        logger.info("%s: skipped, it has no weights yet: make train", name)
    return trained


def _export(name: str) -> None:
    model = load_trained(name)
    if not isinstance(model, Family):
        logger.info("%s: skipped, it generates nothing and has no graphs to serve", name)
        return
    record = _read_record(name)
    export_artifact(
        REPOSITORY,
        name=name,
        version=VERSION,
        card=model.card(),
        graphs=model.graphs(),
        licence=LICENCE,
        quality=[Figure(**figure) for figure in record["figures"]],
        splits={key: _split(**split) for key, split in record["splits"].items()},
        provenance=record["provenance"],
    )


def _read_record(name: str) -> dict[str, Any]:
    """Return what training wrote beside the weights: figures, splits and provenance."""
    record: dict[str, Any] = json.loads((WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))
    return record


def _split(count: int, sha256: str) -> dict[str, Any]:
    return {"count": count, "sha256": f"sha256:{sha256}"}


if __name__ == "__main__":
    main()
