"""Aptitude tests as accuracies and as single answers, and their derivation from outcomes.

Shapes: N instructions, M candidates, T tasks, Q questions per task.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from engine.bundle.types import Float32Array, Int64Array

MAX_TASKS, MAX_QUESTIONS = 50, 1000  # of a whole test, as in the paper
MAX_ITEM_SHARE = 0.2  # of a subject's training rows that a derived test may take
MIN_ANSWERS = 5  # for the accuracy of a task


@dataclass(frozen=True)
class AptitudeTest:
    """Results of M candidates in an aptitude test.

    keywords: T task names as the encoder reads them. subjects: T, the most common subject among a
    task's items ("" if unknown). accuracies: (M, T), NaN = not taken. answers: (M, T, Q) scores of
    single items, NaN = no answer; None if the data hold no items. questions: T tuples of the texts
    of items; empty if the data hold none.
    """

    keywords: list[str]
    subjects: list[str]
    accuracies: Float32Array
    answers: Float32Array | None
    questions: tuple[tuple[str, ...], ...] = ()

    def take_candidates(self, candidates: Int64Array) -> AptitudeTest:
        """Return the results of some of the candidates. candidates: their row numbers."""
        answers = None if self.answers is None else self.answers[candidates]
        return replace(self, accuracies=self.accuracies[candidates], answers=answers)


def derive_items(
    scores: Float32Array, subjects: Sequence[str], training: Int64Array, seed: int = 0
) -> dict[str, list[int]]:
    """Choose the items of an aptitude test among the training rows.

    Each of the MAX_TASKS largest subjects becomes a task. Items are drawn without replacement with
    weight r (1 - r), r being the share of candidates that answer well, so that most weight is on
    items that half of the candidates fail (Model-SAT, section 3: distinguishability).

    Args:
        scores: (M, N) in [0, 1], NaN = not measured.
        subjects: N names.
        training: row numbers that items may be drawn from.
        seed: of the draws.

    Returns:
        Task -> row numbers, sorted; at most MAX_QUESTIONS in all.
    """
    random = np.random.default_rng(seed)
    sizes = Counter(subjects[i] for i in training)
    largest = sorted(sizes, key=lambda name: (-sizes[name], name))[:MAX_TASKS]
    names = sorted(largest)
    items: dict[str, list[int]] = {}
    for name in names:
        rows = np.array([i for i in training if subjects[i] == name])
        rows = rows[~np.isnan(scores[:, rows]).all(axis=0)]
        count = min(MAX_QUESTIONS // len(names), int(len(rows) * MAX_ITEM_SHARE))
        if count < MIN_ANSWERS:
            continue
        rate = np.nanmean(scores[:, rows], axis=0)
        weight = rate * (1 - rate) + 0.01
        chosen = random.choice(rows, size=count, replace=False, p=weight / weight.sum())
        items[name] = sorted(int(i) for i in chosen)
    return items


def derive_keywords(
    names: Sequence[str], subjects: Sequence[str], texts: Sequence[str], rows: Int64Array
) -> list[str]:
    """Return the keywords of each task: its name and the five words that distinguish its texts.

    These are the words with the largest difference between the share of the task's texts that have
    the word and that share among all other texts. rows: row numbers of the texts to compare.
    """
    words = {int(i): set(re.findall(r"[a-z]{4,}", texts[i].lower())) for i in rows}
    total_counts = Counter(word for each in words.values() for word in each)
    keywords = []
    for name in names:
        task_words = [words[int(i)] for i in rows if subjects[i] == name]
        counts = Counter(word for each in task_words for word in each)
        others = max(1, len(words) - len(task_words))
        difference = {
            w: n / len(task_words) - (total_counts[w] - n) / others for w, n in counts.items()
        }
        top = sorted(difference, key=lambda w: (-difference[w], w))[:5]
        keywords.append(", ".join([re.sub(r"[_\-]+", " ", name), *top]))
    return keywords


def build_aptitude_test(
    items: Mapping[str, list[int]],
    keywords: list[str],
    scores: Float32Array,
    subjects: Sequence[str],
    accuracies: Mapping[str, Sequence[float | None]] | None,
    names: Sequence[str],
) -> AptitudeTest:
    """Build the aptitude test of `items`.

    Args:
        items: task -> row numbers.
        keywords: of each task.
        scores: (M, N) in [0, 1], NaN = not measured.
        subjects: N names.
        accuracies: candidate -> accuracy in each task, None = not taken; None computes them from
            the scores of the items.
        names: of the M candidates.
    """
    answers = answer_array(list(items.values()), scores)
    if accuracies is not None:
        stated = [[np.nan if x is None else x for x in accuracies[n]] for n in names]
        array: Any = np.array(stated, dtype=np.float32)
    else:
        counts = (~np.isnan(answers)).sum(axis=2)
        sums = np.nansum(answers, axis=2)
        array = np.where(counts >= MIN_ANSWERS, sums / np.maximum(counts, 1), np.nan)
    majority = [_most_common([subjects[i] for i in rows]) for rows in items.values()]
    has_answers = answers.size and not np.isnan(answers).all()
    return AptitudeTest(
        keywords, majority, array.astype(np.float32), answers if has_answers else None
    )


def answer_array(items: Sequence[Sequence[int]], scores: Float32Array) -> Float32Array:
    """Return the scores of each task's rows, (M, T, Q), padded with NaN to the longest task."""
    longest = max((len(rows) for rows in items), default=0)
    answers = np.full((len(scores), len(items), longest), np.nan, dtype=np.float32)
    for task, rows in enumerate(items):
        answers[:, task, : len(rows)] = scores[:, rows]
    return answers


def _most_common(words: Sequence[str]) -> str:
    return max(set(words), key=words.count) if words else ""
