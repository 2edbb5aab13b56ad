"""The instructions of a folder as tasks: as its aptitude test has them, and otherwise.

A router meets tests of tasks that no training saw. What it must learn is which task of a test an
instruction belongs to, by their keywords alone, and to take that figure. So training divides the
instructions again: by subject with other keywords, and by clusters of their embeddings, coarse to
fine, named as a derived test names its tasks.

Shapes: N instructions, M candidates, T tasks, F figure rows, E encoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from engine.datasets.aptitude_test import AptitudeTest, derive_keywords
from engine.datasets.outcomes import Outcomes

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
CLUSTERS = (4, 8, 16, 32, 48, 96, 160)
ROWS_EACH = 25  # training rows that a cluster needs on average
STYLES = ("name", "words", "fewer")


@dataclass(frozen=True)
class TaskSet:
    """keywords: T. group: (N,) number of each instruction's subject, -1 = none. item_scores:
    (M, F) outcomes on single items, item_task, item_group: (F,) their task and subject; None where
    the figure rows are the training rows, whose groups are tasks. figures, counts: (M, T) as
    stated."""

    keywords: list[str]
    group: Ints
    item_scores: Floats | None = None
    item_task: NDArray[np.int16] | None = None
    item_group: NDArray[np.int16] | None = None
    figures: Floats | None = None
    counts: Floats | None = None


def task_sets(
    outcomes: Outcomes,
    test: AptitudeTest | None,
    vectors: Floats,
    training: NDArray[np.bool_],
) -> list[TaskSet]:
    """The official test first, where there is one. training: (N,) rows that keywords and clusters
    are found on."""
    found = (
        [official(outcomes, test)]
        if test
        else [TaskSet(["none"], np.zeros(len(vectors), np.int64))]
    )
    rows = np.flatnonzero(training)
    names = sorted({outcomes.subjects[i] for i in rows})
    sizes = {n: sum(outcomes.subjects[i] == n for i in rows) for n in names}
    names = [n for n in names if sizes[n] >= ROWS_EACH][:60]
    if len(names) > 1:
        group = np.array([names.index(s) if s in names else -1 for s in outcomes.subjects])
        keywords = derive_keywords(names, outcomes.subjects, outcomes.texts, rows)
        found += [TaskSet(restyled(keywords, style), group) for style in STYLES]
    for k in CLUSTERS:
        if k * ROWS_EACH > len(rows):
            break
        found.append(clustered(outcomes, vectors, rows, k))
    return found


def official(outcomes: Outcomes, test: AptitudeTest) -> TaskSet:
    """The test that the folder's candidates took."""
    assert test.answers is not None
    count, tasks, questions = test.answers.shape
    subjects = sorted({*test.subjects, *outcomes.subjects})
    place = {s: i for i, s in enumerate(subjects)}
    flat = test.answers.reshape(count, tasks * questions)
    used = ~np.isnan(flat).all(axis=0)
    task = np.repeat(np.arange(tasks), questions)[used]
    group = np.array([place[s] for s in test.subjects])[task]
    known = (~np.isnan(test.answers)).sum(axis=2)
    counts = np.where(np.isnan(test.accuracies), 0, np.where(known > 0, known, 20))
    return TaskSet(
        test.keywords,
        np.array([place[s] for s in outcomes.subjects]),
        flat[:, used].astype(np.float16),
        task.astype(np.int16),
        group.astype(np.int16),
        test.accuracies.astype(np.float32),
        counts.astype(np.float32),
    )


def clustered(outcomes: Outcomes, vectors: Floats, rows: Ints, k: int) -> TaskSet:
    """`k` clusters of the training rows' embeddings; other rows go to the nearest centre."""
    means = KMeans(k, n_init=1, max_iter=30, random_state=0).fit(vectors[rows])
    group = means.predict(vectors).astype(np.int64)
    names = [f"{i}" for i in range(k)]
    keywords = derive_keywords(names, [str(g) for g in group], outcomes.texts, rows)
    return TaskSet([", ".join(w.split(", ")[1:]) or w for w in keywords], group)


def restyled(keywords: Sequence[str], style: str) -> list[str]:
    """Derived keywords, a subject's name and five words, in part."""
    parts = [k.split(", ") for k in keywords]
    if style == "name":
        return [p[0] for p in parts]
    if style == "words":
        return [", ".join(p[1:] or p) for p in parts]
    return [", ".join(p[:3]) for p in parts]
