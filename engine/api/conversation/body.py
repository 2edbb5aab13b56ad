"""Read a request body of any provider's format into a Conversation.

Every string of the body is text that the model reads, but for parameters, ids and binary data.
Malformed values are left to the upstream.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from engine.api.conversation.conversation import (
    MAX_PARTS,
    ROLES,
    Conversation,
    ConversationTurn,
    Needs,
    Role,
)
from engine.api.conversation.media import media_tokens
from engine.api.conversation.providers import (
    ANSWERS_SO_FAR,
    MODALITIES,
    OUTPUT_LIMITS,
    PROMPTS,
    SESSIONS,
    STORED,
    STRUCTURED,
    SYSTEM,
    TOOL_RESULT_KEYS,
    TOOL_RESULTS,
    TOOLS,
    TURNS,
    follow,
    get,
    provider_of,
    texts_of_other_fields,
)
from engine.api.errors import InvalidInputError, Violation

NO_TURNS = Violation(
    "body",
    "has no text to route by: no turns, prompt or input. Send text, or name a model.",
)
MAX_OUTPUT_TOKENS = 1_000_000_000
MAX_DEPTH = 40  # of nested values; what is deeper is not read
MIN_UNKNOWN_CHARS = 40  # an unknown field with less is a parameter
# Strings of these fields are ids, enumerations or signatures in any format.
_ID_FIELDS = frozenset(
    (
        *(
            "id",
            "type",
            "role",
            "status",
            "index",
            "call_id",
            "tool_call_id",
            "tool_use_id",
            "item_id",
        ),
        *(
            "toolUseId",
            "signature",
            "thoughtSignature",
            "thought_signature",
            "cache_control",
            "phase",
        ),
        *(
            "cachePoint",
            "mimeType",
            "mime_type",
            "media_type",
            "format",
            "detail",
            "file_id",
            "ttl",
        ),
        *("container_id", "fileUri", "file_uri", "server_label", "approval_request_id", "encoding"),
    )
)
_TEXT_KEYS = ("text", "content", "refusal", "input_text", "output_text")
_RESULT_KEYS = ("output", "response", "result", "tool_result", "toolResult")
_BASE64 = re.compile(r"[A-Za-z0-9+/_=-]+\s*")
_MIME_MODALITIES = ("image", "audio", "video")
_DATA_URL = re.compile(r"data:[\w.+/-]*(?:;[\w.+=/-]+)*;base64,")
MIN_BINARY_CHARS = 256  # a shorter string of base64's letters may be a word


class _Reader:
    """Collects what a body says; one body each."""

    def __init__(self, provider: str) -> None:
        self.provider = provider
        self.texts: list[str] = []  # read by the model, and no turn's
        self.media_tokens = 0
        self.uncounted: dict[str, None] = {}
        self.modalities: set[str] = set()
        self.parts = 0

    def turn(self, value: Any, default_role: Role) -> list[ConversationTurn]:
        """Read one turn or item; its tool results become a turn of role tool."""
        if isinstance(value, str):
            self.parts += 1
            return [ConversationTurn(default_role, (_utf8(value),))]
        if not isinstance(value, Mapping):
            return []
        self.parts += 1
        role = ROLES.get(_string(value.get("role")).lower())
        kind = _string(value.get("type"))
        if role is None:
            is_message = kind == "message" or not (kind or "role" in value)
            role = default_role if is_message or _is_text_item(value) else "tool"
        if kind in TOOL_RESULTS:
            role = "tool"
        texts: list[str] = []
        results: list[str] = []
        has_result = False
        for part in _parts(value):
            if _is_tool_result(part):
                has_result = True
                self.part(part, results)
            else:
                self.part(part, texts)
        images = value.get("images")  # Ollama's; elsewhere parts hold them
        for image in images if isinstance(images, list) else ():
            self.media("image", image)
        for name, other in value.items():
            if name not in ("role", "content", "parts", "images", *_ID_FIELDS):
                self.other(name, other, 0)
        turns = [ConversationTurn("tool", tuple(results))] if has_result else []
        if texts or not has_result:
            turns.append(ConversationTurn(role, tuple(texts)))
        return turns

    def part(self, part: Any, texts: list[str], depth: int = 0) -> None:
        """Add the text of a content part to `texts`, and count what else it holds."""
        self.parts += 1
        if isinstance(part, str):
            texts.append(_utf8(part))
        if not isinstance(part, Mapping) or depth > MAX_DEPTH:
            return
        kind = _string(part.get("type"))
        modality = self.modality(kind, part)
        if modality:
            self.media(modality, part)
            return
        for name, value in part.items():
            is_text = name in _TEXT_KEYS and kind not in ("tool_use", "thinking")
            if is_text or (name in _RESULT_KEYS and _is_tool_result(part)):
                self.text(value, texts, depth)
            elif name in ("function_response", "functionResponse"):
                self.text(get(value, "response"), texts, depth)
                for each in _list(get(value, "parts")):
                    self.part(each, texts, depth + 1)
            elif name not in _ID_FIELDS:
                self.other(name, value, depth)

    def text(self, value: Any, texts: list[str], depth: int) -> None:
        """Add a text field's value, which may be a list of parts or an object of its own."""
        if isinstance(value, str):
            texts.append(_utf8(value))
        elif isinstance(value, list):
            for each in value:
                self.part(each, texts, depth + 1)
        elif isinstance(value, Mapping):
            if _string(value.get("type")) or any(name in value for name in _TEXT_KEYS):
                self.part(value, texts, depth + 1)
            elif dumped := self.dump(value):
                texts.append(dumped)

    def modality(self, kind: str, part: Mapping[str, Any]) -> str:
        """Return what a model must read for this part; "" if it is text."""
        source = part.get("source")
        if kind == "document" and _string(get(source, "type")) in ("text", "content"):
            return ""
        if kind in MODALITIES:
            return MODALITIES[kind]
        if kind:
            return ""
        for name in ("inline_data", "file_data"):  # Gemini's
            if isinstance(data := get(part, name), Mapping):
                major = _string(get(data, "mime_type")).partition("/")[0]
                return major if major in _MIME_MODALITIES else "" if major == "text" else "file"
        for name in ("image", "document", "video", "audio"):  # Bedrock's
            if isinstance(part.get(name), Mapping):
                return MODALITIES[name]
        return ""

    def media(self, modality: str, part: Any) -> None:
        """Count a part that is no text, and the text that describes it."""
        self.modalities.add(modality)
        tokens = media_tokens(_provider_of_part(part) or self.provider, part)
        if tokens is None:
            self.uncounted[f"{modality} of unknown size"] = None
        else:
            self.media_tokens += tokens
        if isinstance(part, Mapping):
            for name in ("title", "context", "filename", "name", "caption"):
                if isinstance(words := part.get(name), str) and len(words) < 10_000:
                    self.texts.append(_utf8(words))

    def other(self, name: str, value: Any, depth: int) -> None:
        """Count a field that is neither a turn's text nor an id: calls, thoughts, schemas."""
        if isinstance(value, str):
            if name != "data" and not _is_binary(value):
                self.texts.append(_utf8(value))
            elif name == "encrypted_content" or name == "data":
                # A model's hidden thoughts: 4/3 letters for a byte, about 4 bytes for a token.
                self.media_tokens += len(value) * 3 // 16
        elif isinstance(value, Mapping | list) and value:
            if _has_media(value):
                self.nested(value, depth + 1)
            elif dumped := self.dump(value):
                self.texts.append(dumped)

    def nested(self, value: Any, depth: int) -> None:
        """Read a value that has media somewhere, such as a list of parts in a field of its own."""
        if depth > MAX_DEPTH:
            return
        for each in value.values() if isinstance(value, Mapping) else value:
            if isinstance(each, Mapping) and self.modality(_string(each.get("type")), each):
                self.part(each, self.texts, depth + 1)
            elif isinstance(each, Mapping | list):
                self.nested(each, depth + 1)
            elif isinstance(each, str) and not _is_binary(each):
                self.texts.append(_utf8(each))

    def dump(self, value: Any) -> str:
        """Return a value as JSON, as the model reads it, without binary data."""
        try:
            return _utf8(json.dumps(_without_binary(value, 0), ensure_ascii=False))
        except (RecursionError, ValueError, TypeError):
            return ""


