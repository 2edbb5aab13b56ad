"""Padded shapes hold what they are for, and graphs are few, recent, and dropped once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.api.errors import UnavailableError
from engine.inference.tensorrt.shapes import (
    REMEMBERED,
    GraphCache,
    Profile,
    Range,
    Shape,
    check_lengths,
    padded,
    pieces,
)

PROFILE = Profile(Range(1, 24), Range(32, 300), Range(1, 1000))  # no power of two on purpose


@given(st.integers(1, 24), st.integers(1, 300), st.integers(1, 1000))
def test_a_padded_shape_holds_it_and_stays_within_the_profile(
    batch: int, length: int, candidates: int
) -> None:
    shape = padded(PROFILE, batch, length, candidates)
    assert batch <= shape.batch <= PROFILE.batch.most
    assert max(length, PROFILE.length.least) <= shape.length <= PROFILE.length.most
    assert candidates <= shape.candidates
    assert PROFILE.rows.least <= shape.candidates <= PROFILE.rows.most
    again = padded(PROFILE, shape.batch, shape.length, shape.candidates)
    assert again == shape, "padding twice changes nothing, so shapes are few"
    assert shape.batch < 2 * batch
    assert shape.length < max(length, 1) + 32
    assert shape.candidates < max(2 * candidates, 9)


@given(st.integers(0, 50), st.integers(1, 9))
def test_pieces_are_everything_in_order(count: int, most: int) -> None:
    numbers = list(range(count))
    cut = [numbers[piece] for piece in pieces(count, most)]
    assert [n for piece in cut for n in piece] == numbers
    assert all(0 < len(piece) <= most for piece in cut)


def test_a_prompt_beyond_the_profile_is_refused() -> None:
    check_lengths(PROFILE, [1, 300])
    with pytest.raises(UnavailableError, match="301 tokens, the plan was built for 300"):
        check_lengths(PROFILE, [5, 301])


@given(st.integers(0, 3), st.lists(st.integers(0, 5), max_size=60))
@settings(max_examples=200)
def test_graphs_are_made_the_second_time_and_dropped_once(limit: int, asked: list[int]) -> None:
    dropped: list[int] = []
    cache: GraphCache[int] = GraphCache(limit, dropped.append)
    made: list[int] = []
    kept: list[int] = []  # shapes with a graph, the one used last at the end
    seen: list[int] = []
    for n in asked:
        shape = Shape(1, 32, n)
        found = cache.get(shape)
        assert (found is not None) == (n in kept)
        if found is not None:
            kept = [k for k in kept if k != n] + [n]
            continue
        common = cache.is_common(shape)
        assert common == (n in seen and limit > 0)
        seen = [s for s in seen if s != n] + [n]
        seen = seen[-REMEMBERED * limit :] if limit else []
        if common:
            made.append(len(made))
            cache.put(shape, made[-1])
            seen.remove(n)
            kept = [*kept, n][-limit:]
        assert len(cache) == len(kept) <= limit
        assert len(dropped) == len(set(dropped)) == len(made) - len(cache)
    cache.disable()
    assert not any(cache.is_common(Shape(1, 32, n)) for n in (7, 7, 7))
    cache.clear()
    assert sorted(dropped) == made
