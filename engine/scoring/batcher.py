"""Joins waiting requests into one forward pass, without waiting when idle.

One forward runs at a time; what arrives meanwhile is joined into the next, up to a budget of rows
(tokens and candidates, padding included) and to a share of padding: neighbours in length go
together, and the oldest request always goes first, so that no length starves another. Cancelled and
expired requests are dropped before it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engine.contract.errors import DeadlineError, OverloadedError, UnavailableError
from engine.registry.table import Table
from engine.scoring.backend import Backend, Readout

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Scored:
    """p: (len(rows),) probabilities in the order of the request's rows; times in seconds."""

    p: Floats
    queue_s: float
    forward_s: float
    score_s: float


@dataclass(frozen=True)
class Limits:
    """rows: of one forward, tokens and candidates with padding. waiting: requests in the queue.

    On 2 cores joining gains up to 1.7 times for prompts of 32 tokens and nothing beyond 270 rows
    (docs/performance.md), while everyone waits for the whole forward.
    """

    rows: int = 512
    waiting: int = 256


@dataclass(frozen=True, eq=False)
class _Work:
    tokens: Ints
    table: Table
    rows: Ints
    deadline: float
    arrived: float
    result: asyncio.Future[Scored] = field(repr=False)


class Batcher:
    """Start it inside a running loop with start(); stop() fails what still waits."""

    def __init__(self, backend: Backend, readout: Readout, limits: Limits = Limits()) -> None:
        self._backend = backend
        self._readout = readout
        self._limits = limits
        self._waiting: deque[_Work] = deque()
        self._arrival = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="forward")
        self._loop: asyncio.Task[None] | None = None
        self._forward_s = 0.05  # of the last batch; what RetryInfo is reckoned from

    def start(self) -> None:
        """Begin to serve."""
        self._loop = asyncio.create_task(self._run(), name="batcher")

    async def stop(self) -> None:
        """Fail what waits and what is in flight; returns when the forward thread is free."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        self._fail(list(self._waiting), UnavailableError("The server is stopping; try another."))
        self._waiting.clear()
        await asyncio.to_thread(self._thread.shutdown)

    async def submit(
        self, tokens: Ints, table: Table, rows: Ints, deadline: float = float("inf")
    ) -> Scored:
        """Score `rows` of `table` for the prompt `tokens` (L,). deadline: of time.monotonic().

        Raises OverloadedError, DeadlineError, UnavailableError.
        """
        if self._loop is None or self._loop.done():
            raise UnavailableError("The server is not serving; try another.")
        if len(self._waiting) >= self._limits.waiting:
            raise OverloadedError(len(self._waiting), self._limits.waiting, self._forward_s)
        self._backend.prepare(table.embeddings)
        result: asyncio.Future[Scored] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Work(tokens, table, rows, deadline, time.monotonic(), result))
        self._arrival.set()
        return await result

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrival.wait()
            batch = take(self._waiting, self._limits.rows, time.monotonic())
            if not self._waiting:
                self._arrival.clear()
            if not batch:
                continue
            try:
                done = await loop.run_in_executor(self._thread, self._forward, batch)
            except asyncio.CancelledError:
                self._fail(batch, UnavailableError("The server is stopping; try another."))
                raise
            except Exception as error:  # noqa: BLE001 - the batch fails, the next one is served
                self._fail(batch, error)
                continue
            for work, scored in zip(batch, done, strict=True):
                if not work.result.done():
                    work.result.set_result(scored)

    def _forward(self, batch: list[_Work]) -> list[Scored]:
        begun = time.monotonic()
        table = batch[0].table
        union = np.unique(np.concatenate([work.rows for work in batch]))
        tokens = [work.tokens for work in batch]
        scores = self._backend.probabilities(tokens, table.embeddings, union, self._readout)
        self._forward_s = scores.forward_s
        return [
            Scored(
                scores.p[i, np.searchsorted(union, work.rows)],
                begun - work.arrived,
                scores.forward_s,
                scores.score_s,
            )
            for i, work in enumerate(batch)
        ]

    @staticmethod
    def _fail(batch: list[_Work], error: Exception) -> None:
        if not isinstance(error, UnavailableError):
            known = UnavailableError(f"Scoring failed ({type(error).__name__}); try again.")
            known.__cause__ = error
            error = known
        for work in batch:
            if not work.result.done():
                work.result.set_exception(error)


PADDING_SHARE = 0.2  # of a joined forward's rows that may be padding


def take(waiting: deque[_Work], budget: int, now: float) -> list[_Work]:
    """Remove the next batch from `waiting`: the oldest request, and in order of arrival those
    that read the same table and still fit the budget of rows. Expired ones are failed."""
    batch: list[_Work] = []
    left: deque[_Work] = deque()
    union: set[int] = set()
    longest = total = 0
    while waiting:
        work = waiting.popleft()
        if work.result.done():
            continue
        if work.deadline <= now:
            work.result.set_exception(DeadlineError("The deadline passed while waiting."))
            continue
        rows = union.union(work.rows.tolist())
        length = max(longest, len(work.tokens))
        variants = work.table.embeddings.shape[1]
        each = len(rows) * variants
        size, needed = (len(batch) + 1) * (length + each), total + len(work.tokens)
        padding = (len(batch) + 1) * length - needed
        fits = size <= budget and padding <= PADDING_SHARE * size
        if batch and (work.table is not batch[0].table or not fits):
            left.append(work)
            continue
        batch.append(work)
        union, longest, total = rows, length, needed
    waiting.extend(left)
    return batch