def from_body(body: Mapping[str, Any], path: str = "") -> Conversation:
    """Read a parsed request body.

    Args:
        body: of any format of providers.FORMATS.
        path: of the HTTP request, if known; it settles whose sizes of images apply.

    Raises:
        InvalidInputError: the body has nothing that an upstream would answer.
    """
    fields = (*TURNS, *PROMPTS, ("previous_response_id",))
    if all(follow(body, field) in (None, [], "") for field in fields):
        raise InvalidInputError(NO_TURNS)
    reader = _Reader(provider_of(path, body))
    turns: list[ConversationTurn] = []
    for field in SYSTEM:
        value = follow(body, field)
        if isinstance(value, Mapping) and (parts := get(value, "parts")) is not None:
            value = parts
        if texts := _texts(reader, value):
            turns.append(ConversationTurn("system", texts))
    spoken, unread = _turns(reader, body)
    turns += spoken
    _count_other_fields(reader, body)
    turns = _asked(turns)
    for field, words in STORED.items():
        if follow(body, field):
            reader.uncounted[words] = None
    limit = next((n for field in OUTPUT_LIMITS if (n := _positive(follow(body, field)))), 0)
    if _parses_files_itself(body):
        reader.modalities.discard("file")
    return Conversation(
        turns=tuple(turns),
        other_texts=tuple(reader.texts),
        media_tokens=reader.media_tokens,
        uncounted=tuple(reader.uncounted),
        unread_turns=unread,
        needs=Needs(
            tuple(sorted(reader.modalities)), _features(body), min(limit, MAX_OUTPUT_TOKENS)
        ),
        session=_session(body),
    )


