"""Several requests of one caller at a time: answers as they are ready, and no more work than asked
for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")


async def as_ready(
    requests: AsyncIterator[Request], answer: Callable[[Request], Awaitable[Answer]], limit: int
) -> AsyncGenerator[Answer, None]:
    """answer(r) of every request, in order of completion.

    At most `limit` requests are read and not yet answered, answers that nobody took yet included,
    so that a reader who stalls stalls the sender. What runs is cancelled when the iteration ends
    or is closed; close it (contextlib.aclosing) rather than leave that to the garbage collector.
    `answer` does not raise.
    """
    slots = asyncio.Semaphore(limit)
    ready: asyncio.Queue[Answer | None] = asyncio.Queue()
    running: set[asyncio.Task[None]] = set()

    async def work(request: Request) -> None:
        ready.put_nowait(await answer(request))

    async def read() -> None:
        try:
            await slots.acquire()
            async for request in requests:
                task = asyncio.create_task(work(request))
                running.add(task)
                task.add_done_callback(running.discard)
                await slots.acquire()
            await asyncio.gather(*running)
        finally:
            ready.put_nowait(None)

    reader = asyncio.create_task(read())
    try:
        while (found := await ready.get()) is not None:
            yield found
            slots.release()
        await reader  # raises what the transport raised
    finally:
        for task in (reader, *running):
            task.cancel()
        await asyncio.gather(reader, *running, return_exceptions=True)
