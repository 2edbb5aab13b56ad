"""Read the requests of a log, one at a time, from JSONL (plain or gzip) or Parquet."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, cast

from engine.api.candidate import NAME_PREFIX
from engine.api.errors import InvalidInputError, Violation
from engine.api.limits import is_utf8
from engine.api.openai import ROLES, turns
from engine.api.proto import check_text, last_user_turn
from engine.client.requests import Turn
from engine.serving.settings import Settings

MAX_LINE = 64 << 20  # bytes; longer lines are invalid and never held whole
PARQUET_ROWS = 256  # held at a time
JSONL = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")


@dataclass(frozen=True)
class Line:
    """A line of a log, or a row of a Parquet file.

    record: None if `problem` says why there is none. number: of the line or row, from 1. position:
    share of the file that was read so far, in [0, 1].
    """

    file: str
    number: int
    record: dict[str, Any] | None
    problem: str
    position: float


def expand(patterns: Sequence[str]) -> list[Path]:
    """List the files that paths and globs name, each once, those of a glob sorted.

    Raises:
        InvalidInputError: a pattern matches nothing, or a file has an unknown suffix.
    """
    files: dict[Path, None] = {}
    problems = []
    for pattern in patterns:
        names = [pattern] if Path(pattern).is_file() else _matching(pattern)
        if not names:
            problems.append(Violation(pattern, "matches no file."))
        for name in names:
            if not name.endswith((*JSONL, ".parquet")):
                known = ", ".join((*JSONL, ".parquet"))
                problems.append(Violation(name, f"has an unknown format; expected {known}."))
            files[Path(name)] = None
    if any(file.suffix == ".parquet" for file in files) and not find_spec("pyarrow"):
        problems.append(Violation(".parquet", "needs pyarrow; pip install '.[replay]'."))
    if problems:
        raise InvalidInputError(*problems)
    return list(files)


def _matching(pattern: str) -> list[str]:
    """Match an absolute pattern, which Path.glob does not accept."""
    path = Path(pattern)
    return sorted(
        str(match) for match in Path(path.anchor).glob(str(path.relative_to(path.anchor)))
    )


def read_lines(file: Path, columns: Collection[str]) -> Iterator[Line]:
    """Read every record of `file` in order; columns: the top-level ones that are needed.

    Raises:
        InvalidInputError: the file itself cannot be read.
    """
    number = 0
    try:
        lines = _parquet(file, columns) if file.suffix == ".parquet" else _jsonl(file)
        for line in lines:
            number = line.number
            yield line
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidInputError(
            Violation(str(file), f"cannot be read after row {number} ({error}).")
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
    """Parse a line into (record, problem); an empty line has neither."""
    if not line.strip():
        return None, ""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        # Not str(error): of a UnicodeDecodeError it would quote the line.
        return None, f"not valid JSON ({type(error).__name__})"
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


# A field is read from the first of these columns that has a value; --map-column sets another.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "text": ("text", "prompt", "instruction", "input", "query"),
    "candidate": ("candidate", "model", "selected"),
    "cost": ("cost_usd", "cost", "spend"),
    "outcome": ("outcome", "score"),
    "time": ("time", "timestamp", "created", "startTime"),
    "decision": ("decision_id",),
}
MAX_TEXT_BYTES = Settings().max_text_bytes  # as a server with default settings accepts
MIN_EPOCH_MS = 1e11  # epoch times from here on are milliseconds


@dataclass(frozen=True)
class PastRequest:
    """A request of the log.

    text, context_chars: see Router.route. candidate: its name in the log, empty if there is none.
    cost: US dollars. outcome: in [0, 1]. time: epoch seconds. NaN means not logged.
    """

    text: str
    context_chars: int
    candidate: str
    cost: float
    outcome: float
    time: float


def columns_with(pairs: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Replace defaults of COLUMNS by `pairs` of FIELD=COLUMN; raises InvalidInputError."""
    columns, problems = dict(COLUMNS), []
    for pair in pairs:
        name, _, path = pair.partition("=")
        if name not in COLUMNS or not path:
            expected = ", ".join(COLUMNS)
            problems.append(
                Violation(
                    "--map-column", f"is {pair!r}; expected FIELD=COLUMN, FIELD of {expected}."
                )
            )
        columns[name] = (path,)
    if problems:
        raise InvalidInputError(*problems)
    return columns


