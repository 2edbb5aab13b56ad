"""The newest table, and those who wait for a newer one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable

from engine.registry.store import StoreState
from engine.registry.table import Table

log = logging.getLogger(__name__)


class CurrentTable:
    """One reference to an immutable table. Everything but table is for the event loop's thread."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self._changed = asyncio.Event()
        self._ended = False

    def show(self, table: Table) -> None:
        """Swap it, and wake those who wait."""
        self.table = table
        self._wake()

    def end(self) -> None:
        """Let every newer() end."""
        self._ended = True
        self._wake()

    async def newer(self) -> AsyncGenerator[Table, None]:
        """The table as it is, then each newer one until end(). Who is slow gets the newest, not
        every step: nothing is queued."""
        last = None
        while not self._ended:
            changed = self._changed
            if (table := self.table) is not last:
                last = table
                yield table
            else:
                await changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class StoreWatch:
    """Whether the store can be reached, for health and metrics; of the event loop's thread."""

    def __init__(self) -> None:
        self.state = StoreState(True, time.monotonic())
        self.hooks: list[Callable[[StoreState], None]] = []

    def reached(self) -> None:
        """It answers."""
        if not self.state.connected:
            log.info("the candidate store is back")
            self._set(StoreState(True, time.monotonic()))

    def lost(self, reason: str) -> None:
        """It does not, because of `reason`."""
        if self.state.connected:
            log.error("the candidate store is lost (%s); serving the last revision", reason)
            self._set(StoreState(False, time.monotonic(), reason))

    def _set(self, state: StoreState) -> None:
        self.state = state
        for hook in self.hooks:
            hook(state)
