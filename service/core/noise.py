"""The noise scheme: one counter-based stream for each (seed, purpose, item, position).

The generator is Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
Because a draw is a function of its coordinates alone, sample i is the same whatever else is in the
request, the batch or the process. Laid out in Philox's terms:

    key     = [seed bits 0..31, seed bits 32..52 | SCHEME_NUMBER << 24]
    counter = [position // 4, purpose, item bits 0..31, item bits 32..63]

and word `position % 4` of the block is the draw. `purpose` is the first four bytes,
little-endian, of the SHA-256 of its name.
"""

import hashlib
import math
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
Floats = NDArray[np.float64]

SCHEME = "philox4x32-10/1"
SCHEME_NUMBER = 1
MAXIMUM_SEED = 2**53 - 1
"""Seeds survive a JavaScript number, which is exact up to 2^53 - 1."""

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_ROUNDS = 10


def philox(counter: Sequence[Any], key: Sequence[Any]) -> tuple[Words, ...]:
    """Return the four 32-bit output words for 4 counter and 2 key words.

    All are 32-bit values held in uint64, as scalars or arrays that broadcast together.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # A 32 x 32 bit product fits 64 bits: its high and low words feed the next round.
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> _SHIFT) ^ c1 ^ k0, p1 & _LOW, (p0 >> _SHIFT) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def uniform(seeds: Words, purpose: str, items: Words, size: int, start: int = 0) -> Floats:
    """Draw uniforms strictly inside (0, 1), [N, size], at positions start .. start + size - 1.

    `seeds` and `items` are uint64 [N]. A draw is (word + 1/2) / 2^32, so it is never 0 or 1.
    Raises ValueError for positions of 2^34 and more.
    """
    first, last = start // 4, (start + size + 3) // 4
    if last > 2**32:
        raise ValueError("positions go to 2^34 - 1: the block is one 32-bit word of the counter")
    blocks = np.arange(first, last, dtype=np.uint64)
    digest = hashlib.sha256(purpose.encode()).digest()
    purpose_word = np.uint64(int.from_bytes(digest[:4], "little"))
    seeds, items = seeds[:, None], items[:, None]
    counter = (blocks[None, :], purpose_word, items & _LOW, items >> _SHIFT)
    key = (seeds & _LOW, (seeds >> _SHIFT) | np.uint64(SCHEME_NUMBER << 24))
    words = np.stack(np.broadcast_arrays(*philox(counter, key)), axis=-1)
    words = words.reshape(len(seeds), -1)  # [N, blocks, 4] -> [N, 4 * blocks]
    offset = start - 4 * first
    return (words[:, offset : offset + size].astype(np.float64) + 0.5) / 2.0**32


def to_float32(uniforms: Floats) -> NDArray[np.float32]:
    """Round to float32, but never to 1, which the scheme promises not to draw."""
    return np.minimum(uniforms.astype(np.float32), np.float32(1.0 - 2.0**-24))


def normal(uniforms: Floats, truncation: float | None = None) -> Floats:
    """Map uniforms to standard normals by the inverse distribution function.

    With `truncation` t the normal is conditioned on |z| <= t: the uniform is first mapped into
    the interval between the distribution function at -t and at t.
    """
    if truncation is None:
        return inverse_normal(uniforms)
    tail = _lower_tail(truncation)
    return np.clip(inverse_normal(tail + uniforms * (1.0 - 2.0 * tail)), -truncation, truncation)


def draw_seed() -> int:
    """Draw a seed for a request that has none; it is returned with the answer."""
    return secrets.randbelow(MAXIMUM_SEED + 1)


def item_key(content: bytes) -> int:
    """Return the 64-bit item key of canonical input bytes, so that scores follow the input."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


# Rational approximations of Wichura 1988, algorithm AS 241 (PPND16), accurate to about 1e-16;
# highest power first. The three pairs cover |p - 1/2| <= 0.425, the near tail and the far tail.
_CENTRAL = (
    (2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457,
     13731.693765509461125, 1971.5909503065514427, 133.14166789178437745, 3.387132872796366608),
    (5226.495278852545925, 28729.085735721942674, 39307.89580009271061, 21213.794301586595867,
     5394.1960214247511077, 687.1870074920579083, 42.313330701600911252, 1.0),
)  # fmt: skip
_NEAR = (
    (7.7454501427834140764e-4, 0.0227238449892691845833, 0.24178072517745061177,
     1.27045825245236838258, 3.64784832476320460504, 5.7694972214606914055,
     4.6303378461565452959, 1.42343711074968357734),
    (1.05075007164441684324e-9, 5.475938084995344946e-4, 0.0151986665636164571966,
     0.14810397642748007459, 0.68976733498510000455, 1.6763848301838038494,
     2.05319162663775882187, 1.0),
)  # fmt: skip
_FAR = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 0.0012426609473880784386,
     0.026532189526576123093, 0.29656057182850489123, 1.7848265399172913358,
     5.4637849111641143699, 6.6579046435011037772),
    (2.04426310338993978564e-15, 1.4215117583164458887e-7, 1.8463183175100546818e-5,
     7.868691311456132591e-4, 0.0148753612908506148525, 0.13692988092273580531,
     0.59983220655588793769, 1.0),
)  # fmt: skip


def inverse_normal(probability: Floats) -> Floats:
    """Return z with Phi(z) = probability, elementwise, for probabilities strictly in (0, 1)."""
    centred = probability - 0.5
    central = _ratio(_CENTRAL, 0.180625 - centred * centred) * centred
    radius = np.sqrt(-np.log(np.minimum(probability, 1.0 - probability)))
    tail = np.where(radius <= 5.0, _ratio(_NEAR, radius - 1.6), _ratio(_FAR, radius - 5.0))
    return np.where(np.abs(centred) <= 0.425, central, np.copysign(tail, centred))


def _ratio(polynomials: tuple[tuple[float, ...], tuple[float, ...]], at: Floats) -> Floats:
    numerator, denominator = polynomials
    ratio: Floats = np.polyval(numerator, at) / np.polyval(denominator, at)
    return ratio


def _lower_tail(bound: float) -> float:
    """Return Phi(-bound), in a form that keeps its precision for large bounds."""
    return 0.5 * math.erfc(bound / math.sqrt(2.0))
