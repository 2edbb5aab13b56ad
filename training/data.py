"""Instructions as tokens, in batches of about equal length.

Letters: N instructions, B instructions of a batch, L tokens of the longest of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.contract.prompt import Tokenizer, render

Ints = NDArray[np.int64]
BUCKET = 64  # batches whose instructions are sorted by length together


@dataclass(frozen=True)
class Batch:
    """tokens: (B, L) right-padded with 0. lengths: (B,). rows: (B,) instruction numbers of the
    pool with number `pool`."""

    tokens: Ints
    lengths: Ints
    rows: Ints
    pool: int = 0

    def part(self, rank: int, of: int) -> Batch:
        """Every `of`-th instruction, from number `rank` on: what one of several processes does.
        Where there are fewer than processes, some do the same one: no model takes none."""
        mine = slice(rank % len(self.rows), None, of)
        return Batch(self.tokens[mine], self.lengths[mine], self.rows[mine], self.pool)


def tokenise(texts: Sequence[str], tokenizer: Tokenizer) -> list[Ints]:
    """Prompt tokens of each text, as serving renders them."""
    return [render(text, tokenizer).tokens for text in texts]


def batches(
    tokens: Sequence[Ints], rows: Ints, size: int, seed: int | None, pool: int = 0
) -> list[Batch]:
    """`rows` in batches of `size` of about equal length; shuffled by `seed`, or in length order.

    Neighbours are drawn within buckets of BUCKET batches, so that little padding is read and the
    order still changes with the seed.
    """
    if seed is None:
        order = sorted(rows, key=lambda r: len(tokens[r]))
        return [pad([tokens[r] for r in part], part, pool) for part in _chunks(order, size)]
    random = np.random.default_rng(seed)
    shuffled = list(random.permutation(rows))
    groups = [
        part
        for bucket in _chunks(shuffled, size * BUCKET)
        for part in _chunks(sorted(bucket, key=lambda r: len(tokens[r])), size)
    ]
    ordered = [groups[i] for i in random.permutation(len(groups))]
    return [pad([tokens[r] for r in part], part, pool) for part in ordered]


def _chunks(items: list[int], size: int) -> list[list[int]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def pad(tokens: Sequence[Ints], rows: Sequence[int] | Ints, pool: int) -> Batch:
    """The batch of these instructions, which have these numbers."""
    lengths = np.array([len(t) for t in tokens], dtype=np.int64)
    padded = np.zeros((len(tokens), int(lengths.max())), dtype=np.int64)
    for i, own in enumerate(tokens):
        padded[i, : lengths[i]] = own
    return Batch(padded, lengths, np.asarray(rows), pool)
