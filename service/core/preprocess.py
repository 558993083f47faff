"""Images to graph values and back, as the manifest's event and preprocess say.

Nothing is resized, and nothing is binarised unless the client asks for it.
"""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service import images as files
from service.core import noise
from service.core.manifest import Manifest
from service.core.manifest_parts import Preprocess
from service.core.requests import BinarisationRule, Images, Limits, Scale
from service.errors import BinarisationRequired, InvalidImage, InvalidRequest, OutOfRange

Levels = NDArray[np.uint8]
Values = NDArray[np.float32]


def read_images(manifest: Manifest, images: Images, scale: Scale, limits: Limits) -> Levels:
    """Return levels, uint8 [N, H, W, C], of arrays or PNG files that fit the model's event.

    Raises InvalidImage that states the shape and levels expected, or OutOfRange for their number.
    """
    if not 1 <= len(images) <= limits.count:
        raise OutOfRange(f"{len(images)} images were sent; allowed are 1 to {limits.count}")
    if isinstance(images, np.ndarray):
        return _check_array(manifest, images, scale)
    return np.stack([_read_png(manifest, content) for content in images])


def binarise(
    manifest: Manifest, operation: str, levels: Levels, rule: BinarisationRule | None, seed: int
) -> Levels:
    """Return levels of only 0 and the highest, if `rule` asks for it.

    `threshold` keeps what is at least half the highest level; `stochastic` draws each pixel with
    its intensity as probability, keyed by the image. Raises BinarisationRequired where the model
    is a distribution over binary images, the levels are not, and no rule is given.
    """
    offered = manifest.binarisation
    if rule is None:
        if offered and operation in offered.required_by and not _is_binary(manifest, levels):
            raise BinarisationRequired(
                f"{manifest.name} is a distribution over binary images, and these hold levels "
                f"other than 0 and {manifest.image.levels - 1}; set binarisation to one of "
                f"{list(offered.rules)}"
            )
        return levels
    if not offered or rule not in offered.rules:
        raise InvalidRequest(f"{manifest.name} does not take binary images; leave out binarisation")
    highest = manifest.image.levels - 1
    if rule == "threshold":
        return np.where(2 * levels.astype(np.int16) >= highest, highest, 0).astype(np.uint8)
    uniforms = noise.uniform(
        seeds=np.full(len(levels), seed, np.uint64),
        purpose="binarisation",
        items=item_keys(levels),
        size=manifest.event.dimensions,
    )
    return np.where(uniforms.reshape(levels.shape) * highest < levels, highest, 0).astype(np.uint8)


def to_values(manifest: Manifest, levels: Levels) -> Values:
    """Map levels [N, H, W, C] to graph values, in the layout that the manifest names."""
    preprocess = _of(manifest)
    low, high = preprocess.range
    unit = levels.astype(np.float32) / np.float32(manifest.image.levels - 1)
    values = (np.float32(low) + np.float32(high - low) * unit - _row(preprocess.mean)) / _row(
        preprocess.deviation
    )
    top, bottom, left, right = preprocess.padding
    empty = (low - np.asarray(preprocess.mean)) / np.asarray(preprocess.deviation)
    if any(preprocess.padding):
        values = _pad(values, (top, bottom, left, right), empty.astype(np.float32))
    if preprocess.layout == "NCHW":
        values = values.transpose(0, 3, 1, 2)  # [N, H, W, C] -> [N, C, H, W]
    return np.ascontiguousarray(values)


def to_images(manifest: Manifest, values: Values, scale: Scale) -> NDArray[Any]:
    """Map graph values back: levels, rounded and clipped, or the intensities in [0, 1]."""
    preprocess = _of(manifest)
    if preprocess.layout == "NCHW":
        values = values.transpose(0, 2, 3, 1)  # [N, C, H, W] -> [N, H, W, C]
    top, bottom, left, right = preprocess.padding
    values = values[:, top : values.shape[1] - bottom, left : values.shape[2] - right]
    low, high = preprocess.range
    # In place: for a few images, more arrays would take longer than what is computed in them.
    unit = values * _row(preprocess.deviation)
    unit += _row(preprocess.mean)
    unit -= np.float32(low)
    unit /= np.float32(high - low)
    unit.clip(0.0, 1.0, out=unit)
    if scale == "unit":
        return np.ascontiguousarray(unit)
    unit *= np.float32(manifest.image.levels - 1)
    levels: Levels = np.rint(unit, out=unit).astype(np.uint8)
    return levels


