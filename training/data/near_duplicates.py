"""Find instructions that ask what an instruction of another part or folder asks.

    python -m training.data.near_duplicates --data DIR... [--out FILE]

lists the test rows of the folders that are near-duplicates of a training row, a validation row or
an aptitude item of any of them; --out also writes the rows that are left as JSON, by folder and ID.
`split_folders` takes them out of the test part; training and evaluation split with it.

Two instructions are near-duplicates if
- they share a run of 12 words, or
- one has 5 to 11 words of its own, which stand one after another in the question of the other, or
- their normalized texts are equal (engine/datasets/outcomes.py).
A run that stands in more than 4 different instructions of one folder is a template (the
introduction of a task, the suffix of a harness). It is never evidence, and its words do not count
as an instruction's own. A run that is a template only in part is evidence, so that rather too many
test rows are taken out than too few. In scripts without spaces a character is a word.

Shapes: N instructions of a folder.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.api.errors import ModelsatError
from engine.bundle.types import Int64Array
from engine.datasets.outcomes import Outcomes, fingerprint, question_of, read_outcomes, split

LENGTH = 12  # words of a run
SHORTEST = 5  # own words of a question that count
TEMPLATE = 4  # instructions of a folder that may share a run
MULTIPLIER, MIXER = np.uint64(1_000_003), np.uint64(0x9E3779B97F4A7C15)
UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # Thai, kana, CJK
WORD = re.compile(f"[{UNSPACED}]|(?:(?![{UNSPACED}])[^\\W_])+")
Hashes = NDArray[np.uint64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class CleanSplit:
    """Row numbers of a folder's parts. near_duplicates: what was taken out of the test part."""

    train: Int64Array
    validation: Int64Array
    test: Int64Array
    near_duplicates: Int64Array


def split_folders(folders: Sequence[Outcomes]) -> list[CleanSplit]:
    """Split every folder as `split` does, without the test rows that are near-duplicates of a
    training row, a validation row or an aptitude item of any folder."""
    parts = [split(outcomes.texts) for outcomes in folders]
    known = [_members(len(o.texts), p[:2]) for o, p in zip(folders, parts, strict=True)]
    found = near_duplicates(folders, known)
    result = []
    for (training, validation, test), match in zip(parts, found, strict=True):
        copies = match[test] >= 0
        result.append(CleanSplit(training, validation, test[~copies], test[copies]))
    return result


def near_duplicates(folders: Sequence[Outcomes], known: Sequence[Flags]) -> list[Int64Array]:
    """Match instructions with those that are known.

    Args:
        folders: the instructions; their aptitude items are known as well.
        known: (N,) of each folder, True for rows that others must not repeat.

    Returns:
        (N,) for each folder, the number of a known text that the row is a near-duplicate of, -1
        if there is none or the row is known itself. Texts are numbered through all folders, the
        rows of a folder before its items (see `place_of`).
    """
    texts = [[*outcomes.texts, *outcomes.item_texts] for outcomes in folders]
    flags = [
        np.append(k, np.ones(len(t) - len(k), bool)) for t, k in zip(texts, known, strict=True)
    ]
    match = _match(texts, np.concatenate(flags) if flags else np.zeros(0, bool))
    starts = np.cumsum([0, *map(len, texts)])
    return [match[s : s + len(o.texts)] for s, o in zip(starts[:-1], folders, strict=True)]


def place_of(number: int, folders: Sequence[Outcomes]) -> tuple[int, int]:
    """Return (folder, row) of a text that `near_duplicates` numbers; an item has a row number
    beyond the folder's rows."""
    for folder, outcomes in enumerate(folders):
        if number < (count := len(outcomes.texts) + len(outcomes.item_texts)):
            return folder, number
        number -= count
    raise IndexError(number)


def _members(size: int, parts: Iterable[Int64Array]) -> Flags:
    flags = np.zeros(size, dtype=np.bool_)
    for rows in parts:
        flags[rows] = True
    return flags


