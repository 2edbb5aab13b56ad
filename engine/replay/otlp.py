"""Read LLM requests from OpenTelemetry's spans and events, as JSON.

Conventions differ in where they put a conversation: gen_ai.input.messages (1.37 and later), events
such as gen_ai.user.message (earlier), gen_ai.prompt.N.content (OpenLLMetry), llm.input_messages.N
(OpenInference), ai.prompt.messages (Vercel's AI SDK), input.value (any).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from engine.datasets.cells import CellError, decode, is_missing

# Columns of tables and JSON lines that hold one span each.
COLUMNS = ("attributes", "events", "start_time", "end_time", "startTimeUnixNano", "endTimeUnixNano")
REQUESTS = {"chat", "text_completion", "generate_content", "completion", "llm", "responses"}
MODELS = ("gen_ai.request.model", "gen_ai.response.model", "llm.model_name", "ai.model.id")
CONTENT = ("gen_ai.", "llm.", "ai.prompt", "input.value")
WHOLE = (
    *("gen_ai.input.messages", "ai.prompt.messages", "llm.input_messages", "gen_ai.prompt"),
    *("input.value", "ai.prompt"),
)
_TURN = re.compile(
    r"(?:gen_ai\.prompt|llm\.input_messages|llm\.prompts|gen_ai\.input\.messages)\.(\d{1,6})\."
    r"(?:message\.)?(role|content)"
)
_PART = re.compile(
    r"llm\.input_messages\.(\d{1,6})\.message\.contents\.\d{1,6}\.message_content\.text"
)
_EVENT = re.compile(r"gen_ai\.(system|user|assistant|tool)\.message")


def requests(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a record for each LLM call of an OTLP export, or of a span or flat record.

    It holds the span's attributes under their names, `messages` or `body`, `start_time` and
    `latency_s`.
    """
    logs = _log_events(record)
    spans = list(_spans(record))
    seen = set()
    for span in spans:
        key = _key(span)
        seen.add(key)
        if found := _request(span, logs.get(key, [])):
            yield found
    for key, events in logs.items():
        if key not in seen and (found := _request({}, events)):
            yield found