def _turns(reader: _Reader, body: Mapping[str, Any]) -> tuple[list[ConversationTurn], int]:
    """Return turns, oldest first, and how many older ones were not read."""
    read: list[list[ConversationTurn]] = []
    unread = 0
    for field in (*PROMPTS, *TURNS):
        value = follow(body, field)
        if isinstance(value, str):
            read.append(reader.turn(value, "user"))
        elif isinstance(value, Mapping):
            # A stored prompt: {"id": ..., "variables": {...}}; or Gemini's one turn, not in a list.
            is_turn = get(value, "parts") is not None or value.get("content") is not None
            if is_turn:
                read.append(reader.turn(value, "user"))
            else:
                reader.other("variables", value.get("variables"), 0)
                read.append([ConversationTurn("user", ())])
        elif isinstance(value, list):
            if field in PROMPTS:
                read.append([_prompts(reader, value)])
                continue
            newest: list[list[ConversationTurn]] = []
            for i in range(len(value) - 1, -1, -1):
                if reader.parts >= MAX_PARTS:
                    unread += i + 1
                    break
                newest.append(reader.turn(value[i], "user"))
            read += reversed(newest)
    return [turn for turns in read for turn in turns], unread


def _prompts(reader: _Reader, value: list[Any]) -> ConversationTurn:
    """Read a list of prompts, or token ids, which are counted but cannot be read."""
    if value and all(isinstance(each, int) for each in value[:1000]):
        reader.media_tokens += len(value)
        return ConversationTurn("user", ())
    texts: list[str] = []
    for each in value[-MAX_PARTS:]:
        if isinstance(each, list):
            reader.media_tokens += len(each)
        else:
            reader.part(each, texts)
    return ConversationTurn("user", tuple(texts))


def _asked(turns: list[ConversationTurn]) -> list[ConversationTurn]:
    """If no turn is a user's, the last one that has text is what the model is asked.

    What a tool answered is never the ask: the human's is then in a stored history.
    """
    if any(turn.role == "user" for turn in turns):
        return turns
    if any(turn.role == "tool" for turn in turns):
        return [ConversationTurn("user", ()), *turns]
    for i in range(len(turns) - 1, -1, -1):
        if turns[i].text.strip():
            turns[i] = ConversationTurn("user", turns[i].parts)
            return turns
    return [*turns, ConversationTurn("user", ())]


def _count_other_fields(reader: _Reader, body: Mapping[str, Any]) -> None:
    for field in (*TOOLS, *STRUCTURED, *ANSWERS_SO_FAR):
        value = follow(body, field)
        if isinstance(value, Mapping | list) or (isinstance(value, str) and len(value) > 20):
            reader.other(field[-1], _without_credentials(value), 0)
    for name, value in texts_of_other_fields(body):
        if isinstance(value, str) and len(value) < MIN_UNKNOWN_CHARS:
            continue
        if name == "images":  # Ollama's generate
            for image in _list(value):
                reader.media("image", image)
            continue
        if isinstance(value, str) and _BASE64.fullmatch(value[:1024]):
            continue  # padding, or a key: prose has spaces
        if isinstance(value, str | Mapping | list):
            reader.other(name, value, 0)


def _without_credentials(value: Any) -> Any:
    """Leave out what a tool's server is called with."""
    if not isinstance(value, list):
        return value
    secret = ("authorization", "authorization_token", "headers", "server_url", "url")
    return [
        {k: v for k, v in each.items() if k not in secret} if isinstance(each, Mapping) else each
        for each in value
    ]


