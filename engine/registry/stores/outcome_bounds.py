"""The bounds of an outcome store, kept fairly: what one principal records displaces its own first.

Shapes of the tables: outcome_sql.TABLES.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

from engine.registry.stores.outcome_types import OutcomeLimits
from engine.registry.stores.sql import Database, Row

DAY_S = 86_400.0
ROW_BYTES = 200  # of an instruction and its report besides the vectors


class PrincipalShares:
    """What each principal has in a store, and the bounds on it. For one transaction.

    next_position: numbers a change of an instruction. deletions: of rows, counted once for many.
    """

    def __init__(
        self, db: Database, limits: OutcomeLimits, next_position: Callable[[], int]
    ) -> None:
        self._db = db
        self._limits = limits
        self._next_position = next_position
        self._added: dict[str, list[int]] = {}  # what is to be added to each column
        self.deletions = 0

    def add(self, principal: str, outcomes: int = 0, instructions: int = 0, size: int = 0) -> None:
        """Count what a principal has more of, or less of if it is negative."""
        share = self._added.setdefault(principal, [0, 0, 0])
        for column, added in enumerate((outcomes, instructions, size)):
            share[column] += added

    def add_vectors(self, principal: str, vectors: Sequence[bytes | None]) -> None:
        """Count the vectors of an instruction as the store keeps them, None if it keeps none."""
        kept = [vector for vector in vectors if vector is not None]
        if kept:
            self.add(principal, instructions=1, size=sum(map(len, kept)) + ROW_BYTES)

    def keep_bounds(self) -> None:
        """Delete outcomes and forget vectors beyond the bounds, and write the shares."""
        self._delete_old()
        self._forget()
        self._write()

    def _write(self) -> None:
        """Write what was added to shares; once for many outcomes, to save trips to a database."""
        for principal, added in self._added.items():
            self._db.run(
                "INSERT INTO memory_share VALUES (?, ?, ?, ?) ON CONFLICT (principal) DO UPDATE SET"
                " outcomes = memory_share.outcomes + excluded.outcomes,"
                " instructions = memory_share.instructions + excluded.instructions,"
                " bytes = memory_share.bytes + excluded.bytes",
                (principal, *added),
            )
        if any(min(added) < 0 for added in self._added.values()):
            self._db.run("DELETE FROM memory_share WHERE outcomes <= 0 AND instructions <= 0")
        self._added.clear()

    def _delete_old(self) -> None:
        """Delete what is too old; then, down to the limit, the oldest of the principal who has
        most, so that no outcomes displace newer ones of another."""
        if self._limits.max_age_days:
            before = time.time() - self._limits.max_age_days * DAY_S
            self._delete("recorded_at < ?", (before,), None)
        while (excess := self._total("outcomes") - self._limits.outcomes) > 0:
            principal, count = self._largest("outcomes", excess)
            self._delete("principal = ?", (principal,), count)

    def _delete(self, condition: str, values: Sequence[Any], outcomes: int | None) -> None:
        """Delete reports, oldest first, until `outcomes` are gone (None: all of them)."""
        limit = "" if outcomes is None else f" LIMIT {outcomes:d}"
        rows = self._db.run(
            "SELECT number, instruction, principal, count FROM memory_report"  # noqa: S608
            f" WHERE {condition} ORDER BY number{limit}",
            values,
        )
        if outcomes is not None:
            earlier = itertools.accumulate((row[-1] for row in rows), initial=0)
            rows = [row for row, deleted in zip(rows, earlier, strict=False) if deleted < outcomes]
        self.delete(rows)

    def delete(self, reports: Sequence[Row]) -> None:
        """Delete reports, and the instructions that no other is on. reports: rows (number,
        instruction, principal, count)."""
        if not reports:
            return
        self.deletions += 1
        for _, _, principal, count in reports:
            self.add(principal, outcomes=-count)
        self._db.run_many("DELETE FROM memory_report WHERE number = ?", [r[:1] for r in reports])
        for number in sorted({row[1] for row in reports}):
            if self._db.run("SELECT 1 FROM memory_report WHERE instruction = ? LIMIT 1", (number,)):
                continue
            ((principal, size),) = self._db.run(
                "SELECT principal, COALESCE(LENGTH(embedding) + LENGTH(logits), 0)"
                " FROM memory_instruction WHERE number = ?",
                (number,),
            )
            self._db.run("DELETE FROM memory_instruction WHERE number = ?", (number,))
            if size:
                self.add(principal, instructions=-1, size=-(size + ROW_BYTES))

    def _forget(self) -> None:
        """Forget vectors beyond the bounds; the outcomes stay, to be exported."""
        while self._limits.memory_bytes:
            count, size = self._total("instructions"), self._total("bytes")
            excess = max(
                count - self._limits.instructions,
                -(-count * (size - self._limits.memory_bytes) // size) if size else 0,
            )
            if excess <= 0 or not count:
                return
            principal, most = self._largest("instructions", excess)
            rows = self._db.run(
                "SELECT number, LENGTH(embedding) + LENGTH(logits) FROM memory_instruction"
                " WHERE principal = ? AND embedding IS NOT NULL ORDER BY number LIMIT ?",
                (principal, most),
            )
            self._db.run_many(
                "UPDATE memory_instruction SET candidates = NULL, embedding = NULL, logits = NULL,"
                " version = ?"
                " WHERE number = ?",
                [(self._next_position(), number) for number, _ in rows],
            )
            forgotten = sum(row[1] + ROW_BYTES for row in rows)
            self.add(principal, instructions=-len(rows), size=-forgotten)
            if not rows:  # the counts are wrong; never loop on them
                return

    def _total(self, column: str) -> int:
        self._write()
        rows = self._db.run(f"SELECT COALESCE(SUM({column}), 0) FROM memory_share")  # noqa: S608
        return int(rows[0][0])

    def _largest(self, column: str, excess: int) -> tuple[str, int]:
        """Return the principal who has most, and how many of its to remove at once."""
        (principal, most), *others = self._db.run(
            f"SELECT principal, {column} FROM memory_share"  # noqa: S608
            f" ORDER BY {column} DESC, principal LIMIT 2"
        )
        second = others[0][1] if others else 0
        return str(principal), min(excess, max(1, most - second))
