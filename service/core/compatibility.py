"""Compatibility: whether what a client made with one version of a model holds for the next."""

from collections.abc import Sequence
from dataclasses import dataclass

from service.core.manifest import Manifest
from service.core.manifest_parts import Condition
from service.core.scoring.calibration import Calibration


@dataclass(frozen=True)
class Compatibility:
    """What holds of the version that came before; None where that had none of it."""

    model: str  # the one before, `name@version`
    artifact_digest: str  # of the one before
    latents: bool | None  # its latents or codes can be decoded here, and mixed with those from here
    conditions: bool | None  # what it could be conditioned on can be asked here, and means the same
    calibrations: bool | None  # whatever it answered with p-values is answered with p-values here
    differences: tuple[str, ...]  # in words, one for each that does not hold


def compare(
    manifest: Manifest,
    calibrations: Sequence[Calibration],
    before: Manifest,
    calibrations_before: Sequence[Calibration],
) -> Compatibility:
    """Say what of the version `before`, and of its calibrations, holds for a new one."""
    latents = conditions = scores = None  # what is in the way, empty where nothing is
    if before.latent_space:
        latents = _between_latents(before.latent_space, manifest.latent_space)
    if before.condition:
        conditions = _between_conditions(before.condition, manifest.condition)
    if calibrations_before:
        scores = _between_calibrations(calibrations_before, calibrations)
    return Compatibility(
        model=f"{before.name}@{before.version}",
        artifact_digest=before.artifact_digest,
        latents=None if latents is None else not latents,
        conditions=None if conditions is None else not conditions,
        calibrations=None if scores is None else not scores,
        differences=tuple(words for words in (latents, conditions, scores) if words),
    )


def _between_latents(before: str, now: str | None) -> str:
    if now is None:
        return "it has no latents any more"
    if now != before:
        return f"its latents are of the space {now}, not of {before}: encode again"
    return ""


def _between_conditions(before: Condition, now: Condition | None) -> str:
    if now is None:
        return "it takes no condition any more"
    if missing := [kind for kind in before.kinds if kind not in now.kinds]:
        return f"it does not take {', '.join(missing)} as a condition any more"
    if now.names != before.names:
        return f"its classes are {', '.join(now.names)}, not {', '.join(before.names)}"
    if before.optional and not now.optional:
        return "it can't do without a class any more: one is drawn where none is given"
    return ""


def _between_calibrations(before: Sequence[Calibration], now: Sequence[Calibration]) -> str:
    """Calibrations are bound to their artifact; what can hold is how they were made."""
    for old in before:
        differences = [old.protocol.difference(new.protocol) for new in now]
        if all(differences):  # also where there is none
            how = "; ".join(map(str, differences)) or "it has none"
            return f"calibration {old.id} has no counterpart ({how}): calibrate this version"
    return ""
