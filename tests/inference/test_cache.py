"""Test that the score cache is bounded, evicts the least recently used, and is off at 0."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.inference.cache import CacheKey, ScoreCache


def entry(number: int) -> tuple[CacheKey, np.ndarray]:
    return (number % 2, bytes(number), b"rows", "alice"), np.full(3, number, dtype=np.float32)


@given(
    limit=st.integers(0, 3000),
    operations=st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60),
)
def test_cache_returns_exact_entry_and_respects_byte_limit(
    limit: int, operations: list[tuple[bool, int]]
) -> None:
    cache, put = ScoreCache(limit), set()
    for writes, number in operations:
        key, p = entry(number)
        if writes:
            cache.put(key, p)
            put.add(number)
        else:
            cached = cache.get(key)
            assert cached is None or (number in put and (cached == p).all())
        assert cache.size <= limit
    assert cache.hits + cache.misses == sum(not writes for writes, _ in operations)


def test_least_recently_used_entry_is_evicted_first() -> None:
    cache = ScoreCache(1300)  # three entries of some 420 bytes
    for number in (0, 1, 2):
        cache.put(*entry(number))
    cache.get(entry(0)[0])
    cache.put(*entry(3))
    assert [cache.get(entry(n)[0]) is not None for n in range(4)] == [True, False, True, True]


def test_cache_is_useful_at_ten_percent_hits() -> None:
    cache = ScoreCache(1)
    assert not cache.useful
    cache.hits, cache.misses = 1, 9
    assert cache.useful
    cache.misses = 10
    assert not cache.useful
