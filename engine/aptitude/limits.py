"""How fast the endpoint may be asked: so much a minute, and not at all while it said to wait."""

from __future__ import annotations

import asyncio
import time


class Allowance:
    """So much a minute, evenly: a token bucket that never holds more than a second's worth, or one
    request. per_minute: None is no limit."""

    def __init__(self, per_minute: float | None) -> None:
        self._rate = None if per_minute is None else per_minute / 60
        self._next = 0.0

    async def take(self, amount: float = 1.0) -> None:
        """Wait for the turn of `amount`."""
        if self._rate is None:
            return
        now = time.monotonic()
        turn = max(self._next, now - 1.0)
        self._next = turn + amount / self._rate
        await asyncio.sleep(max(0.0, turn - now))

    def correct(self, amount: float) -> None:
        """Count `amount` more (or less, where it is negative) for what was taken."""
        if self._rate is not None:
            self._next += amount / self._rate


class Gate:
    """Shut for everybody until a moment: what a Retry-After asks for."""

    def __init__(self) -> None:
        self._opens = 0.0

    def shut(self, seconds: float) -> None:
        """Nobody passes for `seconds` from now, or longer where that was said before."""
        self._opens = max(self._opens, time.monotonic() + seconds)

    async def passed(self) -> None:
        """Wait until it is open."""
        while (left := self._opens - time.monotonic()) > 0:
            await asyncio.sleep(left)
