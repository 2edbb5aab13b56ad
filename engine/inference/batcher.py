"""Joins waiting requests into one forward pass, without waiting when idle.

One forward runs at a time; what arrives meanwhile is joined into the next, up to a budget of rows
(tokens and candidates, padding included) and to a share of padding: neighbours in length go
together, and the oldest request always goes first, so that no length starves another. Cancelled and
expired requests leave the queue at once, and what cannot be answered in time is refused when it
comes: under overload the queue holds only work that somebody will still want.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from statistics import median
from typing import Generic, TypeVar

import numpy as np

from engine.api.errors import (
    DeadlineError,
    ModelsatError,
    OverloadedError,
    UnavailableError,
    WaitTooLongError,
)
from engine.bundle.types import Int64Array
from engine.inference.backend import Backend, Readout
from engine.inference.request_queue import Batch, Queue, Scored, Work
from engine.registry.table import Table

__all__ = ["Batcher", "Limits", "Scored"]
# What an answer may take beyond its estimate and still be in time: the estimate's own error, and
# the way to the client through a busy machine.
SAFETY = 1.5
MIN_RETRY_S = 0.01
CROWDED_S = 1.0  # after a refusal
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """rows: of one forward, tokens and candidates with padding. waiting: requests in the queue.

    On 2 cores joining gains up to 1.7 times for prompts of 32 tokens and nothing beyond 270 rows
    (docs/explanation/performance.md), while everyone waits for the whole forward.
    """

    rows: int = 512
    waiting: int = 256


class Batcher:
    """Start it inside a running loop with start(); stop() fails what still waits.

    forwarded: told the requests and rows of each forward pass, in its thread.
    """

    def __init__(
        self,
        backend: Backend,
        readout: Readout,
        limits: Limits = Limits(),
        forwarded: Callable[[int, int], None] | None = None,
    ) -> None:
        self._backend = backend
        self._readout = readout
        self._limits = limits
        self._forwarded = forwarded
        self._queue = Queue()  # limits.waiting at most, each of a few hundred tokens
        self._arrival = asyncio.Event()
        self._worker: Worker[list[Scored]] = Worker()
        self._task: asyncio.Task[None] | None = None
        self._stopped = False
        self._pace = Pace()
        self._running: tuple[float, int] | None = None  # the present forward: begin, rows
        self._failures: tuple[float, float] | None = None  # first and last since one succeeded
        self._refused = -float("inf")  # when the last one was

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    def start(self) -> None:
        """Begin to serve."""
        self._task = asyncio.create_task(self._run(), name="batcher")
        self._task.add_done_callback(lambda _: _fail(self._queue.clear(), None))

    async def stop(self) -> None:
        """Fail what waits and what is in flight; returns when the forward thread is free, or after
        worker.JOIN_S seconds."""
        self._stopped = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        _fail(self._queue.clear(), None)
        await self._worker.stop()

    @property
    def stalled_s(self) -> float:
        """Seconds that the present forward has run; 0 where none does. One that hangs keeps all
        others waiting until their deadlines."""
        return 0.0 if self._running is None else time.monotonic() - self._running[0]

    @property
    def failing_s(self) -> float:
        """Seconds from the first to the last forward that failed, where none has succeeded since;
        0 otherwise. Silence after a failure does not count: nothing was tried."""
        return 0.0 if self._failures is None else self._failures[1] - self._failures[0]

    def estimated_wait_s(self, rows: int) -> float:
        """Seconds until a request of `rows` (tokens and candidate rows) that came now would be
        scored: what is before it and its own forward. 0 where nothing was measured lately."""
        return self._ahead_s(time.monotonic()) + self._pace.row_s * rows

    def crowded(self) -> threading.Event | None:
        """Under overload, that is while requests are refused: set when no forward runs."""
        recently = time.monotonic() - self._refused < CROWDED_S
        return self._worker.idle if recently else None

    async def submit(
        self,
        tokens: Int64Array,
        table: Table,
        rows: Int64Array,
        deadline: float = float("inf"),
        *,
        admitted: bool = False,
    ) -> Scored:
        """Score `rows` (ascending) of `table` for the prompt `tokens` (L,). deadline: of
        time.monotonic(); without one only the length of the queue is a bound. admitted: check_room
        was called for this request, so it is not checked again.

        Raises OverloadedError, DeadlineError, UnavailableError.
        """
        loop, now = asyncio.get_running_loop(), time.monotonic()
        self._ensure_serving()
        size = len(tokens) + len(rows)
        if not admitted:
            self.check_room(size, deadline)
        self._backend.prepare(table.embeddings)
        work = Work(tokens, table, rows, deadline, now, loop.create_future(), size)
        self._queue.add(work)
        self._arrival.set()
        # Also while it is being forwarded: a forward may hang.
        timer = None if deadline == float("inf") else loop.call_at(deadline, _expire, work)
        try:
            return await work.result
        finally:
            if timer is not None:
                timer.cancel()
            self._queue.remove(work)

    def _ensure_serving(self) -> None:
        if self._task is None or self._stopped:
            raise UnavailableError("The server is not serving; try another.")
        if self._task.done():
            log.error("the batcher had ended; it is started again")
            self.start()

    def check_room(self, size: int, deadline: float, now: float | None = None) -> None:
        """Raise unless a request of `size` rows can be queued and answered by `deadline` (of
        time.monotonic()): OverloadedError, DeadlineError, WaitTooLongError."""
        now = time.monotonic() if now is None else now
        count, limit = len(self._queue), self._limits.waiting
        ahead, own = self._ahead_s(now), self._pace.row_s * size
        if count >= limit:
            self._refused = now
            raise OverloadedError(count, limit, max(ahead / 2, MIN_RETRY_S))
        left, needed = deadline - now, SAFETY * (ahead + own)
        if left <= 0 or SAFETY * own > left:
            raise DeadlineError(
                f"Scoring takes about {own:.3f} s, the deadline leaves {left:.3f} s; allow more."
            )
        if needed > left:
            self._refused = now
            raise WaitTooLongError(count, ahead, left, max(needed - left, MIN_RETRY_S))

    def _ahead_s(self, now: float) -> float:
        """Seconds until what runs and what waits is done."""
        if self._running is None:
            self._pace.forget(now)
            return self._pace.row_s * self._queue.rows
        begun, rows = self._running
        # One that takes longer than it should is expected to take as long again as it is late.
        rest = abs(self._pace.row_s * rows - (now - begun))
        return rest + self._pace.row_s * self._queue.rows

    async def _run(self) -> None:
        while True:
            await self._arrival.wait()
            batch = Batch()
            try:
                now = time.monotonic()
                self._pace.forget(now)
                batch = self._queue.take(self._limits.rows, now, self._pace.row_s)
                if not len(self._queue):
                    self._arrival.clear()
                if batch.works:
                    await self._serve(batch, now)
            except asyncio.CancelledError:
                _fail(batch.works, None)
                raise
            except Exception as error:  # noqa: BLE001 - whatever fails, the server goes on
                self._report(error)
                _fail(batch.works or self._queue.clear(), error)
                await asyncio.sleep(0)

    async def _serve(self, batch: Batch, now: float) -> None:
        self._running = (now, batch.size)
        try:
            done = await self._worker.run(lambda: self._forward(batch))
        finally:
            self._running = None
        ended = time.monotonic()
        self._pace.measure(batch.size, ended - now, ended)
        self._failures = None
        for work, scored in zip(batch.works, done, strict=True):
            if not work.result.done():
                work.result.set_result(scored)

    def _forward(self, batch: Batch) -> list[Scored]:
        begun = time.monotonic()
        table, union = batch.works[0].table, batch.union
        tokens = [work.tokens for work in batch.works]
        scores = self._backend.probabilities(tokens, table.embeddings, union, self._readout)
        if self._forwarded is not None:
            self._forwarded(len(batch.works), batch.size)
        return [
            Scored(
                scores.p[i, np.searchsorted(union, work.rows)],
                begun - work.arrived,
                scores.forward_s,
                scores.score_s,
            )
            for i, work in enumerate(batch.works)
        ]

    def _report(self, error: Exception) -> None:
        """Once until something succeeds: the requests that fail are logged by their status."""
        now = time.monotonic()
        if self._failures is None:
            log.error("scoring fails by %s; the next request is tried again", type(error).__name__)
        self._failures = (now if self._failures is None else self._failures[0], now)


def _expire(work: Work) -> None:
    if not work.result.done():
        work.result.set_exception(DeadlineError("The deadline passed before it was scored."))


def _fail(works: list[Work], error: Exception | None) -> None:
    """error: what was raised; None where the server stops."""
    if error is None:
        error = UnavailableError("The server is stopping; try another.")
    elif not isinstance(error, ModelsatError):
        known = UnavailableError(f"Scoring failed ({type(error).__name__}); try again.")
        known.__cause__ = error
        error = known
    for work in works:
        if not work.result.done():
            work.result.set_exception(error)


T = TypeVar("T")
Done = tuple[T | None, BaseException | None]
_Job = tuple[Callable[[], T], asyncio.AbstractEventLoop, "asyncio.Future[Done[T]]"]
JOIN_S = 5.0


class Worker(Generic[T]):
    """A daemon thread, started when there is work and again if it ended: a pool's thread would keep
    the process from ending while a forward hangs."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job[T] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self.idle = threading.Event()  # set while no call runs
        self.idle.set()

    async def run(self, call: Callable[[], T]) -> T:
        """The result of `call`, or what it raised; RuntimeError for what is no Exception, which
        would otherwise end the event loop."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._work, name="forward", daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Done[T]] = loop.create_future()
        self._jobs.put((call, loop, done))
        result, error = await done
        if isinstance(error, Exception):
            raise error
        if error is not None:
            raise RuntimeError(f"the forward ended by {type(error).__name__}") from error
        return result  # type: ignore[return-value]  # None only where T is

    async def stop(self) -> None:
        """End the thread after what it runs; a call that hangs is left after JOIN_S seconds."""
        if self._thread is not None and self._thread.is_alive():
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join, JOIN_S)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            call, loop, done = job
            answer: Done[T]
            self.idle.clear()
            try:
                answer = (call(), None)
            except BaseException as error:  # noqa: BLE001 - whoever waits is told, always
                answer = (None, error)
            self.idle.set()
            try:
                loop.call_soon_threadsafe(_settle, done, answer)
            except RuntimeError:  # the loop is closed: nobody waits
                return
            del job, call, done, answer  # what is idle holds no batch in memory


def _settle(done: asyncio.Future[Done[T]], answer: Done[T]) -> None:
    if not done.done():
        done.set_result(answer)


WINDOW = 15  # forwards; the median follows a change after 8 of them, and no single stall moves it
FORGET_S = 5.0


class Pace:
    """Seconds a row (a token or a candidate of one request, no padding) takes: the median of the
    last forwards. For one thread."""

    def __init__(self) -> None:
        self._rates: deque[float] = deque(maxlen=WINDOW)
        self._measured = 0.0
        self.row_s = 0.0  # 0 until something was measured

    def measure(self, rows: int, seconds: float, now: float) -> None:
        """Take in a forward of `rows` that ended at `now` and took `seconds`."""
        self._rates.append(seconds / max(rows, 1))
        self._measured = now
        self.row_s = median(self._rates)

    def forget(self, now: float) -> None:
        """Call it when nothing runs. What is long ago is forgotten: too high an estimate refuses
        everything, and then no forward would ever correct it."""
        if self.row_s and now - self._measured > FORGET_S:
            self._rates.clear()
            self.row_s = 0.0
