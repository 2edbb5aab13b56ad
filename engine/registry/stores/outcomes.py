"""Store recorded outcomes in one SQLite file; outcomes are durable when record() returns.

Calls that arrive together share a transaction, and so an fsync.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from engine.api.errors import (
    AlreadyExistsError,
    DecisionNotFoundError,
    ModelsatError,
    OverloadedError,
    StoreError,
    UnavailableError,
)
from engine.registry.stores.outcome_types import RecordedOutcome
from engine.registry.stores.private_files import create_private, make_private
from engine.registry.stores.sqlite import check_file_identity, file_identity

__all__ = ["OutcomeStore", "RecordedOutcome", "read_recorded"]
SCHEMA = 1
BUSY_S = 5.0  # maximum wait for another process that writes the same file
MAX_QUEUED = 10_000  # outcomes that wait while others are written
MAX_QUEUED_BYTES = 64 << 20  # of their texts; the outcome that exceeds it is still accepted
RETRY_S = 1.0
_REMOVED_HINT = "nothing was recorded. Put it back, or restart the server to start a new file"
DAY_S = 86_400.0
_CREATE = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS outcome (
  number INTEGER PRIMARY KEY, decision_id TEXT NOT NULL, candidate TEXT NOT NULL,
  score REAL NOT NULL, text TEXT NOT NULL, category TEXT NOT NULL, recorded_at REAL NOT NULL,
  UNIQUE (decision_id, candidate)
) STRICT;
PRAGMA user_version = {SCHEMA};
COMMIT;
"""
# Who recorded what, and how much. Version 0.2 wrote files without it; it can read and write them
# with it, so the schema's number stays.
_SHARES = """
BEGIN IMMEDIATE;
ALTER TABLE outcome ADD COLUMN principal TEXT NOT NULL DEFAULT '';
CREATE TABLE share (principal TEXT PRIMARY KEY, outcomes INTEGER NOT NULL) STRICT;
INSERT INTO share SELECT principal, count(*) FROM outcome GROUP BY principal;
CREATE INDEX outcome_of ON outcome (principal, number);
CREATE INDEX outcome_age ON outcome (recorded_at);
CREATE TRIGGER outcome_added AFTER INSERT ON outcome BEGIN
  INSERT INTO share VALUES (new.principal, 1)
  ON CONFLICT (principal) DO UPDATE SET outcomes = outcomes + 1;
END;
CREATE TRIGGER outcome_removed AFTER DELETE ON outcome BEGIN
  UPDATE share SET outcomes = outcomes - 1 WHERE principal = old.principal;
  DELETE FROM share WHERE principal = old.principal AND outcomes <= 0;
END;
COMMIT;
"""


@dataclass(frozen=True, eq=False)
class _QueuedOutcome:
    outcome: RecordedOutcome
    only_known: bool
    result: asyncio.Future[bool]

    @property
    def size(self) -> int:
        """Return the memory of its text, in bytes."""
        return sys.getsizeof(self.outcome.text)


