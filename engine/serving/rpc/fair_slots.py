"""A limit on what runs at the same time, whose waiting callers take turns.

Round robin over principals, first come, first served within one (J. Nagle, "On packet switches with
infinite storage", RFC 970, 1985): a principal with many waiting calls delays the others by one.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from engine.api.errors import TooManyCallsError, WaitTooLongError

RETRY_S = 0.5
MEASURED_CALLS = 64  # whose mean is the throughput estimate
MIN_MEASURED_CALLS = 8
PATIENCE_S = 1.0  # at most a quarter of the deadline, before a call is refused as too late
REFUSAL_GAP_S = 0.004  # many at once would hold up the event loop, and with it every other call
ANSWER_S = 0.02  # of the deadline, to refuse a call whose turn has not come


class FairSlots:
    """Slots for calls. For one event loop.

    limit: calls at the same time. max_waiting: further ones are refused; a caller who waits is
    refused for one of a principal with fewer waiting. what: of the calls, for the refusal.
    first_at_once: a principal that holds no slot gets one without a wait, beyond the limit, so that
    it does not wait for what others began. refused: how many were.
    """

    def __init__(
        self, limit: int, max_waiting: int, what: str, *, first_at_once: bool = False
    ) -> None:
        self.limit = limit
        self.refused = 0
        self._max_waiting = max_waiting
        self._what = what
        self._first_at_once = first_at_once
        self._used = 0
        self._used_by: Counter[str] = Counter()  # without principals that hold none
        self._ended: deque[float] = deque(maxlen=MEASURED_CALLS)  # of calls, while others waited
        self._granted_at = 0.0
        self._refuse_at = 0.0  # the next call whose turn would come too late
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
    async def slot(self, principal: str, left_s: float | None = None) -> AsyncIterator[None]:
        """Wait for a slot and hold it.

        Args:
            principal: whose call it is.
            left_s: seconds until the call's deadline; None waits as long as it takes.

        Raises:
            TooManyCallsError: too many wait already.
            WaitTooLongError: the call is not expected to end by its deadline.
        """
        at_once = self._first_at_once and principal not in self._used_by
        if self.is_full and not at_once:
            await self._wait(principal, left_s)
        else:
            self._take(principal)
        try:
            yield
        finally:
            self._release(principal)

    def _expected_s(self, principal: str, turn: asyncio.Future[None]) -> float:
        """Estimate the seconds until a waiting call has had its turn and has ended, from the recent
        throughput; 0 if too few calls have ended since others began to wait."""
        if len(self._ended) < MIN_MEASURED_CALLS:
            return 0.0
        place = self._waiting[principal].index(turn) + 1
        ahead = sum(min(len(queue), place) for queue in self._waiting.values())
        seconds_per_call = (time.monotonic() - self._ended[0]) / len(self._ended)
        return seconds_per_call * (ahead + self._used)

    def _take(self, principal: str) -> None:
        self._used += 1
        self._used_by[principal] += 1
        self._granted_at = time.monotonic()

    def _release(self, principal: str) -> None:
        self._used -= 1
        self._used_by[principal] -= 1
        if not self._used_by[principal]:
            del self._used_by[principal]
        if self._waiting:
            self._ended.append(time.monotonic())
        else:
            self._ended.clear()
        self._next()

    async def _wait(self, principal: str, left_s: float | None) -> None:
        mine = self._waiting.get(principal, ())
        if self.waiting >= self._max_waiting and not self._push_out(len(mine) + 1):
            raise self.refusal()
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.setdefault(principal, deque()).append(turn)
        self._next()
        timer: asyncio.TimerHandle | None = None

        def check() -> None:
            """Renew the estimate each time half of what was left has passed."""
            nonlocal timer
            if turn.done():
                return
            rest_s, expected_s = deadline - loop.time(), self._expected_s(principal, turn)
            if rest_s >= max(ANSWER_S, expected_s):
                timer = loop.call_later(rest_s / 2, check)
                return
            due = max(loop.time(), self._refuse_at)
            delay_s = min(due - loop.time(), max(0.0, rest_s - ANSWER_S))
            self._refuse_at = due + min(REFUSAL_GAP_S, rest_s / (2 * self.waiting))
            timer = loop.call_later(delay_s, refuse, expected_s)

        def refuse(expected_s: float) -> None:
            if turn.done():
                return
            rest_s = deadline - loop.time()
            retry_s = max(expected_s - rest_s, RETRY_S)
            turn.set_exception(WaitTooLongError(self.waiting, expected_s, rest_s, retry_s))
            self._leave(principal, turn)

        if left_s is not None:
            deadline = loop.time() + left_s
            # Not at once: a caller who tries again without a pause would cost the others more.
            timer = loop.call_later(min(PATIENCE_S, left_s / 4), check)
        try:
            await turn  # what ends the wait has taken the slot for it
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._release(principal)
            else:
                self._leave(principal, turn)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _leave(self, principal: str, turn: asyncio.Future[None]) -> None:
        """Remove a call that waits no longer; do nothing if it was removed."""
        queue = self._waiting.get(principal, deque())
        if turn in queue:
            queue.remove(turn)
            if not queue:
                del self._waiting[principal]

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
                self._take(principal)
                turn.set_result(None)
