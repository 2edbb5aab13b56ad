"""Hears of every change of a PostgreSQL store, and of its loss, on a thread of its own."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import psycopg

from engine.registry.store import Seen

CHANNEL = "modelsat_revision"
POLL_S = 2.0  # a notification may be lost, a connection broken without a sign
SLICE_S = 0.25  # how soon stop() is noticed
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0  # between attempts to connect


class Listener:
    """Calls `seen` with the store's revision at every notification and every POLL_S, and with None
    and a reason whenever the database cannot be asked."""

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]], seen: Seen) -> None:
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
