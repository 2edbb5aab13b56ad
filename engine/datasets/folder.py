"""Read and validate data folders; docs/reference/data-folders.md has the format.

Shapes: N instructions, M candidates.
"""

from __future__ import annotations

import gzip
import json
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from engine.api.errors import InvalidInputError, Violation
from engine.bundle.types import Float32Array

MAX_REPORTED = 20  # unreadable lines
PARSE_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile)
NAMES_FORMAT = "a JSON list of objects with a name"
SCORES_FORMAT = "a matrix of numbers under the key scores"
PROPENSITIES_FORMAT = "a matrix of numbers above 0 under the key propensities"
APTITUDE_FORMAT = "a JSON object of tasks, items (task -> IDs) and scores (candidate -> numbers)"
Content = TypeVar("Content")


@dataclass(frozen=True)
class DataFolder:
    """The content of a data folder.

    records: N lines of the instructions file. candidates: M names. scores: (M, N) in [0, 1], NaN =
    not measured. aptitude: the content of aptitude.json; None if there is none. dropped: candidate
    -> why it is left out of all of these. propensities: (M, N), see Outcomes; None if there are
    none.
    """

    records: list[dict[str, Any]]
    candidates: list[str]
    scores: Float32Array
    aptitude: Mapping[str, Any] | None
    dropped: Mapping[str, str] = field(default_factory=dict)
    propensities: Float32Array | None = None


def read_folder(folder: Path) -> DataFolder:
    """Read a data folder, without the candidates that have no outcomes or no accuracies.

    Raises InvalidInputError that lists every problem; no candidate at all is one.
    """
    _require_files(folder)
    records, problems = _read_records(folder)
    names = _parse(folder / "candidates.json", _read_names, NAMES_FORMAT, problems)
    scores = _parse(folder / "scores.npz", _read_scores, SCORES_FORMAT, problems)
    propensities = _parse(folder / "scores.npz", _read_propensities, PROPENSITIES_FORMAT, problems)
    path = folder / "aptitude.json"
    aptitude = None
    if path.is_file():
        aptitude = _parse(path, _read_aptitude, APTITUDE_FORMAT, problems)
    problems += _instruction_problems(records)
    if scores is not None and names is not None:
        problems += _score_problems(scores, names, len(records))
    if propensities is not None and scores is not None and propensities.shape != scores.shape:
        problems.append(
            f"scores.npz: propensities is {propensities.shape}, expected {scores.shape}, as scores."
        )
    if aptitude is not None and names is not None:
        problems += _aptitude_problems(aptitude, names)
    if problems or names is None or scores is None:
        raise InvalidInputError(*(Violation(str(folder), problem) for problem in problems))
    dropped = _without_data(names, scores, aptitude)
    if len(dropped) == len(names):
        reasons = "; ".join(sorted(set(dropped.values())))
        raise InvalidInputError(Violation(str(folder), f"no candidate can be used: {reasons}."))
    kept = [i for i, name in enumerate(names) if name not in dropped]
    names = [names[i] for i in kept]
    if dropped:
        scores = scores[kept]
        propensities = None if propensities is None else propensities[kept]
    return DataFolder(records, names, scores, aptitude, dropped, propensities)


def _without_data(
    names: list[str], scores: Float32Array, aptitude: Mapping[str, Any] | None
) -> dict[str, str]:
    """Find the candidates that nothing can be said of: name -> why."""
    dropped = {}
    for name, row in zip(names, scores, strict=True):
        if np.isnan(row).all():
            dropped[name] = "scores.npz has no measured outcome"
        elif aptitude is not None and not _taken(aptitude, name):
            dropped[name] = "aptitude.json has no accuracy"
    return dropped


def _taken(aptitude: Mapping[str, Any], name: str) -> list[float]:
    """The accuracies of a candidate in the tasks that it took; a NaN counts as none."""
    return [x for x in aptitude["scores"].get(name, []) if x is not None and not math.isnan(x)]


def _parse(
    path: Path, read: Callable[[Path], Content], expected: str, problems: list[str]
) -> Content | None:
    """Return read(path), or None after adding to `problems` what was expected."""
    try:
        return read(path)
    except PARSE_ERRORS as error:
        problems.append(f"{path.name}: {type(error).__name__} ({error}); expected {expected}.")
        return None


