"""A time limit on what a PostgreSQL connection waits for, which does not trust the database.

A server whose processes are stopped, or whose disk hangs, keeps its connections open: the system
acknowledges every packet, so neither keepalives nor tcp_user_timeout notice, and statement_timeout
is the database's own. So the socket is shut down from another thread.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg


class TimeLimitError(psycopg.OperationalError):
    """The database did not answer in time; the connection is closed."""


class Breaker:
    """Ends what other threads wait for on a connection. Safe for use by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: psycopg.Connection[Any] | None = None
        self._broken = False

    @contextmanager
    def limit(self, db: psycopg.Connection[Any], seconds: float) -> Iterator[None]:
        """Shut the connection down if the block, which waits for it, takes longer.

        Raises TimeLimitError in place of the failure that this causes.
        """
        timer = threading.Timer(seconds, self.trip)
        timer.daemon = True
        with self._lock:
            self._waiting, self._broken = db, False
        timer.start()
        try:
            yield
        except psycopg.Error as error:
            with self._lock:
                broken = self._broken
            if broken:
                raise TimeLimitError(f"no answer within {seconds:g} s") from error
            raise
        finally:
            timer.cancel()
            with self._lock:
                self._waiting = None

    def trip(self) -> None:
        """Shut the connection down that is waited for, if any."""
        with self._lock:  # held so that the descriptor is not closed and used again meanwhile
            if self._waiting is None or self._waiting.closed:
                return
            self._broken = True
            with (
                suppress(OSError, psycopg.Error),
                socket.socket(fileno=os.dup(self._waiting.fileno())) as shared,
            ):
                shared.shutdown(socket.SHUT_RDWR)
