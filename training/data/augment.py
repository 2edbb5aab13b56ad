"""Candidates that nobody trained, made of real ones, and aptitude tests as others might sit them.

A few dozen real candidates differ in little but their level, so a model learns the level and
neglects the figures of single tasks. From the candidates' answers to single questions, the items
of the test included, others are made whose figures and outcomes agree as those of a real one do:

either  what A or B gets right: stronger than any real one.
both    what A and B get right: weaker than the weaker.
splice  A in some subjects, B in the others: a specialist.
blend   A on some questions, B on the others, whatever they ask: a level between, and of the shape
        what 20 questions a task tell of it by chance.

Letters: M candidates, K made ones, T tasks, Q questions of a task, B instructions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from engine.bundle.types import Float32Array
from engine.datasets.aptitude_test import AptitudeTest

JOINS = {"either": np.maximum, "both": np.minimum}
QUESTIONS = 20  # of a task whose single answers the data do not hold
KINDS = ("either", "both", "splice", "blend")
SUBSET_SHARE, FORGET_SHARE = 0.3, 0.3


@dataclass(frozen=True)
class Drawn:
    """figures: (M + K, T), NaN = not sat. outcomes: (M + K, B). means_known: whether the tasks
    count as ones that the training candidates sat."""

    figures: Float32Array
    outcomes: Float32Array
    means_known: bool


def draw(
    random: np.random.Generator,
    test: AptitudeTest,
    outcomes: Float32Array,
    subjects: Sequence[str],
    made: int,
    exact: float,
) -> Drawn:
    """The candidates of a step, K = `made`. outcomes: (M, B) of them; subjects: B names; exact: the
    share of steps that show the figures as they are."""
    figures = test.figures if random.random() < exact else another_sitting(random, test)
    if made and test.answers is not None:
        parts = [make(random, test, outcomes, subjects, KINDS[k % len(KINDS)]) for k in range(made)]
        figures = np.concatenate([figures, np.stack([figure for figure, _ in parts])])
        outcomes = np.concatenate([outcomes, np.stack([outcome for _, outcome in parts])])
    if random.random() < SUBSET_SHARE:
        tasks = figures.shape[1]
        kept = random.permutation(tasks)[: random.integers((tasks + 3) // 4, tasks + 1)]
        hidden = np.setdiff1d(np.arange(tasks), kept)
        reduced = figures.copy()
        reduced[:, hidden] = np.nan
        seen = np.asarray(
            ~np.isnan(reduced).all(axis=1)
        )  # who sat none of the kept tasks keeps the others
        figures = np.where(seen[:, None], reduced, figures)
    return Drawn(figures, outcomes, random.random() >= FORGET_SHARE)


def another_sitting(random: np.random.Generator, test: AptitudeTest) -> Float32Array:
    """(M, T): Binomial(Q, figure) / Q, so that the connector learns what a figure says and not
    which of a few dozen candidates it belongs to."""
    if test.answers is None:
        questions = np.full(test.figures.shape, QUESTIONS)
    else:
        known = (~np.isnan(test.answers)).sum(axis=2)
        questions = np.where(known > 0, known, QUESTIONS)
    drawn = random.binomial(questions, np.nan_to_num(test.figures).clip(0, 1)) / questions
    return np.where(np.isnan(test.figures), np.nan, drawn).astype(np.float32)


def make(
    random: np.random.Generator,
    test: AptitudeTest,
    outcomes: Float32Array,
    subjects: Sequence[str],
    kind: str,
) -> tuple[Float32Array, Float32Array]:
    """(figures (T,), outcomes (B,)) of one made candidate. NaN where its parents have none."""
    assert test.answers is not None
    first, second = random.choice(len(outcomes), size=2, replace=len(outcomes) < 2)
    answers_a, answers_b = test.answers[first], test.answers[second]
    a, b = outcomes[first], outcomes[second]
    if kind == "splice":
        names = sorted({*test.subjects, *subjects})
        side = dict(zip(names, random.random(len(names)) < 0.5, strict=True))
        from_a = np.array([side[s] for s in test.subjects])
        figures = np.where(from_a, test.figures[first], test.figures[second])
        mixed = np.where([side[s] for s in subjects], a, b)
        tested = np.isin(subjects, test.subjects)
        return figures, np.where(tested, mixed, np.nan).astype(np.float32)
    join = partial(pick, random, random.random()) if kind == "blend" else JOINS[kind]
    joined = join(answers_a, answers_b)
    known = ~np.isnan(joined)
    count = known.sum(axis=1)
    sums = np.where(known, joined, 0.0).sum(axis=1)
    figures = np.where(count > 0, sums / np.maximum(count, 1), np.nan).astype(np.float32)
    if np.isnan(figures).all():  # parents without a common task: stands for nobody
        return test.figures[first], np.full_like(a, np.nan)
    return figures, join(a, b)


def pick(
    random: np.random.Generator, share: float, a: Float32Array, b: Float32Array
) -> Float32Array:
    """About `share` of a's elements, b's in the other places."""
    return np.where(random.random(a.shape) < share, a, b).astype(np.float32)
