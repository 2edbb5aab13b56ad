"""Store recorded outcomes from the event loop; outcomes are durable when record() returns.

Calls that arrive together share a transaction, and so an fsync.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from engine.api.errors import ModelsatError, OverloadedError, UnavailableError
from engine.registry.stores.outcome_databases import open_outcomes, read_recorded
from engine.registry.stores.outcome_sql import OutcomeWriter
from engine.registry.stores.outcome_types import (
    OutcomeLimits,
    OutcomeReport,
    RecordedOutcome,
    ScoredInstruction,
)
from engine.registry.stores.sql import Database

__all__ = ["OutcomeLimits", "OutcomeStore", "RecordedOutcome", "read_recorded"]
MAX_QUEUED = 10_000  # outcomes that wait while others are written
MAX_QUEUED_BYTES = 64 << 20  # of their texts; the outcome that exceeds it is still accepted
RETRY_S = 1.0
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class _QueuedReport:
    report: OutcomeReport
    only_known: bool
    result: asyncio.Future[int]

    @property
    def size(self) -> int:
        """Return the memory of its text and vectors, in bytes."""
        scored = self.report.scored
        text = sys.getsizeof(self.report.outcomes[0].text)
        return text + (0 if scored is None else scored.nbytes)


class OutcomeStore:
    """An open store of outcomes, for one event loop. Other processes may read and write it too."""

    def __init__(
        self, location: str | Path, limit: int | OutcomeLimits, max_age_days: float = 0
    ) -> None:
        """Open `location`, and create it for its owner alone if it does not exist.

        Args:
            location: of the SQLite file, or a postgresql:// URL.
            limit: outcomes to keep, at least 1, or all bounds. Beyond it, the oldest ones of the
                principal who has most are deleted first.
            max_age_days: age at which outcomes are deleted; 0 keeps them.

        Raises:
            StoreError: the store is unusable; it is left as it is.
        """
        if isinstance(limit, int):
            limit = OutcomeLimits(limit, max_age_days)
        self._limits = limit
        self._queue: dict[_QueuedReport, None] = {}  # in order of arrival
        self._queued_bytes = 0
        self._writing: asyncio.Task[None] | None = None
        self._closed = False
        self.on_recorded: list[Callable[[], None]] = []  # called after something was recorded
        self._database = open_outcomes(location)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="outcomes")
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="outcome-reader")

    async def record(self, outcome: RecordedOutcome, *, only_known: bool = False) -> bool:
        """Record `outcome`, and return once it is on disk; see record_report.

        Returns:
            True if it is new, False if the same outcome was recorded before.
        """
        return bool(await self.record_report(OutcomeReport([outcome]), only_known=only_known))

    async def record_report(self, report: OutcomeReport, *, only_known: bool = False) -> int:
        """Record the outcomes of `report`, and return once they are on disk.

        only_known: answer for what this principal has recorded already, and record nothing new.

        Returns:
            The number of outcomes that are new.

        Raises:
            AlreadyExistsError: the decision has another score of a candidate.
            DecisionNotFoundError: only_known, and there is no such outcome of this principal.
            OverloadedError: too many outcomes are waiting.
            StoreError: the store cannot be written.
            UnavailableError: the store is closed.
        """
        self._check_open()
        self._check_room()
        queued = _QueuedReport(report, only_known, asyncio.get_running_loop().create_future())
        self._queue[queued] = None
        self._queued_bytes += queued.size
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_all(), name="outcomes")
        try:
            return await queued.result
        finally:  # a call that was cancelled must not keep its text in memory
            if queued in self._queue:
                del self._queue[queued]
                self._queued_bytes -= queued.size

    async def close(self) -> None:
        """Write the queued outcomes, then close the store."""
        self._closed = True
        if self._writing is not None:
            await self._writing
        await asyncio.to_thread(self._thread.shutdown)  # prune() may wait for the disk
        await asyncio.to_thread(self._reading.shutdown)
        self._database.close()

    async def prune(self) -> None:
        """Delete what is too old, if nothing was recorded for a while, and what is not used."""
        await self.write(OutcomeWriter.delete_unused_lists)

    async def fill(
        self, scored: Mapping[str, ScoredInstruction], give_up_before: float = 0.0
    ) -> int:
        """Add the vectors of instructions that wait for them, by key; return how many did.

        Those that were recorded before `give_up_before` wait no longer.
        """

        def run(writer: OutcomeWriter) -> int:
            count = sum([writer.fill(key, each) for key, each in scored.items()])
            writer.give_up(give_up_before)
            return count

        return await self.write(run)

    def notify(self) -> None:
        """Call on_recorded."""
        for hook in self.on_recorded:
            hook()

    async def write(self, operation: Callable[[OutcomeWriter], T]) -> T:
        """Run `operation` in a transaction, in the thread that writes. Raises StoreError."""
        self._check_open()

        def run() -> T:
            with self._database.write() as db:
                writer = OutcomeWriter(db, self._limits)
                result = operation(writer)
                writer.finish()
            return result

        return await asyncio.get_running_loop().run_in_executor(self._thread, run)

    async def read(self, operation: Callable[[Database], T]) -> T:
        """Run `operation` on one state of the store, in the thread that reads. Raises
        StoreError."""
        self._check_open()

        def run() -> T:
            with self._database.read() as db:
                return operation(db)

        return await asyncio.get_running_loop().run_in_executor(self._reading, run)

    def _check_open(self) -> None:
        if self._closed:
            raise UnavailableError("The server is stopping; use another one.")

    def _check_room(self) -> None:
        """Raise OverloadedError if the queue is full because the disk is slow."""
        count, size = len(self._queue), self._queued_bytes
        if count >= MAX_QUEUED:
            raise OverloadedError(count, MAX_QUEUED, RETRY_S, "outcomes")
        if size >= MAX_QUEUED_BYTES:
            raise OverloadedError(size, MAX_QUEUED_BYTES, RETRY_S, "bytes of outcomes")

    async def _write_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queue:
            # A call that was cancelled before the write is not recorded; its retry will be.
            batch = [queued for queued in self._queue if not queued.result.done()]
            self._queue, self._queued_bytes = {}, 0
            results: Sequence[int | Exception]
            try:
                results = await loop.run_in_executor(
                    self._thread, self._write, [(q.report, q.only_known) for q in batch]
                )
            except Exception as error:  # noqa: BLE001 - the server outlives any failure
                results = [error] * len(batch)
            for queued, result in zip(batch, results, strict=True):
                if queued.result.done():
                    continue
                if isinstance(result, int):
                    queued.result.set_result(result)
                else:
                    queued.result.set_exception(result)
            self.notify()
        self._writing = None

    def _write(self, reports: Sequence[tuple[OutcomeReport, bool]]) -> list[int | ModelsatError]:
        """Write in one transaction; return the result of record_report() for each report."""
        with self._database.write() as db:
            writer = OutcomeWriter(db, self._limits)
            results = [writer.record(report, only_known) for report, only_known in reports]
            writer.finish()
        return results
