"""Where outcomes are stored: one SQLite file, or the schema `modelsat` of a PostgreSQL database."""

from __future__ import annotations

import logging
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from engine.api.errors import StoreError
from engine.registry.private_files import create_private, make_private
from engine.registry.stores import outcome_sql
from engine.registry.stores.base import POSTGRES_DRIVER_HINT, is_postgres, without_password
from engine.registry.stores.location import location_problem
from engine.registry.stores.outcome_sql import OutcomeWriter
from engine.registry.stores.outcome_types import OutcomeLimits, RecordedOutcome
from engine.registry.stores.sql import Database, Row
from engine.registry.stores.sqlite import SqliteDatabase, check_file_identity, file_identity

if TYPE_CHECKING:
    from engine.registry.stores.postgres_connection import PostgresConnection

SCHEMA = 2
OLD_SCHEMA = 1  # one table of outcomes, of version 0.1 and 0.2; converted when it is opened
PAGE_BYTES = 16_384  # holds 13 instructions of 1.2 KB; pages of 4 KB would waste a tenth
BUSY_S = 5.0  # maximum wait for another process that writes the same file
WRITE_LOCK = 0x6D6F64656D6F  # advisory; writers of outcomes take turns, so numbers are in order
STATEMENT_S = 15.0
SQLITE_TYPES = {"int": "INTEGER", "real": "REAL", "blob": "BLOB", "end": " STRICT"}
POSTGRES_TYPES = {"int": "BIGINT", "real": "DOUBLE PRECISION", "blob": "BYTEA", "end": ""}
_REMOVED_HINT = "nothing was recorded. Put it back, or restart the server to start a new file"
log = logging.getLogger(__name__)


class OutcomeDatabase(Protocol):
    """An open store of outcomes. write() and read() may be used by one thread each."""

    def write(self) -> AbstractContextManager[Database]:
        """Open a transaction that excludes other writers; it is on disk when the block ends.

        Raises StoreError.
        """

    def read(self) -> AbstractContextManager[Database]:
        """Open a transaction that sees one state. Raises StoreError."""

    def close(self) -> None:
        """Close every connection."""


def open_outcomes(location: str | Path) -> OutcomeDatabase:
    """Open an SQLite file or a postgresql:// URL; create the file for its owner alone.

    Raises StoreError: the file is unusable; it is left as it is.
    """
    text = str(location)
    if problem := location_problem(text):
        raise StoreError(f"--outcomes-db {problem}")
    if not is_postgres(text):
        return SqliteOutcomes(Path(text))
    try:
        return PostgresOutcomes(text)
    except ImportError as error:
        raise StoreError(POSTGRES_DRIVER_HINT) from error


class SqliteOutcomes:
    """An OutcomeDatabase in an SQLite file. Other processes may read and write it too."""

    def __init__(self, path: Path) -> None:
        """Open `path`, and create or convert it if necessary; raises StoreError."""
        self._path = path
        with translated(path, "opened"):
            path.parent.mkdir(parents=True, exist_ok=True)
            create_private(path)
            self.connection = self._connect()
        try:
            self._prepare()
        except BaseException:
            self.connection.close()
            raise
        self._reader: sqlite3.Connection | None = None

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(
            self._path, timeout=BUSY_S, check_same_thread=False, isolation_level=None
        )

    def _prepare(self) -> None:
        with translated(self._path, "opened"):
            if _is_new(self.connection):
                self.connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
                with _transaction(self.connection):
                    if _is_new(self.connection):  # another process may have been faster
                        create(self.connection)
            schema = check_schema(self.connection, self._path)
            make_private(self._path)
            self.connection.execute("PRAGMA journal_mode = WAL")
            self.connection.execute("PRAGMA synchronous = FULL")  # acknowledged means on disk
            if schema == OLD_SCHEMA:
                convert_if_old(self.connection, self._path)
            # Creates a new file's log.
            self.connection.execute("SELECT 1 FROM memory_state LIMIT 1").fetchone()
            self._file_identity = file_identity(self._path)

    @contextmanager
    def write(self) -> Iterator[Database]:
        """See OutcomeDatabase."""
        with translated(self._path, "written"), _transaction(self.connection):
            yield SqliteDatabase(self.connection)
            check_file_identity(self._file_identity, _REMOVED_HINT)

    @contextmanager
    def read(self) -> Iterator[Database]:
        """See OutcomeDatabase."""
        with translated(self._path, "read"):
            if self._reader is None:
                self._reader = self._connect()
            with _transaction(self._reader, "BEGIN"):
                yield SqliteDatabase(self._reader)

    def close(self) -> None:
        """See OutcomeDatabase."""
        if self._reader is not None:
            self._reader.close()
        self.connection.close()


