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
from functools import cache

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]
Keys = NDArray[np.uint64]
Floats = NDArray[np.float64]

SCHEME = "philox4x32-10/1"
SCHEME_NUMBER = 1
MAXIMUM_SEED = 2**53 - 1
"""Seeds survive a JavaScript number, which is exact up to 2^53 - 1."""

# Little-endian on every machine, so that a 64-bit word can be seen as its low and its high half.
_WORD = np.dtype("<u4")
_DOUBLE_WORD = np.dtype("<u8")
_SCHEME_BITS = np.array([0, SCHEME_NUMBER << 24], _WORD)[:, None, None]  # of the key
_ROUNDS = 10
_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], _WORD)
# Added to the key for each round, modulo 2^32: [rounds, 2].
_BUMPS = np.outer(np.arange(_ROUNDS), [0x9E3779B9, 0xBB67AE85]).astype(_WORD)


def philox(counter: Words, key: Words) -> Words:
    """Return the four output words [4, M, N] for counter words [4, M, N] and key words [2, M, 1].

    All are 32-bit.
    """
    # The words 0 and 2 go through a round alike, and so do 1 and 3. A call of numpy costs more
    # than what it computes for a few images, so each pair is one array.
    multipliers = _MULTIPLIERS[:, None, None]
    even, odd = counter[::2], counter[1::2]
    for round_key in key + _BUMPS[:, :, None, None]:
        products = np.multiply(even, multipliers, dtype=_DOUBLE_WORD)
        halves = products.view(_WORD)[::-1]  # of the other pair: [2, M, 2 * N], low before high
        even = halves[..., 1::2] ^ odd ^ round_key
        odd = halves[..., ::2]
    return np.stack((even, odd), axis=1).reshape(counter.shape)


def uniform(seeds: Keys, purpose: str, items: Keys, size: int, start: int = 0) -> Floats:
    """Draw uniforms strictly inside (0, 1), [N, size], at positions start .. start + size - 1.

    `seeds` and `items` are uint64 [N]. A draw is (word + 1/2) / 2^32, so it is never 0 or 1.
    Raises ValueError for positions of 2^34 and more.
    """
    first, last = start // 4, (start + size + 3) // 4
    if last > 2**32:
        raise ValueError("positions go to 2^34 - 1: the block is one 32-bit word of the counter")
    counter = np.empty((4, len(items), last - first), _WORD)
    counter[0] = np.arange(first, last)
    counter[1] = _purpose_word(purpose)
    counter[2:] = _halves(items)
    key = _halves(seeds) | _SCHEME_BITS
    words = philox(counter, key).transpose(1, 2, 0)  # [4, N, blocks] -> [N, blocks, 4]
    draws = np.add(words, 0.5, order="C", dtype=np.float64)
    draws *= 2.0**-32
    offset = start - 4 * first
    return draws.reshape(len(items), -1)[:, offset : offset + size]


@cache
def _purpose_word(purpose: str) -> int:
    return int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:4], "little")


def _halves(keys: Keys) -> Words:
    """Return the low and the high half of 64-bit words [N], as [2, N, 1]."""
    return keys.astype(_DOUBLE_WORD).view(_WORD).reshape(-1, 2).T[:, :, None]


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


def _by_power(numerator: Sequence[float], denominator: Sequence[float]) -> Floats:
    """Return the coefficients of two polynomials as [power, 2, 1]."""
    return np.array([numerator, denominator]).T[:, :, None]


# Rational approximations of Wichura 1988, algorithm AS 241 (PPND16), accurate to about 1e-16;
# highest power first. The three pairs cover |p - 1/2| <= 0.425, the near tail and the far tail.
_CENTRAL = _by_power(
    (2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457,
     13731.693765509461125, 1971.5909503065514427, 133.14166789178437745, 3.387132872796366608),
    (5226.495278852545925, 28729.085735721942674, 39307.89580009271061, 21213.794301586595867,
     5394.1960214247511077, 687.1870074920579083, 42.313330701600911252, 1.0),
)  # fmt: skip
_NEAR = _by_power(
    (7.7454501427834140764e-4, 0.0227238449892691845833, 0.24178072517745061177,
     1.27045825245236838258, 3.64784832476320460504, 5.7694972214606914055,
     4.6303378461565452959, 1.42343711074968357734),
    (1.05075007164441684324e-9, 5.475938084995344946e-4, 0.0151986665636164571966,
     0.14810397642748007459, 0.68976733498510000455, 1.6763848301838038494,
     2.05319162663775882187, 1.0),
)  # fmt: skip
_FAR = _by_power(
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 0.0012426609473880784386,
     0.026532189526576123093, 0.29656057182850489123, 1.7848265399172913358,
     5.4637849111641143699, 6.6579046435011037772),
    (2.04426310338993978564e-15, 1.4215117583164458887e-7, 1.8463183175100546818e-5,
     7.868691311456132591e-4, 0.0148753612908506148525, 0.13692988092273580531,
     0.59983220655588793769, 1.0),
)  # fmt: skip


def inverse_normal(probability: Floats) -> Floats:
    """Return z with Phi(z) = probability, elementwise, for probabilities strictly in (0, 1)."""
    centred = (probability - 0.5).ravel()
    z = _ratio(_CENTRAL, 0.180625 - centred * centred) * centred
    outside = np.flatnonzero(np.abs(centred) > 0.425)
    if outside.size:
        tails = probability.ravel()[outside]
        radius = np.sqrt(-np.log(np.minimum(tails, 1.0 - tails)))
        tail = _ratio(_NEAR, radius - 1.6)
        far = np.flatnonzero(radius > 5.0)
        if far.size:
            tail[far] = _ratio(_FAR, radius[far] - 5.0)
        z[outside] = np.copysign(tail, centred[outside])
    return z.reshape(probability.shape)


def _ratio(coefficients: Floats, at: Floats) -> Floats:
    """Return the ratio of two polynomials at points [N], both by Horner's rule at once."""
    values = np.repeat(coefficients[0], len(at), axis=1)
    for coefficient in coefficients[1:]:
        values *= at
        values += coefficient
    ratio: Floats = values[0] / values[1]
    return ratio


def _lower_tail(bound: float) -> float:
    """Return Phi(-bound), in a form that keeps its precision for large bounds."""
    return 0.5 * math.erfc(bound / math.sqrt(2.0))
