"""Which rows ask what a row elsewhere asks: shared runs of 12 words beyond templates.

A run of words that more than TEMPLATE rows of one folder share is a template (a task's
instructions, a harness's suffix) and tells nothing; any other shared run makes two rows
near-duplicates.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from engine.datasets.outcomes import split

Words = NDArray[np.uint64]
Flags = NDArray[np.bool_]
LENGTH = 12  # words of a run
TEMPLATE = 4
PRIME = np.uint64(0x9E3779B97F4A7C15)


def runs(text: str, known: dict[str, int]) -> Words:
    """Hashes of the distinct runs of LENGTH words of `text`; `known` numbers the words."""
    words = re.findall(r"[^\W_]+", text.casefold())
    numbers = np.array([known.setdefault(w, len(known) + 1) for w in words], dtype=np.uint64)
    if len(numbers) < LENGTH:
        return np.zeros(0, np.uint64)
    mixed = numbers * PRIME
    mixed ^= mixed >> np.uint64(29)
    total = np.zeros(len(numbers) - LENGTH + 1, np.uint64)
    for i in range(LENGTH):
        total = total * np.uint64(1_000_003) + mixed[i : i + len(total)]
    return np.unique(total)


def contains(ordered: Words, values: Words) -> Flags:
    """Which of `values` are in `ordered`."""
    if not len(ordered):
        return np.zeros(len(values), np.bool_)
    at = np.searchsorted(ordered, values).clip(max=len(ordered) - 1)
    return np.asarray(ordered[at] == values)


class Shingles:
    """Runs of every row of several folders, templates left out."""

    def __init__(self, folders: Sequence[Sequence[str]]) -> None:
        self._texts = folders
        known: dict[str, int] = {}
        self._runs = [[runs(t, known) for t in texts] for texts in folders]
        templates = []
        for rows in self._runs:
            values, count = np.unique(np.concatenate(rows), return_counts=True)
            templates.append(values[count > TEMPLATE])
        self._templates = np.unique(np.concatenate(templates))
        self._split = [split(texts) for texts in folders]

    def _shared(self, folder: int, rows: NDArray[np.int64], others: Words) -> Flags:
        others = others[~contains(self._templates, others)]
        return np.array([contains(others, self._runs[folder][r]).any() for r in rows])

    def clean(self, folder: int, rows: NDArray[np.int64]) -> Flags:
        """(len(rows),) whether no row of any folder's training or validation part shares a run:
        aptitude items are rows of these parts or of the test part, and count as well."""
        parts = []
        for runs_of, (training, validation, _) in zip(self._runs, self._split, strict=True):
            parts += [runs_of[i] for i in (*training, *validation)]
        return np.asarray(~self._shared(folder, rows, np.unique(np.concatenate(parts))))

    def fresh(self, folder: int, rows: NDArray[np.int64], same: Callable[[str], str]) -> Flags:
        """(len(rows),) whether no row of another folder shares a run or is equal by `same`."""
        elsewhere = [f for f in range(len(self._runs)) if f != folder]
        others = np.unique(np.concatenate([r for f in elsewhere for r in self._runs[f]]))
        equal = {same(t) for f in elsewhere for t in self._texts[f]}
        texts = self._texts[folder]
        found = np.array([same(texts[r]) in equal for r in rows])
        return np.asarray(~self._shared(folder, rows, others) & ~found)
