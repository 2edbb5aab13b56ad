"""Recorded outcomes on disk: one SQLite file. What record() has returned is durable.

Calls that wait together are committed together, so that a burst costs one fsync and not one each.
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
    ModelsatError,
    OverloadedError,
    StoreError,
    UnavailableError,
)
from engine.registry.stores.sqlite import check_file_identity, file_identity

SCHEMA = 1
BUSY_S = 5.0  # to wait for another process that writes the same file
MAX_WAITING = 10_000  # outcomes that wait while others are written
MAX_WAITING_BYTES = 64 << 20  # of their texts; the one that reaches it is still taken
RETRY_S = 1.0
_REMOVED = "nothing was recorded. Put it back, or restart the server to begin a new one"
# Rows are added at the end and dropped at the front, so numbers have no gaps and count them.
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


@dataclass(frozen=True)
class RecordedOutcome:
    """How well `candidate` (an id) did in the decision; score in [0, 1]. text and category are
    empty where the caller kept them."""

    decision_id: str
    candidate: str
    score: float
    text: str = ""
    category: str = ""


@dataclass(frozen=True, eq=False)
class _Waiting:
    outcome: RecordedOutcome
    result: asyncio.Future[bool]

    @property
    def size(self) -> int:
        """Bytes of memory that its text takes."""
        return sys.getsizeof(self.outcome.text)


class OutcomeStore:
    """An open file. Use it from one event loop; other processes may read and write it too."""

    def __init__(self, path: Path, limit: int) -> None:
        """Open `path`, creating it where there is none. limit: outcomes kept, at least 1; the
        oldest go first. Raises StoreError where the file is unusable; it is left as it is."""
        self._path = path
        self._limit = limit
        self._waiting: dict[_Waiting, None] = {}  # in order of arrival
        self._waiting_bytes = 0
        self._writing: asyncio.Task[None] | None = None
        self._closed = False
        with _translated(path, "opened"):
            path.parent.mkdir(parents=True, exist_ok=True)
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
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")  # acknowledged means on disk
            self._db.execute("SELECT 1 FROM outcome LIMIT 1").fetchone()  # creates a new file's log
            self._file_identity = file_identity(self._path)

    async def record(self, outcome: RecordedOutcome) -> bool:
        """Keep `outcome`; True once it is on disk, False where it was there already.

        The same outcome again changes nothing; AlreadyExistsError where the decision has another
        score of the candidate, OverloadedError where too much waits already, StoreError where it
        cannot be written.
        """
        if self._closed:
            raise UnavailableError("The server is stopping; try another.")
        self._admit()
        waiting = _Waiting(outcome, asyncio.get_running_loop().create_future())
        self._waiting[waiting] = None
        self._waiting_bytes += waiting.size
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_all(), name="outcomes")
        try:
            return await waiting.result
        finally:
            self._drop(waiting)

    async def close(self) -> None:
        """Write what waits, then close the file."""
        self._closed = True
        if self._writing is not None:
            await self._writing
        self._thread.shutdown()
        self._db.close()

    def _admit(self) -> None:
        """Raise where a slow disk would let the queue grow without bound."""
        count, size = len(self._waiting), self._waiting_bytes
        if count >= MAX_WAITING:
            raise OverloadedError(count, MAX_WAITING, RETRY_S, "outcomes")
        if size >= MAX_WAITING_BYTES:
            raise OverloadedError(size, MAX_WAITING_BYTES, RETRY_S, "bytes of outcomes")

    def _drop(self, waiting: _Waiting) -> None:
        """A call that has ended leaves no text behind; does nothing where it is being written."""
        if waiting in self._waiting:
            del self._waiting[waiting]
            self._waiting_bytes -= waiting.size

    async def _write_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            # A caller that gave up before the write began is not recorded; its retry will be.
            batch = [w for w in self._waiting if not w.result.done()]
            self._waiting, self._waiting_bytes = {}, 0
            told: Sequence[bool | Exception]
            try:
                told = await loop.run_in_executor(
                    self._thread, self._write, [w.outcome for w in batch]
                )
            except Exception as error:  # noqa: BLE001 - whatever fails, the server goes on
                told = [error] * len(batch)
            for waiting, found in zip(batch, told, strict=True):
                if waiting.result.done():
                    continue
                if isinstance(found, bool):
                    waiting.result.set_result(found)
                else:
                    waiting.result.set_exception(found)
        self._writing = None

    def _write(self, outcomes: Sequence[RecordedOutcome]) -> list[bool | ModelsatError]:
        """In one transaction: what was recorded, was there, or is in conflict."""
        with _translated(self._path, "written"):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                told = [self._insert(outcome) for outcome in outcomes]
                self._db.execute(
                    "DELETE FROM outcome WHERE number <= (SELECT max(number) FROM outcome) - ?",
                    (self._limit,),
                )
                check_file_identity(self._file_identity, _REMOVED)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk has rolled back already
                    self._db.execute("ROLLBACK")
                raise
        return told

    def _insert(self, new: RecordedOutcome) -> bool | ModelsatError:
        row = self._db.execute(
            "SELECT score FROM outcome WHERE decision_id = ? AND candidate = ?",
            (new.decision_id, new.candidate),
        ).fetchone()
        if row is None:
            values = (new.decision_id, new.candidate, new.score, new.text, new.category)
            self._db.execute(
                "INSERT INTO outcome (decision_id, candidate, score, text, category, recorded_at)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (*values, time.time()),
            )
            return True
        if row[0] == new.score:
            return False
        return AlreadyExistsError(
            f"decisions/{new.decision_id}/outcomes/{new.candidate}",
            f"has score {row[0]}, the request says {new.score}; the first one is kept.",
            "modelsat.v1.Outcome",
        )


def read_recorded(path: Path) -> Iterator[RecordedOutcome]:
    """All outcomes of a file, oldest first; a server may write to it meanwhile. Raises StoreError
    where it is no such file."""
    with _translated(path, "read"), closing(_open_to_read(path)) as db:
        _check_schema(db, path)
        columns = "decision_id, candidate, score, text, category"
        for row in db.execute(f"SELECT {columns} FROM outcome ORDER BY number"):  # noqa: S608
            yield RecordedOutcome(*row)


def _open_to_read(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise StoreError(f"{path} does not exist; `modelsat serve --outcomes-db` says where it is.")
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=BUSY_S)


def _is_new(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is None


def _check_schema(db: sqlite3.Connection, path: Path) -> None:
    found = db.execute("PRAGMA user_version").fetchone()[0]
    if found != SCHEMA:
        raise StoreError(
            f"{path}: schema is {found}, this version's is {SCHEMA}; give --outcomes-db another "
            f"path."
        )


@contextmanager
def _translated(path: Path, done: str) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise StoreError(
            f"{path} could not be {done} ({type(error).__name__}: {error}); free disk space, mend"
            " its permissions, or give --outcomes-db another path."
        ) from error
