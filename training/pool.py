"""A data folder as training sees it: instructions as tokens, candidates as representations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from engine.contract.outcomes import Ints, Outcomes, split
from training.augment import draw
from training.capability import Capabilities
from training.data import Batch, batches, pad, tokenise
from training.model import TextEncoder
from training.plan import Plan
from training.wording import reworded

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Shown:
    """What a step shows: c (M, C) of real and made candidates, outcomes (B, M), and levels (M,),
    the candidates' mean accuracy by the figures shown."""

    c: Floats
    outcomes: Floats
    levels: Floats


@dataclass(frozen=True)
class Pool:
    """outcomes: M candidates x N instructions. tokens: N, by tokenizer. vectors: (T, E). c:
    (V, M, C), standardised. train, validation, test: row numbers."""

    outcomes: Outcomes
    tokenizer: Tokenizer
    tokens: list[NDArray[np.int64]]
    vectors: Floats
    c: Floats
    train: Ints
    validation: Ints
    test: Ints

    def step(
        self, random: np.random.Generator, batch: Batch, capability: Capabilities, plan: Plan
    ) -> Shown:
        """The M candidates and plan.made others."""
        scores = self.outcomes.scores[:, batch.rows]
        if capability.representation == "text":
            levels = np.nanmean(self.outcomes.test.figures, axis=1)
            return Shown(self.c[random.integers(len(self.c))], scores.T.copy(), levels)
        subjects = [self.outcomes.subjects[i] for i in batch.rows]
        drawn = draw(random, self.outcomes.test, scores, subjects, plan.made, plan.exact)
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

    def batches(self, rows: Ints, size: int, seed: int | None, number: int) -> list[Batch]:
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
        capability.of(outcomes.test, vectors, encoder),
        *split(outcomes.texts),
    )
