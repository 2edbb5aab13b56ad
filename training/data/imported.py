"""What every importer shares: outcomes, problems with their place, and the data folder written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engine.api.errors import InvalidInputError, Violation
from engine.datasets.cells import CellError, is_missing, plain_text, score
from engine.datasets.rows import SourceRow, TextFormat, read_rows, undecoded

MAX_LISTED = 20


@dataclass(frozen=True)
class Outcome:
    """One candidate's score, in [0, 1], on one instruction. place: "FILE, row N" of the source."""

    id: str
    benchmark: str
    text: str
    candidate: str
    score: float
    place: str = field(default="", compare=False)


@dataclass
class Problems:
    """Collect what could not be read.

    max_invalid_rows: rows that may be left out before the import is refused. A torn last row of a
    file is reported and does not count. dropped: (what, why) of optional values that were left out.
    """

    max_invalid_rows: int = 0
    invalid: list[Violation] = field(default_factory=list)
    torn: list[Violation] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    count: int = 0

    def skip(self, row: SourceRow, column: str = "", problem: str = "") -> None:
        """Leave out a row, for its own problem or that of a column."""
        place = f"{row.file}, row {row.number}" + (f", column {column}" if column else "")
        violation = Violation(place, f"{problem or row.problem}.")
        if row.torn:
            self.torn.append(violation)
            return
        self.count += 1
        if len(self.invalid) < MAX_LISTED:
            self.invalid.append(violation)

    def check(self) -> None:
        """Raise InvalidInputError if more rows were left out than may be."""
        if self.count <= self.max_invalid_rows:
            return
        more = self.count - len(self.invalid)
        last = [Violation("source", f"has {more} more such rows.")] if more else []
        hint = Violation("--max-invalid-rows", f"{self.count} would import without these rows.")
        raise InvalidInputError(*self.invalid, *last, hint)

    def summary(self) -> list[str]:
        """Return a line for each thing that was left out."""
        lines = [f"{v.field}: {v.description} The rest is kept." for v in self.torn]
        lines += [f"{v.field}: {v.description} The row is left out." for v in self.invalid]
        if (more := self.count - len(self.invalid)) > 0:
            lines.append(f"{more} more rows are left out.")
        return lines + [f"{count} times: {what}" for what, count in sorted(self.dropped.items())]


@dataclass(frozen=True)
class ImportOptions:
    """How to read a source.

    text: see TextFormat. filters, template, metric, run, prompt: of lm-evaluation-harness, see
    training/data/lm_eval.py. log_format: of a log, see engine/replay/formats.py.
    """

    problems: Problems = field(default_factory=Problems)
    text: TextFormat = field(default_factory=TextFormat)
    filters: tuple[str, ...] = ()
    template: str = ""
    metric: str = ""
    run: str = ""
    prompt: bool = False
    log_format: str = ""

    def rows(self, path: Path) -> Iterator[SourceRow]:
        """Yield the rows of a file that have a record.

        Raises InvalidInputError at the end if too many rows were left out, by the caller too.
        """
        for row in read_rows(path, text=self.text):
            if row.problem:
                self.problems.skip(row)
            else:
                yield row
        self.problems.check()


class ColumnError(ValueError):
    """A required cell cannot be read."""

    def __init__(self, column: str, problem: str) -> None:
        super().__init__(problem)
        self.column = column


def read_text(value: Any, column: str) -> str:
    """Read a required text. Raises ColumnError if there is none, or bytes of another encoding."""
    try:
        text = plain_text(value)
    except CellError as error:
        raise ColumnError(column, str(error)) from None
    if problem := undecoded(text):
        raise ColumnError(column, problem)
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise ColumnError(column, "is not valid Unicode (half of a surrogate pair)")
    return text


def read_score(value: Any, column: str) -> float:
    """Read a score in [0, 1]; NaN if not measured. Raises ColumnError."""
    try:
        return score(value)
    except CellError as error:
        raise ColumnError(column, str(error)) from None


def read_name(value: Any, default: str, column: str, problems: Problems) -> str:
    """Read an optional name of one line; `default` if there is none, or if it cannot be used."""
    if is_missing(value):
        return default
    name = str(value).strip() if isinstance(value, str | int | float) else ""
    if not name or "\n" in name or undecoded(name):
        problems.dropped[f"column {column} was not usable, so {default!r} was taken"] += 1
        return default
    return name


def without_repeats(outcomes: Iterable[Outcome], problems: Problems) -> Iterator[Outcome]:
    """Yield each outcome once: a row that repeats another one is counted and left out.

    Raises:
        InvalidInputError: a candidate has two different scores on one instruction.
    """
    seen: dict[tuple[str, str, str], Outcome] = {}
    for outcome in outcomes:
        first = seen.setdefault((outcome.candidate, outcome.benchmark, outcome.id), outcome)
        if first is outcome:
            yield outcome
        elif first == outcome or (first.score != first.score and outcome.score != outcome.score):
            problems.dropped["a row repeats another one, so it is left out"] += 1
        elif first.text != outcome.text:
            yield outcome  # write_folder says that the id has two texts
        else:
            raise InvalidInputError(
                Violation(
                    outcome.place or "outcomes",
                    f"{outcome.candidate} has two scores on {outcome.id[:60]!r}: {first.score:g}"
                    f" ({first.place}) and {outcome.score:g}.",
                )
            )


def write_folder(outcomes: Iterable[Outcome], out: Path) -> tuple[int, int]:
    """Write a data folder; an earlier one is replaced.

    Returns:
        The numbers of (instructions, candidates).

    Raises:
        InvalidInputError: there is no outcome, a pair has two scores, or an id has two texts.
    """
    texts: dict[tuple[str, str], str] = {}
    scores: dict[tuple[str, tuple[str, str]], float] = {}
    for outcome in outcomes:
        key = (outcome.benchmark, outcome.id)
        place, short = outcome.place or "outcomes", repr(outcome.id[:60])
        if texts.setdefault(key, outcome.text) != outcome.text:
            raise InvalidInputError(Violation(place, f"{short} has two different texts."))
        if (pair := (outcome.candidate, key)) in scores:
            raise InvalidInputError(
                Violation(place, f"{outcome.candidate} has two scores on {short}.")
            )
        scores[pair] = outcome.score
    if not scores:
        raise InvalidInputError(Violation("source", "has no outcomes; check its format."))
    names, ids = sorted({c for c, _ in scores}), list(texts)
    column = {identifier: i for i, identifier in enumerate(ids)}
    row = {name: i for i, name in enumerate(names)}
    matrix = np.full((len(names), len(ids)), np.nan, dtype=np.float32)
    for (candidate, identifier), measured in scores.items():
        matrix[row[candidate], column[identifier]] = measured
    try:
        _write(out, texts, names, matrix)
    except OSError as error:
        raise InvalidInputError(Violation("--out", f"{out} cannot be written ({error}).")) from None
    return len(ids), len(names)


def _write(out: Path, texts: Mapping[tuple[str, str], str], names: list[str], matrix: Any) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "instructions.jsonl.gz").unlink(missing_ok=True)  # else it would be read instead
    with (out / "instructions.jsonl").open("w", encoding="utf-8") as file:
        for number, ((benchmark, _), text) in enumerate(texts.items()):
            line = {"id": f"{benchmark}/{number}", "benchmark": benchmark, "text": text}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    (out / "candidates.json").write_text(json.dumps([{"name": n} for n in names], indent=1))
    np.savez_compressed(out / "scores.npz", scores=matrix)
