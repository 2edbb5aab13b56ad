"""Read the requests of a log, one at a time, from JSONL, JSON, CSV or Parquet.

engine/replay/formats.py says which columns hold what. Only the instruction is required: a value of
another column that cannot be read is dropped, and the request stays.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from engine.api.candidate import NAME_PREFIX
from engine.api.conversation.body import from_body
from engine.api.conversation.conversation import ROLES, Conversation
from engine.api.conversation.providers import api_of
from engine.api.conversation.reading import find_ask
from engine.api.errors import InvalidInputError, Violation
from engine.api.limits import is_utf8
from engine.api.proto import check_text
from engine.datasets.cells import CellError, decode, is_missing, number, score
from engine.datasets.rows import check_file, undecoded
from engine.replay.formats import (
    COLUMNS,
    PLAIN,
    Columns,
    LogFormat,
    columns_of,
    detect,
    find,
    first,
)
from engine.serving.settings import Settings

__all__ = ["COLUMNS", "PastRequest", "columns_with", "expand", "past_request"]

MAX_TEXT_BYTES = Settings().max_text_bytes  # as a server with default settings accepts
MIN_EPOCH_MS = 1e11  # epoch times from here on are milliseconds, then micro- and nanoseconds


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
        problems += [problem for name in names if (problem := check_file(name))]
        files |= dict.fromkeys(map(Path, names))
    if problems:
        raise InvalidInputError(*problems)
    return list(files)


def _matching(pattern: str) -> list[str]:
    """Match an absolute pattern, which Path.glob does not accept."""
    path = Path(pattern)
    return sorted(
        str(match) for match in Path(path.anchor).glob(str(path.relative_to(path.anchor)))
    )


@dataclass(frozen=True)
class PastRequest:
    """A request of the log.

    conversation: what was asked. candidate: its name in the log, empty if there is none.
    cost: US dollars. outcome: in [0, 1]. time: epoch seconds. NaN means not logged. other_names:
    what the log also calls the candidate. input_tokens, output_tokens, latency_s, session: as
    logged, NaN or empty if not. dropped: columns whose values could not be read. propensity: with
    which the candidate was chosen, in (0, 1]. reference: the right answer, or what else a grader
    compares answers with; None if there is none. category: the log's own kind of request.
    response_format: of the request's body, as in chat completions.
    """

    conversation: Conversation
    candidate: str
    cost: float
    outcome: float
    time: float
    other_names: tuple[str, ...] = ()
    input_tokens: float = math.nan
    output_tokens: float = math.nan
    latency_s: float = math.nan
    session: str = ""
    dropped: tuple[str, ...] = ()
    propensity: float = math.nan
    reference: Any = None
    category: str = ""
    response_format: Mapping[str, Any] | None = None

    @property
    def text(self) -> str:
        """What the human asked; "" if there is no text to route by."""
        return find_ask(self.conversation.turns)[0]


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
        if name in INSTRUCTION:  # the others would win over the column that is asked for
            mapped = [p.partition("=")[0] for p in pairs]
            columns |= {other: () for other in INSTRUCTION if other not in mapped}
    if problems:
        raise InvalidInputError(*problems)
    return columns


INSTRUCTION = ("body", "messages", "text")


def past_request(
    record: Mapping[str, Any],
    columns: Columns,
    outcome_of: Callable[[str, str], tuple[float, float]] | None = None,
    form: LogFormat | None = None,
) -> PastRequest | str:
    """Read the request of a record, or say what is wrong in a sentence that never quotes its text.

    outcome_of: (decision id, candidate) -> (outcome, propensity), NaN if unknown, for a record
    without them. form: None detects it.
    """
    form = form or detect(record)
    columns = columns_of(form, columns)
    try:
        body = _request_body(record, columns, form)
        conversation = _read(body, str(first(record, columns["path"])[1] or ""))
    except InvalidInputError as error:
        return str(error)
    except ValueError as error:
        return f"{error}."
    except RecursionError:
        return "holds JSON that is nested too deeply"
    dropped: list[str] = []

    def optional(name: str, read: Callable[[Any], float]) -> float:
        column, value = first(record, columns[name])
        try:
            found = read(value)
        except ValueError:
            dropped.append(column)
            return math.nan
        return found / 1e3 if column.endswith("_ms") else found

    names = _names(record, columns["candidate"]) or _names(body, ("model",))
    outcome = optional("outcome", _outcome)
    propensity = optional("propensity", _propensity)
    if outcome_of is not None and (math.isnan(outcome) or math.isnan(propensity)):
        _, decision = first(record, columns["decision"])
        known, drawn = outcome_of(str(decision), names[0] if names else "")
        outcome = known if math.isnan(outcome) else outcome
        propensity = drawn if math.isnan(propensity) else propensity
    reference, response_format = first(record, columns["reference"])[1], body.get("response_format")
    return PastRequest(
        conversation,
        names[0] if names else "",
        optional("cost", _amount),
        outcome,
        optional("time", _seconds),
        tuple(names[1:]),
        optional("input_tokens", _amount),
        optional("output_tokens", _amount),
        optional("latency", _amount),
        str(first(record, columns["session"])[1] or "")[:200],
        tuple(dropped),
        propensity,
        reference,
        str(first(record, columns["category"])[1] or "")[:200],
        response_format if isinstance(response_format, Mapping) else None,
    )


def _names(record: Mapping[str, Any], paths: Sequence[str]) -> list[str]:
    """List what the log calls the candidate, each once."""
    names: dict[str, None] = {}
    for path in paths:
        _, value = first(record, (path,))
        if isinstance(value, str | int) and is_utf8(str(value)):
            names[str(value).strip().removeprefix(NAME_PREFIX)] = None
    return list(names)


# --- the instruction -------------------------------------------------------------------------


def _request_body(record: Mapping[str, Any], columns: Columns, form: LogFormat) -> dict[str, Any]:
    """Find the first column that holds a request; raises ValueError if none does."""
    problem = ""
    order = ("messages", "body", "text") if form == PLAIN else INSTRUCTION
    tried = [path for name in order for path in columns[name]]
    for path in tried:
        try:
            value = decode(find(record, path))
            if is_missing(value) or (isinstance(value, str) and not value.strip()):
                continue
            siblings = {n: decode(record[n]) for n in BODY_FIELDS if not is_missing(record.get(n))}
            return {**siblings, **as_body(value)}
        except CellError as error:
            problem = problem or f"column {path} {error}"
    hint = f"; {form.no_text}" if form.no_text else ""
    raise ValueError(
        problem or f"has no instruction in any of the columns {', '.join(tried)}{hint}"
    )


# Fields of a request body that a record may hold next to its messages. They say what is needed.
BODY_FIELDS = ("system", "tools", "functions", "response_format", "tool_choice", "instructions")
# A body has one of these; an object with one of the texts instead is a question alone.
BODY_KEYS = ("messages", "contents", "input", "prompt", "inputText", "instructions")
QUESTION_KEYS = ("question", "query", "instruction", "text", "user_input", "user_query")
_ROLE_NAMES = {
    **{"human": "user", "HumanMessage": "user", "ai": "assistant", "AIMessage": "assistant"},
    **{"model": "assistant", "SystemMessage": "system", "ToolMessage": "tool"},
}


def as_body(value: Any) -> dict[str, Any]:
    """Return a request body for a text, a list of messages or texts, or a body.

    Raises CellError for anything else.
    """
    if isinstance(value, bytes):
        try:
            value = decode(value.decode())
        except UnicodeDecodeError:
            raise CellError("holds bytes that are not UTF-8") from None
    if isinstance(value, str):
        return {"prompt": value}
    if isinstance(value, list):
        if len(value) == 1 and isinstance(value[0], list):  # LangChain calls with batches of one
            value = value[0]
        if all(isinstance(item, str) for item in value):
            return {"prompt": "\n".join(value)}
        if not all(isinstance(item, Mapping) for item in value):
            raise CellError("holds a list that is not one of messages")
        items = [_message(item) for item in value]
        no_role = [i for i, item in enumerate(items) if str(item.get("role")) not in ROLES]
        if not no_role:
            return {"messages": items}
        if all("role" not in items[i] and isinstance(items[i].get("type"), str) for i in no_role):
            return {"input": items}  # of the responses API
        raise CellError(f"[{no_role[0]}].role is not one of {', '.join(ROLES)}")
    if isinstance(value, Mapping):
        if "role" in value and ("content" in value or "parts" in value):
            return as_body([value])
        if isinstance(listed := decode(value.get("messages")), list):
            return {**value, **as_body(listed)}
        for key in BODY_KEYS:
            if not is_missing(value.get(key)):
                inner = decode(value[key])
                nested = isinstance(inner, Mapping) and key in ("input", "prompt")
                return as_body(inner) if nested and not inner.get("id") else {**value, key: inner}
        for call in (value.get("kwargs"), value.get("args")):  # of a traced Python function
            if not is_missing(call) and "messages" not in value:
                return as_body(call)
        for key in QUESTION_KEYS:
            if isinstance(value.get(key), str) and value[key].strip():
                return {"prompt": value[key]}
        raise CellError("holds an object that is no request body")
    raise CellError("holds no text")


def _message(item: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the roles of LangChain and Gemini; unpack LangChain's serialized messages."""
    inner = item.get("kwargs")
    if isinstance(inner, Mapping) and isinstance(item.get("id"), list) and item["id"]:
        item = {"type": str(item["id"][-1]), **inner}
    role = item.get("role", item.get("type"))
    known = _ROLE_NAMES.get(role, role) if isinstance(role, str) else ""
    item = {**item, "role": known} if known in ROLES else dict(item)
    if "content" in item:
        item["content"] = _content(item["content"])
    return item


