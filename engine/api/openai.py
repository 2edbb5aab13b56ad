"""Read turns and requirements from request bodies of OpenAI's chat completions, completions and
responses APIs, and of Anthropic's messages API.

Only what routing needs is read. Anything else, malformed parts included, is left to the upstream.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from engine.api.errors import InvalidInputError, Violation

Role = Literal["system", "user", "assistant", "tool"]
ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
MAX_OUTPUT_TOKENS = 1_000_000_000
OUTPUT_LIMIT_FIELDS = ("max_completion_tokens", "max_output_tokens", "max_tokens")
TEXT_FIELDS: Mapping[str, Role] = {"system": "system", "instructions": "system", "prompt": "user"}
TURN_FIELDS = ("messages", "input")
MODALITIES = {
    "image_url": "image",
    "input_image": "image",
    "image": "image",
    "input_audio": "audio",
    "audio": "audio",
    "video_url": "video",
    "input_video": "video",
    "video": "video",
    "input_file": "file",
    "file": "file",
    "document": "file",
}
MAX_PARTS = 10_000  # turns and content parts in a body
MAX_DEPTH = 4  # of nested content: a tool result has content parts of its own


def turns(body: Mapping[str, Any]) -> list[tuple[Role, str]]:
    """Return (role, text) of each turn, oldest first; turns without text are left out.

    Raises InvalidInputError if there are more than MAX_PARTS turns and parts.
    """
    _check_parts(body)
    said: list[tuple[Role, str]] = []
    for role, content in _contents(body):
        texts = []
        for _, text in _parts(content):
            if text:
                texts.append(text)
        joined = "\n".join(texts)
        if joined.strip():
            said.append((role, joined))
    return said


def modalities(body: Mapping[str, Any]) -> tuple[str, ...]:
    """List what the model must read in addition to text; see Candidate.modalities in the proto."""
    required: set[str] = set()
    for _, content in _contents(body):
        for kind, _ in _parts(content):
            if kind in MODALITIES:
                required.add(MODALITIES[kind])
    return tuple(sorted(required))


def features(body: Mapping[str, Any]) -> tuple[str, ...]:
    """List what the model must be able to do; see Candidate.features in the proto."""
    required = []
    text = body.get("text")
    formats = (body.get("response_format"), text.get("format") if isinstance(text, dict) else None)
    for wanted in formats:
        if isinstance(wanted, dict) and wanted.get("type") in ("json_object", "json_schema"):
            required.append("json_mode")
            break
    if body.get("tools") or body.get("functions"):
        required.append("tools")
    return tuple(required)


def max_output_tokens(body: Mapping[str, Any]) -> int:
    """Return the limit on the reply's tokens; 0 if the body sets none."""
    for name in OUTPUT_LIMIT_FIELDS:
        value = body.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return min(value, MAX_OUTPUT_TOKENS)
    return 0


def _check_parts(body: Mapping[str, Any]) -> None:
    """Raise InvalidInputError for too many parts. Counts one level at a time and stops at the first
    that exceeds the limit, so that hostile bodies cost no more than valid ones."""
    count, lists = 0, _lists(body, (*TEXT_FIELDS, *TURN_FIELDS))
    while lists:
        count += sum(map(len, lists))
        if count > MAX_PARTS:
            problem = f"has {count} turns and parts or more; at most {MAX_PARTS} are read."
            raise InvalidInputError(Violation("body", problem))
        nested: list[list[Any]] = []
        for parts in lists:
            for part in parts:
                if isinstance(part, Mapping):
                    nested += _lists(part, ("content", "output", "text"))
        lists = nested


def _lists(value: Mapping[str, Any], names: Iterable[str]) -> list[list[Any]]:
    """Return those of the named fields that are lists."""
    lists = []
    for name in names:
        if isinstance(field := value.get(name), list):
            lists.append(field)
    return lists


def _contents(body: Mapping[str, Any]) -> Iterator[tuple[Role, Any]]:
    """Yield (role, content) of each turn, in any of the four formats."""
    for name, role in TEXT_FIELDS.items():
        yield role, body.get(name)
    for name in TURN_FIELDS:
        value = body.get(name)
        for turn in value if isinstance(value, list) else [{"role": "user", "content": value}]:
            if isinstance(turn, Mapping):
                role = ROLES.get(_string(turn.get("role")), "tool")
                content = turn.get("content", turn.get("output"))
                parts = content if isinstance(content, list) else []
                if results := [part for part in parts if _is_tool_result(part)]:
                    yield "tool", results
                    content = [part for part in parts if not _is_tool_result(part)]
                yield role, content


def _is_tool_result(part: Any) -> bool:
    """Anthropic's messages API puts tool results into user turns."""
    return isinstance(part, Mapping) and part.get("type") == "tool_result"


def _parts(content: Any, depth: int = 0) -> Iterator[tuple[str, str]]:
    """Yield (type, text) of each content part, nested ones included; either may be empty."""
    if isinstance(content, str):
        yield "", content
    for part in content if isinstance(content, list) and depth <= MAX_DEPTH else ():
        if isinstance(part, str):
            yield "", part
        elif isinstance(part, Mapping):
            yield _string(part.get("type")), ""
            yield from _parts(part.get("text", part.get("content")), depth + 1)


def _string(value: Any) -> str:
    """Return a string unchanged, "" for anything else: str() of a large or deeply nested value is
    slow, or overflows the stack."""
    return value if isinstance(value, str) else ""
