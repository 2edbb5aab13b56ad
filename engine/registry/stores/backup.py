"""Back up candidates or outcomes to one SQLite file and restore them, for `modelsat store` and
`modelsat outcomes`.

Either kind of store can be restored from a copy of the other. A restored store of candidates gets a
new revision, above all that the store or the copy had, so that no number stands for two tables in a
cache or a watcher. Outcomes are restored into an empty store only, for the same reason: servers
remember the position up to which they have read.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from engine.api.errors import StoreError
from engine.registry.private_files import create_private
from engine.registry.stores import outcome_databases, sql, sqlite
from engine.registry.stores.base import POSTGRES_DRIVER_HINT, is_postgres, without_password
from engine.registry.stores.outcome_databases import open_outcomes
from engine.registry.stores.sql import Database, Row
from engine.registry.stores.sqlite import SqliteDatabase

if TYPE_CHECKING:
    from engine.registry.stores.postgres_connection import PostgresConnection

BATCH_ROWS = 500  # in memory at once
UNLIMITED = 2**62
_REVISION = ("number", "created_us", "description", "candidates", "nonce", "principal", "peer")
_REVISIONS = f"SELECT {', '.join(_REVISION)} FROM revision ORDER BY number"  # noqa: S608
_VERSIONS = (
    "SELECT id, from_revision, to_revision, body, embedding FROM candidate_version"
    " ORDER BY from_revision, id"
)


def back_up(url: str, out: Path) -> int:
    """Copy the store at `url`, which may be in use, to the SQLite file `out`; return its revision.

    `out` is replaced atomically. Raises StoreError.
    """
    if is_postgres(url):
        with _database(url) as source, _new_file(out) as target:
            _copy_from_postgres(source, target)
            return sql.newest_revision(SqliteDatabase(target))
    url = str(Path(url).resolve())
    with _translated(url):
        sqlite.check_name(Path(url))
    with _open(Path(url)) as source, _new_file(out, Path(url)) as target:
        source.backup(target)
        target.execute("PRAGMA journal_mode = DELETE")  # a single file, without a log
        sqlite.check(Path(url), SqliteDatabase(target))
        return _newest_revision(SqliteDatabase(target))


def restore(url: str, file: Path) -> int:
    """Replace the store at `url` by `file`, which back_up wrote; return the new revision.

    No server may have an SQLite store open. Servers of a PostgreSQL store follow the change. Raises
    StoreError, having changed nothing.
    """
    with _open(file) as source:
        if is_postgres(url):
            return _into_postgres(url, source, file)
        target = Path(url).resolve()
        with _translated(url), closing(sqlite.lock(target)):
            before = _readable_revision(target)
            with _new_file(target, file) as copy:
                source.backup(copy)
                copy.execute("PRAGMA journal_mode = DELETE")
                schema = sqlite.check(file, SqliteDatabase(copy))
                if schema in sqlite.OLD_SCHEMAS:
                    copy.execute("BEGIN")
                    sqlite.migrate(SqliteDatabase(copy))
                    copy.execute("COMMIT")
                copy.execute("BEGIN")
                sqlite.add_maker_columns(SqliteDatabase(copy))
                revision = _add_revision(SqliteDatabase(copy), before)
                copy.execute("COMMIT")
            return revision


def back_up_outcomes(location: str, out: Path) -> int:
    """Copy the outcomes at `location`, which servers may have open, to the SQLite file `out`, which
    is replaced atomically. Return their number. Raises StoreError."""
    if is_postgres(location):
        with _database(location) as source, _new_file(out) as target, source.transaction():
            source.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            if source.execute("SELECT to_regclass('memory_state')").fetchone() == (None,):
                raise StoreError(f"{without_password(location)} holds no store of outcomes.")
            target.execute("BEGIN")
            outcome_databases.create(target)
            for table, columns in _outcome_tables(target):
                target.execute(f"DELETE FROM {table}")  # noqa: S608 - a name of the schema
                with source.cursor("modelsat_backup") as cursor:  # on the server, read in batches
                    cursor.itersize = BATCH_ROWS
                    rows = cursor.execute(f"SELECT {columns} FROM {table}".encode())  # noqa: S608
                    _copy(rows, SqliteDatabase(target), _insert(table, columns))
            target.execute("COMMIT")
            return _count_outcomes(SqliteDatabase(target))
    path = Path(location)
    with outcome_databases.opened_to_read(path) as file, _new_file(out, path) as target:
        file.backup(target)
        target.execute("PRAGMA journal_mode = DELETE")
        outcome_databases.convert_if_old(target, path)
        return _count_outcomes(SqliteDatabase(target))


def restore_outcomes(location: str, file: Path) -> int:
    """Copy `file`, which back_up_outcomes wrote, into an empty store; return how many outcomes.

    Servers may have the store open. Raises StoreError, having changed nothing.
    """
    with outcome_databases.opened_to_read(file) as source:
        if outcome_databases.check_schema(source, file) == outcome_databases.OLD_SCHEMA:
            memory = sqlite3.connect(":memory:", isolation_level=None)
            source.backup(memory)
            source = memory
            outcome_databases.convert_if_old(source, file)
        database = open_outcomes(location)  # which creates the tables
        try:
            if not is_postgres(location):
                with database.write() as target:
                    return _put_outcomes(source, target, location)
        finally:
            database.close()
        with _database(location) as db, db.transaction():
            from engine.registry.stores.postgres_connection import PostgresDatabase

            target = PostgresDatabase(db)
            target.run("SET LOCAL statement_timeout TO 0")
            target.run("SELECT pg_advisory_xact_lock(?)", (outcome_databases.WRITE_LOCK,))
            return _put_outcomes(source, target, without_password(location))


def _put_outcomes(source: sqlite3.Connection, target: Database, name: str) -> int:
    if target.run("SELECT 1 FROM memory_instruction LIMIT 1"):
        raise StoreError(f"{name} holds outcomes already; restore them into an empty store.")
    for table, columns in _outcome_tables(source):
        target.run(f"DELETE FROM {table}")  # noqa: S608 - a name of the schema
        rows = source.execute(f"SELECT {columns} FROM {table}")  # noqa: S608
        _copy(rows, target, _insert(table, columns))
    return _count_outcomes(target)


def _outcome_tables(file: sqlite3.Connection) -> list[tuple[str, str]]:
    """Return each table of outcomes in a file with its columns, separated by commas.

    A server keeps sessions in the same file, and SQLite its statistics.
    """
    tables = file.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name GLOB 'memory_*'"
    ).fetchall()
    return [
        (name, ", ".join(row[1] for row in file.execute(f"PRAGMA table_info({name})")))
        for (name,) in tables
    ]


def _insert(table: str, columns: str) -> str:
    marks = ", ".join("?" * len(columns.split(",")))
    return f"INSERT INTO {table} ({columns}) VALUES ({marks})"  # noqa: S608


def _count_outcomes(db: Database) -> int:
    return int(db.run("SELECT coalesce(sum(count), 0) FROM memory_report")[0][0])


def _add_revision(db: Database, before: int) -> int:
    """Add a revision for the restore, unless the store was empty; return the newest one.

    before: newest revision of the store that is replaced, 0 if it was empty.
    """
    sql.new_epoch(db)
    newest = sql.newest_revision(db)
    if not before:
        return newest
    number, now_us = max(before, newest) + 1, time.time_ns() // 1000
    sql.add_revision(db, number, now_us, f"restored revision {newest} of a copy", UNLIMITED)
    return number


def _into_postgres(url: str, source: sqlite3.Connection, file: Path) -> int:
    from engine.registry.stores import postgres as postgres
    from engine.registry.stores.postgres_connection import CHANNEL, PostgresDatabase

    copy = SqliteDatabase(source)
    if sqlite.check(file, copy) in sqlite.OLD_SCHEMAS:
        memory = sqlite3.connect(":memory:", isolation_level=None)
        source.backup(memory)
        source, copy = memory, SqliteDatabase(memory)
        sqlite.migrate(copy)
    encoder_id = sql.meta(copy, "encoder_id") or ""
    with _database(url) as db, db.transaction():
        target = PostgresDatabase(db)
        target.run("SET LOCAL statement_timeout TO 0")
        postgres.set_up(target, encoder_id)
        postgres.check_schema(without_password(url), target)
        postgres.lock_writers(target)
        before = sql.newest_revision(target)
        for table in ("candidate_version", "revision"):
            target.run(f"DELETE FROM {table}")  # noqa: S608 - constant names
        target.run("UPDATE meta SET value = ? WHERE key = 'encoder_id'", (encoder_id,))
        _copy(source.execute(_REVISIONS), target, sql.ADD_REVISION)
        _copy(source.execute(_VERSIONS), target, sql.ADD_VERSION)
        revision = _add_revision(target, before)
        target.run(f"NOTIFY {CHANNEL}")
    return revision


def _copy_from_postgres(source: PostgresConnection, target: sqlite3.Connection) -> None:
    from engine.registry.stores import postgres as postgres
    from engine.registry.stores.postgres_connection import PostgresDatabase

    with source.transaction():
        source.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        store = PostgresDatabase(source)
        postgres.check_schema("the store", store)
        target.execute("BEGIN")
        sqlite.create_tables(target, sql.meta(store, "encoder_id") or "")
        present = postgres.revision_columns(store)  # that of version 0.2 has no identities
        columns = ", ".join(name if name in present else "''" for name in _REVISION)
        revisions = f"SELECT {columns} FROM revision ORDER BY number"  # noqa: S608
        for select, insert in ((revisions, sql.ADD_REVISION), (_VERSIONS, sql.ADD_VERSION)):
            with source.cursor("modelsat_backup") as cursor:  # on the server, read in batches
                cursor.itersize = BATCH_ROWS
                _copy(cursor.execute(select), SqliteDatabase(target), insert)
        sql.add_identities(SqliteDatabase(target))
        target.execute("COMMIT")


def _copy(rows: Iterable[Row], target: Database, insert: str) -> None:
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH_ROWS:
            target.run_many(insert, batch)
            batch.clear()
    target.run_many(insert, batch)


@contextmanager
def _database(url: str) -> Iterator[PostgresConnection]:
    try:
        from engine.registry.stores import postgres as postgres
        from engine.registry.stores.postgres_connection import connect, parameters
    except ImportError as error:
        raise StoreError(POSTGRES_DRIVER_HINT) from error
    conninfo = parameters(url)
    with (
        postgres.translated(conninfo, without_password(url), "copied", "nothing was changed"),
        closing(connect(conninfo)) as db,
    ):
        yield db


@contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a store's file for reading; a server may have it open as well."""
    with _translated(str(path)), closing(sqlite.connect(path, "ro")) as db:
        db.execute("PRAGMA schema_version")  # reads the file, so that an error names this one
        yield db