def item_keys(rows: NDArray[Any]) -> NDArray[np.uint64]:
    """Return the item key of each row [N], a digest of its numbers in row-major order."""
    return np.array([noise.item_key(row.tobytes()) for row in rows], np.uint64)


def _of(manifest: Manifest) -> Preprocess:
    assert manifest.preprocess is not None, "the manifest was checked for that of images"
    return manifest.preprocess


def _check_array(manifest: Manifest, images: NDArray[Any], scale: Scale) -> Levels:
    shape = manifest.image.shape
    if images.shape[1:] != shape:
        raise InvalidImage(
            f"images have shape {list(images.shape)}; {manifest.name} takes "
            f"[count, {shape[0]}, {shape[1]}, {shape[2]}] (height, width, channels)"
        )
    highest = manifest.image.levels - 1
    if scale == "unit":
        images = _unit_to_levels(images, highest)
    elif not np.issubdtype(images.dtype, np.integer):
        raise InvalidImage(
            f"images hold {images.dtype}; send whole levels 0 to {highest}, "
            "or floats in [0, 1] with scale set to unit"
        )
    if images.min() < 0 or images.max() > highest:
        raise InvalidImage(
            f"images hold levels from {images.min()} to {images.max()}; allowed are 0 to {highest}"
        )
    return images.astype(np.uint8)


def _unit_to_levels(images: NDArray[Any], highest: int) -> NDArray[np.int64]:
    if images.dtype.kind not in "fiu":
        raise InvalidImage(f"images hold {images.dtype}; send floats in [0, 1]")
    if not np.all(np.isfinite(images)):
        raise InvalidImage("images hold NaN or infinity; send floats in [0, 1]")
    if images.min() < 0 or images.max() > 1:
        raise InvalidImage(
            f"images hold values from {images.min():g} to {images.max():g}; allowed are 0 to 1"
        )
    levels: NDArray[np.int64] = np.rint(images * highest).astype(np.int64)
    if np.abs(levels - images * highest).max() > 1e-3:
        raise InvalidImage(f"unit values must be whole levels: k / {highest}, k = 0 to {highest}")
    return levels


def _read_png(manifest: Manifest, content: bytes) -> Levels:
    """Read one PNG; its size is compared before a pixel is decompressed."""
    size = files.png_size(content)
    if size != manifest.image.shape[:2]:
        raise _misfit(manifest, f"{size[0]} high and {size[1]} wide")
    image = files.png_to_levels(content, manifest.image.levels)
    if image.shape != manifest.image.shape:
        raise _misfit(manifest, f"of {image.shape[2]} channels")
    return image


def _misfit(manifest: Manifest, actual: str) -> InvalidImage:
    height, width, channels = manifest.image.shape
    return InvalidImage(
        f"the PNG is {actual}; {manifest.name} takes {height} high, {width} wide, {channels} "
        "channels. Change it first: nothing is resized or converted silently"
    )


def _is_binary(manifest: Manifest, levels: Levels) -> bool:
    return bool(np.all((levels == 0) | (levels == manifest.image.levels - 1)))


@cache
def _row(channels: tuple[float, ...]) -> Values:
    return np.asarray(channels, np.float32)  # [C], broadcasts over [N, H, W, C]


def _pad(values: Values, padding: tuple[int, int, int, int], empty: Values) -> Values:
    count, height, width, channels = values.shape
    top, bottom, left, right = padding
    padded = np.empty((count, top + height + bottom, left + width + right, channels), np.float32)
    padded[:] = empty
    padded[:, top : top + height, left : left + width] = values
    return padded
