"""The event loop's selector: under overload, arrivals are handled in bursts between forwards.

A refusal costs the server .4 ms by itself, but two to three times that between two slices of a
forward, each of which evicts what the other has in the caches (docs/log.md).
"""

from __future__ import annotations

import selectors
import threading
from collections.abc import Callable

SETTLED_S = 0.0005  # without an event: the burst is over; gRPC hands over one event at a time
MAX_HOLD_S = 0.05
Events = list[tuple[selectors.SelectorKey, int]]


class BurstSelector(selectors.DefaultSelector):
    """crowded: gives an event to wait for, or None where arrivals are to be handled at once."""

    crowded: Callable[[], threading.Event | None] = staticmethod(lambda: None)

    def select(self, timeout: float | None = None) -> Events:
        """As asyncio asks for it; what became ready meanwhile is given after the hold."""
        free = None if timeout is not None and timeout <= 0 else self.crowded()
        if free is None or free.is_set():
            return super().select(timeout)
        longest = MAX_HOLD_S if timeout is None else min(timeout, MAX_HOLD_S)
        events = super().select(min(SETTLED_S, longest))
        if events:
            return events
        free.wait(longest)
        return super().select(0)
