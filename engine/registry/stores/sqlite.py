"""The store of a single server: one SQLite file."""

from __future__ import annotations

import fcntl
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

from engine.api.errors import StoreError
from engine.registry.private_files import create_private, make_private
from engine.registry.stores import sql
from engine.registry.stores.base import (
    DEFAULT_HISTORY_LIMIT,
    Change,
    Encode,
    Entry,
    Revision,
    RevisionCallback,
    RevisionId,
    StoredTable,
)
from engine.registry.stores.sql import Row

SCHEMA = "3"
# Migrated when they are opened: "1" is one table without a history, "2" has no identities.
OLD_SCHEMAS = ("1", "2")
TABLES = [t.format(int="INTEGER", blob="BLOB", nonce="", end=" STRICT") for t in sql.TABLES]


class SqliteDatabase:
    """A sql.Database of an SQLite connection."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def run(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """See sql.Database."""
        return self._db.execute(sql, values).fetchall()

    def run_many(self, sql: str, rows: Iterable[Row]) -> None:
        """See sql.Database."""
        self._db.executemany(sql, rows)

    def epoch(self) -> str:
        """See sql.Database."""
        return sql.meta(self, "epoch") or ""


class SqliteStore:
    """A Store in an SQLite file."""

    shared = False

    def __init__(
        self,
        path: Path,
        encoder_id: str,
        width: int,
        reencode_candidates: Encode | None = None,
        history_limit: int = DEFAULT_HISTORY_LIMIT,
    ) -> None:
        """Open `path`, and create it if it does not exist.

        Args:
            path: of the SQLite file.
            encoder_id: identifies the encoder; a store that another one filled is refused.
            width: D, of an embedding.
            reencode_candidates: recomputes the embeddings of such a store instead.
            history_limit: revisions to keep.

        Raises:
            StoreError: the file is damaged, open in another server, or of another schema or
                encoder. The file is left as it is.
        """
        self._path = path = path.resolve()  # a link to the file is the same store
        self._width = width
        self._history_limit = history_limit
        with self._translated("opened", RESTORE_HINT):
            self._lock = lock(path, create=partial(_create, path, encoder_id))
            with ExitStack() as on_failure:
                on_failure.callback(self._lock.close)
                self._open(on_failure, encoder_id, reencode_candidates)
                on_failure.pop_all()

    def _open(
        self, on_failure: ExitStack, encoder_id: str, reencode_candidates: Encode | None
    ) -> None:
        make_private(self._path)
        self._connection = connect(self._path)
        on_failure.callback(self._connection.close)
        self._db = SqliteDatabase(self._connection)
        schema = check(self._path, self._db)
        if reencode_candidates is None:
            check_encoder(str(self._path), sql.meta(self._db, "encoder_id"), encoder_id)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")  # acknowledged means on disk
        with self._transaction():
            if schema in OLD_SCHEMAS:
                migrate(self._db)
            add_maker_columns(self._db)
            if reencode_candidates is not None:
                sql.reencode_candidates(self._db, reencode_candidates, encoder_id)
        self._file_identity = file_identity(self._path)

    def load(self, revision: int | None = None) -> tuple[int, list[Entry]]:
        """See Store."""
        with self._translated("read", RESTORE_HINT):
            return sql.read(self._db, revision, self._width)

    def newest(self) -> StoredTable:
        """See Store."""
        with self._translated("read", RESTORE_HINT):
            return sql.newest(self._db, self._width)

    def revision(self) -> int:
        """See Store."""
        return self.identity().number

    def identity(self) -> RevisionId:
        """See Store."""
        with self._translated("read", RESTORE_HINT):
            return sql.identity(self._db)

    def decision_key(self) -> bytes:
        """See Store."""
        with self._translated("written", _WRITE_HINT), self._transaction():
            return sql.decision_key(self._db)

    def revisions(self, before: int | None, limit: int) -> list[Revision]:
        """See Store."""
        with self._translated("read", RESTORE_HINT):
            return sql.revisions(self._db, before, limit)

    def apply(
        self, change: Change, expected_revision: int, description: str, expected_nonce: str = ""
    ) -> Revision:
        """See Store."""
        expected = (expected_revision, expected_nonce)
        now_us = time.time_ns() // 1000
        with self._translated("written", _WRITE_HINT), self._transaction():
            revision = sql.write(
                self._db, change, expected, description, now_us, self._history_limit
            )
            check_file_identity(self._file_identity, _REMOVED_HINT)
        return revision

    def follow(self, on_revision: RevisionCallback) -> None:
        """Do nothing: no other server changes the file."""

    def fence(self, known: RevisionId) -> RevisionId:
        """See Store."""
        now_us = time.time_ns() // 1000
        with self._translated("written", _WRITE_HINT), self._transaction():
            return sql.fence(self._db, known, now_us, self._history_limit)

    def interrupt(self) -> None:
        """Do nothing: what waits for a disk cannot be ended."""

    def close(self) -> None:
        """Close the file, so that another server can open it."""
        self._connection.close()
        self._lock.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # SQLite itself rolls back if the disk is full
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _translated(self, participle: str, hint: str) -> Iterator[None]:
        """Raise StoreError for failures. participle: what could not be done to the file."""
        try:
            yield
        except (sqlite3.Error, OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{self._path} could not be {participle} ({type(error).__name__}: {error}); {hint}."
            ) from error


RESTORE_HINT = (
    "restore a copy (modelsat store restore), or set --candidates-db to another path to start with"
    " a new store; the file was not changed"
)
_REMOVED_HINT = (
    "nothing was changed, and the server continues with the candidates it has. Stop it, restore a"
    " copy (modelsat store restore), and start it again"
)
_WRITE_HINT = "nothing was changed; free disk space or fix permissions, and send the change again"
REENCODE_HINT = (
    "start once with --reencode-candidates (make serve SERVE=--reencode-candidates) to recompute"
    " its embeddings from its aptitude results, or set --candidates-db to another path"
)


def connect(path: Path, mode: str = "rw") -> sqlite3.Connection:
    """Open an existing SQLite file. mode: ro or rw. Raises StoreError for an empty file."""
    # SQLite takes an empty file for a new database. Ours are never empty (see _create), so this one
    # lost its content.
    if path.stat().st_size == 0:
        raise StoreError(f"{path} is empty, so it was truncated; {RESTORE_HINT}.")
    url = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(url, uri=True, check_same_thread=False, isolation_level=None)


def check(path: Path, db: SqliteDatabase) -> str:
    """Return the schema of a store. Raises StoreError if it is damaged or of another version."""
    problem = db.run("PRAGMA quick_check(1)")[0][0]
    if problem != "ok":
        raise StoreError(f"{path} is damaged ({' '.join(problem.split())[:200]}); {RESTORE_HINT}.")
    schema = sql.meta(db, "schema")
    if schema not in (*OLD_SCHEMAS, SCHEMA):
        raise StoreError(
            f"{path}: schema is {schema!r}, this server's is {SCHEMA!r}; serve it with the version"
            " that wrote it."
        )
    return schema


def check_encoder(name: str, found: str | None, expected: str) -> None:
    """Raise StoreError if another encoder computed the embeddings of the store called `name`."""
    if found != expected:
        raise StoreError(
            f"{name}: encoder_id is {found!r}, this server's is {expected!r}; {REENCODE_HINT}."
        )


class StoreLock:
    """The lock of a store's file, held until close()."""

    def __init__(self, *files: IO[bytes]) -> None:
        self._files = files

    def close(self) -> None:
        """Release the lock. Close the database first: its own locks end with any file on it."""
        for file in self._files:
            file.close()


