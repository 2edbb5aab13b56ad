"""The event loop's selector: under overload, handle arrivals between forward passes.

Refusing a call costs the server 0.4 ms, but two to three times that while a forward pass runs,
because each evicts the other's data from the CPU caches (docs/log.md).
"""

from __future__ import annotations

import selectors
import threading
from collections.abc import Callable

SETTLE_S = 0.0005  # without an event: no more arrive at the moment; gRPC hands over one at a time
MAX_HOLD_S = 0.05
Events = list[tuple[selectors.SelectorKey, int]]


class OverloadSelector(selectors.DefaultSelector):
    """Hold events back while the server is overloaded and a forward pass runs.

    overload_signal: returns an event to wait for, or None if arrivals are to be handled at once.
    """

    overload_signal: Callable[[], threading.Event | None] = staticmethod(lambda: None)

    def is_quiet(self) -> bool:
        """Whether no event waits to be handled."""
        return not super().select(0)

    def select(self, timeout: float | None = None) -> Events:
        """See selectors.BaseSelector; events that arrive while held are returned after it."""
        idle = None if timeout is not None and timeout <= 0 else self.overload_signal()
        if idle is None or idle.is_set():
            return super().select(timeout)
        longest = MAX_HOLD_S if timeout is None else min(timeout, MAX_HOLD_S)
        events = super().select(min(SETTLE_S, longest))
        if events:
            return events
        idle.wait(longest)
        return super().select(0)
