"""Outcomes of real candidates on real instructions: reading, checking, splitting, batching.

The form is that of docs/architecture.md, "Data folders". Letters: N instructions, M candidates,
T tasks, B instructions of a batch, L tokens of the longest of them.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.contract.errors import InvalidInputError, Violation
from engine.contract.prompt import Tokenizer, render

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
TEST_PERCENT, VALIDATION_PERCENT = 10, 5


@dataclass(frozen=True)
class Outcomes:
    """texts: N instructions. scores: (M, N) in [0, 1], NaN = not measured. aptitude: (M, T).

    keywords: T task names as the encoder reads them. benchmarks: N names, for reports.
    """

    texts: list[str]
    benchmarks: list[str]
    candidates: list[str]
    scores: Floats
    keywords: list[str]
    aptitude: Floats

    def take(self, rows: Ints) -> Outcomes:
        """The same candidates on a part of the instructions."""
        return Outcomes(
            [self.texts[i] for i in rows],
            [self.benchmarks[i] for i in rows],
            self.candidates,
            self.scores[:, rows],
            self.keywords,
            self.aptitude,
        )


@dataclass(frozen=True)
class Batch:
    """tokens: (B, L) right-padded with 0. lengths: (B,). rows: (B,) instruction numbers."""

    tokens: Ints
    lengths: Ints
    rows: Ints


def read_outcomes(folder: Path) -> Outcomes:
    """Read and check `folder`; instructions that belong to the aptitude test are left out.

    Raises InvalidInputError that lists every problem found.
    """
    _require_files(folder)
    records = [json.loads(line) for line in _open_lines(folder)]
    names = [c["name"] for c in json.loads((folder / "candidates.json").read_text())]
    with np.load(folder / "scores.npz") as arrays:
        scores = arrays["scores"].astype(np.float32)
    test = json.loads((folder / "aptitude.json").read_text())
    problems = _problems(records, names, scores, test)
    if problems:
        raise InvalidInputError(*(Violation(str(folder), problem) for problem in problems))
    rows = _usable(records, scores, {i for group in test["items"].values() for i in group})
    everything = Outcomes(
        [r["text"] for r in records],
        [r["benchmark"] for r in records],
        names,
        scores,
        task_keywords(test["tasks"]),
        np.array([test["scores"][n] for n in names], dtype=np.float32),
    )
    return everything.take(rows)


def _usable(records: list[dict[str, str]], scores: Floats, items: set[str]) -> Ints:
    """Rows that somebody answered and that are no aptitude item, nor one in other words' clothes:
    the same question under another id would leak as well."""
    asked = {normalised(r["text"]) for r in records if r["id"] in items}
    measured = np.asarray(~np.isnan(scores).all(axis=0))
    kept = [i for i, r in enumerate(records) if measured[i] and normalised(r["text"]) not in asked]
    return np.array(kept, dtype=np.int64)


def task_keywords(tasks: Sequence[str]) -> list[str]:
    """The five keywords of each task; a task without an entry is named by its own words."""
    known = json.loads((Path(__file__).parent / "task_keywords.json").read_text())
    return [known.get(t, t.replace("_", " ")) for t in tasks]


def _require_files(folder: Path) -> None:
    lines = ("instructions.jsonl.gz", "instructions.jsonl")
    missing = [
        n for n in ("candidates.json", "scores.npz", "aptitude.json") if not (folder / n).is_file()
    ]
    if not any((folder / n).is_file() for n in lines):
        missing.append("instructions.jsonl[.gz]")
    if missing:
        raise InvalidInputError(
            Violation(
                str(folder),
                f'misses {missing}; docs/architecture.md, "Data folders", says what they hold.',
            )
        )


def _open_lines(folder: Path) -> Iterator[str]:
    packed = folder / "instructions.jsonl.gz"
    if packed.is_file():
        with gzip.open(packed, "rt", encoding="utf-8") as lines:
            yield from lines
    else:
        with (folder / "instructions.jsonl").open(encoding="utf-8") as lines:
            yield from lines


def _problems(
    records: list[dict[str, str]],
    names: list[str],
    scores: Floats,
    test: dict[str, dict[str, list[float]]],
) -> list[str]:
    problems = []
    expected = (len(names), len(records))
    if scores.shape != expected:
        problems.append(
            f"scores.npz: scores is {scores.shape}, expected {expected}"
            " (candidates.json x instructions.jsonl)."
        )
    outside = int(((scores < 0) | (scores > 1)).sum())
    if outside:
        problems.append(f"scores.npz: {outside} values lie outside [0, 1].")
    empty = [r.get("id", "?") for r in records if not str(r.get("text", "")).strip()]
    if empty:
        problems.append(f"instructions: {len(empty)} have no text, first {empty[0]!r}.")
    if len(set(names)) != len(names):
        problems.append("candidates.json: names are not unique.")
    if scores.shape == expected:
        silent = [n for n, row in zip(names, scores, strict=True) if np.isnan(row).all()]
        if silent:
            problems.append(f"scores.npz: {silent} have no measured outcome.")
    wrong = [n for n in names if not all(0 <= a <= 1 for a in test["scores"].get(n, []))]
    if wrong:
        problems.append(f"aptitude.json: figures of {wrong} lie outside [0, 1].")
    missing = [n for n in names if len(test["scores"].get(n, [])) != len(test["tasks"])]
    if missing:
        problems.append(f"aptitude.json: no full set of figures for {missing}.")
    return problems


def normalised(text: str) -> str:
    """Letters and digits of the stem in lower case: what makes two questions the same."""
    stem = text.split("\nA. ")[0]
    latin = re.sub(r"[^a-z0-9]+", " ", stem.lower()).strip()
    return latin or stem.casefold().strip()


def split(texts: Sequence[str]) -> tuple[Ints, Ints, Ints]:
    """Row numbers (train, validation, test), by a hash of the normalised text.

    Equal questions land on the same side, in every dataset and every run.
    """
    digests = [hashlib.sha256(normalised(t).encode()).digest() for t in texts]
    percent = np.array([int.from_bytes(d[:4], "big") % 100 for d in digests])
    test = percent < TEST_PERCENT
    validation = ~test & (percent < TEST_PERCENT + VALIDATION_PERCENT)
    return (
        np.flatnonzero(~test & ~validation),
        np.flatnonzero(validation),
        np.flatnonzero(test),
    )


def tokenise(texts: Sequence[str], tokenizer: Tokenizer) -> list[Ints]:
    """Prompt tokens of each text, as serving renders them."""
    return [render(text, tokenizer).tokens for text in texts]


def batches(tokens: Sequence[Ints], rows: Ints, size: int, seed: int | None) -> list[Batch]:
    """`rows` in batches of `size` of about equal length; shuffled by `seed`, or in length order.

    Neighbours are drawn within buckets of 16 batches, so that little padding is read and the
    order still changes with the seed.
    """
    if seed is None:
        order = sorted(rows, key=lambda r: len(tokens[r]))
        return [_pad(tokens, np.array(part)) for part in _chunks(order, size)]
    random = np.random.default_rng(seed)
    shuffled = list(random.permutation(rows))
    groups = [
        part
        for bucket in _chunks(shuffled, size * 16)
        for part in _chunks(sorted(bucket, key=lambda r: len(tokens[r])), size)
    ]
    return [_pad(tokens, np.array(groups[i])) for i in random.permutation(len(groups))]


def _chunks(items: list[int], size: int) -> list[list[int]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def _pad(tokens: Sequence[Ints], rows: Ints) -> Batch:
    lengths = np.array([len(tokens[r]) for r in rows], dtype=np.int64)
    padded = np.zeros((len(rows), int(lengths.max())), dtype=np.int64)
    for i, row in enumerate(rows):
        padded[i, : lengths[i]] = tokens[row]
    return Batch(padded, lengths, rows)
