"""Cache probabilities and instruction embeddings by everything that they depend on.

Decisions are not cached. Policies and prices are applied to the probabilities afterwards, so one
forward pass serves every policy, and a request with another objective is a hit too.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.bundle.types import Float32Array, Int64Array
from engine.registry.stores.base import RevisionId
from engine.registry.table import Table

CacheKey = tuple[RevisionId, bytes, bytes, str]
OVERHEAD = 600  # bytes of an entry besides its arrays: objects, dict and links


@dataclass(frozen=True, slots=True)
class _Entry:
    """p: (K,), read-only. embedding: (D,), in half the bytes that a decision reads."""

    p: Float32Array
    embedding: NDArray[np.float16]


class ScoreCache:
    """A least-recently-used cache of at most `limit` bytes; 0 disables it. Not thread-safe.

    cachetools.LRUCache is not used, because it measures an entry by its value alone, and here the
    key is most of it.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[CacheKey, _Entry] = OrderedDict()
        self.size = 0
        self.hits = 0
        self.misses = 0

    @property
    def useful(self) -> bool:
        """True if the hit rate is at least 10 %."""
        return self.hits > 0 and 9 * self.hits >= self.misses

    @staticmethod
    def key(table: Table, tokens: Int64Array, rows: Int64Array, principal: str = "") -> CacheKey:
        """Build the key of a request.

        Args:
            table: that it sees.
            tokens: (L,), of its prompt.
            rows: (K,), eligible rows of `table`.
            principal: who sent it. No caller gets what the request of another one left, because
                the time of the answer would say that it was asked before.
        """
        request = tokens.astype(np.int32).tobytes(), rows.astype(np.int32).tobytes()
        return table.id, *request, principal

    def get(self, key: CacheKey) -> tuple[Float32Array, Float32Array] | None:
        """Return the probabilities (K,), read-only, and the instruction's embedding (D,), or None
        if they are not cached."""
        entry = self._entries.get(key)
        if entry is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return entry.p, entry.embedding.astype(np.float32)

    def put(self, key: CacheKey, p: Float32Array, embedding: Float32Array) -> None:
        """Store copies of `p` (K,) and `embedding` (D,), rounded by round_embeddings, and evict the
        least recently used entries if the limit is exceeded.

        Probabilities that are not finite are not stored, because the next forward pass may succeed.
        """
        entry = _Entry(p.copy(), embedding.astype(np.float16))
        size = _entry_size(key, entry)
        if key in self._entries or size > self._limit or not np.isfinite(p).all():
            return
        entry.p.setflags(write=False)
        self._entries[key] = entry
        self.size += size
        while self.size > self._limit:
            self.size -= _entry_size(*self._entries.popitem(last=False))


def _entry_size(key: CacheKey, entry: _Entry) -> int:
    return len(key[1]) + len(key[2]) + entry.p.nbytes + entry.embedding.nbytes + OVERHEAD
