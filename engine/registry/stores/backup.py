"""`modelsat store`: a copy of a store as one SQLite file, and back; so the kinds convert.

A restored store is at a revision of its own, above every one that the store or the copy had: no
number ever means two tables, to a cache or a watcher.
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
from engine.registry.registry import NO_DRIVER
from engine.registry.stores import sql, sqlite
from engine.registry.stores.base import Revision, is_postgres, without_password
from engine.registry.stores.sql import Database, Row
from engine.registry.stores.sqlite import SqliteDatabase

if TYPE_CHECKING:
    from engine.registry.stores.postgres import PostgresConnection

SLICE = 500  # rows in memory
EVERYTHING = 2**62
_REVISIONS = "SELECT number, created_us, description, candidates FROM revision ORDER BY number"
_VERSIONS = (
    "SELECT id, from_revision, to_revision, body, embedding FROM candidate_version"
    " ORDER BY from_revision, id"
)


def back_up(url: str, out: Path) -> int:
    """Copy the store at `url`, served or not, to the SQLite file `out`; returns its revision.

    `out` is replaced whole or not at all. Raises StoreError.
    """
    if is_postgres(url):
        with _database(url) as source, _new_file(out) as target:
            _copy_from_postgres(source, target)
            return sql.newest(SqliteDatabase(target))
    with _open(Path(url)) as source, _new_file(out, Path(url)) as target:
        source.backup(target)
        target.execute("PRAGMA journal_mode = DELETE")  # one file, nothing beside it
        sqlite.check(Path(url), SqliteDatabase(target))
        return _present(SqliteDatabase(target))


def restore(url: str, file: Path) -> int:
    """Make `file`, which back_up wrote, the content of the store at `url`; returns the revision.

    An SQLite store must not be served meanwhile; servers of a PostgreSQL one follow. Raises
    StoreError, having changed nothing.
    """
    with _open(file) as source:
        if is_postgres(url):
            return _into_postgres(url, source, file)
        target = Path(url)
        with _translated(url), closing(sqlite.lock(target)):
            before = _readable_revision(target)
            with _new_file(target, file) as copy:
                source.backup(copy)
                copy.execute("PRAGMA journal_mode = DELETE")
                schema = sqlite.check(file, SqliteDatabase(copy))
                if schema == sqlite.OLD_SCHEMA:
                    copy.execute("BEGIN")
                    sqlite.migrate(SqliteDatabase(copy))
                    copy.execute("COMMIT")
                copy.execute("BEGIN")
                made = _mark(SqliteDatabase(copy), before, time.time_ns() // 1000)
                copy.execute("COMMIT")
            return made


def _mark(db: Database, before: int, now_us: int) -> int:
    """Add the revision that says what happened, unless the store had held nothing."""
    newest = sql.newest(db)
    if not before:
        return newest
    words = f"restored revision {newest} of a copy"
    made = Revision(max(before, newest) + 1, now_us, words, 0)
    return sql.add_revision(db, made, keep=EVERYTHING).number


def _into_postgres(url: str, source: sqlite3.Connection, file: Path) -> int:
    from engine.registry.stores import postgres as postgres
    from engine.registry.stores.postgres import CHANNEL

    found = SqliteDatabase(source)
    if sqlite.check(file, found) == sqlite.OLD_SCHEMA:
        raise StoreError(
            f"{file}: schema is {sqlite.OLD_SCHEMA!r}; restore it into an SQLite store first"
            " and back that one up."
        )
    encoder_id = sql.meta(found, "encoder_id") or ""
    with _database(url) as db, db.transaction():
        target = postgres.PostgresDatabase(db)
        target.run("SET LOCAL statement_timeout TO 0")
        postgres.set_up(target, encoder_id)
        postgres.check_schema(without_password(url), target)
        postgres.lock_writers(target)
        before = sql.newest(target)
        for table in ("candidate_version", "revision"):
            target.run(f"DELETE FROM {table}")  # noqa: S608 - our own names
        target.run("UPDATE meta SET value = ? WHERE key = 'encoder_id'", (encoder_id,))
        _copy(source.execute(_REVISIONS), target, sql.ADD_REVISION)
        _copy(source.execute(_VERSIONS), target, sql.ADD_VERSION)
        made = _mark(target, before, time.time_ns() // 1000)
        target.run(f"NOTIFY {CHANNEL}")
    return made


def _copy_from_postgres(source: PostgresConnection, target: sqlite3.Connection) -> None:
    from engine.registry.stores import postgres as postgres

    written = SqliteDatabase(target)
    with source.transaction():
        source.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        found = postgres.PostgresDatabase(source)
        postgres.check_schema("the store", found)
        target.execute("BEGIN")
        sqlite.create_tables(target, sql.meta(found, "encoder_id") or "")
        for rows, add in ((_REVISIONS, sql.ADD_REVISION), (_VERSIONS, sql.ADD_VERSION)):
            with source.cursor("modelsat_backup") as cursor:  # on the server: not all at once
                cursor.itersize = SLICE
                _copy(cursor.execute(rows), written, add)
        target.execute("COMMIT")


def _copy(rows: Iterable[Row], target: Database, add: str) -> None:
    part: list[Row] = []
    for row in rows:
        part.append(row)
        if len(part) == SLICE:
            target.run_many(add, part)
            part.clear()
    target.run_many(add, part)


@contextmanager
def _database(url: str) -> Iterator[PostgresConnection]:
    try:
        from engine.registry.stores import postgres as postgres
    except ImportError as error:
        raise StoreError(NO_DRIVER) from error
    given = postgres.parameters(url)
    with (
        postgres.translated(given, without_password(url), "copied", "nothing was changed"),
        closing(postgres.connect(given)) as db,
    ):
        yield db


@contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    """A store's file, for reading only; a server may have it open."""
    with _translated(str(path)), closing(sqlite.connect(path, "ro")) as db:
        yield db


@contextmanager
def _new_file(path: Path, other: Path | None = None) -> Iterator[sqlite3.Connection]:
    """Becomes `path` once all is written and on disk; refuses to write over `other`."""
    if other is not None and path.exists() and other.exists() and path.samefile(other):
        raise StoreError(f"{path} is the store itself; give another file.")
    unfinished = path.with_name(path.name + ".new")
    with _translated(str(path)):
        unfinished.unlink(missing_ok=True)
        try:
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


def _present(db: SqliteDatabase) -> int:
    """The newest revision of either schema."""
    if sql.meta(db, "schema") == sqlite.OLD_SCHEMA:
        return int(sql.meta(db, "revision") or 0)
    return sql.newest(db)


def _readable_revision(path: Path) -> int:
    """Of a store that is to be replaced; 0 where there is none, or none that can be read."""
    try:
        with closing(sqlite.connect(path, "ro")) as db:
            return _present(SqliteDatabase(db))
    except (StoreError, sqlite3.Error, OSError):
        return 0


@contextmanager
def _translated(name: str) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError, ValueError) as error:
        raise StoreError(
            f"{name}: {type(error).__name__}: {error}; nothing was changed."
        ) from error
