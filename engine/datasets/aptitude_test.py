"""The aptitude test as figures and as single answers; deriving one where a folder brings none.

Letters: N instructions, M candidates, T tasks, Q questions of a task.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from engine.bundle.types import Float32Array, Int64Array

MOST_TASKS, BUDGET = 50, 1000  # tasks and questions of a whole test, as in the paper
LARGEST_SHARE = 0.2  # of a subject's training rows that a derived test may take
FEWEST = 5  # answers below which a task has no figure


@dataclass(frozen=True)
class AptitudeTest:
    """keywords: T task names as the encoder reads them. subjects: T, the data's subject of most of
    a task's items ("" where unknown). figures: (M, T) accuracies, NaN = not sat. answers:
    (M, T, Q) outcomes on single items, NaN = no answer; None where the data hold no items."""

    keywords: list[str]
    subjects: list[str]
    figures: Float32Array
    answers: Float32Array | None

    def only(self, candidates: Int64Array) -> AptitudeTest:
        """The same test, a part of the candidates."""
        answers = None if self.answers is None else self.answers[candidates]
        return replace(self, figures=self.figures[candidates], answers=answers)


def derive_items(
    scores: Float32Array, subjects: Sequence[str], training: Int64Array, seed: int = 0
) -> dict[str, list[int]]:
    """Task -> rows, a task for each of the MOST_TASKS largest subjects, at most BUDGET in all; only
    of `training` rows.

    Items are drawn without replacement with weight r (1 - r), r the share of candidates that do
    well: most weight where about half of them fail (Model-SAT, section 3: distinguishability).
    """
    random = np.random.default_rng(seed)
    sizes = Counter(subjects[i] for i in training)
    largest = sorted(sizes, key=lambda name: (-sizes[name], name))[:MOST_TASKS]
    names = sorted(largest)
    items: dict[str, list[int]] = {}
    for name in names:
        rows = np.array([i for i in training if subjects[i] == name])
        rows = rows[~np.isnan(scores[:, rows]).all(axis=0)]
        count = min(BUDGET // len(names), int(len(rows) * LARGEST_SHARE))
        if count < FEWEST:
            continue
        rate = np.nanmean(scores[:, rows], axis=0)
        weight = rate * (1 - rate) + 0.01
        chosen = random.choice(rows, size=count, replace=False, p=weight / weight.sum())
        items[name] = sorted(int(i) for i in chosen)
    return items


def derive_keywords(
    names: Sequence[str], subjects: Sequence[str], texts: Sequence[str], rows: Int64Array
) -> list[str]:
    """For each task its name and the five words that set its instructions apart: those in a larger
    share of them than of the others (difference of document frequencies)."""
    words = {int(i): set(re.findall(r"[a-z]{4,}", texts[i].lower())) for i in rows}
    everywhere = Counter(word for found in words.values() for word in found)
    keywords = []
    for name in names:
        own = [words[int(i)] for i in rows if subjects[i] == name]
        count = Counter(word for found in own for word in found)
        others = max(1, len(words) - len(own))
        apart = {w: n / len(own) - (everywhere[w] - n) / others for w, n in count.items()}
        top = sorted(apart, key=lambda w: (-apart[w], w))[:5]
        keywords.append(", ".join([re.sub(r"[_\-]+", " ", name), *top]))
    return keywords


def sittings(
    items: Mapping[str, list[int]],
    keywords: list[str],
    scores: Float32Array,
    subjects: Sequence[str],
    figures: Mapping[str, Sequence[float | None]] | None,
    names: Sequence[str],
) -> AptitudeTest:
    """The test of `items` (task -> rows of `scores`); given figures win over those of the items."""
    answers = answer_array(list(items.values()), scores)
    if figures is not None:
        stated = [[np.nan if x is None else x for x in figures[n]] for n in names]
        found: Any = np.array(stated, dtype=np.float32)
    else:
        counts = (~np.isnan(answers)).sum(axis=2)
        sums = np.nansum(answers, axis=2)
        found = np.where(counts >= FEWEST, sums / np.maximum(counts, 1), np.nan)
    majority = [_most_common([subjects[i] for i in rows]) for rows in items.values()]
    known = answers if answers.size and not np.isnan(answers).all() else None
    return AptitudeTest(keywords, majority, found.astype(np.float32), known)


def answer_array(items: Sequence[Sequence[int]], scores: Float32Array) -> Float32Array:
    """(M, T, Q) outcomes of the rows of each task, Q of the longest; shorter ones end in NaN."""
    longest = max((len(rows) for rows in items), default=0)
    answers = np.full((len(scores), len(items), longest), np.nan, dtype=np.float32)
    for task, rows in enumerate(items):
        answers[:, task, : len(rows)] = scores[:, rows]
    return answers


def _most_common(words: Sequence[str]) -> str:
    return max(set(words), key=words.count) if words else ""