@dataclass(frozen=True)
class _Runs:
    """Hashes (R,) of runs of words, and the numbers (R,) of the texts that they stand in."""

    hashes: Hashes
    texts: Int64Array

    def among(self, values: Hashes, *, wanted: bool = True) -> _Runs:
        """Take the runs whose hashes are in the sorted `values`, or those that are not."""
        return self.take(_contains(values, self.hashes) == wanted)

    def take(self, at: Flags) -> _Runs:
        """Take some of the runs."""
        return _Runs(self.hashes[at], self.texts[at])


class _Words:
    """The words of many texts in one array, as numbers."""

    def __init__(self, texts: Iterable[str], numbers: dict[str, int]) -> None:
        found = [
            [numbers.setdefault(word, len(numbers) + 1) for word in WORD.findall(text.casefold())]
            for text in texts
        ]
        self.lengths = np.array([len(words) for words in found], dtype=np.int64)
        self.words = np.array([n for words in found for n in words], dtype=np.uint64)
        self.texts = np.repeat(np.arange(len(found)), self.lengths)

    def runs(self, length: int) -> tuple[_Runs, Int64Array]:
        """Return every run of `length` words, and where in the array it starts."""
        if len(self.words) < length:
            return _Runs(self.words[:0], self.texts[:0]), self.texts[:0]
        mixed = self.words * MIXER
        mixed ^= mixed >> np.uint64(29)
        last = len(mixed) - length + 1
        total = np.zeros(last, np.uint64)
        for i in range(length):
            total = total * MULTIPLIER + mixed[i : i + last]
        inside = np.flatnonzero(self.texts[:last] == self.texts[length - 1 :])
        return _Runs(total[inside], self.texts[inside]), inside


class _Corpus:
    """Texts of several folders, with the templates of the folders."""

    def __init__(self, texts: Sequence[Sequence[str]]) -> None:
        every = [text for folder in texts for text in folder]
        self.prints = np.array([fingerprint(text) for text in every], dtype=np.int64)
        self.folder = np.repeat(np.arange(len(texts)), [len(folder) for folder in texts])
        # Of several texts with the same question, the first one counts for templates.
        self.distinct = np.zeros(len(every), dtype=np.bool_)
        keys = self.folder * (1 << 32) + self.prints
        self.distinct[np.unique(keys, return_index=True)[1]] = True
        numbers: dict[str, int] = {}
        self.whole = _Words(every, numbers)
        self.questions = _Words(map(question_of, every), numbers)
        found, _ = self.whole.runs(LENGTH)
        self.templates = self._frequent(found)
        self.runs = found.among(self.templates, wanted=False)

    def _frequent(self, runs: _Runs) -> Hashes:
        """Return the hashes that more than TEMPLATE different texts of one folder have, sorted."""
        runs = runs.take(self.distinct[runs.texts])
        order = np.lexsort((runs.texts, runs.hashes))
        hashes, texts = runs.hashes[order], runs.texts[order]
        first = np.append(True, (hashes[1:] != hashes[:-1]) | (texts[1:] != texts[:-1]))[
            : len(texts)
        ]
        hashes, folders = hashes[first], self.folder[texts[first]]
        same = (hashes[TEMPLATE:] == hashes[:-TEMPLATE]) & (
            folders[TEMPLATE:] == folders[:-TEMPLATE]
        )
        return np.unique(hashes[TEMPLATE:][same])

    def own_questions(self) -> tuple[Int64Array, Int64Array]:
        """Return for each text where its own words start in `questions` and how many they are; 0
        if they are too few or too many, or do not stand together."""
        runs, starts = self.questions.runs(LENGTH)
        template = starts[_contains(self.templates, runs.hashes)]
        edges = np.zeros(len(self.questions.words) + 1, dtype=np.int64)
        np.add.at(edges, template, 1)
        np.add.at(edges, template + LENGTH, -1)
        own = np.flatnonzero(np.cumsum(edges[:-1]) == 0)
        count = np.bincount(self.questions.texts[own], minlength=len(self.folder))
        begin = np.zeros(len(self.folder), dtype=np.int64)
        end = np.zeros(len(self.folder), dtype=np.int64)
        end[self.questions.texts[own]] = own  # the last one stays
        begin[self.questions.texts[own[::-1]]] = own[::-1]
        fits = (count >= SHORTEST) & (count < LENGTH) & (end - begin == count - 1)
        return begin, np.where(fits, count, 0)

    def short_questions(self) -> Iterable[tuple[_Runs, _Runs]]:
        """For each number of own words, yield the runs of that many words that are some text's own
        question, wherever they stand, and the runs that are the own question of their text."""
        begin, count = self.own_questions()
        for length in range(SHORTEST, LENGTH):
            runs, starts = self.questions.runs(length)
            mine = (count[runs.texts] == length) & (begin[runs.texts] == starts)
            near = runs.among(np.unique(runs.hashes[mine]))
            usual = self._frequent(near)
            yield near.among(usual, wanted=False), runs.take(mine).among(usual, wanted=False)


