"""What follows requests through the server. What is here follows nothing, and costs next to that.

`service.opentelemetry_tracing` has the same shape and tells a collector; it is imported where
traces are asked for, and nowhere else.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar, TypeVarTuple

Arguments = TypeVarTuple("Arguments")
Returned = TypeVar("Returned")

Headers = Iterable[tuple[str | bytes, str | bytes]]


class RequestTrace:
    """One request, from its first byte to its answer."""

    def answered(self, status: str | int, fault: bool) -> None:
        """Note the protocol's own status, and whether the server is to blame."""


class WorkTrace:
    """Work of a request that waits for its turn, and is then done."""

    def begin(self) -> None:
        """Note that the waiting is over and the work begins; again, it is nothing new."""

    def end(self) -> None:
        """Note that the work ended, or that nobody waits for it any more."""


class BatchTrace:
    """One batch of rows, from its release to its results."""

    def run(self, function: Callable[[*Arguments], Returned], *arguments: *Arguments) -> Returned:
        """Call what runs the batch, on whatever thread; return what it returns."""
        return function(*arguments)

    def end(self) -> None:
        """Note that its results are delivered."""


class Tracing:
    """Begins traces of requests, of their work, and of batches."""

    def request(
        self, name: str, headers: Headers, **attributes: str
    ) -> AbstractContextManager[RequestTrace]:
        """Follow what is done in this block, as a part of what the W3C headers say."""
        return _NO_REQUEST

    def work(self, doing: str, model: str, graph: str, count: int) -> WorkTrace:
        """Follow work of the request that this is called for: `count` rows or images."""
        return _WORK

    def batch(
        self, model: str, graph: str, rows: int, reason: str, members: Sequence[WorkTrace]
    ) -> BatchTrace:
        """Follow a batch that begins now, and link it to its members."""
        return _BATCH

    def context(self) -> Mapping[str, str]:
        """Return what log records say of the trace that they are written in."""
        return {}

    def close(self) -> None:
        """Send what is not sent yet."""


_NO_REQUEST = nullcontext(RequestTrace())  # one for all: it keeps nothing
_WORK, _BATCH = WorkTrace(), BatchTrace()
OFF = Tracing()
