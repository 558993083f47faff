"""API keys: made here, kept as hashes only, and compared in constant time.

A key is 256 bits from the system's random source. That is why one round of SHA-256 is enough at
rest: salts and slow hashes protect passwords, which people choose and which can be guessed; of a
key there is nothing to guess, and its hash is the same work to invert as the key is to find.
"""

import hashlib
import hmac
import re
import secrets
from pathlib import Path

from service.errors import StartupError, Unauthenticated

_PREFIX = "genserve_"  # so that people and scanners see what it is
_KEY_BYTES = 32
_SCHEME = "bearer"
_LINE = re.compile(r"sha256:(?P<digest>[0-9a-f]{64})\s+(?P<name>[\w.@-]+)")

_SEND = "send 'Authorization: Bearer <key>'"


def create_key(name: str) -> tuple[str, str]:
    """Return a new key, and the line that lets it in: its hash and whose it is.

    Raises StartupError for a name that a line can't hold.
    """
    key = _PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    line = f"sha256:{_digest(key)} {name}"
    if not _LINE.fullmatch(line):
        raise StartupError(f"the name '{name}' is not of letters, digits and . _ - @ only")
    return key, line


def read_keys(path: Path) -> "Keys":
    """Read a file of one line a key, as `create_key` writes them; # begins a comment.

    Raises StartupError where it can't be read, holds anything else, or no key.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise StartupError(f"GENSERVE_API_KEY_HASHES {path} can't be read: {why}") from error
    digests = []
    for number, line in enumerate(lines, 1):
        content = line.partition("#")[0].strip()
        found = _LINE.fullmatch(content)
        if found:
            digests.append(found["digest"])
        elif content:  # never quoted: it may be a key
            raise StartupError(
                f"GENSERVE_API_KEY_HASHES {path}, line {number}, is not 'sha256:<64 hexadecimal "
                "digits> <name>'; make one with genserve key"
            )
    if not digests:
        raise StartupError(
            f"GENSERVE_API_KEY_HASHES {path} holds no key; make one with genserve key"
        )
    return Keys(digests)


class Keys:
    """The hashes of the keys that are let in."""

    def __init__(self, digests: list[str]) -> None:
        self._digests = digests

    def check(self, authorization: str | None) -> None:
        """Raise Unauthenticated unless an Authorization header, or metadata, holds a known key."""
        if authorization is None:
            raise Unauthenticated(f"this server answers to API keys only: {_SEND}")
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != _SCHEME:
            raise Unauthenticated(f"the Authorization is not of the scheme Bearer: {_SEND}")
        if not self._has(key.strip()):
            raise Unauthenticated(f"this server does not know this API key: {_SEND}")

    def _has(self, key: str) -> bool:
        digest, known = _digest(key), False
        for one in self._digests:  # all of them: the time says nothing of where it was found
            known |= hmac.compare_digest(one, digest)
        return known


def _digest(key: str) -> str:
    # What is no UTF-8 came as latin-1 or as surrogates; no key is of such characters.
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()
