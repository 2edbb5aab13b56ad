"""Probabilities already computed, by everything that they depend on.

Not decisions: policy and prices are applied after, so that one forward serves every policy, and a
request with another cost sensitivity is a hit too.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from engine.registry.table import Table

Key = tuple[int, bytes, bytes]
OVERHEAD = 400  # bytes of an entry beside its arrays: objects, dict and links


class ScoreCache:
    """The most recently used entries within `limit` bytes; 0 keeps none. For one thread."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[Key, NDArray[np.float32]] = OrderedDict()
        self.size = 0
        self.hits = 0
        self.misses = 0

    @property
    def useful(self) -> bool:
        """Whether a tenth or more of what is asked for is here."""
        return self.hits > 0 and 9 * self.hits >= self.misses

    @staticmethod
    def key(table: Table, tokens: NDArray[np.int64], rows: NDArray[np.int64]) -> Key:
        """tokens (L,), rows: the eligible ones of the table, of this revision."""
        return table.revision, tokens.astype(np.int32).tobytes(), rows.astype(np.int32).tobytes()

    def get(self, key: Key) -> NDArray[np.float32] | None:
        """(len(rows),) probabilities, read-only; None where they are not here."""
        found = self._entries.get(key)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return found

    def put(self, key: Key, p: NDArray[np.float32]) -> None:
        """Keep `p`, and drop what was used longest ago where it does not fit. What is not finite is
        not kept: the next forward may do better."""
        if key in self._entries or _bytes(key, p) > self._limit or not np.isfinite(p).all():
            return
        kept = p.copy()
        kept.setflags(write=False)
        self._entries[key] = kept
        self.size += _bytes(key, kept)
        while self.size > self._limit:
            self.size -= _bytes(*self._entries.popitem(last=False))


def _bytes(key: Key, p: NDArray[np.float32]) -> int:
    return len(key[1]) + len(key[2]) + p.nbytes + OVERHEAD