def _content(value: Any) -> Any:
    """Decode a list of parts that a log wrote as text: JSON, or Python's notation."""
    if not (isinstance(value, str) and value.lstrip().startswith("[")):
        return value
    try:
        parts = decode(value)
    except CellError:
        return value  # prose that begins with a bracket
    if not isinstance(parts, list) or not parts:
        return value
    is_parts = all(isinstance(p, Mapping) and isinstance(p.get("type"), str) for p in parts)
    return parts if is_parts else value


def _read(body: Mapping[str, Any], path: str) -> Conversation:
    text = json.dumps(body, ensure_ascii=False, default=str)
    if not is_utf8(text):  # protobuf would quote it
        raise ValueError(undecoded(text) or "the instruction is not valid UTF-8")
    conversation = from_body(body, path)
    api = api_of(path.partition("?")[0].rstrip("/"))
    conversation = replace(conversation, needs=replace(conversation.needs, api=api))
    ask, _ = find_ask(conversation.turns)
    if ask:
        check_text(ask, MAX_TEXT_BYTES, "conversation")
    return conversation


# --- numbers and times -----------------------------------------------------------------------


def _outcome(value: Any) -> float:
    """Read a score in [0, 1], also from a list or object that holds no other one."""
    found = decode(value)
    if isinstance(found, Mapping):
        found = [{"value": inner} for inner in found.values()]
    if isinstance(found, list) and found:
        if len(found) > 1 or not isinstance(found[0], Mapping):
            raise CellError("holds several scores")
        found = found[0].get("value")
        found = found.get("value") if isinstance(found, Mapping) else found
    return score(found)


