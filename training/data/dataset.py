"""A data folder as training sees it: instructions as tokens, candidates as representations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.bundle.arrays import TaskNorms
from engine.bundle.prompt import Tokenizer, render
from engine.bundle.types import Float32Array, Int64Array
from engine.datasets.outcomes import Outcomes, split
from training.config import Plan
from training.data.augment import draw
from training.data.capability import Capabilities, capabilities
from training.data.reformat import reworded
from training.model.model import TextEncoder


@dataclass(frozen=True)
class Shown:
    """What a step shows: c (M, C) of real and made candidates, outcomes (B, M), and levels (M,),
    the candidates' mean accuracy by the figures shown."""

    c: Float32Array
    outcomes: Float32Array
    levels: Float32Array


@dataclass(frozen=True)
class Pool:
    """outcomes: M candidates x N instructions. tokens: N, by tokenizer. vectors: (T, E). c:
    (M, C), standardised. train, validation, test: row numbers."""

    outcomes: Outcomes
    tokenizer: Tokenizer
    tokens: list[NDArray[np.int64]]
    vectors: Float32Array
    c: Float32Array
    train: Int64Array
    validation: Int64Array
    test: Int64Array

    def step(
        self, random: np.random.Generator, batch: Batch, capability: Capabilities, plan: Plan
    ) -> Shown:
        """The M candidates and plan.synthetic_candidates others."""
        scores = self.outcomes.scores[:, batch.rows]
        subjects = [self.outcomes.subjects[i] for i in batch.rows]
        drawn = draw(
            random,
            self.outcomes.test,
            scores,
            subjects,
            plan.synthetic_candidates,
            plan.exact_accuracy_prob,
        )
        c = capability.drawn(drawn, self.outcomes.test.keywords, self.vectors)
        return Shown(c, drawn.outcomes.T.copy(), np.nanmean(drawn.figures, axis=1))

    def reworded(self, random: np.random.Generator, batch: Batch, share: float) -> Batch:
        """`batch` with about this share of its instructions in another form."""
        if not share:
            return batch
        tokens = [self.tokens[row] for row in batch.rows]
        for i in np.flatnonzero(random.random(len(tokens)) < share):
            text = reworded(random, self.outcomes.texts[batch.rows[i]])
            (tokens[i],) = tokenise([text], self.tokenizer)
        return pad(tokens, batch.rows, batch.pool)

    def batches(self, rows: Int64Array, size: int, seed: int | None, number: int) -> list[Batch]:
        """`rows` in batches that name this pool by its number."""
        return batches(self.tokens, rows, size, seed, number)


def make_pool(
    outcomes: Outcomes, capability: Capabilities, encoder: TextEncoder, tokenizer: Tokenizer
) -> Pool:
    """Tokenise, embed and split `outcomes`."""
    vectors = capability.vectors(outcomes.test.keywords, encoder)
    return Pool(
        outcomes,
        tokenizer,
        tokenise(outcomes.texts, tokenizer),
        vectors,
        capability.of(outcomes.test, vectors),
        *split(outcomes.texts),
    )


def make_pools(
    outcomes: Sequence[Outcomes],
    encoder: TextEncoder,
    tokenizer: Tokenizer,
    norms: TaskNorms | None = None,
) -> tuple[Capabilities, list[Pool]]:
    """Read every folder's outcomes as training does; the first one's aptitude test sets the scale,
    and the norms unless `norms` gives them."""
    capability = capabilities(outcomes[0].test, encoder, norms)
    return capability, [make_pool(o, capability, encoder, tokenizer) for o in outcomes]


BUCKET = 64  # batches whose instructions are sorted by length together


@dataclass(frozen=True)
class Batch:
    """tokens: (B, L) right-padded with 0. lengths: (B,). rows: (B,) instruction numbers of the
    pool with number `pool`."""

    tokens: Int64Array
    lengths: Int64Array
    rows: Int64Array
    pool: int = 0

    def part(self, rank: int, of: int) -> Batch:
        """Every `of`-th instruction, from number `rank` on: what one of several processes does.
        Where there are fewer than processes, some do the same one: no model takes none."""
        mine = slice(rank % len(self.rows), None, of)
        return Batch(self.tokens[mine], self.lengths[mine], self.rows[mine], self.pool)


def tokenise(texts: Sequence[str], tokenizer: Tokenizer) -> list[Int64Array]:
    """Prompt tokens of each text, as serving renders them."""
    return [render(text, tokenizer).tokens for text in texts]


def batches(
    tokens: Sequence[Int64Array], rows: Int64Array, size: int, seed: int | None, pool: int = 0
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


def pad(tokens: Sequence[Int64Array], rows: Sequence[int] | Int64Array, pool: int) -> Batch:
    """The batch of these instructions, which have these numbers."""
    lengths = np.array([len(t) for t in tokens], dtype=np.int64)
    padded = np.zeros((len(tokens), int(lengths.max())), dtype=np.int64)
    for i, own in enumerate(tokens):
        padded[i, : lengths[i]] = own
    return Batch(padded, lengths, np.asarray(rows), pool)
