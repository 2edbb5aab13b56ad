"""Limits on requests and tokens per minute, and pauses that an endpoint asks for."""

from __future__ import annotations

import asyncio
import time


class RateLimiter:
    """Spread an allowance evenly over each minute.

    A token bucket that never holds more than one second's allowance, or one request.
    per_minute: None means no limit.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._rate = None if per_minute is None else per_minute / 60
        self._next = 0.0

    async def acquire(self, amount: float = 1.0) -> None:
        """Wait until `amount` may be spent, and spend it."""
        if self._rate is None:
            return
        now = time.monotonic()
        turn = max(self._next, now - 1.0)
        self._next = turn + amount / self._rate
        await asyncio.sleep(max(0.0, turn - now))

    def adjust(self, amount: float) -> None:
        """Spend `amount` more, or less if it is negative, once the true amount is known."""
        if self._rate is not None:
            self._next += amount / self._rate


class Pause:
    """Hold back all requests until a moment, as Retry-After asks for."""

    def __init__(self) -> None:
        self._ends = 0.0

    def extend(self, seconds: float) -> None:
        """Pause for `seconds` from now, or longer if an earlier call asked for more."""
        self._ends = max(self._ends, time.monotonic() + seconds)

    async def wait(self) -> None:
        """Wait until the pause is over."""
        while (left := self._ends - time.monotonic()) > 0:
            await asyncio.sleep(left)