def _amount(value: Any) -> float:
    found = number(decode(value))
    if found < 0 or found == math.inf:
        raise CellError("is not an amount")
    return found


def _propensity(value: Any) -> float:
    found = number(decode(value))
    if found <= 0 or found > 1:
        raise CellError("is not a probability above 0")
    return found


def _seconds(value: Any) -> float:
    """Read epoch time in any unit, ISO 8601, RFC 2822 or a timestamp; UTC if no zone is given."""
    if isinstance(value, str):
        value = _moment(value.strip())
    if isinstance(value, datetime):
        try:
            return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
        except OverflowError:
            raise CellError("is no time") from None
    seconds = number(value)
    for _ in range(3):
        seconds = seconds / 1e3 if seconds >= MIN_EPOCH_MS else seconds
    if seconds < 0 or seconds >= MIN_EPOCH_MS:
        raise CellError("is neither epoch seconds nor a smaller unit")
    return seconds


def _moment(text: str) -> datetime | str:
    """Parse a date; the text itself if it is none, as it may be a number."""
    for zone in (" UTC", " GMT", " Z"):
        if text.endswith(zone) and text[:4].isdecimal():
            text = f"{text.removesuffix(zone)}+00:00"
    try:
        return text if text.isdecimal() else datetime.fromisoformat(text)
    except ValueError:
        pass
    try:
        return parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return text
