"""Outcomes of candidates on instructions, read from data folders by training, evaluation and
`modelsat calibrate`. The format is that of docs/reference/data-folders.md.

Shapes: N instructions, M candidates.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.api.errors import InvalidInputError, Violation
from engine.bundle.types import Float32Array, Int64Array
from engine.datasets.aptitude_test import (
    AptitudeTest,
    build_aptitude_test,
    derive_items,
    derive_keywords,
)
from engine.datasets.folder import read_folder
from engine.datasets.known_tasks import keywords_of

logger = logging.getLogger(__name__)
TEST_PERCENT, VALIDATION_PERCENT = 10, 5


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of M candidates on N instructions.

    texts: N instructions. scores: (M, N) in [0, 1], NaN = not measured. benchmarks, subjects: N
    names; a subject is the subtask if the data name one, else the benchmark. test: the candidates'
    aptitude test, whose items are not among the N instructions. dropped: candidate of the folder ->
    why it is not among the M. propensities: (M, N) probabilities with which a server that explores
    chose the candidates, NaN where it did not choose; None if the folder has none. Of an
    instruction that was routed several times, the number of times divided by the sum of the
    reciprocals of those in which the candidate was chosen, so that 1 / propensity is the weight of
    the mean score. ids: N names of the instructions. item_texts: the questions of the test.
    """

    name: str
    texts: list[str]
    benchmarks: list[str]
    subjects: list[str]
    candidates: list[str]
    scores: Float32Array
    test: AptitudeTest
    dropped: Mapping[str, str] = field(default_factory=dict)
    propensities: Float32Array | None = None
    ids: list[str] = field(default_factory=list)
    item_texts: list[str] = field(default_factory=list)

    def take(self, rows: Int64Array) -> Outcomes:
        """Return the outcomes on some of the instructions. rows: their numbers."""
        return replace(
            self,
            texts=[self.texts[i] for i in rows],
            benchmarks=[self.benchmarks[i] for i in rows],
            subjects=[self.subjects[i] for i in rows],
            scores=self.scores[:, rows],
            propensities=None if self.propensities is None else self.propensities[:, rows],
            ids=[self.ids[i] for i in rows] if self.ids else [],
        )

    def take_candidates(self, candidates: Int64Array) -> Outcomes:
        """Return the outcomes of some of the candidates. candidates: their row numbers."""
        return replace(
            self,
            candidates=[self.candidates[i] for i in candidates],
            scores=self.scores[candidates],
            propensities=None if self.propensities is None else self.propensities[candidates],
            test=self.test.take_candidates(candidates),
        )


def read_outcomes(folder: Path) -> Outcomes:
    """Read and validate a data folder.

    Instructions that are items of the aptitude test are left out, and so are those that ask the
    same question under another ID. Rotations of one question become one instruction, see
    circular_eval. Without an aptitude.json the test is derived from the candidates' scores on the
    training split (engine/datasets/aptitude_test.py).

    Candidates without outcomes or without an aptitude test are dropped, with a warning that names
    them.

    Raises InvalidInputError that lists every problem.
    """
    data = read_folder(folder)
    names, aptitude = data.candidates, data.aptitude
    kept, scores, place = circular_eval(data.records, data.scores)
    records = [data.records[row] for row in kept]
    subjects = [str(r.get("subtask") or r["benchmark"]) for r in records]
    texts = [str(r["text"]) for r in records]
    if aptitude is None:
        training, _, _ = split(texts)
        items = derive_items(scores, subjects, training)
        keywords = derive_keywords(list(items), subjects, texts, training)
    else:
        items = {
            task: [place[i] for i in aptitude["items"].get(task, []) if i in place]
            for task in aptitude["tasks"]
        }
        keywords = keywords_of(aptitude["tasks"])
    accuracies = None if aptitude is None else aptitude["scores"]
    test = build_aptitude_test(items, keywords, scores, subjects, accuracies, names)
    questions = tuple(tuple(texts[row] for row in rows) for rows in items.values())
    test = replace(test, questions=questions)
    untested = np.asarray(np.isnan(test.accuracies).all(axis=1))
    if untested.all():
        problem = (
            f"has too few outcomes of {names} to derive an aptitude test from, and no aptitude.json"
            " with one; `modelsat outcomes export --server` writes it."
        )
        raise InvalidInputError(Violation(str(folder), problem))
    item_rows = sorted({i for group in items.values() for i in group})
    rows = _usable_rows(texts, scores, item_rows)
    benchmarks = [str(r["benchmark"]) for r in records]
    propensities = None if data.propensities is None else data.propensities[:, kept]
    everything = Outcomes(
        folder.name,
        texts,
        benchmarks,
        subjects,
        names,
        scores,
        test,
        data.dropped,
        propensities,
        ids=[str(r["id"]) for r in records],
        item_texts=[texts[i] for i in item_rows],
    )
    for name, reason in data.dropped.items():
        logger.warning("%s: leaving out %s: %s", folder.name, name, reason)
    few = "too few outcomes to derive its aptitude test from"
    return drop_candidates(drop_candidates(everything, untested, few).take(rows))


