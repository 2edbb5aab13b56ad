"""The store in a PostgreSQL database, for a fleet: one schema `modelsat`, any number of servers.

Its tables are those of the SQLite file. A change is committed only on top of the revision it was
planned for; the commit tells every server (NOTIFY).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

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
    without_password,
)
from engine.registry.stores.sql import Row
from engine.registry.stores.sqlite import check_encoder

SETUP_LOCK = 0x6D6F64656C736174  # "modelsat": servers that start at once set up one after another
TABLES = [t.format(int="BIGINT", blob="BYTEA", end="") for t in sql.TABLES]
# A server that hangs or loses its network must not hold the others up for long.
_SESSION = """
SET search_path TO modelsat;
SET lock_timeout TO '10s';
SET statement_timeout TO '60s';
SET idle_in_transaction_session_timeout TO '60s'
"""
DEFAULTS = {
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "application_name": "modelsat",
}
_AT_START = "start PostgreSQL, mend the address, or grant what is missing"
PostgresConnection = psycopg.Connection[Row]


class PostgresDatabase:
    """history.Database over a connection."""

    def __init__(self, db: PostgresConnection) -> None:
        self._db = db

    def run(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """See sql.Database."""
        cursor = self._db.execute(sql.replace("?", "%s").encode(), values)
        return cursor.fetchall() if cursor.description else []

    def run_many(self, sql: str, rows: Iterable[Row]) -> None:
        """See sql.Database."""
        with self._db.cursor() as cursor:
            cursor.executemany(sql.replace("?", "%s").encode(), rows)


class PostgresStore:
    """See Store."""

    shared = True

    def __init__(
        self,
        url: str,
        encoder_id: str,
        width: int,
        reencode_candidates: Encode | None = None,
        keep: int = DEFAULT_HISTORY_LIMIT,
    ) -> None:
        """Connect to `url` and create the tables where there are none. width: D.

        Raises StoreError where the database does not answer, or holds a store of another schema or
        encoder; it is left as it is. With `reencode_candidates`, a store from another encoder is
        brought to
        this one.
        """
        self._name = without_password(url)
        self._encoder_id = encoder_id
        self._width = width
        self._keep = keep
        self._parameters = parameters(url)
        self._open: PostgresConnection | None = None
        self._listener: RevisionListener | None = None
        try:
            with self._translated("opened", _AT_START), self._transaction() as db:
                set_up(db, encoder_id)
                check_schema(self._name, db)
                if reencode_candidates and sql.meta(db, "encoder_id") != encoder_id:
                    found = [(b, sql.candidate_of(b)) for b in sql.bodies(db)]
                    encoded = [(b, sql.raw_of(reencode_candidates(c))) for b, c in found]
                    sql.replace_embeddings(db, encoded, encoder_id)
                check_encoder(self._name, sql.meta(db, "encoder_id"), encoder_id)
        except StoreError:
            self.close()
            raise

    def load(self, revision: int | None = None) -> tuple[int, list[Entry]]:
        """See Store."""
        with self._translated("read"), self._transaction(snapshot=True) as db:
            self._check(db)
            return sql.read(db, revision, self._width)

    def revision(self) -> int:
        """See Store."""
        with self._translated("read"), self._transaction() as db:
            return sql.newest(db)

    def revisions(self, before: int | None, limit: int) -> list[Revision]:
        """See Store."""
        with self._translated("read"), self._transaction() as db:
            return sql.revisions(db, before, limit)

    def apply(self, change: Change, expected_revision: int, description: str) -> Revision:
        """See Store. Where the connection breaks during the commit, the error says so: then the
        change was made whole or not at all, and the table that is read next shows which."""
        with self._translated("written"), self._transaction() as db:
            lock_writers(db)
            self._check(db)
            now_us = int(
                db.run("SELECT (extract(epoch FROM clock_timestamp()) * 1e6)::bigint")[0][0]
            )
            made = sql.write(db, change, expected_revision, description, now_us, self._keep)
            db.run(f"NOTIFY {CHANNEL}")
        return made

    def follow(self, seen: RevisionCallback) -> None:
        """See Store."""
        self._listener = RevisionListener(lambda: connect(self._parameters), seen)
        self._listener.start()

    def close(self) -> None:
        """Close every connection."""
        if self._listener is not None:
            self._listener.stop()
        if self._open is not None:
            self._open.close()

    def _translated(
        self, done: str, remedy: str = "nothing was changed"
    ) -> AbstractContextManager[None]:
        return translated(self._parameters, self._name, done, remedy)

    def _check(self, db: PostgresDatabase) -> None:
        """Somebody may have brought it to another encoder or version while this server ran."""
        check_schema(self._name, db)
        check_encoder(self._name, sql.meta(db, "encoder_id"), self._encoder_id)

    def _alive(self) -> PostgresConnection:
        """The connection, a new one where it broke since it was used."""
        if self._open is not None:
            with suppress(psycopg.Error):
                self._open.execute("SELECT 1")
                return self._open
            self._open.close()
        self._open = None
        self._open = connect(self._parameters)
        return self._open

    @contextmanager
    def _transaction(self, *, snapshot: bool = False) -> Iterator[PostgresDatabase]:
        connection = self._alive()
        done = False
        try:
            with connection.transaction():
                if snapshot:
                    connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                yield PostgresDatabase(connection)
                done = True
        except psycopg.OperationalError as error:
            if done and not snapshot:
                raise UnknownCommitError from error
            raise


class UnknownCommitError(Exception):
    """The connection broke after COMMIT was sent and before it was answered."""


def parameters(url: str) -> dict[str, Any]:
    """Connection parameters of `url`, with our defaults for what it does not say."""
    try:
        return {**DEFAULTS, **conninfo_to_dict(url)}
    except psycopg.Error:
        # Its text may quote the URL, password and all.
        raise StoreError(
            f"--candidates-db is {without_password(url)}, which is no valid PostgreSQL URL; "
            f"expected"
            " postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with special characters in % form."
        ) from None


def connect(given: dict[str, Any]) -> PostgresConnection:
    """A connection for our tables; raises psycopg.Error."""
    db = psycopg.connect(**given, autocommit=True)
    try:
        db.execute(_SESSION)
        # Acknowledged means on disk, whatever the database's default; stricter ones are kept.
        db.execute(
            "SELECT set_config('synchronous_commit', 'on', false)"
            " WHERE current_setting('synchronous_commit') IN ('off', 'local')"
        )
    except psycopg.Error:
        db.close()
        raise
    return db


def set_up(db: PostgresDatabase, encoder_id: str) -> None:
    """Create schema and tables unless they are there; safe for servers that start at once."""
    db.run("SELECT pg_advisory_xact_lock(?)", (SETUP_LOCK,))
    if not db.run("SELECT 1 FROM pg_namespace WHERE nspname = 'modelsat'"):
        db.run("CREATE SCHEMA modelsat")
    if db.run("SELECT to_regclass('modelsat.meta')")[0][0] is not None:
        return
    for statement in TABLES:
        db.run(statement)
    values = {"schema": SCHEMA, "encoder_id": encoder_id}
    db.run_many("INSERT INTO meta VALUES (?, ?)", values.items())


def lock_writers(db: PostgresDatabase) -> None:
    """One writer at a time, until the transaction ends; readers go on."""
    db.run("SELECT value FROM meta WHERE key = 'schema' FOR UPDATE")


def check_schema(name: str, db: PostgresDatabase) -> None:
    """Raises StoreError where another version wrote it."""
    if (found := sql.meta(db, "schema")) != SCHEMA:
        raise StoreError(
            f"{name}: schema is {found!r}, this server's is {SCHEMA!r}; serve it with the version"
            " that wrote it."
        )


@contextmanager
def translated(given: dict[str, Any], name: str, done: str, remedy: str) -> Iterator[None]:
    """Everything PostgreSQL says becomes a StoreError of one sentence, without the password."""
    try:
        yield
    except UnknownCommitError as error:
        raise StoreError(
            f"{name} was lost while it was being {done}: the change was made whole or not at all;"
            " read the candidates again."
        ) from error
    except (psycopg.Error, ValueError, KeyError, TypeError) as error:
        text = (str(error).splitlines() or [""])[0]
        if given.get("password"):
            text = text.replace(given["password"], "***")
        raise StoreError(
            f"{name} could not be {done} ({type(error).__name__}: {text}); {remedy}."
        ) from error


CHANNEL = "modelsat_revision"
POLL_S = 2.0  # a notification may be lost, a connection broken without a sign
SLICE_S = 0.25  # how soon stop() is noticed
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0  # between attempts to connect


class RevisionListener:
    """Calls `seen` with the store's revision at every notification and every POLL_S, and with None
    and a reason whenever the database cannot be asked."""

    def __init__(
        self, connect: Callable[[], psycopg.Connection[Any]], seen: RevisionCallback
    ) -> None:
        self._connect = connect
        self._seen = seen
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="store-listener", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and wait for it; a connection attempt may take its timeout."""
        self._stopping.set()
        self._thread.join(LONGEST_PAUSE_S)

    def _run(self) -> None:
        pause = FIRST_PAUSE_S
        while not self._stopping.is_set():
            try:
                with self._connect() as db:
                    pause = FIRST_PAUSE_S
                    self._listen(db)
            except psycopg.Error as error:
                self._seen(None, type(error).__name__)
                self._stopping.wait(pause * (0.5 + random.random() / 2))  # noqa: S311 - spreads load
                pause = min(2 * pause, LONGEST_PAUSE_S)

    def _listen(self, db: psycopg.Connection[Any]) -> None:
        db.execute(f"LISTEN {CHANNEL}")
        while not self._stopping.is_set():
            found = db.execute("SELECT COALESCE(MAX(number), 0) FROM revision").fetchone()
            self._seen(int(found[0]) if found else 0, "")
            self._wait(db)

    def _wait(self, db: psycopg.Connection[Any]) -> None:
        """Until a notification, POLL_S, or stop()."""
        for _ in range(int(POLL_S / SLICE_S)):
            if self._stopping.is_set() or list(db.notifies(timeout=SLICE_S, stop_after=1)):
                return
