"""The thread that runs forward passes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")
_Outcome = tuple[T | None, BaseException | None]
_Job = tuple[Callable[[], T], asyncio.AbstractEventLoop, "asyncio.Future[_Outcome[T]]"]
JOIN_S = 5.0


class InferenceThread(Generic[T]):
    """A daemon thread that runs one call at a time.

    It starts with the first call, and again if it has ended. An executor's thread would keep the
    process alive while a forward pass hangs.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job[T] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self.idle = threading.Event()  # set while no call runs
        self.idle.set()

    async def run(self, call: Callable[[], T]) -> T:
        """Run `call` in the thread and return its result, or raise what it raised.

        A BaseException that is no Exception, such as SystemExit, becomes RuntimeError: it would
        otherwise end the event loop.
        """
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._work, name="forward", daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Outcome[T]] = loop.create_future()
        self._jobs.put((call, loop, future))
        result, error = await future
        if isinstance(error, Exception):
            raise error
        if error is not None:
            raise RuntimeError(f"the forward pass ended with {type(error).__name__}") from error
        return result  # type: ignore[return-value]  # None only if T is

    async def stop(self) -> None:
        """End the thread after its current call; leave a call that hangs after JOIN_S seconds."""
        if self._thread is not None and self._thread.is_alive():
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join, JOIN_S)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            call, loop, future = job
            outcome: _Outcome[T]
            self.idle.clear()
            try:
                outcome = (call(), None)
            except BaseException as error:  # noqa: BLE001 - run() raises it in its own thread
                outcome = (None, error)
            self.idle.set()
            try:
                loop.call_soon_threadsafe(_settle, future, outcome)
            except RuntimeError:  # the event loop is closed, so run() waits no longer
                return
            del job, call, future, outcome  # an idle thread keeps no batch in memory


def _settle(future: asyncio.Future[_Outcome[T]], outcome: _Outcome[T]) -> None:
    if not future.done():
        future.set_result(outcome)
