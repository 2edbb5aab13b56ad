"""The thread that runs the forwards, one at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")
Done = tuple[T | None, BaseException | None]
_Job = tuple[Callable[[], T], asyncio.AbstractEventLoop, "asyncio.Future[Done[T]]"]
JOIN_S = 5.0


class Worker(Generic[T]):
    """A daemon thread, started when there is work and again if it ended: a pool's thread would keep
    the process from ending while a forward hangs."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job[T] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self.idle = threading.Event()  # set while no call runs
        self.idle.set()

    async def run(self, call: Callable[[], T]) -> T:
        """The result of `call`, or what it raised; RuntimeError for what is no Exception, which
        would otherwise end the event loop."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._work, name="forward", daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Done[T]] = loop.create_future()
        self._jobs.put((call, loop, done))
        result, error = await done
        if isinstance(error, Exception):
            raise error
        if error is not None:
            raise RuntimeError(f"the forward ended by {type(error).__name__}") from error
        return result  # type: ignore[return-value]  # None only where T is

    async def stop(self) -> None:
        """End the thread after what it runs; a call that hangs is left after JOIN_S seconds."""
        if self._thread is not None and self._thread.is_alive():
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join, JOIN_S)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            call, loop, done = job
            answer: Done[T]
            self.idle.clear()
            try:
                answer = (call(), None)
            except BaseException as error:  # noqa: BLE001 - whoever waits is told, always
                answer = (None, error)
            self.idle.set()
            try:
                loop.call_soon_threadsafe(_settle, done, answer)
            except RuntimeError:  # the loop is closed: nobody waits
                return
            del job, call, done, answer  # what is idle holds no batch in memory


def _settle(done: asyncio.Future[Done[T]], answer: Done[T]) -> None:
    if not done.done():
        done.set_result(answer)
