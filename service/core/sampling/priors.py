"""What decode begins with, latents or codes: drawn from a model's prior, or given and checked."""

from collections.abc import Generator
from typing import cast

import numpy as np
from numpy.typing import NDArray

from service.core import latents as space
from service.core.calls import Call, Outputs, feed, noise_of_port, output
from service.core.controls import CONTROLS, control, refuse_controls
from service.core.manifest import Manifest
from service.core.manifest_parts import Port
from service.core.requests import Array, DecodeRequest, DeferredRows, SampleRequest
from service.errors import InvalidCodes, InvalidLatent, InvalidRequest, LatentSpaceMismatch

Beginnings = Generator[Call, Outputs, Array | DeferredRows]


def role(manifest: Manifest) -> str:
    """Return what the graph `decode` takes, as the role of its port: latent or codes."""
    return "codes" if manifest.codes else "latent"


def latent_size(manifest: Manifest) -> int:
    """Return the number of coordinates of a latent."""
    assert manifest.latent is not None, "the manifest was checked for a latent"
    return manifest.latent.shape[0]


def draw(
    manifest: Manifest, request: SampleRequest, weights: Array | None, seed: int
) -> Beginnings:
    """Draw latents or codes for the images of a request, [N, D]."""
    if manifest.has_prior_graph:
        values = {name: control(manifest, name, getattr(request, name)) for name in CONTROLS}
        controls = {str(name): value for name, value in values.items() if value is not None}
        items = np.arange(request.count, dtype=np.uint64)
        seeds = np.full(request.count, seed, np.uint64)
        return (yield from _from_graph(manifest, seeds, items, weights, controls))
    refuse_controls(manifest, request, ("temperature", "truncation"))
    temperature = control(manifest, "temperature", request.temperature)
    truncation = control(manifest, "truncation", request.truncation)
    size, temperature = latent_size(manifest), 1.0 if temperature is None else temperature
    return space.draw(seed, request.count, size, temperature, truncation)


def draw_first(
    manifest: Manifest, seed: int, weights: Array | None
) -> Generator[Call, Outputs, Array]:
    """Draw the latent of the first image of a seed, controls untouched, [1, D]."""
    if not manifest.has_prior_graph:
        return space.draw(seed, 1, latent_size(manifest)).join([])
    controls = {str(name): cast(float, each.default) for name, each in manifest.controls.items()}
    seeds, items = np.full(1, seed, np.uint64), np.zeros(1, np.uint64)
    return (yield from _from_graph(manifest, seeds, items, weights, controls))


def _from_graph(
    manifest: Manifest,
    seeds: NDArray[np.uint64],
    items: NDArray[np.uint64],
    weights: Array | None,
    controls: dict[str, float],
) -> Generator[Call, Outputs, Array]:
    graph = manifest.graphs["prior"]

    def rows_of_noise(port: Port) -> Array:
        return noise_of_port(port, seeds, items, 1).reshape(len(seeds), *port.row_shape)

    rows = {name: np.full(len(seeds), value) for name, value in controls.items()}
    inputs = feed(graph, rows_of_noise, rows, condition=weights)
    return output(graph, (yield Call("prior", inputs)), role(manifest))


def given(manifest: Manifest, request: DecodeRequest) -> Array:
    """Return the latents or codes of a request to decode, [N, D]; raises where they don't fit."""
    if (request.latents is None) == (request.codes is None):
        raise InvalidRequest("give exactly one of latents and codes")
    check_space(manifest, request.latent_space)
    if manifest.codes is None:
        if request.latents is None:
            raise InvalidCodes(f"{manifest.name} decodes latents; give latents, not codes")
        return check_latents(manifest, request.latents)
    if request.codes is None:
        raise InvalidLatent(f"{manifest.name} decodes codes; give codes, not latents")
    return _check_codes(manifest, request.codes)


def check_latents(manifest: Manifest, latents: Array) -> Array:
    """Return latents as float32 [N, D]; raises InvalidLatent where they are none of the model's."""
    size = latent_size(manifest)
    if latents.ndim != 2 or latents.shape[1] != size:
        raise InvalidLatent(
            f"latents have shape {list(latents.shape)}; {manifest.name} takes [count, {size}]"
        )
    if latents.dtype.kind not in "fiu" or not np.all(np.isfinite(latents)):
        raise InvalidLatent("latents must be finite real numbers")
    with np.errstate(over="ignore"):
        latents = latents.astype(np.float32)
    if not np.all(np.isfinite(latents)):
        raise InvalidLatent("latents must be finite in float32: at most 3.4e38 in magnitude")
    return latents


def _check_codes(manifest: Manifest, codes: Array) -> Array:
    """Return codes as int64 [N, D]; raises InvalidCodes that names the first that is wrong."""
    assert manifest.codes is not None, "the caller looked for codes"
    size = manifest.codes.size
    if codes.ndim != 2 or codes.shape[1] != size:
        raise InvalidCodes(
            f"codes have shape {list(codes.shape)}; {manifest.name} takes [count, {size}]"
        )
    if codes.dtype.kind not in "iu":
        raise InvalidCodes("codes must be whole numbers")
    start = 0
    for each in manifest.codes.maps:
        part = codes[:, start : start + each.size]
        if np.any(wrong := (part < 0) | (part >= each.levels)):
            row, place = np.argwhere(wrong)[0]
            raise InvalidCodes(
                f"code {start + place} of row {row} is {part[row, place]}; "
                f"those of the map '{each.name}' are 0 to {each.levels - 1}"
            )
        start += each.size
    return codes.astype(np.int64)


def check_space(manifest: Manifest, named: str | None) -> None:
    """Raise LatentSpaceMismatch where a space is named and is not the model's."""
    if named is not None and named != manifest.latent_space:
        raise LatentSpaceMismatch(
            f"what is to be decoded is of space {named}; {manifest.name}@{manifest.version} "
            f"decodes {manifest.latent_space}"
        )
