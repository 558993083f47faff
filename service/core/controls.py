"""Controls: the numbers that a model lets a request set, by its manifest."""

from collections.abc import Collection
from typing import get_args

from service.core.manifest import Manifest
from service.core.manifest_parts import ControlName
from service.core.requests import SampleRequest, check_range
from service.errors import ControlNotOffered

CONTROLS: tuple[ControlName, ...] = get_args(ControlName)
"""Every control, of whatever program."""


def control(manifest: Manifest, name: str, value: float | None) -> float | None:
    """Return the value of a control: as asked and in range, or its default."""
    offered = manifest.controls.get(name)  # type: ignore[call-overload]
    if offered is None:
        if value is not None:
            raise ControlNotOffered(
                f"{manifest.name} has no {name}; it has {sorted(manifest.controls)}",
                controls=sorted(manifest.controls),
            )
        return None
    if value is None:
        default: float | None = offered.default
        return default
    check_range(name, value, offered.minimum, offered.maximum)
    return value


def refuse_controls(manifest: Manifest, request: SampleRequest, taken: Collection[str]) -> None:
    """Refuse every control but those `taken`, which alone mean something to the model's program."""
    for name in CONTROLS:
        if name not in taken and (value := getattr(request, name)) is not None:
            control(manifest, name, value)
