"""The records of a log, one at a time: JSONL (plain or gzip) and Parquet."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, cast

from engine.contract.errors import InvalidInputError, Violation

MAX_LINE = 64 << 20  # bytes; longer ones are broken and never held whole
PARQUET_ROWS = 256  # held at a time
JSONL = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")


@dataclass(frozen=True)
class Line:
    """record: None where `problem` says why there is none. number: of the line, or of the Parquet
    row, from 1. position: share of the file that was read so far, in [0, 1]."""

    file: str
    number: int
    record: dict[str, Any] | None
    problem: str
    position: float


def expand(patterns: Sequence[str]) -> list[Path]:
    """The files that paths and globs name, each once, those of a glob sorted.

    Raises InvalidInputError where one names nothing or no format is known by its ending.
    """
    found: dict[Path, None] = {}
    problems = []
    for pattern in patterns:
        names = [pattern] if Path(pattern).is_file() else _matching(pattern)
        if not names:
            problems.append(Violation(pattern, "names no file."))
        for name in names:
            if not name.endswith((*JSONL, ".parquet")):
                known = ", ".join((*JSONL, ".parquet"))
                problems.append(Violation(name, f"is of no known format; expected {known}."))
            found[Path(name)] = None
    if any(file.suffix == ".parquet" for file in found) and not find_spec("pyarrow"):
        problems.append(Violation(".parquet", "needs pyarrow; pip install '.[replay]'."))
    if problems:
        raise InvalidInputError(*problems)
    return list(found)


def _matching(pattern: str) -> list[str]:
    """Path.glob takes no absolute pattern."""
    path = Path(pattern)
    return sorted(
        str(found) for found in Path(path.anchor).glob(str(path.relative_to(path.anchor)))
    )


def read_lines(file: Path, columns: Collection[str]) -> Iterator[Line]:
    """Every record of `file` in its order. columns: the top-level ones that are needed.

    Raises InvalidInputError where the file itself cannot be read on.
    """
    number = 0
    try:
        lines = _parquet(file, columns) if file.suffix == ".parquet" else _jsonl(file)
        for line in lines:
            number = line.number
            yield line
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidInputError(
            Violation(str(file), f"cannot be read on after row {number} ({error}).")
        ) from error


def _jsonl(file: Path) -> Iterator[Line]:
    size = max(1, file.stat().st_size)
    with file.open("rb") as raw:
        packed = file.suffix == ".gz"
        lines = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if packed else raw
        number = 0
        while line := lines.readline(MAX_LINE):
            number += 1
            whole = len(line) < MAX_LINE or line.endswith(b"\n")
            while len(line) == MAX_LINE and not line.endswith(b"\n"):
                line = lines.readline(MAX_LINE)
            record, problem = _parse(line) if whole else (None, f"is longer than {MAX_LINE} bytes")
            if record is not None or problem:
                yield Line(str(file), number, record, problem, min(1.0, raw.tell() / size))


def _parse(line: bytes) -> tuple[dict[str, Any] | None, str]:
    """(record, what is wrong with it); neither for an empty line."""
    if not line.strip():
        return None, ""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        # Not str(error): of a UnicodeDecodeError it would quote the line.
        return None, f"is no JSON ({type(error).__name__})"
    if not isinstance(record, dict):
        return None, f"is a JSON {type(record).__name__}, expected an object"
    return record, ""


def _parquet(file: Path, columns: Collection[str]) -> Iterator[Line]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(file) as table:
            total = max(1, table.metadata.num_rows)
            kept = [name for name in table.schema_arrow.names if name in columns]
            for batch in table.iter_batches(PARQUET_ROWS, columns=kept, use_threads=False):
                for record in batch.to_pylist():
                    number += 1
                    yield Line(str(file), number, record, "", number / total)
    except (ArrowException, ValueError) as error:
        raise EOFError(f"{type(error).__name__}: {error}") from error
