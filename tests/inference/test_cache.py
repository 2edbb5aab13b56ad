"""The cache of probabilities: bounded, least recently used out first, off at 0."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.inference.cache import Key, ScoreCache


def entry(number: int) -> tuple[Key, np.ndarray]:
    return (number % 2, bytes(number), b"rows"), np.full(3, number, dtype=np.float32)


@given(
    limit=st.integers(0, 3000),
    work=st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60),
)
def test_it_gives_what_was_put_or_nothing_and_stays_within_its_bytes(
    limit: int, work: list[tuple[bool, int]]
) -> None:
    cache, put = ScoreCache(limit), set()
    for writes, number in work:
        key, p = entry(number)
        if writes:
            cache.put(key, p)
            put.add(number)
        else:
            found = cache.get(key)
            assert found is None or (number in put and (found == p).all())
        assert cache.size <= limit
    assert cache.hits + cache.misses == sum(not writes for writes, _ in work)


def test_what_was_used_longest_ago_goes_first() -> None:
    cache = ScoreCache(1300)  # three entries of some 420 bytes
    for number in (0, 1, 2):
        cache.put(*entry(number))
    cache.get(entry(0)[0])
    cache.put(*entry(3))
    assert [cache.get(entry(n)[0]) is not None for n in range(4)] == [True, False, True, True]


def test_it_is_useful_where_a_tenth_is_found() -> None:
    cache = ScoreCache(1)
    assert not cache.useful
    cache.hits, cache.misses = 1, 9
    assert cache.useful
    cache.misses = 10
    assert not cache.useful
