"""The store as one SQLite file, for one server."""

from __future__ import annotations

import fcntl
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from engine.api.errors import StoreError
from engine.registry.stores import sql
from engine.registry.stores.base import (
    DEFAULT_HISTORY_LIMIT,
    SCHEMA,
    Change,
    Encode,
    Entry,
    Revision,
    RevisionCallback,
)
from engine.registry.stores.sql import Row

OLD_SCHEMA = "1"  # one table, no history; brought to SCHEMA on opening
TABLES = [t.format(int="INTEGER", blob="BLOB", end=" STRICT") for t in sql.TABLES]


class SqliteDatabase:
    """history.Database over a connection."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def run(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """See sql.Database."""
        return self._db.execute(sql, values).fetchall()

    def run_many(self, sql: str, rows: Iterable[Row]) -> None:
        """See sql.Database."""
        self._db.executemany(sql, rows)


class SqliteStore:
    """See Store."""

    shared = False

    def __init__(
        self,
        path: Path,
        encoder_id: str,
        width: int,
        reencode_candidates: Encode | None = None,
        keep: int = DEFAULT_HISTORY_LIMIT,
    ) -> None:
        """Open `path`, creating it where there is none. width: D, of an embedding.

        Raises StoreError where the file is damaged, of another schema or from another encoder; the
        file is left as it is. With `reencode_candidates`, a store from another encoder is brought
        to this one.
        """
        self._path = path
        self._width = width
        self._keep = keep
        with self._translated("opened", RESTORE_HINT):
            self._lock = lock(path)
            with ExitStack() as opened:
                opened.callback(self._lock.close)
                self._open(opened, encoder_id, reencode_candidates)
                opened.pop_all()  # all is well: close() does it

    def _open(self, opened: ExitStack, encoder_id: str, reencode_candidates: Encode | None) -> None:
        if not self._path.exists():
            _create(self._path, encoder_id)
        self._connection = connect(self._path)
        opened.callback(self._connection.close)
        self._db = SqliteDatabase(self._connection)
        schema = check(self._path, self._db)
        if reencode_candidates is None:
            check_encoder(str(self._path), sql.meta(self._db, "encoder_id"), encoder_id)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")  # acknowledged means on disk
        with self._transaction():
            if schema == OLD_SCHEMA:
                migrate(self._db)
            if reencode_candidates and sql.meta(self._db, "encoder_id") != encoder_id:
                found = [(b, sql.candidate_of(b)) for b in sql.bodies(self._db)]
                encoded = [(b, sql.raw_of(reencode_candidates(c))) for b, c in found]
                sql.replace_embeddings(self._db, encoded, encoder_id)
        self._file_identity = file_identity(self._path)

    def load(self, revision: int | None = None) -> tuple[int, list[Entry]]:
        """See Store."""
        with self._translated("read", RESTORE_HINT):
            return sql.read(self._db, revision, self._width)

    def revision(self) -> int:
        """See Store."""
        with self._translated("read", RESTORE_HINT):
            return sql.newest(self._db)

    def revisions(self, before: int | None, limit: int) -> list[Revision]:
        """See Store."""
        with self._translated("read", RESTORE_HINT):
            return sql.revisions(self._db, before, limit)

    def apply(self, change: Change, expected_revision: int, description: str) -> Revision:
        """See Store."""
        now_us = time.time_ns() // 1000
        with self._translated("written", _FREE), self._transaction():
            made = sql.write(self._db, change, expected_revision, description, now_us, self._keep)
            check_file_identity(self._file_identity, _REMOVED)
        return made

    def follow(self, seen: RevisionCallback) -> None:
        """Nobody else changes it."""

    def close(self) -> None:
        """Close the file, for another server to open."""
        self._connection.close()
        self._lock.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # a full disk has rolled back already
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _translated(self, done: str, remedy: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{self._path} could not be {done} ({type(error).__name__}: {error}); {remedy}."
            ) from error


RESTORE_HINT = (
    "restore a copy of it (modelsat store restore), or give --candidates-db another path to begin "
    "anew; the"
    " file was not changed"
)
_REMOVED = (
    "nothing was changed, and the server goes on with the candidates it has. Stop it, put a copy"
    " back (modelsat store restore), and start it again"
)
_FREE = "nothing was changed; free disk space or mend its permissions, and send the change again"
REENCODE_HINT = (
    "start once with --reencode-candidates (make serve SERVE=--reencode-candidates) to compute its "
    "embeddings anew from the"
    " aptitude figures it holds, or give --candidates-db another path"
)


def connect(path: Path, mode: str = "rw") -> sqlite3.Connection:
    """Open an SQLite file that is there; mode: ro or rw. Raises StoreError for an empty one."""
    # SQLite takes an empty file for a new database; ours are never empty (see _create), so this one
    # lost its content.
    if path.stat().st_size == 0:
        raise StoreError(f"{path} is empty, so it was truncated; {RESTORE_HINT}.")
    url = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(url, uri=True, check_same_thread=False, isolation_level=None)


def check(path: Path, db: SqliteDatabase) -> str:
    """Its schema. Raises StoreError for what is damaged or of another version."""
    problem = db.run("PRAGMA quick_check(1)")[0][0]
    if problem != "ok":
        raise StoreError(f"{path} is damaged ({' '.join(problem.split())[:200]}); {RESTORE_HINT}.")
    found = sql.meta(db, "schema")
    if found not in (OLD_SCHEMA, SCHEMA):
        raise StoreError(
            f"{path}: schema is {found!r}, this server's is {SCHEMA!r}; serve it with the version"
            " that wrote it."
        )
    return found


def check_encoder(name: str, found: str | None, expected: str) -> None:
    """Raises StoreError where the store was written through another encoder."""
    if found != expected:
        raise StoreError(
            f"{name}: encoder_id is {found!r}, this server's is {expected!r}; {REENCODE_HINT}."
        )


def lock(path: Path) -> IO[bytes]:
    """Two servers on one file would each serve a table of their own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    held = path.with_name(path.name + ".lock").open("wb")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        held.close()
        raise StoreError(
            f"{path} is open in another server; stop that one, or give --candidates-db another "
            f"path."
        ) from error
    return held