@contextmanager
def _new_file(path: Path, other: Path | None = None) -> Iterator[sqlite3.Connection]:
    """Create a database that replaces `path` atomically if the block succeeds.

    other: must not be the same file; raises StoreError.
    """
    if other is not None and path.exists() and other.exists() and path.samefile(other):
        raise StoreError(f"{path} is the store itself; choose another file.")
    unfinished = path.with_name(path.name + ".new")
    with _translated(str(path)):
        unfinished.unlink(missing_ok=True)
        try:
            create_private(unfinished)
            with closing(sqlite3.connect(unfinished, isolation_level=None)) as db:
                yield db
        except BaseException:
            unfinished.unlink()
            raise
        sqlite.remove_logs(path)
        unfinished.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def _newest_revision(db: SqliteDatabase) -> int:
    """Return the newest revision of a store of either schema."""
    if sql.meta(db, "schema") == "1":
        return int(sql.meta(db, "revision") or 0)
    return sql.newest_revision(db)


def _readable_revision(path: Path) -> int:
    """Return the newest revision of a store that is to be replaced; 0 if it cannot be read."""
    try:
        with closing(sqlite.connect(path, "ro")) as db:
            return _newest_revision(SqliteDatabase(db))
    except (StoreError, sqlite3.Error, OSError):
        return 0


@contextmanager
def _translated(name: str) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        reason = reason or f"{type(error).__name__}: {error}"
        raise StoreError(f"{name}: {reason}; nothing was changed.") from error