def lock(path: Path, create: Callable[[], None] | None = None) -> StoreLock:
    """Lock a store: two servers of one file would diverge.

    Two locks are taken. That on the file next to it also holds while the store is replaced; that on
    the store itself holds under any of its names, hard links and later names included.

    Args:
        path: of the store, without symbolic links.
        create: creates the store if it does not exist; None leaves it missing.

    Raises:
        StoreError: another server has it open.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.with_name(path.name + ".lock")
    create_private(name)
    neighbor = _locked(name, "wb", path)
    try:
        if create is not None and not path.exists():
            create()
        return StoreLock(*([_locked(path, "rb", path)] if path.exists() else []), neighbor)
    except BaseException:
        neighbor.close()
        raise


def _locked(file: Path, mode: str, store: Path) -> IO[bytes]:
    opened: IO[bytes] = file.open(mode)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        opened.close()
        raise StoreError(
            f"{store} is open in another server; stop that server, or set --candidates-db to"
            " another path."
        ) from error
    return opened


def check_name(path: Path) -> None:
    """Raise StoreError if the newest changes of a store are in a log that goes by another name.

    SQLite finds the log by the name of the file. Under a hard link, or after the file was renamed,
    it reads an older table, or none, and reports no error.

    path: of the store, without symbolic links.
    """
    neighbor = path.with_name(path.name + ".lock")
    if neighbor.exists() and _is_locked(neighbor):
        return  # a server has it open under this name
    hint = "name the store as that server does, or stop the server first"
    if _is_locked(path):
        raise StoreError(f"{path} is open in a server under another name; {hint}.")
    if _log_of(path).exists() or path.stat().st_nlink == 1:
        return
    for other in path.parent.iterdir():
        log = _log_of(other)
        if log.exists() and log.stat().st_size and other.samefile(path):
            raise StoreError(f"{path} has changes that were logged as {log.name}; use {other}.")


def _is_locked(path: Path) -> bool:
    """Return whether a server holds its lock. Closing the file ends SQLite's locks on it that this
    process has, so no store may be open in it under that name."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _log_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def remove_logs(path: Path) -> None:
    """Remove the logs of a replaced file; SQLite would replay them into the new one."""
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def create_tables(db: sqlite3.Connection, encoder_id: str) -> None:
    """Create the tables of an empty store."""
    for statement in TABLES:
        db.execute(statement)
    values = {"schema": SCHEMA, "encoder_id": encoder_id, "epoch": sql.random_id()}
    db.executemany("INSERT INTO meta VALUES (?, ?)", values.items())


