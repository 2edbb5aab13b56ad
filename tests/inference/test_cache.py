"""Test that the score cache is bounded, evicts the least recently used, and is off at 0."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.inference.backend import round_embeddings
from engine.inference.cache import OVERHEAD, CacheKey, ScoreCache


def entry(number: int) -> tuple[CacheKey, np.ndarray, np.ndarray]:
    embedding = round_embeddings(np.full(4, number + 1 / 3))
    key = (number % 2, bytes(number), b"rows", "alice")
    return key, np.full(3, number, dtype=np.float32), embedding


@given(
    limit=st.integers(0, 3000),
    operations=st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60),
)
def test_cache_returns_exact_entry_and_respects_byte_limit(
    limit: int, operations: list[tuple[bool, int]]
) -> None:
    cache, put = ScoreCache(limit), set()
    for writes, number in operations:
        key, p, embedding = entry(number)
        if writes:
            cache.put(key, p, embedding)
            put.add(number)
        elif (cached := cache.get(key)) is not None:
            assert number in put
            np.testing.assert_array_equal(cached[0], p)
            np.testing.assert_array_equal(cached[1], embedding)
        assert cache.size <= limit
    assert cache.hits + cache.misses == sum(not writes for writes, _ in operations)


def test_least_recently_used_entry_is_evicted_first() -> None:
    cache = ScoreCache(3 * (OVERHEAD + 4 + 12 + 8 + 10))  # three entries of the key's bytes at most
    for number in (0, 1, 2):
        cache.put(*entry(number))
    cache.get(entry(0)[0])
    cache.put(*entry(3))
    assert [cache.get(entry(n)[0]) is not None for n in range(4)] == [True, False, True, True]


@pytest.mark.parametrize("width", [0, 576, 4000])
def test_an_embedding_counts_two_bytes_a_value(width: int) -> None:
    cache, (key, p, _) = ScoreCache(1 << 20), entry(0)
    cache.put(key, p, np.zeros(width, np.float32))
    assert cache.size == OVERHEAD + len(b"rows") + p.nbytes + 2 * width


def test_cache_is_useful_at_ten_percent_hits() -> None:
    cache = ScoreCache(1)
    assert not cache.useful
    cache.hits, cache.misses = 1, 9
    assert cache.useful
    cache.misses = 10
    assert not cache.useful
