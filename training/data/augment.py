"""Augment the candidates of a training step: synthetic candidates and resampled accuracies.

A few dozen real candidates differ in little but their overall level, so a model learns the level
and neglects the task profile. From the candidates' answers to single questions, those of the
aptitude test included, others are composed whose accuracies and outcomes agree as a real one's do:

union         what A or B gets right: stronger than any real one.
intersection  what both A and B get right: weaker than the weaker one.
splice        A in some subjects, B in the others: a specialist.
blend         A on some questions, B on the others, regardless of the subject: a level in between,
              with the profile that 20 questions per task show by chance.

Shapes: M candidates, K synthetic ones, T tasks, Q questions of a task, B instructions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from engine.bundle.types import Float32Array
from engine.datasets.aptitude_test import AptitudeTest

COMBINE = {"union": np.maximum, "intersection": np.minimum}
KINDS = ("union", "intersection", "splice", "blend")
DEFAULT_QUESTIONS = 20  # of a task whose single answers the data do not hold
SUBSET_PROB = 0.3  # of a step that shows accuracies of some tasks only
UNKNOWN_MEANS_PROB = 0.3  # of a step whose tasks have no known mean accuracy


@dataclass(frozen=True)
class CandidateSample:
    """The candidates of a step.

    accuracies: (M + K, T), NaN = not tested. outcomes: (M + K, B), NaN = not measured.
    means_known: False if the tasks count as ones that no training candidate was tested on.
    """

    accuracies: Float32Array
    outcomes: Float32Array
    means_known: bool


def sample_candidates(
    random: np.random.Generator,
    test: AptitudeTest,
    outcomes: Float32Array,
    subjects: Sequence[str],
    synthetic: int,
    exact_prob: float,
) -> CandidateSample:
    """Sample the candidates of a step.

    Args:
        random: source of all randomness.
        test: aptitude test of the M real candidates.
        outcomes: (M, B) of the step's instructions.
        subjects: (B,) subject names of the instructions.
        synthetic: K, how many candidates are added; none if the data hold no single answers.
        exact_prob: probability that accuracies are shown as measured, else they are resampled.
    """
    accuracies = (
        test.accuracies if random.random() < exact_prob else resample_accuracies(random, test)
    )
    if synthetic and test.answers is not None:
        kinds = [KINDS[k % len(KINDS)] for k in range(synthetic)]
        parts = [synthesize(random, test, outcomes, subjects, kind) for kind in kinds]
        accuracies = np.concatenate([accuracies, np.stack([a for a, _ in parts])])
        outcomes = np.concatenate([outcomes, np.stack([o for _, o in parts])])
    if random.random() < SUBSET_PROB:
        tasks = accuracies.shape[1]
        kept = random.permutation(tasks)[: random.integers((tasks + 3) // 4, tasks + 1)]
        hidden = np.setdiff1d(np.arange(tasks), kept)
        reduced = accuracies.copy()
        reduced[:, hidden] = np.nan
        # A candidate that was tested on none of the kept tasks keeps the others.
        tested = np.asarray(~np.isnan(reduced).all(axis=1))
        accuracies = np.where(tested[:, None], reduced, accuracies)
    return CandidateSample(accuracies, outcomes, random.random() >= UNKNOWN_MEANS_PROB)


def resample_accuracies(random: np.random.Generator, test: AptitudeTest) -> Float32Array:
    """Draw (M, T) accuracies as another test of the same candidates could give: Binomial(Q, a) / Q.

    The connector then learns what an accuracy means, and not which of a few dozen candidates has
    it.
    """
    if test.answers is None:
        questions = np.full(test.accuracies.shape, DEFAULT_QUESTIONS)
    else:
        answered = (~np.isnan(test.answers)).sum(axis=2)
        questions = np.where(answered > 0, answered, DEFAULT_QUESTIONS)
    right = random.binomial(questions, np.nan_to_num(test.accuracies).clip(0, 1))
    return np.where(np.isnan(test.accuracies), np.nan, right / questions).astype(np.float32)


def synthesize(
    random: np.random.Generator,
    test: AptitudeTest,
    outcomes: Float32Array,
    subjects: Sequence[str],
    kind: str,
) -> tuple[Float32Array, Float32Array]:
    """Compose a candidate of two real ones drawn at random.

    Returns:
        (accuracies (T,), outcomes (B,)), NaN if the two have none.
    """
    assert test.answers is not None
    first, second = random.choice(len(outcomes), size=2, replace=len(outcomes) < 2)
    a, b = outcomes[first], outcomes[second]
    if kind == "splice":
        names = sorted({*test.subjects, *subjects})
        from_a = dict(zip(names, random.random(len(names)) < 0.5, strict=True))
        task_from_a = np.array([from_a[s] for s in test.subjects])
        accuracies = np.where(task_from_a, test.accuracies[first], test.accuracies[second])
        mixed = np.where([from_a[s] for s in subjects], a, b)
        tested = np.isin(subjects, test.subjects)
        return accuracies, np.where(tested, mixed, np.nan).astype(np.float32)
    combine = partial(mix, random, random.random()) if kind == "blend" else COMBINE[kind]
    answers = combine(test.answers[first], test.answers[second])
    answered = ~np.isnan(answers)
    count = answered.sum(axis=1)
    right = np.where(answered, answers, 0.0).sum(axis=1)
    accuracies = np.where(count > 0, right / np.maximum(count, 1), np.nan).astype(np.float32)
    if np.isnan(accuracies).all():  # no task in common: no outcome is learnt from
        return test.accuracies[first], np.full_like(a, np.nan)
    return accuracies, combine(a, b)


def mix(
    random: np.random.Generator, share: float, a: Float32Array, b: Float32Array
) -> Float32Array:
    """Take about `share` of the elements of `a`, and those of `b` in the other places."""
    return np.where(random.random(a.shape) < share, a, b).astype(np.float32)
