"""The files of a data folder, read and checked: docs/explanation/architecture.md, "Data folders".

Letters: N instructions, M candidates.
"""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from engine.api.errors import InvalidInputError, Violation
from engine.bundle.types import Float32Array

MAX_REPORTED = 20  # unreadable lines that are named
PARSE_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile)
Read = TypeVar("Read")


@dataclass(frozen=True)
class DataFolder:
    """records: N lines of the instructions. candidates: M names. scores: (M, N) in [0, 1], NaN =
    not measured. sat: the content of aptitude.json, None where there is none."""

    records: list[dict[str, Any]]
    candidates: list[str]
    scores: Float32Array
    sat: Mapping[str, Any] | None


def read_folder(folder: Path) -> DataFolder:
    """Raises InvalidInputError that lists every problem of `folder`."""
    _require_files(folder)
    records, problems = _records(folder)
    names = _read(folder / "candidates.json", _names, problems)
    scores = _read(folder / "scores.npz", _scores, problems)
    path = folder / "aptitude.json"
    sat = _read(path, _sat, problems) if path.is_file() else None
    problems += _instruction_problems(records)
    if scores is not None and names is not None:
        problems += _score_problems(scores, names, len(records))
    if sat is not None and names is not None:
        problems += _aptitude_problems(sat, names)
    if problems or names is None or scores is None:
        raise InvalidInputError(*(Violation(str(folder), problem) for problem in problems))
    return DataFolder(records, names, scores, sat)


def _read(path: Path, read: Callable[[Path], Read], problems: list[str]) -> Read | None:
    """What `read` finds in `path`; None, and a problem more, where it is not of its form."""
    try:
        return read(path)
    except PARSE_ERRORS as error:
        form = (read.__doc__ or "").strip()
        problems.append(f"{path.name}: {type(error).__name__} ({error}); expected {form}")
        return None


def _names(path: Path) -> list[str]:
    """a JSON list of objects with a name."""
    return [str(candidate.get("name", "")) for candidate in json.loads(path.read_text("utf-8"))]


def _scores(path: Path) -> Float32Array:
    """a matrix of numbers under the key scores."""
    with np.load(path) as arrays:
        scores: Float32Array = arrays["scores"].astype(np.float32)
    if scores.ndim != 2:
        raise ValueError(f"scores has {scores.ndim} dimensions")
    return scores


def _sat(path: Path) -> Mapping[str, Any]:
    """a JSON object of tasks, items (task -> ids) and scores (candidate -> a number a task)."""
    found: Mapping[str, Any] = json.loads(path.read_text("utf-8"))
    return {
        "tasks": [str(task) for task in found["tasks"]],
        "items": {t: list(found["items"].get(t, ())) for t in found["tasks"]},
        "scores": {
            name: [None if x is None else float(x) for x in figures]
            for name, figures in found["scores"].items()
        },
    }


def _require_files(folder: Path) -> None:
    missing = [n for n in ("candidates.json", "scores.npz") if not (folder / n).is_file()]
    if not instructions_file(folder).is_file():
        missing.append("instructions.jsonl[.gz]")
    if missing:
        raise InvalidInputError(
            Violation(
                str(folder),
                f'misses {missing}; docs/explanation/architecture.md, "Data folders", says'
                " what they hold.",
            )
        )


def _records(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The lines that are JSON objects, and what is wrong with the others."""
    records, problems = [], []
    for number, line in enumerate(lines_of(instructions_file(folder)), start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError(f"a {type(record).__name__}")
        except ValueError as error:
            problems.append(f"instructions, line {number}: no JSON object ({error}).")
            continue
        missing = [k for k in ("id", "benchmark", "text") if k not in record]
        if missing:
            problems.append(f"instructions, line {number}: misses {missing}.")
        records.append({"id": "?", "benchmark": "?", "text": "?", **record})
    return records, problems[:MAX_REPORTED]


def instructions_file(folder: Path) -> Path:
    """Of a data folder; the plain one where there is none."""
    packed = folder / "instructions.jsonl.gz"
    return packed if packed.is_file() else folder / "instructions.jsonl"


def lines_of(path: Path) -> Iterator[str]:
    """Of a text, gzipped where its name ends with .gz."""
    opening = gzip.open if path.suffix == ".gz" else open
    with opening(path, "rt", encoding="utf-8") as lines:
        yield from lines


def _instruction_problems(records: list[dict[str, Any]]) -> list[str]:
    problems = []
    if empty := [r["id"] for r in records if not str(r["text"]).strip()]:
        problems.append(f"instructions: {len(empty)} have no text, first {empty[0]!r}.")
    if len({str(r["id"]) for r in records}) != len(records):
        problems.append("instructions: ids are not unique.")
    return problems


def _score_problems(scores: Float32Array, names: list[str], instructions: int) -> list[str]:
    problems = []
    expected = (len(names), instructions)
    if scores.shape != expected:
        problems.append(
            f"scores.npz: scores is {scores.shape}, expected {expected}"
            " (candidates.json x instructions.jsonl)."
        )
    if outside := int(((scores < 0) | (scores > 1)).sum()):
        problems.append(f"scores.npz: {outside} values lie outside [0, 1].")
    if len(set(names)) != len(names) or "" in names:
        problems.append("candidates.json: names are not unique, or empty.")
    if scores.shape == expected:
        silent = [n for n, row in zip(names, scores, strict=True) if np.isnan(row).all()]
        if silent:
            problems.append(f"scores.npz: {silent} have no measured outcome.")
    return problems


def _aptitude_problems(sat: Mapping[str, Any], names: list[str]) -> list[str]:
    figures = {n: [x for x in sat["scores"].get(n, []) if x is not None] for n in names}
    problems = []
    if wrong := [n for n in names if not all(0 <= a <= 1 for a in figures[n])]:
        problems.append(f"aptitude.json: figures of {wrong} lie outside [0, 1].")
    full = len(sat["tasks"])
    if missing := [n for n in names if len(sat["scores"].get(n, [])) != full or not figures[n]]:
        problems.append(f"aptitude.json: no full set of figures for {missing}.")
    return problems