def drop_candidates(
    outcomes: Outcomes, unusable: NDArray[np.bool_] | None = None, reason: str = ""
) -> Outcomes:
    """Leave out candidates, with a warning that names each.

    unusable: (M,) which ones, and `reason` says why; None means those without an outcome on the
    instructions that are left.
    """
    rows = np.asarray(np.isnan(outcomes.scores).all(axis=1) if unusable is None else unusable)
    if unusable is None:
        reason = "no measured outcome on the instructions that are left"
    if not rows.any() or rows.all():
        return outcomes
    dropped = {outcomes.candidates[i]: reason for i in np.flatnonzero(rows)}
    for name in dropped:
        logger.warning("%s: leaving out %s: %s", outcomes.name, name, reason)
    left = outcomes.take_candidates(np.flatnonzero(~rows))
    return replace(left, dropped={**outcomes.dropped, **dropped})


def _usable_rows(texts: Sequence[str], scores: Float32Array, items: Sequence[int]) -> Int64Array:
    """Return the rows that have an outcome and that do not ask what an item of the aptitude test
    asks, under whatever ID: that would leak the answer."""
    item_texts = {normalize_text(texts[i]) for i in items}
    measured = np.asarray(~np.isnan(scores).all(axis=0))
    rows = [
        i for i, text in enumerate(texts) if measured[i] and normalize_text(text) not in item_texts
    ]
    return np.array(rows, dtype=np.int64)


def question_of(text: str) -> str:
    """Return an instruction without the options of a multiple-choice question."""
    return text.split("\nA. ")[0]


def normalize_text(text: str) -> str:
    """Return the letters and digits of a question, without its options, in lower case; questions
    with the same result are the same. Letters outside of a-z count only if most are such."""
    stem = question_of(text)
    letters = [c for c in stem if c.isalpha()]
    if 2 * sum(c.isascii() for c in letters) >= len(letters):
        return re.sub(r"[^a-z0-9]+", " ", stem.lower()).strip() or stem.casefold().strip()
    return re.sub(r"[\W_]+", " ", stem.casefold()).strip()


def fingerprint(text: str) -> int:
    """Return the first 32 bits of the SHA-256 of the normalized text."""
    return int.from_bytes(hashlib.sha256(normalize_text(text).encode()).digest()[:4], "big")


def split(texts: Sequence[str]) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Split rows into training, validation and test; return their numbers.

    The split is by a hash of the normalized text, so a question is in the same part in every
    dataset and every run.
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
    """Merge the rotations of multiple-choice questions, as CircularEval does.

    Records that share a `circle` are rotations of one question. The first one stands for all of
    them, with each candidate's lowest measured score: only candidates that stay right under every
    rotation were right. A record without a `circle` is a question of its own.

    Args:
        records: N lines of the instructions file.
        scores: (M, N), NaN = not measured.

    Returns:
        The K rows that are kept, their scores (M, K), and record ID -> its position among the K.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for row, record in enumerate(records):
        circle = record.get("circle")
        key = ("id", str(record["id"])) if circle is None else ("circle", str(circle))
        groups.setdefault(key, []).append(row)
    kept = [rows[0] for rows in groups.values()]
    lowest = np.empty((len(scores), len(kept)), dtype=np.float32)
    for place, rows in enumerate(groups.values()):
        lowest[:, place] = np.fmin.reduce(scores[:, rows], axis=1)  # NaN only where all are
    places = {str(records[r]["id"]): p for p, rows in enumerate(groups.values()) for r in rows}
    return kept, lowest, places