def _create(path: Path, encoder_id: str) -> None:
    """Create a store atomically: write it under another name, then rename it."""
    remove_logs(path)
    unfinished = path.with_name(path.name + ".new")
    unfinished.unlink(missing_ok=True)
    create_private(unfinished)
    db = sqlite3.connect(unfinished)
    with db:
        create_tables(db, encoder_id)
    db.close()
    unfinished.replace(path)


def migrate(db: SqliteDatabase) -> None:
    """Migrate to SCHEMA in the open transaction. The table that schema 1 holds becomes the only
    revision; the revisions of schema 2 get identities."""
    if sql.meta(db, "schema") == "2":
        db.run("ALTER TABLE revision ADD COLUMN nonce TEXT NOT NULL DEFAULT ''")
        add_maker_columns(db)
    else:
        _add_history(db)
    sql.add_identities(db)
    db.run("UPDATE meta SET value = ? WHERE key = 'schema'", (SCHEMA,))


def add_maker_columns(db: SqliteDatabase) -> None:
    """Add the columns that say who made a revision, unless the table has them."""
    sql.add_maker_columns(db, [row[1] for row in db.run("PRAGMA table_info(revision)")])


def _add_history(db: SqliteDatabase) -> None:
    number = int(sql.meta(db, "revision") or 0)
    for statement in TABLES[1:]:
        db.run(statement)
    db.run(
        "INSERT INTO candidate_version SELECT id, ?, NULL, body, embedding FROM candidate",
        (number,),
    )
    db.run("DROP TABLE candidate")
    db.run("DELETE FROM meta WHERE key = 'revision'")
    if number:
        description = "kept when the store was upgraded"
        sql.add_revision(db, number, time.time_ns() // 1000, description, history_limit=1)


def file_identity(path: Path) -> dict[Path, int]:
    """Return file -> inode of the open database `path` and its log, for check_file_identity."""
    files = (path, _log_of(path))
    return {file: file.stat().st_ino for file in files if file.exists()}


def check_file_identity(inodes: Mapping[Path, int], hint: str) -> None:
    """Raise StoreError if a file was removed or replaced since file_identity.

    Call it before COMMIT, which would succeed on the removed file. hint: end of the message.
    """
    for file, inode in inodes.items():
        if not file.exists() or file.stat().st_ino != inode:
            raise StoreError(f"{file} was removed or replaced while the server ran; {hint}.")
