"""Connections to PostgreSQL: settings, the SQL on them, and the thread that follows changes."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from engine.api.errors import StoreError
from engine.registry.stores import sql
from engine.registry.stores.base import RevisionCallback, without_password
from engine.registry.stores.sql import Row
from engine.registry.stores.time_limit import Breaker

PING_S = 2.0
# A server that hangs or loses its network must not block the others for long.
_SESSION = """
SET search_path TO modelsat;
SET lock_timeout TO '10s';
SET statement_timeout TO '15s';
SET idle_in_transaction_session_timeout TO '60s'
"""
DEFAULTS = {
    "connect_timeout": "3",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "application_name": "modelsat",
}
PostgresConnection = psycopg.Connection[Row]
CHANNEL = "modelsat_revision"
POLL_S = 1.5  # notifications get lost, and connections break without a sign
SLICE_S = 0.25  # delay of stop()
MIN_BACKOFF_S, MAX_BACKOFF_S = 0.1, 2.0  # between attempts to connect


class PostgresDatabase:
    """A sql.Database of a PostgreSQL connection."""

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

    def epoch(self) -> str:
        """Return the epoch of meta, combined with the timeline that connect() read: PostgreSQL
        begins a new timeline whenever it is restored to a point in time or fails over."""
        return str(
            self.run(
                "SELECT substr(md5(value || current_setting('modelsat.timeline')), 1, 16)"
                " FROM meta WHERE key = 'epoch'"
            )[0][0]
        )


def parameters(url: str) -> dict[str, Any]:
    """Return the connection parameters of `url`, with our defaults for what it does not set."""
    try:
        return {**DEFAULTS, **conninfo_to_dict(url)}
    except psycopg.Error:
        # psycopg's message may quote the URL, password included.
        raise StoreError(
            f"--candidates-db is {without_password(url)}, which is not a valid PostgreSQL URL;"
            " expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with special characters"
            " percent-encoded."
        ) from None


def connect(conninfo: dict[str, Any]) -> PostgresConnection:
    """Connect, and set the session up for our tables. Raises psycopg.Error."""
    db = psycopg.connect(**conninfo, autocommit=True)
    try:
        with Breaker().limit(db, PING_S):
            _prepare_session(db)
    except psycopg.Error:
        db.close()
        raise
    return db


def _prepare_session(db: PostgresConnection) -> None:
    db.execute(_SESSION)
    _remember_timeline(db)
    # Acknowledged means on disk, whatever the database's default; stricter defaults stay.
    db.execute(
        "SELECT set_config('synchronous_commit', 'on', false)"
        " WHERE current_setting('synchronous_commit') IN ('off', 'local')"
    )


def _remember_timeline(db: PostgresConnection) -> None:
    """Set modelsat.timeline to what identifies the database's timeline, "" if that is secret."""
    timeline = ""
    with suppress(psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedFunction):
        row = db.execute(
            "SELECT system_identifier || '/' || CASE WHEN pg_is_in_recovery() THEN ''"
            " ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END FROM pg_control_system()"
        ).fetchone()
        timeline = str(row[0]) if row else ""
    db.execute("SELECT set_config('modelsat.timeline', %s, false)", (timeline,))


class RevisionListener:
    """A thread that reports the newest revision at every notification and every POLL_S, and a loss
    of the connection whenever the database does not answer."""

    def __init__(
        self, connect: Callable[[], psycopg.Connection[Any]], on_revision: RevisionCallback
    ) -> None:
        self._connect = connect
        self._on_revision = on_revision
        self._stopping = threading.Event()
        self._breaker = Breaker()
        self._thread = threading.Thread(target=self._run, name="store-listener", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and wait up to 2 x SLICE_S: a connection attempt may take longer."""
        self._stopping.set()
        self._breaker.trip()
        self._thread.join(2 * SLICE_S)

    def _run(self) -> None:
        backoff_s = MIN_BACKOFF_S
        while not self._stopping.is_set():
            try:
                with self._connect() as db:
                    backoff_s = MIN_BACKOFF_S
                    self._listen(db)
            except (psycopg.Error, LookupError) as error:  # LookupError: the tables are empty
                self._on_revision(None, type(error).__name__)
                jitter = 0.5 + random.random() / 2  # noqa: S311 - spreads load
                self._stopping.wait(backoff_s * jitter)
                backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)

    def _listen(self, db: psycopg.Connection[Any]) -> None:
        with self._breaker.limit(db, PING_S):
            db.execute(f"LISTEN {CHANNEL}")
        while not self._stopping.is_set():
            with self._breaker.limit(db, PING_S):
                newest = sql.identity(PostgresDatabase(db))
            self._on_revision(newest, "")
            self._wait(db)

    def _wait(self, db: psycopg.Connection[Any]) -> None:
        """Wait for a notification, POLL_S, or stop()."""
        for _ in range(int(POLL_S / SLICE_S)):
            if self._stopping.is_set() or list(db.notifies(timeout=SLICE_S, stop_after=1)):
                return
