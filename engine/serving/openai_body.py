"""Bodies of OpenAI's chat completions, completions and responses, and of Anthropic's messages: what
to route by, and the same bytes with another model.

What is not understood is left for the upstream to judge: only what is needed to route is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from engine.contract.errors import InvalidInputError, Violation
from engine.contract.prompt import is_utf8
from engine.serving.json_members import Member, members, replaced

MODEL = "model"
ROUTED = ("/chat/completions", "/completions", "/responses", "/messages")  # ends of paths
MAX_ANSWER_TOKENS = 1_000_000_000
ANSWER_TOKENS = ("max_completion_tokens", "max_output_tokens", "max_tokens")
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
MAX_DEPTH = 4  # of contents in contents: a tool's result has parts of its own
NOTHING_TO_READ = Violation(
    "body",
    "has no text to route by: no user turn, prompt or input with text. Send text, or name a model.",
)


@dataclass(frozen=True)
class Body:
    """A JSON object. model: the top-level one, None where there is none or it is no string."""

    text: str
    members: Mapping[str, Any]
    model: str | None
    models: tuple[Member, ...]
    tools_chars: int


@dataclass(frozen=True)
class Instruction:
    """text: what is read. context_chars: what else the candidate will read. modalities, features:
    words that it needs, see candidate.proto. answer_tokens: the most that it may write."""

    text: str
    context_chars: int
    modalities: tuple[str, ...]
    features: tuple[str, ...]
    answer_tokens: int


def parse(raw: bytes) -> Body:
    """Raises InvalidInputError where it is no JSON object or has two models that differ."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        wrong = f"is not UTF-8 at byte {error.start}; expected a JSON object in UTF-8."
        raise InvalidInputError(Violation("body", wrong)) from None
    found = members(text)
    models = tuple(m for m in found if m.key == MODEL)
    if any(m.value != models[0].value for m in models):
        raise InvalidInputError(
            Violation("model", f"is there {len(models)} times with different values; send one.")
        )
    model = models[0].value if models and isinstance(models[0].value, str) else None
    tools = sum(m.end - m.begin for m in found if m.key in ("tools", "functions"))
    return Body(text, {m.key: m.value for m in found}, model, models, tools)


def with_model(body: Body, name: str) -> bytes:
    """The body with `name` as its model; every other byte as it came."""
    return replaced(body.text, body.models, name).encode()


def is_routed(path: str) -> bool:
    """Whether bodies of that path (with or without a query) are among those read here."""
    return path.partition("?")[0].rstrip("/").endswith(ROUTED)


def instruction(body: Body) -> Instruction:
    """The last user turn that has text; without one, the last turn that has. Raises
    InvalidInputError where nothing has."""
    given, modalities = body.members, set[str]()
    turns = [(role, _text(content, modalities)) for role, content in _turns(given)]
    spoken = [text for _, text in turns if text.strip()]
    asked = [text for role, text in turns if role == "user" and text.strip()]
    if not spoken:
        raise InvalidInputError(NOTHING_TO_READ)
    text = (asked or spoken)[-1]
    context = sum(map(len, spoken)) - len(text) + body.tools_chars
    return Instruction(
        text=text if is_utf8(text) else text.encode(errors="replace").decode(),
        context_chars=context,
        modalities=tuple(sorted(modalities)),
        features=_features(given),
        answer_tokens=_answer_tokens(given),
    )


def _turns(given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(role, content) of whichever of the four bodies it is."""
    for name in ("system", "instructions"):
        yield "system", given.get(name)
    prompt = given.get("prompt")
    yield "user", prompt
    for name in ("messages", "input"):
        turns = given.get(name)
        if isinstance(turns, str):
            yield "user", turns
        for turn in turns if isinstance(turns, list) else ():
            if isinstance(turn, dict):
                role = turn.get("role", "tool")
                yield role, turn.get("content", turn.get("output"))


def _text(content: Any, modalities: set[str], depth: int = 0) -> str:
    """What is text in it; the kinds of its other parts are added to `modalities`."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or depth > MAX_DEPTH:
        return ""
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict):
            kind = part.get("type")
            if isinstance(kind, str) and kind in MODALITIES:
                modalities.add(MODALITIES[kind])
            texts.append(_text(part.get("text", part.get("content")), modalities, depth + 1))
    return "\n".join(text for text in texts if text)


def _features(given: Mapping[str, Any]) -> tuple[str, ...]:
    needed = []
    text = given.get("text")
    forms = (given.get("response_format"), text.get("format") if isinstance(text, dict) else None)
    if any(isinstance(f, dict) and f.get("type") in ("json_object", "json_schema") for f in forms):
        needed.append("json_mode")
    if given.get("tools") or given.get("functions"):
        needed.append("tools")
    return tuple(needed)


def _answer_tokens(given: Mapping[str, Any]) -> int:
    for name in ANSWER_TOKENS:
        value = given.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return min(value, MAX_ANSWER_TOKENS)
    return 0
