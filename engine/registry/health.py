"""Whether a store can be reached, for health checks and metrics."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from engine.registry.stores.base import StoreState

log = logging.getLogger(__name__)


class StoreHealth:
    """Whether the store can be reached. Use it from the event loop's thread alone."""

    def __init__(self) -> None:
        self.state = StoreState(True, time.monotonic())
        self.hooks: list[Callable[[StoreState], None]] = []

    def mark_up(self) -> None:
        """Note that the store answers."""
        if not self.state.connected:
            log.info("candidate store reconnected")
            self._set(StoreState(True, time.monotonic()))

    def mark_down(self, reason: str) -> None:
        """Note that the store does not answer, because of `reason`."""
        if self.state.connected:
            log.error("candidate store unavailable (%s), serving the last known revision", reason)
            self._set(StoreState(False, time.monotonic(), reason))

    def _set(self, state: StoreState) -> None:
        self.state = state
        for hook in self.hooks:
            hook(state)
