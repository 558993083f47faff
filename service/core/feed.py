"""A feed: many messages of one client in flight, which share its place in the queue."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from service.errors import DeadlineExceeded, QueueFull

Returned = TypeVar("Returned")


class Feed:
    """Runs the calls of a feed, so that none is refused for those before it."""

    def __init__(self) -> None:
        self._running = 0
        self._freed = asyncio.Event()  # replaced whenever it is set

    async def run(self, call: Callable[[], Awaitable[Returned]], deadline: float) -> Returned:
        """Return what a call returns; where the queue is full, wait for others of the feed first.

        Raises QueueFull where none of them is left to wait for: then others fill the queue. Raises
        DeadlineExceeded where the deadline, on the monotonic clock in seconds, comes before.
        """
        while True:
            try:
                return await self._begin(call)
            except QueueFull:
                if not self._running:
                    raise
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self._freed.wait()
            except TimeoutError:
                raise DeadlineExceeded(
                    "the deadline passed while messages before it in its stream took the queue; "
                    "give messages more time, or fewer images"
                ) from None

    async def _begin(self, call: Callable[[], Awaitable[Returned]]) -> Returned:
        self._running += 1
        free = True
        try:
            return await call()
        except QueueFull:
            free = False  # it had no place, so it frees none: those who wait would ask in circles
            raise
        finally:
            self._running -= 1
            if free:
                self._freed.set()
                self._freed = asyncio.Event()