def remove_logs(path: Path) -> None:
    """Of a file that is gone or about to be replaced: they would replay into the next one."""
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def create_tables(db: sqlite3.Connection, encoder_id: str) -> None:
    """The tables of an empty store."""
    for statement in TABLES:
        db.execute(statement)
    values = {"schema": SCHEMA, "encoder_id": encoder_id}
    db.executemany("INSERT INTO meta VALUES (?, ?)", values.items())


def _create(path: Path, encoder_id: str) -> None:
    """A new store appears whole: written under another name, then renamed."""
    remove_logs(path)
    unfinished = path.with_name(path.name + ".new")
    unfinished.unlink(missing_ok=True)
    db = sqlite3.connect(unfinished)
    with db:
        create_tables(db, encoder_id)
    db.close()
    unfinished.replace(path)


def migrate(db: SqliteDatabase) -> None:
    """Schema 1 -> 2: the table it holds becomes the only revision kept."""
    number = int(sql.meta(db, "revision") or 0)
    for statement in TABLES[1:]:
        db.run(statement)
    db.run(
        "INSERT INTO candidate_version SELECT id, ?, NULL, body, embedding FROM candidate",
        (number,),
    )
    db.run("DROP TABLE candidate")
    db.run("DELETE FROM meta WHERE key = 'revision'")
    db.run("UPDATE meta SET value = ? WHERE key = 'schema'", (SCHEMA,))
    if number:
        made = Revision(number, time.time_ns() // 1000, "kept when the store was upgraded", 0)
        sql.add_revision(db, made, keep=1)


def file_identity(path: Path) -> dict[Path, int]:
    """Of the open database `path` and its log, for check_inodes."""
    files = (path, path.with_name(path.name + "-wal"))
    return {file: file.stat().st_ino for file in files if file.exists()}


def check_file_identity(known: Mapping[Path, int], remedy: str) -> None:
    """Call it before COMMIT. Raises StoreError, which ends with `remedy`, where a file is gone or
    another one has its name."""
    for file, inode in known.items():
        if not file.exists() or file.stat().st_ino != inode:
            raise StoreError(f"{file} was removed or replaced while the server ran; {remedy}.")
