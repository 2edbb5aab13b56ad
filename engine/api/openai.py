"""What is said in the bodies of OpenAI's chat completions, completions and responses, and of
Anthropic's messages, and what they require of the model.

What is not understood is left for the upstream to judge: only what is needed to route is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
TEXTS: Mapping[str, Role] = {"system": "system", "instructions": "system", "prompt": "user"}
TURNS = ("messages", "input")
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
MAX_PARTS = 10_000  # turns and what they consist of
MAX_DEPTH = 4  # of contents in contents: a tool's result has parts of its own


def turns(body: Mapping[str, Any]) -> list[tuple[Role, str]]:
    """(who speaks, what is said), oldest first; a turn without text is left out.

    Raises InvalidInputError where there are more than MAX_PARTS turns and parts."""
    _check_parts(body)
    said = [
        (role, "\n".join(text for _, text in _parts(content) if text))
        for role, content in _contents(body)
    ]
    return [(role, text) for role, text in said if text.strip()]


def modalities(body: Mapping[str, Any]) -> tuple[str, ...]:
    """What the model must read beside text; see Candidate.modalities in the proto."""
    kinds = {kind for _, content in _contents(body) for kind, _ in _parts(content)}
    return tuple(sorted({MODALITIES[kind] for kind in kinds if kind in MODALITIES}))


def features(body: Mapping[str, Any]) -> tuple[str, ...]:
    """What the model must be able to do; see Candidate.features in the proto."""
    needed = []
    text = body.get("text")
    forms = (body.get("response_format"), text.get("format") if isinstance(text, dict) else None)
    if any(isinstance(f, dict) and f.get("type") in ("json_object", "json_schema") for f in forms):
        needed.append("json_mode")
    if body.get("tools") or body.get("functions"):
        needed.append("tools")
    return tuple(needed)


def answer_tokens(body: Mapping[str, Any]) -> int:
    """The most that the model may write; 0 where the body does not say."""
    for name in OUTPUT_LIMIT_FIELDS:
        value = body.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return min(value, MAX_OUTPUT_TOKENS)
    return 0


def _check_parts(body: Mapping[str, Any]) -> None:
    """Count before anything is walked through: level by level, none of which is too long."""
    count, inside = 0, [body.get(name) for name in (*TEXTS, *TURNS)]
    while lists := [each for each in inside if isinstance(each, list)]:
        count += sum(map(len, lists))
        if count > MAX_PARTS:
            wrong = f"has {count} turns and parts or more; at most {MAX_PARTS} are read."
            raise InvalidInputError(Violation("body", wrong))
        parts = [part for each in lists for part in each if isinstance(part, Mapping)]
        inside = [part.get(name) for part in parts for name in ("content", "output", "text")]


def _contents(body: Mapping[str, Any]) -> Iterator[tuple[Role, Any]]:
    """Of whichever of the bodies it is."""
    for name, role in TEXTS.items():
        yield role, body.get(name)
    for name in TURNS:
        said = body.get(name)
        for turn in said if isinstance(said, list) else [{"role": "user", "content": said}]:
            if isinstance(turn, Mapping):
                role = ROLES.get(_word(turn.get("role")), "tool")
                content = turn.get("content", turn.get("output"))
                parts = content if isinstance(content, list) else []
                if results := [part for part in parts if _is_result(part)]:
                    yield "tool", results
                    content = [part for part in parts if not _is_result(part)]
                yield role, content


def _is_result(part: Any) -> bool:
    """Anthropic's messages have a tool's result in a turn of the user."""
    return isinstance(part, Mapping) and part.get("type") == "tool_result"


def _parts(content: Any, depth: int = 0) -> Iterator[tuple[str, str]]:
    """(type, text) of everything in it; either may be empty."""
    if isinstance(content, str):
        yield "", content
    for part in content if isinstance(content, list) and depth <= MAX_DEPTH else ():
        if isinstance(part, str):
            yield "", part
        elif isinstance(part, Mapping):
            yield _word(part.get("type")), ""
            yield from _parts(part.get("text", part.get("content")), depth + 1)


def _word(value: Any) -> str:
    """Not str() of whatever it is: that may be nested too deeply for it, and large."""
    return value if isinstance(value, str) else ""
