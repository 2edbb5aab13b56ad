"""Test that padding keeps the contents, and which shapes are captured at start."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.api.errors import UnavailableError
from engine.inference.tensorrt.shapes import (
    ShapeProfile,
    SizeRange,
    check_lengths,
    chunk_slices,
    pad_shape,
    usual_shapes,
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
    assert shape.length < max(length, 1) + 64
    assert shape.candidates < max(2 * candidates, 18)


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


def test_usual_shapes_are_those_that_requests_are_padded_to() -> None:
    shapes = usual_shapes(PROFILE)
    assert len(shapes) == len(set(shapes)) == 6 * 5 * 4
    assert shapes[0] == pad_shape(PROFILE, 1, 1, 2)
    assert {s.batch for s in shapes} == {1, 2, 4, 8, 16, 24}
    assert all(pad_shape(PROFILE, s.batch, s.length, s.candidates) == s for s in shapes)
    for batch, length, candidates in ((1, 90, 16), (3, 128, 70), (24, 300, 129)):
        assert pad_shape(PROFILE, batch, length, candidates) in shapes