class PostgresOutcomes:
    """An OutcomeDatabase in PostgreSQL, which any number of servers share.

    It opens without the database, whose failures are those of each operation.
    """

    def __init__(self, url: str) -> None:
        """Parse `url`, and try to create the tables; raises StoreError if it is invalid."""
        from engine.registry.stores.postgres_connection import parameters
        from engine.registry.stores.time_limit import Breaker

        self._name = without_password(url)
        self._parameters = parameters(url)
        self._open: dict[str, PostgresConnection] = {}
        self._breakers = {"write": Breaker(), "read": Breaker()}
        self._prepared = threading.Event()
        try:
            with self.write():
                pass
        except StoreError as error:
            if not error.unreachable:
                raise
            log.error("starting without the outcomes: %s", error)

    @contextmanager
    def write(self) -> Iterator[Database]:
        """See OutcomeDatabase."""
        with self._transaction("write") as db:
            db.run("SELECT pg_advisory_xact_lock(?)", (WRITE_LOCK,))
            yield db

    @contextmanager
    def read(self) -> Iterator[Database]:
        """See OutcomeDatabase."""
        with self._transaction("read") as db:
            yield db

    def close(self) -> None:
        """See OutcomeDatabase."""
        for breaker in self._breakers.values():
            breaker.trip()
        for connection in self._open.values():
            connection.close()

    @contextmanager
    def _transaction(self, kind: str) -> Iterator[Database]:
        from engine.registry.stores.postgres import translated as postgres_translated
        from engine.registry.stores.postgres_connection import PostgresDatabase

        participle = "written" if kind == "write" else "read"
        hint = "nothing was recorded" if kind == "write" else "try again later"
        with postgres_translated(self._parameters, self._name, participle, hint):
            connection = self._alive(kind)
            with self._breakers[kind].limit(connection, STATEMENT_S), connection.transaction():
                if kind == "read":
                    connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                yield PostgresDatabase(connection)

    def _alive(self, kind: str) -> PostgresConnection:
        """Return the open connection, or a new one if it broke since it was used."""
        import psycopg

        from engine.registry.stores.postgres_connection import PING_S, connect

        connection = self._open.get(kind)
        if connection is not None:
            with suppress(psycopg.Error):
                with self._breakers[kind].limit(connection, PING_S):
                    connection.execute("SELECT 1")
                return connection
            connection.close()
        connection = self._open[kind] = connect(self._parameters)
        if not self._prepared.is_set():
            with self._breakers[kind].limit(connection, STATEMENT_S), connection.transaction():
                _set_up(connection)
            self._prepared.set()
        return connection


def _set_up(connection: PostgresConnection) -> None:
    """Create the tables unless they exist; safe for servers that start together."""
    from engine.registry.stores.postgres import SETUP_LOCK
    from engine.registry.stores.postgres_connection import PostgresDatabase

    db = PostgresDatabase(connection)
    db.run("SELECT pg_advisory_xact_lock(?)", (SETUP_LOCK,))
    if not db.run("SELECT 1 FROM pg_namespace WHERE nspname = 'modelsat'"):
        db.run("CREATE SCHEMA modelsat")
    if db.run("SELECT to_regclass('modelsat.memory_state')")[0][0] is None:
        outcome_sql.create_tables(db, POSTGRES_TYPES)


def read_recorded(location: str | Path) -> Iterator[RecordedOutcome]:
    """Yield all outcomes of a store, oldest first; servers may write to it at the same time.

    Raises StoreError if it is not a store of outcomes.
    """
    if is_postgres(str(location)):
        database = open_outcomes(location)
        try:
            yield from _pages(database.read)
        finally:
            database.close()
        return
    path = Path(location)
    with opened_to_read(path) as connection:
        if check_schema(connection, path) == OLD_SCHEMA:
            for old in connection.execute(_old_query(connection)):
                yield _old_outcome(old)
        else:
            yield from _pages(lambda: nullcontext(SqliteDatabase(connection)))