class OutcomeStore:
    """An open file of outcomes, for one event loop. Other processes may read and write it too."""

    def __init__(self, path: Path, limit: int, max_age_days: float = 0) -> None:
        """Open `path`, and create it for its owner alone if it does not exist.

        Args:
            path: of the SQLite file.
            limit: outcomes to keep, at least 1. Beyond it, the oldest ones of the principal who has
                most are deleted first.
            max_age_days: age at which outcomes are deleted; 0 keeps them.

        Raises:
            StoreError: the file is unusable; it is left as it is.
        """
        self._path = path
        self._limit = limit
        self._max_age_s = max_age_days * DAY_S
        self._queue: dict[_QueuedOutcome, None] = {}  # in order of arrival
        self._queued_bytes = 0
        self._writing: asyncio.Task[None] | None = None
        self._closed = False
        with _translated(path, "opened"):
            path.parent.mkdir(parents=True, exist_ok=True)
            create_private(path)
            self._db = sqlite3.connect(
                path, timeout=BUSY_S, check_same_thread=False, isolation_level=None
            )
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="outcomes")

    def _prepare(self) -> None:
        with _translated(self._path, "opened"):
            if _is_new(self._db):
                self._db.executescript(_CREATE)
            _check_schema(self._db, self._path)
            make_private(self._path)
            if "principal" not in _columns(self._db):
                self._db.executescript(_SHARES)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")  # acknowledged means on disk
            self._db.execute("SELECT 1 FROM outcome LIMIT 1").fetchone()  # creates a new file's log
            self._file_identity = file_identity(self._path)

    async def record(self, outcome: RecordedOutcome, *, only_known: bool = False) -> bool:
        """Record `outcome`, and return once it is on disk.

        only_known: answer for what this principal has recorded already, and record nothing new.

        Returns:
            True if it is new, False if the same outcome was recorded before.

        Raises:
            AlreadyExistsError: the decision has another score of the candidate.
            DecisionNotFoundError: only_known, and there is no such outcome of this principal.
            OverloadedError: too many outcomes are waiting.
            StoreError: the file cannot be written.
            UnavailableError: the store is closed.
        """
        if self._closed:
            raise UnavailableError("The server is stopping; use another one.")
        self._check_room()
        queued = _QueuedOutcome(outcome, only_known, asyncio.get_running_loop().create_future())
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
        """Write the queued outcomes, then close the file."""
        self._closed = True
        if self._writing is not None:
            await self._writing
        await asyncio.to_thread(self._thread.shutdown)  # prune() may wait for the disk
        self._db.close()

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
            results: Sequence[bool | Exception]
            try:
                results = await loop.run_in_executor(
                    self._thread, self._write, [(q.outcome, q.only_known) for q in batch]
                )
            except Exception as error:  # noqa: BLE001 - the server outlives any failure
                results = [error] * len(batch)
            for queued, result in zip(batch, results, strict=True):
                if queued.result.done():
                    continue
                if isinstance(result, bool):
                    queued.result.set_result(result)
                else:
                    queued.result.set_exception(result)
        self._writing = None

    async def prune(self) -> None:
        """Delete what is too old, if nothing was recorded for a while."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._write, [])

    def _write(
        self, outcomes: Sequence[tuple[RecordedOutcome, bool]]
    ) -> list[bool | ModelsatError]:
        """Write in one transaction; return the result of record() for each outcome."""
        with _translated(self._path, "written"):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                results = [self._insert(outcome, known) for outcome, known in outcomes]
                self._delete_old()
                check_file_identity(self._file_identity, _REMOVED_HINT)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # SQLite itself rolls back if the disk is full
                    self._db.execute("ROLLBACK")
                raise
        return results

    def _insert(self, new: RecordedOutcome, only_known: bool) -> bool | ModelsatError:
        row = self._db.execute(
            "SELECT score, principal FROM outcome WHERE decision_id = ? AND candidate = ?",
            (new.decision_id, new.candidate),
        ).fetchone()
        if only_known and (row is None or row[1] != new.principal):
            return DecisionNotFoundError(new.decision_id)
        if row is None:
            self._db.execute(
                "INSERT INTO outcome (decision_id, candidate, score, text, category, principal,"
                " recorded_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    new.decision_id,
                    new.candidate,
                    new.score,
                    new.text,
                    new.category,
                    new.principal,
                    time.time(),
                ),
            )
            return True
        if row[0] == new.score:
            return False
        return AlreadyExistsError(
            f"decisions/{new.decision_id}/outcomes/{new.candidate}",
            f"has score {row[0]}, the request says {new.score}; the first one is kept.",
            "modelsat.v1.Outcome",
        )

    def _delete_old(self) -> None:
        """Delete what is too old; then, down to the limit, the oldest of the principal who has
        most, so that no outcomes displace newer ones of another."""
        if self._max_age_s:
            before = time.time() - self._max_age_s
            self._db.execute("DELETE FROM outcome WHERE recorded_at < ?", (before,))
        total = self._db.execute("SELECT total(outcomes) FROM share").fetchone()[0]
        excess = int(total) - self._limit
        while excess > 0:
            (principal, most), *others = self._db.execute(
                "SELECT principal, outcomes FROM share ORDER BY outcomes DESC LIMIT 2"
            ).fetchall()
            second = others[0][1] if others else 0
            count = min(excess, max(1, most - second))
            self._db.execute(
                "DELETE FROM outcome WHERE number IN"
                " (SELECT number FROM outcome WHERE principal = ? ORDER BY number LIMIT ?)",
                (principal, count),
            )
            excess -= count


def read_recorded(path: Path) -> Iterator[RecordedOutcome]:
    """Yield all outcomes of a file, oldest first; a server may write to it at the same time.

    Raises StoreError if it is not a file of outcomes.
    """
    with _translated(path, "read"), closing(_open_to_read(path)) as db:
        _check_schema(db, path)
        columns = "decision_id, candidate, score, text, category"
        for row in db.execute(f"SELECT {columns} FROM outcome ORDER BY number"):  # noqa: S608
            yield RecordedOutcome(*row)


def _open_to_read(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise StoreError(
            f"{path} does not exist; it is the file of `modelsat serve --outcomes-db`."
        )
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=BUSY_S)


def _columns(db: sqlite3.Connection) -> list[str]:
    return [row[1] for row in db.execute("PRAGMA table_info(outcome)")]


def _is_new(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is None


def _check_schema(db: sqlite3.Connection, path: Path) -> None:
    schema = db.execute("PRAGMA user_version").fetchone()[0]
    if schema != SCHEMA:
        raise StoreError(
            f"{path}: schema is {schema}, this version's is {SCHEMA}; set --outcomes-db to another"
            " path."
        )


@contextmanager
def _translated(path: Path, participle: str) -> Iterator[None]:
    """Raise StoreError for failures. participle: what could not be done to the file."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise StoreError(
            f"{path} could not be {participle} ({type(error).__name__}: {error}); free disk space,"
            " fix its permissions, or set --outcomes-db to another path."
        ) from error
