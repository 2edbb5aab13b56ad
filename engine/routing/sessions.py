"""Which candidate a session has. In memory: a restart lets every session be chosen for anew."""

from __future__ import annotations

import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable

Key = bytes


class Sessions:
    """The `limit` most recently used sessions, each for `ttl_s` seconds after its last use.

    Names are kept as keyed hashes, so that a memory dump shows none. For one thread.
    """

    def __init__(
        self, limit: int, ttl_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = limit
        self._ttl_s = ttl_s
        self._clock = clock
        self._secret = os.urandom(16)
        # In order of last use, so that the expired ones are in front.
        self._known: OrderedDict[Key, tuple[str, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def candidate(self, name: str) -> str:
        """Id of the session's candidate; "" where none is remembered."""
        found, used = self._known.get(self._key(name), ("", 0.0))
        return found if found and self._clock() - used < self._ttl_s else ""

    def remember(self, name: str, identifier: str) -> None:
        """The session has the candidate `identifier` from now on."""
        key, now = self._key(name), self._clock()
        self._known[key] = (identifier, now)
        self._known.move_to_end(key)
        while self._known:
            oldest, (_, used) = next(iter(self._known.items()))
            if len(self._known) <= self._limit and now - used < self._ttl_s:
                return
            del self._known[oldest]

    def _key(self, name: str) -> Key:
        return hashlib.blake2b(name.encode(), digest_size=16, key=self._secret).digest()
