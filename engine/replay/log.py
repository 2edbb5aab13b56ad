"""The records of a log, one at a time: JSONL (plain or gzip) and Parquet."""

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
from engine.api.limits import check_text, is_utf8
from engine.api.openai import ROLES, turns
from engine.api.proto import last_user_turn
from engine.client.requests import Turn
from engine.serving.settings import Settings

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


# A field is read from the first of these columns that holds something; --map-column names another.
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
FIRST_MS = 1e11  # epoch numbers from here on are milliseconds


@dataclass(frozen=True)
class PastRequest:
    """text, context_chars: see Router.route. used: name of the candidate as logged, "" where there
    is none. cost: US dollars; outcome: in [0, 1]; time: epoch seconds; NaN where not logged."""

    text: str
    context_chars: int
    used: str
    cost: float
    outcome: float
    time: float


def columns_with(given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """COLUMNS with FIELD=COLUMN in place of the defaults; raises InvalidInputError."""
    columns, problems = dict(COLUMNS), []
    for pair in given:
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
    """The columns of a table in which `columns` lie."""
    paths = [path for some in columns.values() for path in some]
    return {*paths, *(path.split(".")[0] for path in paths)}


def past_request(
    record: Mapping[str, Any],
    columns: Mapping[str, Sequence[str]],
    outcome_of: Callable[[str, str], float] | None = None,
) -> PastRequest | str:
    """The request, or in a sentence why there is none; never quotes what was said.

    outcome_of: (decision id, candidate) -> outcome or NaN, for a record that brings none.
    """
    values = {name: _first(record, paths) for name, paths in columns.items()}
    try:
        text, context_chars = _instruction(values, columns)
        outcome = _number(values["outcome"], "outcome")
        cost = _number(values["cost"], "cost")
        if outcome < 0 or outcome > 1:
            raise ValueError("outcome lies outside [0, 1]")
        if cost < 0 or cost == math.inf:
            raise ValueError("cost is no amount of US dollars")
        seconds = _seconds(values["time"])
    except InvalidInputError as error:
        return str(error)
    except ValueError as error:
        return f"{error}."
    used = str(values["candidate"] or "").removeprefix(NAME_PREFIX)
    if math.isnan(outcome) and outcome_of is not None:
        outcome = outcome_of(str(values["decision"]), used)
    return PastRequest(text, context_chars, used, cost, outcome, seconds)


def _first(record: Mapping[str, Any], paths: Sequence[str]) -> Any:
    """The value of the first path that leads to something; a dot goes into an object."""
    for path in paths:
        found: Any = record.get(path)
        if found is None and "." in path:
            found = record
            for step in path.split("."):
                found = found.get(step) if isinstance(found, Mapping) else None
        if not _is_nothing(found):
            return found
    return None


def _is_nothing(value: Any) -> bool:
    """Whether a column holds no value: what a table of such logs has where others have one."""
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
    """Of OpenAI's form, as a list or as its JSON text."""
    if isinstance(messages, str):
        try:
            messages = json.loads(messages)
        except ValueError:
            raise ValueError("messages is no JSON") from None
    if not isinstance(messages, list) or not all(isinstance(m, Mapping) for m in messages):
        raise ValueError("messages is no list of objects")
    for i, message in enumerate(messages):
        if str(message.get("role")) not in ROLES:
            raise ValueError(f"messages[{i}].role is none of {', '.join(ROLES)}")
    said = [Turn(role, text) for role, text in turns({"messages": messages})]
    for turn in said:
        _require_utf8(turn.text)
    return said


def _number(value: Any, name: str) -> float:
    """NaN where there is none."""
    if value is None:
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} is no number") from None


def _seconds(value: Any) -> float:
    """Epoch seconds of a number, an ISO 8601 text or a Parquet timestamp; UTC where no zone is."""
    if isinstance(value, str):
        with suppress(ValueError):  # perhaps a number as text
            value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    seconds = _number(value, "time")
    seconds = seconds / 1e3 if seconds >= FIRST_MS else seconds
    if seconds < 0 or seconds >= FIRST_MS:
        raise ValueError("time is neither epoch seconds nor milliseconds")
    return seconds
