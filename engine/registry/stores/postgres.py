"""The store of any number of servers: the schema `modelsat` of a PostgreSQL database.

Its tables are those of the SQLite file. A change is committed only on top of the revision that it
was computed for, and the commit notifies every server (NOTIFY).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import psycopg

from engine.api.errors import StoreError
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
    without_password,
)
from engine.registry.stores.postgres_connection import (
    CHANNEL,
    PING_S,
    PostgresConnection,
    PostgresDatabase,
    RevisionListener,
    connect,
    parameters,
)
from engine.registry.stores.sqlite import check_encoder
from engine.registry.stores.time_limit import Breaker, TimeLimitError

SETUP_LOCK = 0x6D6F64656C736174  # "modelsat"; serializes the setup of servers that start together
SCHEMA = "2"  # since version 0.2, whose servers draw nonces by the column's default
_NONCE = " DEFAULT substr(md5(random()::text || clock_timestamp()::text), 1, 16)"
TABLES = [t.format(int="BIGINT", blob="BYTEA", nonce=_NONCE, end="") for t in sql.TABLES]
STATEMENT_S = 15.0  # above lock_timeout, so that a wait for a lock ends with its own error
SETUP_S = 600.0  # creates tables, or encodes every candidate again
_START_HINT = "start PostgreSQL, fix the address, or grant what is missing"


class PostgresStore:
    """A Store in a PostgreSQL database."""

    shared = True

    def __init__(
        self,
        url: str,
        encoder_id: str,
        width: int,
        reencode_candidates: Encode | None = None,
        history_limit: int = DEFAULT_HISTORY_LIMIT,
        *,
        connect: bool = True,
    ) -> None:
        """Connect to `url`, and create the tables if there are none.

        Args:
            url: of the database, postgresql://.
            encoder_id: identifies the encoder; a store that another one filled is refused.
            width: D, of an embedding.
            reencode_candidates: recomputes the embeddings of such a store instead.
            history_limit: revisions to keep.
            connect: False leaves all of that for the first operation.

        Raises:
            StoreError: the database does not answer, or holds a store of another schema or encoder,
                which is left as it is.
        """
        self._name = without_password(url)
        self._encoder_id = encoder_id
        self._width = width
        self._history_limit = history_limit
        self._parameters = parameters(url)
        self._open: PostgresConnection | None = None
        self._breaker = Breaker()
        self._listener: RevisionListener | None = None
        self._prepared = connect
        if not connect:
            return
        try:
            with (
                self._translated("opened", _START_HINT),
                self._transaction(limit_s=SETUP_S) as db,
            ):
                db.run("SET LOCAL statement_timeout TO 0")
                set_up(db, encoder_id)
                check_schema(self._name, db)
                if reencode_candidates is not None:
                    sql.reencode_candidates(db, reencode_candidates, encoder_id)
                check_encoder(self._name, sql.meta(db, "encoder_id"), encoder_id)
        except StoreError:
            self.close()
            raise

    def load(self, revision: int | None = None) -> tuple[int, list[Entry]]:
        """See Store."""
        with self._translated("read"), self._transaction(snapshot=True) as db:
            self._check(db)
            return sql.read(db, revision, self._width)

    def newest(self) -> StoredTable:
        """See Store."""
        with self._translated("read"), self._transaction(snapshot=True) as db:
            self._check(db)
            return sql.newest(db, self._width)

    def revision(self) -> int:
        """See Store."""
        return self.identity().number

    def identity(self) -> RevisionId:
        """See Store."""
        with self._translated("read"), self._transaction() as db:
            return sql.identity(db)

    def decision_key(self) -> bytes:
        """See Store."""
        with self._translated("written"), self._transaction() as db:
            return sql.decision_key(db)

    def revisions(self, before: int | None, limit: int) -> list[Revision]:
        """See Store."""
        with self._translated("read"), self._transaction() as db:
            return sql.revisions(db, before, limit)

    def apply(
        self, change: Change, expected_revision: int, description: str, expected_nonce: str = ""
    ) -> Revision:
        """See Store. If the connection breaks during the commit, the error says so: the change was
        then made completely or not at all, which the next load() shows."""
        with self._translated("written"), self._transaction() as db:
            lock_writers(db)
            self._check(db)
            expected = (expected_revision, expected_nonce)
            revision = sql.write(
                db, change, expected, description, _now_us(db), self._history_limit
            )
            db.run(f"NOTIFY {CHANNEL}")
        return revision

    def fence(self, known: RevisionId) -> RevisionId:
        """See Store."""
        with self._translated("written"), self._transaction() as db:
            lock_writers(db)
            self._check(db)
            newest = sql.fence(db, known, _now_us(db), self._history_limit)
            db.run(f"NOTIFY {CHANNEL}")
        return newest

    def follow(self, on_revision: RevisionCallback) -> None:
        """See Store."""
        self._listener = RevisionListener(lambda: connect(self._parameters), on_revision)
        self._listener.start()

    def interrupt(self) -> None:
        """See Store."""
        self._breaker.trip()

    def close(self) -> None:
        """Close every connection."""
        if self._listener is not None:
            self._listener.stop()
        if self._open is not None:
            self._open.close()

    def _translated(
        self, participle: str, hint: str = "nothing was changed"
    ) -> AbstractContextManager[None]:
        return translated(self._parameters, self._name, participle, hint)

    def _check(self, db: PostgresDatabase) -> None:
        """Raise StoreError if another server changed encoder or schema while this one ran."""
        check_schema(self._name, db)
        check_encoder(self._name, sql.meta(db, "encoder_id"), self._encoder_id)

    def _alive(self) -> PostgresConnection:
        """Return the open connection, or a new one if it broke since it was used."""
        if self._open is not None:
            try:
                with self._breaker.limit(self._open, PING_S):
                    self._open.execute("SELECT 1")
                return self._open
            except TimeLimitError:  # a new connection would wait as long
                self._open.close()
                raise
            except psycopg.Error:
                self._open.close()
        self._open = None
        self._open = connect(self._parameters)
        if not self._prepared:
            with self._breaker.limit(self._open, STATEMENT_S), self._open.transaction():
                set_up(PostgresDatabase(self._open), self._encoder_id)
            self._prepared = True
        return self._open

    @contextmanager
    def _transaction(
        self, *, snapshot: bool = False, limit_s: float = STATEMENT_S
    ) -> Iterator[PostgresDatabase]:
        connection = self._alive()
        reached_commit = False
        try:
            with self._breaker.limit(connection, limit_s), connection.transaction():
                if snapshot:
                    connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                yield PostgresDatabase(connection)
                reached_commit = True
        except psycopg.OperationalError as error:
            if reached_commit and not snapshot:
                raise UnknownCommitError from error
            raise


class UnknownCommitError(Exception):
    """The connection broke after COMMIT was sent and before the reply arrived."""


def _now_us(db: PostgresDatabase) -> int:
    return int(db.run("SELECT (extract(epoch FROM clock_timestamp()) * 1e6)::bigint")[0][0])


def set_up(db: PostgresDatabase, encoder_id: str) -> None:
    """Create schema and tables unless they exist; safe for servers that start together."""
    db.run("SELECT pg_advisory_xact_lock(?)", (SETUP_LOCK,))
    if not db.run("SELECT 1 FROM pg_namespace WHERE nspname = 'modelsat'"):
        db.run("CREATE SCHEMA modelsat")
    if db.run("SELECT to_regclass('modelsat.meta')")[0][0] is not None:
        _migrate(db)
        return
    for statement in TABLES:
        db.run(statement)
    values = {"schema": SCHEMA, "encoder_id": encoder_id, "epoch": sql.random_id()}
    db.run_many("INSERT INTO meta VALUES (?, ?)", values.items())


def _migrate(db: PostgresDatabase) -> None:
    """Add what version 0.2 lacks. Its servers can go on with the store: the column's default draws
    a nonce for each revision that they add, and differs in every row."""
    present = revision_columns(db)
    if "nonce" not in present:
        db.run(f"ALTER TABLE revision ADD COLUMN nonce TEXT NOT NULL{_NONCE}")
    sql.add_maker_columns(db, present)
    sql.add_identities(db)


def revision_columns(db: PostgresDatabase) -> set[str]:
    """Return the columns of the table revision, which depend on the version that made it."""
    rows = db.run(
        "SELECT column_name FROM information_schema.columns"
        " WHERE table_schema = 'modelsat' AND table_name = 'revision'"
    )
    return {row[0] for row in rows}


def lock_writers(db: PostgresDatabase) -> None:
    """Block other writers until the transaction ends, but no readers."""
    db.run("SELECT value FROM meta WHERE key = 'schema' FOR UPDATE")


def check_schema(name: str, db: PostgresDatabase) -> None:
    """Raise StoreError if another version wrote the store."""
    if (schema := sql.meta(db, "schema")) != SCHEMA:
        raise StoreError(
            f"{name}: schema is {schema!r}, this server's is {SCHEMA!r}; serve it with the version"
            " that wrote it."
        )


@contextmanager
def translated(conninfo: dict[str, Any], name: str, participle: str, hint: str) -> Iterator[None]:
    """Raise StoreError for failures: one sentence, without the password.

    name: of the store. participle: what could not be done to it. hint: end of the message.
    """
    try:
        yield
    except UnknownCommitError as error:
        raise StoreError(
            f"The connection to {name} was lost while it was being {participle}: the change was"
            " made completely or not at all; read the candidates again."
        ) from error
    except (psycopg.Error, ValueError, KeyError, TypeError) as error:
        text = (str(error).splitlines() or [""])[0]
        if conninfo.get("password"):
            text = text.replace(conninfo["password"], "***")
        failure = StoreError(
            f"{name} could not be {participle} ({type(error).__name__}: {text}); {hint}."
        )
        failure.unreachable = isinstance(error, psycopg.OperationalError)
        raise failure from error
