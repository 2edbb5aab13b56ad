"""Dynamic batching: queued requests share a forward pass; an idle server adds no delay.

One forward pass runs at a time. Requests that arrive meanwhile share the next one, up to a budget
of rows (tokens and candidates, padding included) and a limit on padding, so that prompts of similar
length go together. The oldest request always goes first, so that no length can starve another.
Cancelled and expired requests leave the queue at once, and a request that cannot be answered in
time is refused on arrival: under overload the queue holds only work that a client still waits for.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np

from engine.api.errors import (
    DeadlineError,
    ModelsatError,
    OverloadedError,
    UnavailableError,
    WaitTooLongError,
)
from engine.api.request_context import PRINCIPAL, REFUSAL, SEVERAL
from engine.bundle.types import Int64Array
from engine.inference.backend import Backend, ScoringHead
from engine.inference.inference_thread import InferenceThread
from engine.inference.request_queue import Batch, PendingRequest, RequestQueue, ScoreResult
from engine.registry.matching.task_match import add_log_odds
from engine.registry.table import Table

__all__ = ["BatchLimits", "Batcher", "ScoreResult"]
# A request is admitted if SAFETY times its estimate fits into the deadline. The margin covers
# errors of the estimate and the response's way to the client on a busy machine.
SAFETY = 1.5
MIN_RETRY_S = 0.01
OVERLOAD_WINDOW_S = 1.0  # after a refusal
GPU_ROWS = 16_384
# A forward pass that is expected to take no longer may run in the event loop: no thread has to wake
# up for it.
INLINE_S = 0.01
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchLimits:
    """max_rows: of a forward pass, tokens and candidates with padding. max_queue_size: requests,
    max_per_principal: of one principal. padded: whether the backend pads prompts to the longest of
    a pass.

    On 2 cores, sharing a forward pass gains up to 1.7 times for prompts of 32 tokens and nothing
    beyond 270 rows (docs/explanation/performance.md), while every request waits for all of it. A
    GPU gains up to GPU_ROWS: one H100 answered 898 requests a second with it and 420 with 512 rows.
    """

    max_rows: int = 512
    max_queue_size: int = 256
    max_per_principal: int = 256
    padded: bool = True


class Batcher:
    """Queue requests and score them in shared forward passes.

    Call start() inside a running event loop. stop() fails the requests that are still queued.
    on_forward: called with the requests and the rows of each forward pass, where it runs. is_quiet:
    whether nothing waits for the event loop, so that a short pass may run in it; set it only for
    backends that cannot hang.
    """

    is_quiet: Callable[[], bool] = staticmethod(lambda: False)

    def __init__(
        self,
        backend: Backend,
        head: ScoringHead,
        limits: BatchLimits = BatchLimits(),
        on_forward: Callable[[int, int], None] | None = None,
    ) -> None:
        self._backend = backend
        self._head = head
        self._limits = limits
        self._on_forward = on_forward
        # at most max_queue_size, each of a few hundred tokens
        self._queue = RequestQueue(padded=limits.padded)
        self._arrival = asyncio.Event()
        self._thread: InferenceThread[list[ScoreResult]] = InferenceThread()
        self._task: asyncio.Task[None] | None = None
        self._stopped = False
        self._throughput = ThroughputEstimator()
        self._running: tuple[float, int] | None = None  # start and rows of the current forward pass
        self._failures: tuple[float, float] | None = None  # first and last since one succeeded
        self._refused_at = -float("inf")

    @property
    def queue_size(self) -> int:
        """Number of queued requests."""
        return len(self._queue)

    def start(self) -> None:
        """Begin to serve."""
        self._task = asyncio.create_task(self._run(), name="batcher")
        self._task.add_done_callback(lambda _: _fail(self._queue.clear(), None))

    async def stop(self) -> None:
        """Fail all requests; return when the inference thread has ended or after JOIN_S seconds."""
        self._stopped = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        _fail(self._queue.clear(), None)
        await self._thread.stop()

    @property
    def stalled_s(self) -> float:
        """Seconds since the current forward pass began; 0 if none runs. While one hangs, all other
        requests wait until their deadlines."""
        return 0.0 if self._running is None else time.monotonic() - self._running[0]

    @property
    def failing_s(self) -> float:
        """Seconds between the first and the last forward pass that failed, if none has succeeded
        since; 0 otherwise. Time without requests after a failure does not count."""
        return 0.0 if self._failures is None else self._failures[1] - self._failures[0]

    def estimated_wait_s(self, rows: int) -> float:
        """Estimate the seconds until a new request of `rows` (tokens and candidates) is scored: the
        backlog and its own forward pass. 0 if there are no recent measurements."""
        return self._backlog_s(time.monotonic()) + self._throughput.seconds_per_row * rows

    def overload_signal(self) -> threading.Event | None:
        """Return an event that is set while no forward pass runs, or None unless a request was
        refused within the last OVERLOAD_WINDOW_S seconds."""
        overloaded = time.monotonic() - self._refused_at < OVERLOAD_WINDOW_S
        return self._thread.idle if overloaded else None

    async def submit(
        self,
        tokens: Int64Array,
        table: Table,
        rows: Int64Array,
        deadline: float = float("inf"),
        *,
        admitted_size: int = 0,
    ) -> ScoreResult:
        """Score candidates for a prompt.

        Args:
            tokens: (L,) of the prompt.
            table: the candidates of one revision.
            rows: (K,) rows of the table to score, ascending.
            deadline: of time.monotonic(). Without one, only the queue's size limits admission.
            admitted_size: what check_admission() let in by an estimate, 0 if it was not called. A
                request that turns out larger is checked by its true size.

        Raises:
            OverloadedError: the queue is full.
            WaitTooLongError: the backlog leaves too little of the deadline.
            DeadlineError: the deadline is too short even without a backlog, or has passed.
            UnavailableError: the forward pass failed, or the server is stopping.
        """
        loop, now = asyncio.get_running_loop(), time.monotonic()
        self._ensure_serving()
        size = len(tokens) + len(rows)
        if size > admitted_size:
            self.check_admission(size, deadline)
        self._backend.prefetch_table(table.embeddings)
        principal, result = PRINCIPAL.get(), loop.create_future()
        request = PendingRequest(tokens, table, rows, deadline, now, result, size, principal)
        if len(self._queue) >= self._limits.max_queue_size:
            self._make_room(principal, now)
        self._queue.add(request)
        if self._is_alone(size):
            self._run_inline(now)
        else:
            self._arrival.set()
        # The timer also runs during the forward pass, which may hang.
        timer = None if deadline == float("inf") else loop.call_at(deadline, _expire, request)
        try:
            return await request.result
        finally:
            if timer is not None:
                timer.cancel()
            self._queue.remove(request)

    def _is_alone(self, size: int) -> bool:
        """Whether a request of that size, just queued, needs a short pass and no other waits."""
        return (
            self._running is None
            and len(self._queue) == 1
            and 0 < self._throughput.seconds_per_row * size <= INLINE_S
            and not SEVERAL.get()
            and self.is_quiet()
        )

    def _run_inline(self, now: float) -> None:
        batch = self._next_batch(now)
        try:
            if batch.requests:
                self._answer(batch, self._forward(batch), now)
        except Exception as error:  # noqa: BLE001 - the server continues after any failure
            self._record_failure(error)
            _fail(batch.requests, error)

    def _next_batch(self, now: float) -> Batch:
        return self._queue.next_batch(self._limits.max_rows, now, self._throughput.seconds_per_row)

    def _ensure_serving(self) -> None:
        if self._task is None or self._stopped:
            raise UnavailableError("The server is not serving; try another.")
        if self._task.done():
            log.error("the batcher had ended, restarting it")
            self.start()

    def check_admission(self, size: int, deadline: float, now: float | None = None) -> None:
        """Raise unless a request can be queued and answered by its deadline.

        Args:
            size: tokens and candidates of the request.
            deadline: of time.monotonic().
            now: of time.monotonic(); defaults to the current time.

        Raises:
            OverloadedError: the queue is full.
            WaitTooLongError: the backlog leaves too little of the deadline.
            DeadlineError: the deadline is too short even without a backlog.
            ModelsatError: what REFUSAL says.
        """
        now = time.monotonic() if now is None else now
        if (refusal := REFUSAL.get()) is not None:
            self._refused_at = now
            raise refusal
        principal = PRINCIPAL.get()
        count, limit = len(self._queue), self._limits.max_queue_size
        backlog = self._backlog_s(now, self._queue.size_before(principal, size))
        own = self._throughput.seconds_per_row * size
        mine, share = self._queue.count(principal), self._limits.max_per_principal
        if mine >= share or (count >= limit and not self._queue.yields_to(principal)):
            self._refused_at = now
            waiting, most = (mine, share) if mine >= share else (count, limit)
            raise OverloadedError(waiting, most, max(backlog / 2, MIN_RETRY_S))
        left, needed = deadline - now, SAFETY * (backlog + own)
        if left <= 0 or SAFETY * own > left:
            raise DeadlineError(
                f"Scoring takes about {own:.3f} s, the deadline leaves {left:.3f} s; allow more."
            )
        if needed > left:
            self._refused_at = now
            raise WaitTooLongError(count, backlog, left, max(needed - left, MIN_RETRY_S))

    def _make_room(self, principal: str, now: float) -> None:
        """Refuse a queued request of the principal that has most, for one of `principal`."""
        refused, limit = self._queue.pop_newest_of_largest(principal), self._limits.max_queue_size
        self._refused_at = now
        if refused is None:
            raise OverloadedError(limit, limit, MIN_RETRY_S)
        if not refused.result.done():
            retry_s = max(self._backlog_s(now) / 2, MIN_RETRY_S)
            refused.result.set_exception(OverloadedError(limit, limit, retry_s))

    def _backlog_s(self, now: float, queued: int | None = None) -> float:
        """Estimate the seconds until the running work is done and `queued` (None: all that is)."""
        size = self._queue.size if queued is None else queued
        if self._running is None:
            self._throughput.expire(now)
            return self._throughput.seconds_per_row * size
        started, rows = self._running
        # A forward pass that is late is expected to take as long again as it is late.
        rest = abs(self._throughput.seconds_per_row * rows - (now - started))
        return rest + self._throughput.seconds_per_row * size

    async def _run(self) -> None:
        while True:
            await self._arrival.wait()
            batch = Batch()
            try:
                now = time.monotonic()
                self._throughput.expire(now)
                batch = self._next_batch(now)
                if not len(self._queue):
                    self._arrival.clear()
                if batch.requests:
                    await self._serve(batch, now)
            except asyncio.CancelledError:
                _fail(batch.requests, None)
                raise
            except Exception as error:  # noqa: BLE001 - the server continues after any failure
                self._record_failure(error)
                _fail(batch.requests or self._queue.clear(), error)
                await asyncio.sleep(0)

    async def _serve(self, batch: Batch, now: float) -> None:
        self._running = (now, batch.size)
        try:
            results = await self._thread.run(partial(self._forward, batch))
        finally:
            self._running = None
        self._answer(batch, results, now)

    def _answer(self, batch: Batch, results: list[ScoreResult], started: float) -> None:
        ended = time.monotonic()
        self._throughput.record(batch.size, ended - started, ended)
        self._failures = None
        for request, result in zip(batch.requests, results, strict=True):
            if not request.result.done():
                request.result.set_result(result)

    def _forward(self, batch: Batch) -> list[ScoreResult]:
        started = time.monotonic()
        table, row_union = batch.requests[0].table, batch.row_union
        tokens = [request.tokens for request in batch.requests]
        scores = self._backend.probabilities(tokens, table.embeddings, row_union, self._head)
        p, match, unusualness = scores.p, None, None
        if table.match is not None:
            places = table.match.places(scores.embeddings)
            unusualness = table.match.unusualness_at(places)
            match = table.match.log_odds_at(places)[:, row_union]
            p = add_log_odds(p, match)
        if self._on_forward is not None:
            self._on_forward(len(batch.requests), batch.size)
        columns = [np.searchsorted(row_union, request.rows) for request in batch.requests]
        return [
            ScoreResult(
                p[i, columns[i]],
                started - request.arrived,
                scores.inference_s,
                scores.scoring_s,
                scores.embeddings[i],
                None if match is None else match[i, columns[i]],
                None if unusualness is None else float(unusualness[i]),
            )
            for i, request in enumerate(batch.requests)
        ]

    def _record_failure(self, error: Exception) -> None:
        """Log the first failure since a success; the requests are logged with their status."""
        now = time.monotonic()
        if self._failures is None:
            log.error("inference failed (%s), trying again with the next request", _name(error))
        self._failures = (now if self._failures is None else self._failures[0], now)


def _expire(request: PendingRequest) -> None:
    if not request.result.done():
        request.result.set_exception(
            DeadlineError("The deadline passed before the request was scored.")
        )


def _fail(requests: list[PendingRequest], error: Exception | None) -> None:
    """Fail `requests`. error: what was raised, or None if the server is stopping."""
    if error is None:
        error = UnavailableError("The server is stopping; try another.")
    elif not isinstance(error, ModelsatError):
        cause, error = error, UnavailableError(f"Scoring failed ({_name(error)}); try again.")
        error.__cause__ = cause
    for request in requests:
        if not request.result.done():
            request.result.set_exception(error)


def _name(error: BaseException) -> str:
    return type(error).__name__


WINDOW = 15  # forward passes; the median follows a change after 8, and ignores a single stall
EXPIRE_S = 5.0


class ThroughputEstimator:
    """Estimate seconds per row from recent forward passes, for admission control.

    A row is a token or a candidate of one request, without padding. The estimate is the median of
    the last WINDOW passes; seconds_per_row is 0 without measurements. Not thread-safe.
    """

    def __init__(self) -> None:
        self._rates: deque[float] = deque(maxlen=WINDOW)
        self._recorded_at = 0.0
        self.seconds_per_row = 0.0

    def record(self, rows: int, seconds: float, now: float) -> None:
        """Add a forward pass of `rows` that took `seconds` and ended at `now`."""
        self._rates.append(seconds / max(rows, 1))
        self._recorded_at = now
        self.seconds_per_row = median(self._rates)

    def expire(self, now: float) -> None:
        """Forget measurements older than EXPIRE_S. Call it only while no forward pass runs.

        An estimate that is too high would refuse every request, so that no forward pass could ever
        correct it.
        """
        if self.seconds_per_row and now - self._recorded_at > EXPIRE_S:
            self._rates.clear()
            self.seconds_per_row = 0.0
