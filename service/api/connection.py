"""Work that is worth doing only while its client is there."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import Request

from service.errors import RequestCancelled

T = TypeVar("T")


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """Return what the work returns, or cancel it when the client leaves (RequestCancelled).

    The body has been read to its end, so all that is left to receive is the disconnect.
    """
    working = asyncio.current_task()
    assert working is not None, "requests are handled in tasks"
    leaving = asyncio.ensure_future(request.receive())
    waiting = True

    def leave(_: object) -> None:
        if waiting:  # or it was called in the moment in which the work was done
            working.cancel()

    leaving.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        # Whoever else cancels this task, as a server that stops does, wants it to end.
        if leaving.done() and not working.uncancel():
            raise RequestCancelled("the client left before the result was there") from None
        raise
    finally:
        waiting = False
        leaving.remove_done_callback(leave)
        leaving.cancel()