def delete_recorded(
    location: str | Path, candidate: str = "", principal: str = "", *, dry_run: bool = False
) -> int:
    """Delete outcomes of a store, see OutcomeWriter.delete; servers may have it open, and follow.

    dry_run: only count them. Raises StoreError if it is not a store of outcomes.
    """
    if not is_postgres(str(location)):
        with opened_to_read(Path(location)) as connection:
            check_schema(connection, Path(location))
    database = open_outcomes(location)
    try:
        if dry_run:
            with database.read() as db:
                found = outcome_sql.reports_of(db, candidate, principal)
                return sum(report[-1] - len(kept) for report, kept, _ in found)
        with database.write() as db:
            writer = OutcomeWriter(db, OutcomeLimits(sys.maxsize, memory_bytes=0))
            count = writer.delete(candidate, principal)
            writer.finish()
            return count
    finally:
        database.close()


def _pages(read: Callable[[], AbstractContextManager[Database]]) -> Iterator[RecordedOutcome]:
    """Read page by page, each in a transaction of its own: the reader may take its time."""
    number = 0
    while True:
        with read() as db:
            page, number = outcome_sql.read_outcomes(db, number)
        if not page:
            return
        yield from page


def convert(connection: sqlite3.Connection) -> None:
    """Convert a file of OLD_SCHEMA in the open transaction."""
    rows = connection.execute(_old_query(connection)).fetchall()
    outcome_sql.create_tables(SqliteDatabase(connection), SQLITE_TYPES)
    writer = OutcomeWriter(SqliteDatabase(connection), OutcomeLimits(max(1, len(rows))))
    for row in rows:
        writer.insert_old(_old_outcome(row), row[-1])
    writer.finish()
    connection.execute("DROP TABLE outcome")
    connection.execute("DROP TABLE IF EXISTS share")
    connection.execute(f"PRAGMA user_version = {SCHEMA}")


def _old_query(connection: sqlite3.Connection) -> str:
    columns = [row[1] for row in connection.execute("PRAGMA table_info(outcome)")]
    principal = "principal" if "principal" in columns else "''"  # version 0.2 has none
    return (
        f"SELECT decision_id, candidate, score, text, category, {principal}, recorded_at"  # noqa: S608
        " FROM outcome ORDER BY number"
    )


def _old_outcome(row: Row) -> RecordedOutcome:
    return RecordedOutcome(*row[:6])


def convert_if_old(connection: sqlite3.Connection, path: Path) -> None:
    """Convert a file of OLD_SCHEMA in a transaction; raises StoreError if it is of another one."""
    with _transaction(connection):
        if check_schema(connection, path) == OLD_SCHEMA:
            convert(connection)


def create(connection: sqlite3.Connection) -> None:
    """Create the tables of an empty file in the open transaction."""
    outcome_sql.create_tables(SqliteDatabase(connection), SQLITE_TYPES)
    connection.execute(f"PRAGMA user_version = {SCHEMA}")


@contextmanager
def opened_to_read(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a file of outcomes, which servers may write to; raises StoreError."""
    if not path.is_file():
        raise StoreError(
            f"{path} does not exist; it is the file of `modelsat serve --outcomes-db`."
        )
    with translated(path, "read"):
        uri = f"{path.resolve().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_S, isolation_level=None)) as found:
            found.execute("PRAGMA schema_version")  # reads the file, so that an error names it
            yield found


def _is_new(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is None


def check_schema(connection: sqlite3.Connection, path: Path) -> int:
    """Return the schema of a file; raises StoreError if another version wrote it."""
    schema: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if schema not in (OLD_SCHEMA, SCHEMA):
        raise StoreError(
            f"{path}: schema is {schema}, this version's is {SCHEMA}; set --outcomes-db to another"
            " path."
        )
    return schema


@contextmanager
def _transaction(connection: sqlite3.Connection, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
    connection.execute(begin)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite itself rolls back if the disk is full
            connection.execute("ROLLBACK")
        raise


@contextmanager
def translated(path: Path, participle: str) -> Iterator[None]:
    """Raise StoreError for failures. participle: what could not be done to the file."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
            raise StoreError(f"{path} is no SQLite file, so it is no store of outcomes.") from error
        raise StoreError(
            f"{path} could not be {participle} ({type(error).__name__}: {error}); free disk space,"
            " fix its permissions, or set --outcomes-db to another path."
        ) from error