def _spans(record: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    groups = record.get("resourceSpans", record.get("resource_spans"))
    if groups is None:
        if "resourceLogs" not in record:
            yield record
        return
    for group in _dicts(groups):
        for scope in _dicts(group.get("scopeSpans", group.get("scope_spans"))):
            yield from _dicts(scope.get("spans"))


def _log_events(record: Mapping[str, Any]) -> dict[Any, list[Mapping[str, Any]]]:
    """Collect the log records of an export by their span."""
    events: dict[Any, list[Mapping[str, Any]]] = {}
    for group in _dicts(record.get("resourceLogs")):
        for scope in _dicts(group.get("scopeLogs")):
            for entry in _dicts(scope.get("logRecords")):
                events.setdefault(_key(entry), []).append(entry)
    return events


def _key(span: Mapping[str, Any]) -> tuple[str, str]:
    return str(span.get("traceId", "")), str(span.get("spanId", ""))


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _request(span: Mapping[str, Any], logs: list[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Flatten a span and its events; None if it is no request to an LLM."""
    found = {k.removeprefix("attributes."): v for k, v in span.items() if "." in k}  # flat
    found |= _attributes(span.get("attributes"))
    events = [*_dicts(_decoded(span.get("events"))), *logs]
    turns = []
    for event in events:
        attributes = _attributes(event.get("attributes"))
        name = str(event.get("name") or event.get("eventName") or attributes.get("event.name"))
        if kind := _EVENT.fullmatch(name):
            content = _any(event.get("body")) or attributes
            if isinstance(content, Mapping):
                text = content.get("content", content.get("gen_ai.event.content"))
                turns.append({"role": kind[1], "content": _decoded(text)})
        elif name.startswith("gen_ai."):
            found |= attributes
            if isinstance(body := _any(event.get("body")), dict):
                found |= {k if "." in k else f"gen_ai.{k}": v for k, v in body.items()}
    operation = str(found.get("gen_ai.operation.name", found.get("openinference.span.kind", "")))
    if operation and operation.lower() not in REQUESTS:
        return None
    if not any(name.startswith(CONTENT) for name in found) and not turns:
        return None
    if not any(m in found for m in MODELS) and not turns and not _conversation(found):
        return None
    return {**found, **(_conversation(found) or {"messages": turns}), **_times(span, events)}


def _conversation(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"messages": ...} or {"body": ...} from attributes; {} if they hold none."""
    system = _parts(_decoded(found.get("gen_ai.system_instructions")))
    before = [{"role": "system", "content": system}] if system else []
    for name in WHOLE:
        value = _decoded(found.get(name))
        if is_missing(value):
            continue
        if isinstance(value, list) and all(isinstance(turn, dict) for turn in value):
            return {"messages": [*before, *(turn for m in value for turn in _messages(m))]}
        return {"body": value}
    turns: dict[int, dict[str, Any]] = {}
    for name, value in found.items():
        if part := _TURN.fullmatch(name):
            turns.setdefault(int(part[1]), {})[part[2]] = _decoded(value)
        elif part := _PART.fullmatch(name):
            turn = turns.setdefault(int(part[1]), {})
            turn["content"] = "\n".join(filter(None, (turn.get("content"), str(value))))
    ordered = [{"role": "user", **turns[number]} for number in sorted(turns)]
    return {"messages": [*before, *ordered]} if ordered else {}


def _messages(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a message of the conventions in OpenAI's form; results of tools become own turns."""
    message = {k.removeprefix("message."): v for k, v in message.items()}
    if isinstance(message.get("message"), dict):
        message = message["message"]
    parts = message.get("parts")
    if not isinstance(parts, list) or "content" in message:
        yield message
        return
    results = [p for p in _dicts(parts) if p.get("type") == "tool_call_response"]
    for result in results:
        value = result.get("response", result.get("result"))
        yield {"role": "tool", "content": value if isinstance(value, str) else _text(value)}
    calls = [p for p in _dicts(parts) if p.get("type") == "tool_call"]
    content = _parts([p for p in parts if p not in results and p not in calls])
    if content or calls or not results:
        functions = [
            {
                "type": "function",
                "function": {"name": c.get("name"), "arguments": c.get("arguments")},
            }
            for c in calls
        ]
        more = {"tool_calls": functions} if functions else {}
        yield {"role": message.get("role"), "content": content, **more}


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _parts(value: Any) -> list[dict[str, Any]]:
    """Return content parts in OpenAI's form; a blob or URI keeps its modality, not its data."""
    if isinstance(value, str):
        return [{"type": "text", "text": value}] if value else []
    found: list[dict[str, Any]] = []
    for part in value if isinstance(value, list) else []:
        if isinstance(part, str):
            found.append({"type": "text", "text": part})
        elif isinstance(part, dict) and isinstance(part.get("content", part.get("text")), str):
            text = part.get("text") if "text" in part else part.get("content")
            binary = part.get("type") in ("blob", "uri", "file")
            found.append(_media(part) if binary else {"type": "text", "text": text})
        elif isinstance(part, dict):
            found.append(_media(part))
    return found


def _media(part: Mapping[str, Any]) -> dict[str, Any]:
    kinds = {"image": "image_url", "audio": "input_audio", "video": "video_url"}
    kind = part.get("modality", part.get("type"))
    return {"type": kinds.get(kind, "file") if isinstance(kind, str) else "file"}


def _decoded(value: Any) -> Any:
    try:
        return decode(value)
    except CellError:
        return value


def _attributes(value: Any) -> dict[str, Any]:
    """Read attributes: OTLP's list of key and value, or an object."""
    value = _decoded(value)
    if isinstance(value, dict):
        return {str(k): v for k, v in value.items()}
    return {str(a.get("key")): _any(a.get("value")) for a in _dicts(value)}


def _any(value: Any, depth: int = 0) -> Any:
    """Unpack OTLP's AnyValue; other values are returned as they are."""
    if not isinstance(value, dict) or len(value) != 1 or depth > 16:
        return value
    ((kind, inner),) = value.items()
    if kind in ("stringValue", "boolValue", "doubleValue", "string_value", "double_value"):
        return inner
    if kind in ("intValue", "int_value"):
        return int(inner) if isinstance(inner, str) and inner.lstrip("-").isdecimal() else inner
    if kind == "arrayValue":
        listed = inner.get("values") if isinstance(inner, dict) else inner
        return [_any(item, depth + 1) for item in listed] if isinstance(listed, list) else []
    if kind == "kvlistValue":
        pairs = _dicts(inner.get("values")) if isinstance(inner, dict) else []
        return {str(pair.get("key")): _any(pair.get("value"), depth + 1) for pair in pairs}
    return value


def _times(span: Mapping[str, Any], events: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return start_time and latency_s as far as known; nanoseconds since 1970 become seconds."""
    stamps: list[Any] = []
    for name, other in (("startTimeUnixNano", "start_time"), ("endTimeUnixNano", "end_time")):
        value = span.get(name)
        try:
            stamps.append(int(str(value)) / 1e9)
        except (ValueError, OverflowError):
            stamps.append(span.get(other))
    start, end = stamps
    if start is None and events:
        try:
            start = int(str(events[0].get("timeUnixNano"))) / 1e9
        except (ValueError, OverflowError):
            start = None
    known = {} if start is None else {"start_time": start}
    if isinstance(start, float) and isinstance(end, float) and end >= start:
        known["latency_s"] = end - start
    return known
