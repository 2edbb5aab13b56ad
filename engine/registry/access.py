"""Access to a store from the event loop: one operation at a time, and none is waited for forever.

A database or disk can hang in ways that no setting of its own ends. The thread that waits for it is
left behind then, and operations fail at once until it returns.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from engine.api.errors import StoreError
from engine.registry.stores.base import Store

SLOW_S = 4.0  # an operation that takes longer is reported
LIMIT_S = 20.0  # above every limit of the stores themselves
CLOSE_S = 1.0
T = TypeVar("T")


class StoreAccess:
    """Runs the operations of one store in a thread of its own."""

    def __init__(
        self, store: Store, on_slow: Callable[[str], None], on_answer: Callable[[], None]
    ) -> None:
        """Create the access; the thread starts with the first operation.

        Args:
            store: to be used through this object alone.
            on_slow: called with a reason when an operation takes longer than SLOW_S.
            on_answer: called when such an operation ends after all.
        """
        self._store = store
        self._on_slow = on_slow
        self._on_answer = on_answer
        self._lock = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="candidate-store")
        self._hung: asyncio.Future[Any] | None = None

    async def run(self, operation: Callable[..., T], *arguments: Any) -> T:
        """Call `operation` in the thread; raises what it raises, StoreError after LIMIT_S.

        A caller that gives up does not end the operation: the next one waits for it.
        """
        task = asyncio.create_task(self._run(operation, *arguments))
        task.add_done_callback(lambda t: t.cancelled() or t.exception())  # a caller may be gone
        return await asyncio.shield(task)

    async def _run(self, operation: Callable[..., T], *arguments: Any) -> T:
        async with self._lock:
            if self._hung is not None:
                raise StoreError("The candidate store does not answer; nothing was changed.")
            loop = asyncio.get_running_loop()
            run = contextvars.copy_context().run  # a revision records who asked for it
            future = loop.run_in_executor(self._thread, run, operation, *arguments)
            try:
                done, _ = await asyncio.wait({future}, timeout=SLOW_S)
                if not done:
                    self._on_slow(f"no answer for {SLOW_S:g} s")
                    done, _ = await asyncio.wait({future}, timeout=LIMIT_S - SLOW_S)
            finally:
                if not future.done():  # too late, or cancelled
                    self._hung = future
                    future.add_done_callback(self._returned)
            if not done:
                raise StoreError(
                    f"The candidate store did not answer within {LIMIT_S:g} s. If this was a"
                    " change, it may still be made: read the candidates again."
                )
            return future.result()

    def _returned(self, future: asyncio.Future[Any]) -> None:
        self._hung = None
        if not future.cancelled():
            future.exception()  # no caller waits for it
        self._on_answer()

    async def close(self) -> None:
        """Close the store; leave it open if its thread does not return within CLOSE_S."""
        self._store.interrupt()
        closed = asyncio.get_running_loop().run_in_executor(self._thread, self._store.close)
        await asyncio.wait({closed}, timeout=CLOSE_S)
        self._thread.shutdown(wait=False, cancel_futures=True)
