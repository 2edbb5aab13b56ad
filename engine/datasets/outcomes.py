"""Outcomes of real candidates on real instructions: the data folder that training, evaluation and
`modelsat calibrate` read. The form is that of docs/explanation/architecture.md, "Data folders".

Letters: N instructions, M candidates, T tasks, Q questions of a task.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.api.errors import InvalidInputError, Violation
from engine.bundle.types import Float32Array, Int64Array
from engine.datasets.aptitude_test import AptitudeTest, derive_items, derive_keywords, sittings
from engine.datasets.folder import read_folder

TEST_PERCENT, VALIDATION_PERCENT = 10, 5


@dataclass(frozen=True)
class Outcomes:
    """texts: N instructions. scores: (M, N) in [0, 1], NaN = not measured.

    benchmarks, subjects: N names; a subject is the subtask where the data name one, else the
    benchmark. test: the aptitude test that the candidates sat; its items are not among the rows.
    """

    name: str
    texts: list[str]
    benchmarks: list[str]
    subjects: list[str]
    candidates: list[str]
    scores: Float32Array
    test: AptitudeTest

    def take(self, rows: Int64Array) -> Outcomes:
        """The same candidates on a part of the instructions."""
        return replace(
            self,
            texts=[self.texts[i] for i in rows],
            benchmarks=[self.benchmarks[i] for i in rows],
            subjects=[self.subjects[i] for i in rows],
            scores=self.scores[:, rows],
        )

    def only(self, candidates: Int64Array) -> Outcomes:
        """The same instructions, a part of the candidates."""
        return replace(
            self,
            candidates=[self.candidates[i] for i in candidates],
            scores=self.scores[candidates],
            test=self.test.only(candidates),
        )


def read_outcomes(folder: Path) -> Outcomes:
    """Read and check `folder`. Instructions that belong to the aptitude test are left out, and
    those that ask the same question under another id. Rotations of one question (`circle`) become
    one instruction: engine/datasets/outcomes.py.

    Without an aptitude.json the test is derived from the training part of the candidates' own
    scores (engine/datasets/aptitude_test.py). Raises InvalidInputError that lists every problem.
    """
    data = read_folder(folder)
    names, sat = data.candidates, data.sat
    kept, scores, place = circular_eval(data.records, data.scores)
    records = [data.records[row] for row in kept]
    subjects = [str(r.get("subtask") or r["benchmark"]) for r in records]
    texts = [str(r["text"]) for r in records]
    if sat is None:
        training, _, _ = split(texts)
        items = derive_items(scores, subjects, training)
        keywords = derive_keywords(list(items), subjects, texts, training)
    else:
        items = {t: [place[q] for q in sat["items"].get(t, []) if q in place] for t in sat["tasks"]}
        keywords = keywords_of(sat["tasks"])
    test = sittings(items, keywords, scores, subjects, sat and sat["scores"], names)
    if sat is None and (
        blank := [n for n, a in zip(names, test.figures, strict=True) if np.isnan(a).all()]
    ):
        raise InvalidInputError(
            Violation(
                str(folder), f"no aptitude can be derived for {blank}: too few of their rows."
            )
        )
    rows = _usable(texts, scores, {i for group in items.values() for i in group})
    benchmarks = [str(r["benchmark"]) for r in records]
    everything = Outcomes(folder.name, texts, benchmarks, subjects, names, scores, test)
    return everything.take(rows)


def _usable(texts: Sequence[str], scores: Float32Array, items: set[int]) -> Int64Array:
    """Rows that somebody answered and that are no aptitude item, nor one in other words' clothes:
    the same question under another id would leak as well."""
    asked = {normalize_text(texts[i]) for i in items}
    measured = np.asarray(~np.isnan(scores).all(axis=0))
    kept = [i for i, text in enumerate(texts) if measured[i] and normalize_text(text) not in asked]
    return np.array(kept, dtype=np.int64)


def keywords_of(tasks: Sequence[str]) -> list[str]:
    """The five keywords of each task; a task without an entry is named by its own words."""
    known = load_task_keywords()
    return [known.get(t, re.sub(r"[_\-]+", " ", t)) for t in tasks]


def load_task_keywords() -> dict[str, str]:
    """Task of the shipped aptitude test -> its five keywords."""
    path = Path(__file__).parent / "task_keywords.json"
    known: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return known


def normalize_text(text: str) -> str:
    """Letters and digits of the stem in lower case: what makes two questions the same. Those of
    a-z alone, unless most letters are others."""
    stem = text.split("\nA. ")[0]
    letters = [c for c in stem if c.isalpha()]
    if 2 * sum(c.isascii() for c in letters) >= len(letters):
        return re.sub(r"[^a-z0-9]+", " ", stem.lower()).strip() or stem.casefold().strip()
    return re.sub(r"[\W_]+", " ", stem.casefold()).strip()


def fingerprint(text: str) -> int:
    """The first 32 bits of the sha256 of the normalised text."""
    return int.from_bytes(hashlib.sha256(normalize_text(text).encode()).digest()[:4], "big")


def split(texts: Sequence[str]) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Row numbers (train, validation, test), by a hash of the normalised text.

    Equal questions land on the same side, in every dataset and every run.
    """
    percent = np.array([fingerprint(t) % 100 for t in texts])
    test = percent < TEST_PERCENT
    validation = ~test & (percent < TEST_PERCENT + VALIDATION_PERCENT)
    return (
        np.flatnonzero(~test & ~validation),
        np.flatnonzero(validation),
        np.flatnonzero(test),
    )


Records = Sequence[Mapping[str, Any]]


def circular_eval(
    records: Records, scores: Float32Array
) -> tuple[list[int], Float32Array, dict[str, int]]:
    """Records that share a `circle` are one question: its first record stands for all of them, with
    each candidate's lowest measured score. A record without one is a question of its own.

    scores: (M, N), NaN = not measured. Returns the rows that are kept, their scores, and
    id -> its place among them.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for row, record in enumerate(records):
        named = record.get("circle")
        key = ("id", str(record["id"])) if named is None else ("circle", str(named))
        groups.setdefault(key, []).append(row)
    kept = [rows[0] for rows in groups.values()]
    lowest = np.empty((len(scores), len(kept)), dtype=np.float32)
    for place, rows in enumerate(groups.values()):
        lowest[:, place] = np.fmin.reduce(scores[:, rows], axis=1)  # NaN only where all are
    places = {str(records[r]["id"]): p for p, rows in enumerate(groups.values()) for r in rows}
    return kept, lowest, places