def top_level(columns: Mapping[str, Sequence[str]]) -> set[str]:
    """List the top-level columns of a table that contain `columns`."""
    paths = [path for some in columns.values() for path in some]
    return {*paths, *(path.split(".")[0] for path in paths)}


def past_request(
    record: Mapping[str, Any],
    columns: Mapping[str, Sequence[str]],
    outcome_of: Callable[[str, str], float] | None = None,
) -> PastRequest | str:
    """Read the request of a record, or say what is wrong in a sentence that never quotes its text.

    outcome_of: (decision id, candidate) -> outcome or NaN, for a record without an outcome.
    """
    values = {name: _first(record, paths) for name, paths in columns.items()}
    try:
        text, context_chars = _instruction(values, columns)
        outcome = _number(values["outcome"], "outcome")
        cost = _number(values["cost"], "cost")
        if outcome < 0 or outcome > 1:
            raise ValueError("outcome is outside [0, 1]")
        if cost < 0 or cost == math.inf:
            raise ValueError("cost is not an amount of US dollars")
        seconds = _seconds(values["time"])
    except InvalidInputError as error:
        return str(error)
    except ValueError as error:
        return f"{error}."
    candidate = str(values["candidate"] or "").removeprefix(NAME_PREFIX)
    if math.isnan(outcome) and outcome_of is not None:
        outcome = outcome_of(str(values["decision"]), candidate)
    return PastRequest(text, context_chars, candidate, cost, outcome, seconds)


def _first(record: Mapping[str, Any], paths: Sequence[str]) -> Any:
    """Find the value of the first path that has one; a dot steps into an object."""
    for path in paths:
        value: Any = record.get(path)
        if value is None and "." in path:
            value = record
            for step in path.split("."):
                value = value.get(step) if isinstance(value, Mapping) else None
        if not _is_empty(value):
            return value
    return None


def _is_empty(value: Any) -> bool:
    """True for what a table has in a column if a record has no value for it."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str | list | dict) and not value)


def _instruction(
    values: Mapping[str, Any], columns: Mapping[str, Sequence[str]]
) -> tuple[str, int]:
    messages, text = values["messages"], values["text"]
    if messages is not None:
        said = [(turn.role == "user", turn.text) for turn in _turns(messages)]
        return last_user_turn(said, MAX_TEXT_BYTES)
    if not isinstance(text, str):
        tried = ", ".join((*columns["messages"], *columns["text"]))
        raise ValueError(f"has no instruction in any of the columns {tried}")
    _require_utf8(text)
    check_text(text, MAX_TEXT_BYTES)
    return text, 0


def _require_utf8(text: str) -> None:
    if not is_utf8(text):  # protobuf would quote it
        raise ValueError("the instruction is not valid UTF-8")


def _turns(messages: Any) -> list[Turn]:
    """Read messages in OpenAI's format, as a list or as its JSON text."""
    if isinstance(messages, str):
        try:
            messages = json.loads(messages)
        except ValueError:
            raise ValueError("messages is not JSON") from None
    if not isinstance(messages, list) or not all(isinstance(m, Mapping) for m in messages):
        raise ValueError("messages is not a list of objects")
    for i, message in enumerate(messages):
        if str(message.get("role")) not in ROLES:
            raise ValueError(f"messages[{i}].role is not one of {', '.join(ROLES)}")
    said = [Turn(role, text) for role, text in turns({"messages": messages})]
    for turn in said:
        _require_utf8(turn.text)
    return said


def _number(value: Any, name: str) -> float:
    """Read a number; NaN if there is none."""
    if value is None:
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} is not a number") from None


def _seconds(value: Any) -> float:
    """Read epoch seconds from a number, ISO 8601 text or Parquet timestamp; UTC without a zone."""
    if isinstance(value, str):
        with suppress(ValueError):  # perhaps a number as text
            value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    seconds = _number(value, "time")
    seconds = seconds / 1e3 if seconds >= MIN_EPOCH_MS else seconds
    if seconds < 0 or seconds >= MIN_EPOCH_MS:
        raise ValueError("time is neither epoch seconds nor milliseconds")
    return seconds