def _match(texts: Sequence[Sequence[str]], known: Flags) -> Int64Array:
    """Return for each of all texts the number of a known near-duplicate, or -1."""
    match = np.full(len(known), -1, dtype=np.int64)
    if not len(known):
        return match
    corpus = _Corpus(texts)

    def look_up(keys: _Runs, among: _Runs) -> None:
        among = among.take(known[among.texts])
        values, first = np.unique(among.hashes, return_index=True)
        keys = keys.take(~known[keys.texts] & (match[keys.texts] < 0)).among(values)
        sources = among.texts[first[np.searchsorted(values, keys.hashes)]]
        match[keys.texts] = sources

    equal = _Runs(corpus.prints.astype(np.uint64), np.arange(len(known)))
    look_up(equal, equal)
    look_up(corpus.runs, corpus.runs)
    for near, own in corpus.short_questions():
        look_up(near, own)
        look_up(own, near)
    return match


def _contains(ordered: Hashes, values: Hashes) -> Flags:
    """Return which of `values` are in `ordered`."""
    if not len(ordered):
        return np.zeros(len(values), dtype=np.bool_)
    at = np.searchsorted(ordered, values).clip(max=len(ordered) - 1)
    return np.asarray(ordered[at] == values)


def main() -> None:
    """List the near-duplicates among the test rows, and write the rows that are left."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="data folders")
    parser.add_argument("--out", type=Path, help="JSON file for the test rows that are left")
    parser.add_argument("--rows", action="store_true", help="list every row, not only numbers")
    arguments = parser.parse_args()
    folders = [read_outcomes(folder) for folder in arguments.data]
    parts = [split(outcomes.texts) for outcomes in folders]
    known = [_members(len(o.texts), p[:2]) for o, p in zip(folders, parts, strict=True)]
    found = near_duplicates(folders, known)
    left: dict[str, list[str]] = {}
    for outcomes, (_, _, test), match in zip(folders, parts, found, strict=True):
        copies = test[match[test] >= 0]
        kept = test[match[test] < 0]
        left[outcomes.name] = [outcomes.ids[row] for row in kept]
        print(f"{outcomes.name}: {len(copies)} of {len(test)} test rows are near-duplicates")
        for row in copies if arguments.rows else ():
            folder, other = place_of(int(match[row]), folders)
            items = other - len(folders[folder].texts)
            source = f"aptitude item {items}" if items >= 0 else folders[folder].ids[other]
            print(f"  {outcomes.ids[row]} ~ {folders[folder].name}: {source}")
    if arguments.out:
        arguments.out.write_text(json.dumps(left, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except ModelsatError as problem:
        sys.exit(f"error: {problem}")
