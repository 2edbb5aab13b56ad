"""Keep sessions in the store of outcomes, behind the requests, for the next start and for replicas.

Every SYNC_S, a thread writes what changed, and reads what other servers wrote. No
request waits for it. What a server that is killed has not yet written is lost.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from engine.api.errors import StoreError
from engine.registry.stores.base import is_postgres
from engine.registry.stores.outcome_databases import (
    POSTGRES_TYPES,
    SQLITE_TYPES,
    OutcomeDatabase,
    open_outcomes,
)
from engine.registry.stores.sql import Database, Row
from engine.routing.sessions import SessionEntry, SessionStore

SYNC_S = 1.0
RETRY_S = 5.0  # after a failure
PRUNE_S = 60.0
START_S = 3.0
TABLES = (
    "CREATE TABLE IF NOT EXISTS session (key {blob} PRIMARY KEY, candidate TEXT NOT NULL,"
    " used_s {real} NOT NULL, input_tokens {int} NOT NULL, version {int} NOT NULL){end}",
    "CREATE INDEX IF NOT EXISTS session_version ON session (version)",
)
WRITE = (
    "INSERT INTO session VALUES (?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET"
    " candidate = excluded.candidate, used_s = excluded.used_s,"
    " input_tokens = excluded.input_tokens, version = excluded.version"
    " WHERE session.used_s <= excluded.used_s"
)
log = logging.getLogger(__name__)


def session_secret(decision_key: bytes) -> bytes:
    """Derive the key of session names from the secret that servers of one store share."""
    return hashlib.blake2b(b"names of sessions", key=decision_key, digest_size=32).digest()


class SessionSync:
    """Copies between a SessionStore and the database at `location`; see open_outcomes."""

    def __init__(self, sessions: SessionStore, location: str) -> None:
        self._sessions = sessions
        self._location = location
        self._types = POSTGRES_TYPES if is_postgres(location) else SQLITE_TYPES
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sessions")
        self._database: OutcomeDatabase | None = None
        self._seen = 0  # newest version that was read
        self._pruned = 0.0
        self._failing = False

    async def start(self) -> None:
        """Read the sessions of earlier runs and other servers, for START_S at most."""
        if self._sessions.limit:
            with suppress(TimeoutError):
                async with asyncio.timeout(START_S):
                    await self.copy()

    async def run(self) -> None:
        """Copy until the task is cancelled."""
        while self._sessions.limit:
            await asyncio.sleep(RETRY_S if self._failing else SYNC_S)
            await self.copy()

    async def copy(self) -> None:
        """Copy once, both ways. A failure is logged, once in a row, and tried again."""
        changed = self._sessions.take_changes()
        try:
            loop = asyncio.get_running_loop()
            read = await loop.run_in_executor(self._thread, self._exchange, changed)
        except StoreError as error:
            self._sessions.put_back(changed)
            if not self._failing:
                log.error("sessions are kept in memory alone: %s", error)
            self._failing = True
            return
        except asyncio.CancelledError:
            self._sessions.put_back(changed)
            raise
        if self._failing:
            log.info("sessions are stored again")
        self._failing = False
        # Here and not in the thread: what was read by a copy that was cancelled is read again.
        self._seen = max((int(row[-1]) for row in read), default=self._seen)
        # Oldest first, in the order in which the store keeps them.
        self._sessions.merge(
            SessionEntry(bytes(k), c, float(s), int(n)) for k, c, s, n, _ in reversed(read)
        )

    async def close(self) -> None:
        """Write what is left, and close the database."""
        if self._sessions.limit and not self._failing:
            await self.copy()
        with suppress(StoreError):
            if self._database is not None:
                self._database.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _exchange(self, changed: list[SessionEntry]) -> list[Row]:
        """Write, and return what was written since the version `_seen`; in the thread."""
        if self._database is None:
            database = open_outcomes(self._location)
            with database.write() as db:
                for statement in TABLES:
                    db.run(statement.format(**self._types))
            self._database = database
        now = time.time()
        if changed or now - self._pruned >= PRUNE_S:
            with self._database.write() as db:
                self._write(db, changed, now)
        with self._database.read() as db:
            return db.run(
                "SELECT key, candidate, used_s, input_tokens, version FROM session"
                " WHERE version > ? AND used_s > ? ORDER BY used_s DESC LIMIT ?",
                (self._seen, now - self._sessions.ttl_s, self._sessions.limit),
            )

    def _write(self, db: Database, changed: list[SessionEntry], now: float) -> None:
        """Write in the open transaction; writers take turns, so versions are in order."""
        ((newest,),) = db.run("SELECT COALESCE(MAX(version), 0) FROM session")
        version = max(int(newest) + 1, int(now * 1e6))
        db.run_many(
            WRITE, [(e.key, e.candidate, e.used_s, e.input_tokens, version) for e in changed]
        )
        if now - self._pruned < PRUNE_S:
            return
        db.run("DELETE FROM session WHERE used_s <= ?", (now - self._sessions.ttl_s,))
        db.run(
            "DELETE FROM session WHERE key IN"
            " (SELECT key FROM session ORDER BY used_s DESC LIMIT 1000000000 OFFSET ?)",
            (self._sessions.limit,),
        )
        self._pruned = now
