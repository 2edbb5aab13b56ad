"""Session affinity: which candidate a session currently uses.

Kept in memory, where requests read and change it. engine/serving/session_sync.py keeps a copy in a
store, for the next start and for other servers.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

HashedName = bytes
PROMPT_CACHE_S = 300.0  # for which providers keep what they have read, at least


@dataclass(frozen=True)
class SessionEntry:
    """key: the session's name, hashed. used_s: when it was last used, in seconds since 1970.
    input_tokens: that its candidate read then."""

    key: HashedName
    candidate: str
    used_s: float
    input_tokens: int = 0


class SessionStore:
    """Keep the candidate of the most recently used sessions. Not thread-safe.

    A session belongs to the principal who began it: another one who sends the same name neither
    learns of it nor changes its candidate. Names are stored as keyed hashes, so that a memory dump
    reveals none.

    Args:
        limit: how many sessions to keep.
        ttl_s: seconds after its last use at which a session expires.
        clock: returns seconds since 1970, which servers that share sessions agree on; tests replace
            it.
        secret: key of the hashes, of up to 64 bytes; None draws one. Servers that share sessions
            share it.
    """

    def __init__(
        self,
        limit: int,
        ttl_s: float,
        clock: Callable[[], float] = time.time,
        secret: bytes | None = None,
    ) -> None:
        self.limit = limit
        self.ttl_s = ttl_s
        self._clock = clock
        self._secret = os.urandom(16) if secret is None else secret
        # In order of last use, so that the expired ones are in front.
        self._entries: OrderedDict[HashedName, SessionEntry] = OrderedDict()
        self._changed: set[HashedName] = set()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, name: str, principal: str = "") -> str:
        """Return the ID of the session's candidate, "" if the session is unknown or expired."""
        entry = self.entry(name, principal)
        return "" if entry is None else entry.candidate

    def entry(self, name: str, principal: str = "") -> SessionEntry | None:
        """Return what is known of a session, None if it is unknown or expired."""
        entry = self._entries.get(self._hash(name, principal))
        return None if entry is None or self._clock() - entry.used_s >= self.ttl_s else entry

    def cached_tokens(self, name: str, principal: str, input_tokens: int) -> int:
        """Return how many tokens of a request the provider of the session's candidate has in its
        prompt cache: what that read last, unless it is long ago or the request is shorter, so that
        the conversation does not begin in the same way any more."""
        entry = self.entry(name, principal)
        if entry is None or self._clock() - entry.used_s > PROMPT_CACHE_S:
            return 0
        return entry.input_tokens if entry.input_tokens <= input_tokens else 0

    def put(self, name: str, candidate: str, principal: str = "", input_tokens: int = 0) -> None:
        """Set the session's candidate, and drop expired sessions and those above the limit."""
        entry = SessionEntry(self._hash(name, principal), candidate, self._clock(), input_tokens)
        self._keep(entry)
        self._changed.add(entry.key)
        self._drop()

    def take_changes(self) -> list[SessionEntry]:
        """Return what put() changed since the last call."""
        changed, self._changed = self._changed, set()
        return [self._entries[key] for key in changed if key in self._entries]

    def put_back(self, entries: Iterable[SessionEntry]) -> None:
        """Return changes that could not be stored, for the next call of take_changes."""
        self._changed |= {entry.key for entry in entries if entry.key in self._entries}

    def merge(self, entries: Iterable[SessionEntry]) -> None:
        """Take over what other servers, or an earlier run, stored, unless it is older."""
        for entry in entries:
            known = self._entries.get(entry.key)
            if known is None or known.used_s < entry.used_s:
                self._keep(entry)
                self._changed.discard(entry.key)
        self._drop()

    def _keep(self, entry: SessionEntry) -> None:
        self._entries[entry.key] = entry
        self._entries.move_to_end(entry.key)

    def _drop(self) -> None:
        now = self._clock()
        while self._entries:
            key, oldest = next(iter(self._entries.items()))
            if len(self._entries) <= self.limit and now - oldest.used_s < self.ttl_s:
                return
            del self._entries[key]
            self._changed.discard(key)

    def _hash(self, name: str, principal: str) -> HashedName:
        owner, session = (text.encode("utf-8", "surrogatepass") for text in (principal, name))
        message = len(owner).to_bytes(4) + owner + session
        return hashlib.blake2b(message, digest_size=16, key=self._secret).digest()
