"""A limit on what runs at the same time, whose waiting callers take turns.

Round robin over principals, first come, first served within one (J. Nagle, "On packet switches with
infinite storage", RFC 970, 1985): a principal with many waiting calls delays the others by one.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from engine.api.errors import TooManyCallsError

RETRY_S = 0.5


class FairSlots:
    """Slots for calls. For one event loop.

    limit: calls at the same time. max_waiting: further ones are refused; a caller who waits is
    refused for one of a principal with fewer waiting. what: of the calls, for the refusal.
    refused: how many were.
    """

    def __init__(self, limit: int, max_waiting: int, what: str) -> None:
        self.limit = limit
        self.refused = 0
        self._max_waiting = max_waiting
        self._what = what
        self._used = 0
        self._granted_at = 0.0
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @property
    def waiting(self) -> int:
        """Number of calls that wait for a slot."""
        return sum(map(len, self._waiting.values()))

    @property
    def is_full(self) -> bool:
        """Whether a call would have to wait."""
        return self._used >= self.limit or bool(self._waiting)

    @property
    def stalled_s(self) -> float:
        """Seconds since a slot was last given away while calls wait; 0 if none waits."""
        return time.monotonic() - self._granted_at if self._waiting else 0.0

    @asynccontextmanager
    async def slot(self, principal: str) -> AsyncIterator[None]:
        """Wait for a slot and hold it.

        Raises:
            TooManyCallsError: too many wait already.
        """
        if self.is_full:
            await self._wait(principal)
        else:
            self._take()
        try:
            yield
        finally:
            self._used -= 1
            self._next()

    def _take(self) -> None:
        self._used += 1
        self._granted_at = time.monotonic()

    async def _wait(self, principal: str) -> None:
        mine = self._waiting.get(principal, ())
        if self.waiting >= self._max_waiting and not self._push_out(len(mine) + 1):
            raise self.refusal()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(principal, deque()).append(turn)
        self._next()
        try:
            await turn  # what ends the wait has taken the slot for it
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._used -= 1
                self._next()
            elif turn in (queue := self._waiting.get(principal, deque())):
                queue.remove(turn)
                if not queue:
                    del self._waiting[principal]
            raise

    def _push_out(self, mine: int) -> bool:
        """Refuse the newest waiting call of the principal with most, if that is more than mine."""
        if not self._waiting:
            return False
        longest = max(self._waiting, key=lambda name: len(self._waiting[name]))
        queue = self._waiting[longest]
        if len(queue) <= mine:
            return False
        turn = queue.pop()
        if not turn.done():
            turn.set_exception(self.refusal())
        return True

    def refusal(self) -> TooManyCallsError:
        """Return the error for a call that is refused, and count it."""
        self.refused += 1
        words = f"Too many {self._what}: {self._used} at work, {self.waiting} waiting."
        return TooManyCallsError(words, RETRY_S)

    def _next(self) -> None:
        """Give free slots to waiting calls, one principal after another."""
        while self._waiting and self._used < self.limit:
            principal, queue = next(iter(self._waiting.items()))
            turn = queue.popleft()
            if queue:
                self._waiting.move_to_end(principal)
            else:
                del self._waiting[principal]
            if not turn.done():
                self._take()
                turn.set_result(None)
