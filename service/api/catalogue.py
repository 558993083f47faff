"""The models as REST lists them."""

from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, Field

from service.core.engine import Engine
from service.core.manifest import Manifest
from service.core.manifest_parts import Figure
from service.core.models import Change, ChangeKind, Model, State
from service.core.scoring.calibration import Calibration
from service.errors import NotCalibrated


class ListedModel(BaseModel):
    """One artifact, and what it can do."""

    name: str
    version: str
    family: str | None = Field(description="null where the manifest can't be read")
    dataset: str | None = Field(description="that it was trained on; null where it does not say")
    event: str | None = Field(
        description="what it is a model of: image or vector; null where the manifest can't be read"
    )
    operations: list[str]
    quality: list[Figure] = Field(description="how good it is, beside published figures")
    state: State = Field(description="a model that is available loads on first use")
    reason: str | None = Field(
        description="why it is refused; of one that serves, why what its folder holds now is; else "
        "null"
    )
    default_for: list[str] = Field(description="operations that it runs where none is named")


class ModelList(BaseModel):
    """Every artifact of the model repository, by name, oldest version first."""

    models: list[ListedModel]


class ListedChange(BaseModel):
    """What a rescan did about one version."""

    model: str = Field(description="`name@version`")
    kind: ChangeKind = Field(
        description="loaded: verified, and serves. found: loads on first use. refused: what served "
        "before serves on. removed: its folder is gone, and so is it. kept: its folder is gone, "
        "and nothing else could answer to its name."
    )
    reason: str | None = Field(description="why it is refused or kept, or null")


class ChangeList(BaseModel):
    """What the repository held that the server did not know of."""

    changes: list[ListedChange]


def list_models(engine: Engine) -> ModelList:
    """Return every model with its state."""
    return list_versions(engine.models.all(), engine)


def list_versions(models: list[Model], engine: Engine) -> ModelList:
    """Return some models with their states."""
    return ModelList(models=[_listed(model, engine) for model in models])


def list_changes(changes: list[Change]) -> ChangeList:
    """Return what a rescan did."""
    return ChangeList(changes=[ListedChange(**asdict(change)) for change in changes])


def describe_manifest(model: Model) -> dict[str, Any]:
    """Return the manifest as JSON, as far as it could be read, and the model's state.

    Its calibrations, and what holds of the version before it, are known once it is ready.
    """
    manifest = model.manifest.model_dump(mode="json") if model.manifest else {}
    return {
        "name": model.name,
        "version": model.version,
        **manifest,
        "state": model.state,
        "reason": model.reason,
        "calibrations": [_calibration(made) for made in model.calibrations.values()],
        "refused_calibrations": [
            {"file": file, "reason": reason} for file, reason in model.refused_calibrations.items()
        ],
        "compatibility": asdict(model.compatibility) if model.compatibility else None,
    }


def find_calibration(model: Model, id: str) -> Calibration:
    """Return a calibration by its id; raises NotCalibrated that names those there are."""
    if id in model.calibrations:
        return model.calibrations[id]
    held = ", ".join(model.calibrations) or "none"
    raise NotCalibrated(f"{model} has no calibration '{id[:100]}'; it has {held}")


def _dataset(manifest: Manifest) -> str | None:
    name = manifest.provenance.get("dataset")
    return name if isinstance(name, str) else None


def _calibration(made: Calibration) -> dict[str, Any]:
    return {
        "id": made.id,
        "count": made.count,
        "source": made.data.source,
        "protocol": made.protocol.model_dump(mode="json"),
        "decision": made.decision,
        "scores": list(made.scores),
    }


def _listed(model: Model, engine: Engine) -> ListedModel:
    manifest = model.manifest
    return ListedModel(
        name=model.name,
        version=model.version,
        family=manifest.family if manifest else None,
        dataset=_dataset(manifest) if manifest else None,
        event=manifest.event.kind if manifest else None,
        operations=list(manifest.operations) if manifest else [],
        quality=list(manifest.quality) if manifest else [],
        state=model.state,
        reason=model.reason,
        default_for=engine.default_for(model),
    )
