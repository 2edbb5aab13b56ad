"""Session affinity: which candidate a session currently uses.

Kept in memory, so after a restart every session is routed afresh.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable

HashedName = bytes


class SessionStore:
    """Keep the candidate of the most recently used sessions. Not thread-safe.

    A session belongs to the principal who began it: another one who sends the same name neither
    learns of it nor changes its candidate. Names are stored as keyed hashes, so that a memory dump
    reveals none.

    Args:
        limit: how many sessions to keep.
        ttl_s: seconds after its last use at which a session expires.
        clock: returns seconds; tests replace it.
    """

    def __init__(
        self, limit: int, ttl_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = limit
        self._ttl_s = ttl_s
        self._clock = clock
        self._secret = os.urandom(16)
        # In order of last use, so that the expired ones are in front.
        self._entries: OrderedDict[HashedName, tuple[str, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, name: str, principal: str = "") -> str:
        """Return the ID of the session's candidate, "" if the session is unknown or expired."""
        candidate, last_used = self._entries.get(self._hash(name, principal), ("", 0.0))
        return candidate if candidate and self._clock() - last_used < self._ttl_s else ""

    def put(self, name: str, candidate: str, principal: str = "") -> None:
        """Set the session's candidate, and drop expired sessions and those above the limit."""
        key, now = self._hash(name, principal), self._clock()
        self._entries[key] = (candidate, now)
        self._entries.move_to_end(key)
        while self._entries:
            oldest, (_, last_used) = next(iter(self._entries.items()))
            if len(self._entries) <= self._limit and now - last_used < self._ttl_s:
                return
            del self._entries[oldest]

    def _hash(self, name: str, principal: str) -> HashedName:
        owner, session = (text.encode("utf-8", "surrogatepass") for text in (principal, name))
        message = len(owner).to_bytes(4) + owner + session
        return hashlib.blake2b(message, digest_size=16, key=self._secret).digest()