def _read_names(path: Path) -> list[str]:
    return [str(candidate.get("name", "")) for candidate in json.loads(path.read_text("utf-8"))]


def _read_scores(path: Path) -> Float32Array:
    with np.load(path) as arrays:
        scores: Float32Array = arrays["scores"].astype(np.float32)
    if scores.ndim != 2:
        raise ValueError(f"scores has {scores.ndim} dimensions")
    return scores


def _read_propensities(path: Path) -> Float32Array | None:
    """Read the optional propensities; None without them, or if _read_scores says what is wrong."""
    with np.load(path) as arrays:
        if "propensities" not in arrays:
            return None
        propensities: Float32Array = arrays["propensities"].astype(np.float32)
    if (propensities <= 0).any() or np.isinf(propensities).any():
        raise ValueError("a propensity is 0, negative or infinite")
    return propensities


def _read_aptitude(path: Path) -> Mapping[str, Any]:
    content: Mapping[str, Any] = json.loads(path.read_text("utf-8"))
    return {
        "tasks": [str(task) for task in content["tasks"]],
        "items": {t: list(content["items"].get(t, ())) for t in content["tasks"]},
        "scores": {
            name: [None if x is None else float(x) for x in accuracies]
            for name, accuracies in content["scores"].items()
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
                f"has no {missing}; docs/reference/data-folders.md has the format.",
            )
        )


def _read_records(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the lines that are JSON objects, and the problems of the others."""
    records: list[dict[str, Any]] = []
    problems: list[str] = []
    number = 0
    try:
        for number, line in enumerate(read_lines(instructions_file(folder)), start=1):
            records += _read_record(line, number, problems)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        # Not str() of a UnicodeDecodeError: it would quote the text.
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else error
        problems.append(f"instructions: cannot be read after line {number} ({reason}).")
    return records, problems[:MAX_REPORTED]


def _read_record(line: str, number: int, problems: list[str]) -> list[dict[str, Any]]:
    """Return the record of a line, if it is a JSON object; add what is wrong to `problems`."""
    try:
        record = json.loads(line)
        if not isinstance(record, dict):
            raise ValueError(f"a {type(record).__name__}")
    except (ValueError, RecursionError) as error:
        problems.append(f"instructions, line {number}: not a JSON object ({error}).")
        return []
    missing = [k for k in ("id", "benchmark", "text") if k not in record]
    if missing:
        problems.append(f"instructions, line {number}: has no {missing}.")
    elif not isinstance(record["text"], str):
        kind = type(record["text"]).__name__
        problems.append(f"instructions, line {number}: text is a {kind}, expected a string.")
    return [{"id": "?", "benchmark": "?", "text": "?", **record}]


def instructions_file(folder: Path) -> Path:
    """Return the path of a folder's instructions: compressed if that file exists, else plain."""
    compressed = folder / "instructions.jsonl.gz"
    return compressed if compressed.is_file() else folder / "instructions.jsonl"


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file, decompressed if its name ends with .gz."""
    open_text = gzip.open if path.suffix == ".gz" else open
    with open_text(path, "rt", encoding="utf-8-sig") as lines:
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
        problems.append(f"scores.npz: {outside} values are outside [0, 1].")
    if len(set(names)) != len(names) or "" in names:
        problems.append("candidates.json: names are not unique, or empty.")
    return problems


def _aptitude_problems(aptitude: Mapping[str, Any], names: list[str]) -> list[str]:
    lists = {n: aptitude["scores"].get(n, []) for n in names}
    problems = []
    if invalid := [n for n in names if not all(0 <= a <= 1 for a in _taken(aptitude, n))]:
        problems.append(f"aptitude.json: accuracies of {invalid} are outside [0, 1].")
    tasks = len(aptitude["tasks"])
    if missing := [n for n in names if lists[n] and len(lists[n]) != tasks]:
        problems.append(
            f"aptitude.json: {missing} do not have an accuracy for each of {tasks} tasks."
        )
    return problems
