"""Progress of a long command: one line on standard error, for people alone."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

_SECONDS = 0.2  # between two lines: more often is flicker


def counted(items: Iterable[tuple[int, Item]], total: int, what: str) -> Iterator[Item]:
    """Yield items that come with the number of things done; show those of `total`, and the rest.

    Nothing is shown where standard error is no terminal: logs are no place for it.
    """
    started = shown = time.monotonic()
    done = 0
    for count, item in items:
        done += count
        now = time.monotonic()
        if sys.stderr.isatty() and (done == total or now >= shown + _SECONDS):
            left = (now - started) / done * (total - done)
            end = "\n" if done == total else ""
            line = f"\r{done} of {total} {what}, {left:.0f} s left "
            print(line, end=end, file=sys.stderr, flush=True)
            shown = now
        yield item
