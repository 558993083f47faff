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
    running = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((running, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            raise RequestCancelled("the client left before the result was there")
        return running.result()
    finally:
        running.cancel()
        leaving.cancel()
