"""Embeddings are kept in little more than a byte a number, and earlier ones stay readable."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.registry.embedding_bytes import (
    BLOCK,
    pack_embedding,
    repack,
    unpack_embedding,
    unpack_embeddings,
)


@given(st.integers(0, 10_000), st.integers(1, 12), st.sampled_from([1e-6, 1e-3, 1.0, 100.0]))
def test_an_embedding_is_kept_to_a_half_step_of_its_block(
    seed: int, blocks: int, size: float
) -> None:
    """Kind: a few numbers a hundred times as large as the others. They cost their block alone."""
    random = np.random.default_rng(seed)
    numbers = size * random.normal(size=(blocks, BLOCK))
    numbers[0, :2] *= 100
    embedding = numbers.reshape(-1).astype(np.float16)
    packed = pack_embedding(embedding)
    assert len(packed) == blocks * (BLOCK + 2) + 1
    error = np.abs(unpack_embedding(packed) - embedding).reshape(blocks, BLOCK)
    steps = np.abs(embedding.astype(float)).reshape(blocks, BLOCK).max(axis=1) / 127
    assert (error.max(axis=1) <= 0.51 * steps + 1e-7 * 64).all()
    assert repack(packed) == packed


@pytest.mark.parametrize("width", [1, 8, BLOCK - 1, BLOCK, 9 * BLOCK])
def test_an_embedding_of_an_earlier_version_is_read(width: int) -> None:
    old = np.linspace(-2, 2, width).astype("<f2")
    np.testing.assert_array_equal(unpack_embedding(old.tobytes()), old.astype(np.float32))
    again = repack(old.tobytes())
    assert again == pack_embedding(old)
    np.testing.assert_allclose(unpack_embedding(again), old.astype(float), atol=2 / 127)


def test_what_is_not_there_or_not_finite_is_not_used() -> None:
    broken = np.full(BLOCK, np.nan, dtype=np.float16)
    assert repack(None) is None
    assert repack(pack_embedding(broken)) is None


def test_many_are_read_at_once() -> None:
    embeddings = np.random.default_rng(0).normal(size=(5, 2 * BLOCK)).astype(np.float16)
    packed = [pack_embedding(each) for each in embeddings]
    rows = np.stack([np.frombuffer(each, dtype=np.uint8) for each in packed])
    one_by_one = np.stack([unpack_embedding(each) for each in packed])
    np.testing.assert_array_equal(unpack_embeddings(rows), one_by_one)
