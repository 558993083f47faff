"""A feed: a stream of messages that are answered, in order or not, while more of them arrive."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from service.errors import ShuttingDown

Message = TypeVar("Message")
Answer = TypeVar("Answer")


async def answer_in_order(
    messages: AsyncIterator[Message],
    answer: Callable[[Message], Awaitable[Answer]],
    *,
    at_once: int,
    stopping: Callable[[], Awaitable[None]],
) -> AsyncGenerator[Answer, None]:
    """Yield the answer of each message, in the order of the messages.

    Several are worked on at a time. An answer is taken once the next one is asked for; at most
    `at_once` messages are read whose answers are not taken, so a reader that takes none stops the
    reading. Once `stopping` returns no more are read: those that were are answered, then
    ShuttingDown is raised. Closing the generator cancels the work.
    """
    begun: asyncio.Queue[asyncio.Future[Answer] | None] = asyncio.Queue()
    room = asyncio.Semaphore(at_once)

    async def read() -> None:
        try:
            await room.acquire()
            async for message in messages:
                begun.put_nowait(asyncio.ensure_future(answer(message)))
                await room.acquire()
        finally:
            begun.put_nowait(None)

    reading = asyncio.ensure_future(read())
    stopped = asyncio.ensure_future(stopping())
    stopped.add_done_callback(lambda _: reading.cancel())
    try:
        while (answering := await begun.get()) is not None:
            yield await answering
            room.release()
        if reading.cancelled() and stopped.done():
            raise ShuttingDown("the server is shutting down; send the rest to another replica")
        reading.result()  # raises what reading failed with
    finally:
        stopped.cancel()
        await _cancel(reading, begun)


async def answer_as_they_come(
    messages: AsyncIterator[Message],
    answers: Callable[[Message], AsyncGenerator[Answer, None]],
    *,
    at_once: int,
    stopping: Callable[[], Awaitable[None]],
) -> AsyncGenerator[Answer, None]:
    """Yield the answers of messages, of which each may have several, in the order they come.

    At most `at_once` messages are read from the oldest on whose answers are not all there, and the
    work waits for a reader that takes none. Once `stopping` returns no more are read: those that
    were are answered, then ShuttingDown is raised. Closing the generator cancels the work.
    `answers` makes answers of errors, too.
    """
    ready: asyncio.Queue[Answer | None] = asyncio.Queue(at_once)
    working: deque[asyncio.Future[None]] = deque()  # oldest first

    async def work(message: Message) -> None:
        async with aclosing(answers(message)) as steps:
            async for step in steps:
                await ready.put(step)

    async def read() -> None:
        async for message in messages:
            working.append(asyncio.ensure_future(work(message)))
            if len(working) == at_once:
                await asyncio.wait([working[0]])
                working.popleft()

    async def end() -> None:
        await asyncio.wait([reading])
        if working:
            await asyncio.wait(working)
        await ready.put(None)

    reading = asyncio.ensure_future(read())
    stopped = asyncio.ensure_future(stopping())
    stopped.add_done_callback(lambda _: reading.cancel())
    ending = asyncio.ensure_future(end())
    try:
        while (answer := await ready.get()) is not None:
            yield answer
        if reading.cancelled() and stopped.done():
            raise ShuttingDown("the server is shutting down; send the rest to another replica")
        reading.result()  # raises what reading failed with
    finally:
        for task in (stopped, ending, reading, *working):
            task.cancel()


async def _cancel(reading: asyncio.Future[None], begun: asyncio.Queue[Any]) -> None:
    """End the reading and whatever it began."""
    reading.cancel()
    await asyncio.wait([reading])
    while not begun.empty():
        if (answering := begun.get_nowait()) is not None:
            answering.cancel()
