"""Test that padding keeps the contents, and that graphs are few, recent and dropped once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.api.errors import UnavailableError
from engine.inference.tensorrt.shapes import (
    SEEN_PER_GRAPH,
    ForwardShape,
    GraphCache,
    ShapeProfile,
    SizeRange,
    check_lengths,
    chunk_slices,
    pad_shape,
)

PROFILE = ShapeProfile(SizeRange(1, 24), SizeRange(32, 300), SizeRange(1, 1000))  # no powers of two


@given(st.integers(1, 24), st.integers(1, 300), st.integers(1, 1000))
def test_padded_shape_holds_the_request_within_the_profile(
    batch: int, length: int, candidates: int
) -> None:
    shape = pad_shape(PROFILE, batch, length, candidates)
    assert batch <= shape.batch <= PROFILE.batch.max
    assert max(length, PROFILE.length.min) <= shape.length <= PROFILE.length.max
    assert candidates <= shape.candidates
    assert PROFILE.candidates.min <= shape.candidates <= PROFILE.candidates.max
    again = pad_shape(PROFILE, shape.batch, shape.length, shape.candidates)
    assert again == shape, "padding twice changes nothing, so shapes are few"
    assert shape.batch < 2 * batch
    assert shape.length < max(length, 1) + 32
    assert shape.candidates < max(2 * candidates, 10)


@given(st.integers(0, 50), st.integers(1, 9))
def test_chunk_slices_cover_everything_in_order(count: int, size: int) -> None:
    numbers = list(range(count))
    chunks = [numbers[chunk] for chunk in chunk_slices(count, size)]
    assert [n for chunk in chunks for n in chunk] == numbers
    assert all(0 < len(chunk) <= size for chunk in chunks)


def test_prompt_longer_than_the_profile_is_refused() -> None:
    check_lengths(PROFILE, [1, 300])
    with pytest.raises(UnavailableError, match="301 tokens, the TensorRT plan accepts 300"):
        check_lengths(PROFILE, [5, 301])


@given(st.integers(0, 3), st.lists(st.integers(0, 5), max_size=60))
@settings(max_examples=200)
def test_graphs_are_created_at_the_second_use_and_dropped_once(
    limit: int, numbers: list[int]
) -> None:
    dropped: list[int] = []
    cache: GraphCache[int] = GraphCache(limit, dropped.append)
    created: list[int] = []
    stored: list[int] = []  # shapes with a graph, the most recently used last
    seen: list[int] = []
    for n in numbers:
        shape = ForwardShape(1, 32, n)
        graph = cache.get(shape)
        assert (graph is not None) == (n in stored)
        if graph is not None:
            stored = [k for k in stored if k != n] + [n]
            continue
        capture = cache.seen_before(shape)
        assert capture == (n in seen and limit > 0)
        seen = [s for s in seen if s != n] + [n]
        seen = seen[-SEEN_PER_GRAPH * limit :] if limit else []
        if capture:
            created.append(len(created))
            cache.put(shape, created[-1])
            seen.remove(n)
            stored = [*stored, n][-limit:]
        assert len(cache) == len(stored) <= limit
        assert len(dropped) == len(set(dropped)) == len(created) - len(cache)
    cache.disable()
    assert not any(cache.seen_before(ForwardShape(1, 32, n)) for n in (7, 7, 7))
    cache.clear()
    assert sorted(dropped) == created