def _features(body: Mapping[str, Any]) -> tuple[str, ...]:
    structured = any(_is_structured(follow(body, field)) for field in STRUCTURED)
    tools = any(follow(body, field) for field in TOOLS)
    return (*(("json_mode",) if structured else ()), *(("tools",) if tools else ()))


def _is_structured(value: Any) -> bool:
    """Return True if a value asks for a format other than plain text."""
    if isinstance(value, str):
        return value not in ("", "text", "text/plain")
    if isinstance(value, Mapping):
        kind = value.get("type")
        return bool(value) and kind != "text"
    return isinstance(value, list) and bool(value)


def _parses_files_itself(body: Mapping[str, Any]) -> bool:
    """OpenRouter's file-parser turns files into text before the model reads them."""
    return any(get(plugin, "id") == "file-parser" for plugin in _list(body.get("plugins")))


_CLAUDE_CODE_SESSION = re.compile(r"_session_([\w-]{8,})$|\"session_id\"\s*:\s*\"([\w-]{8,})\"")


def _session(body: Mapping[str, Any]) -> str:
    for field in SESSIONS:
        value = follow(body, field)
        if not isinstance(value, str) or not value.strip():
            continue
        if field[-1] != "user_id":
            return value
        if match := _CLAUDE_CODE_SESSION.search(value[:1000]):
            return match[1] or match[2]
    return ""


def _texts(reader: _Reader, value: Any) -> tuple[str, ...]:
    """Return the texts of a field that holds a string or a list of parts."""
    texts: list[str] = []
    reader.text(value, texts, 0)
    return tuple(text for text in texts if text)


def _parts(turn: Mapping[str, Any]) -> Sequence[Any]:
    """Return a turn's content parts, in any format; the turn itself if it is a part."""
    content = turn.get("content", get(turn, "parts"))
    if isinstance(content, list):
        return content
    if isinstance(content, str | Mapping):
        return (content,)
    if _is_text_item(turn) or _is_tool_result(turn):
        return ({k: v for k, v in turn.items() if k in ("type", "text", "output", "result")},)
    return ()


def _is_text_item(value: Mapping[str, Any]) -> bool:
    """Responses takes parts in place of turns."""
    return _string(value.get("type")) in ("text", "input_text", "input_image", "input_file")


def _is_tool_result(part: Any) -> bool:
    if not isinstance(part, Mapping):
        return False
    return _string(part.get("type")) in TOOL_RESULTS or any(
        get(part, name) is not None for name in TOOL_RESULT_KEYS
    )


def _provider_of_part(part: Any) -> str:
    """Return whose form a media part has; "" if it is OpenAI's, which others take too."""
    if not isinstance(part, Mapping):
        return ""
    if get(part, "inline_data") is not None or get(part, "file_data") is not None:
        return "" if "type" in part else "gemini"
    if "type" in part:
        return "anthropic" if "source" in part else ""
    return "bedrock"


def _has_media(value: Any, depth: int = 0) -> bool:
    if depth > 4:
        return False
    if isinstance(value, Mapping):
        kind = _string(value.get("type"))
        return kind in MODALITIES or any(
            _has_media(v, depth + 1) for v in value.values() if isinstance(v, Mapping | list)
        )
    return any(_has_media(v, depth + 1) for v in value if isinstance(v, Mapping | list))


def _without_binary(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return "" if _is_binary(value) else value
    if depth > MAX_DEPTH:
        return None
    if isinstance(value, Mapping):
        return {k: _without_binary(v, depth + 1) for k, v in value.items() if k != "cache_control"}
    if isinstance(value, list):
        return [_without_binary(v, depth + 1) for v in value]
    return value


def _is_binary(text: str) -> bool:
    """Return True for base64 and data URLs."""
    if text.startswith("data:"):
        return _DATA_URL.match(text) is not None
    if len(text) < MIN_BINARY_CHARS:
        return False
    head = text[:1024]
    return (
        _BASE64.fullmatch(head) is not None
        and any(c.isdigit() for c in head)
        and any(c.isupper() for c in head)
    )


def _utf8(text: str) -> str:
    """JSON may hold half of a surrogate pair."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def _positive(value: Any) -> int:
    if isinstance(value, str) and len(value) < 12 and value.isdecimal():
        return int(value)  # vLLM and others take "100", and 100.0
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return int(value) if is_number and 0 < value < math.inf else 0


def _string(value: Any) -> str:
    """Return a string unchanged, "" for anything else: str() of a large or deeply nested value is
    slow, or overflows the stack."""
    return value if isinstance(value, str) else ""


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
