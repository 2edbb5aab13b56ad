"""Read a request body of any provider's format into a Conversation.

Every string of the body is text that the model reads, but for parameters, ids and binary data.
Malformed values are left to the upstream.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from engine.api.conversation.conversation import (
    MAX_PARTS,
    Conversation,
    ConversationTurn,
    Needs,
    with_ask,
)
from engine.api.conversation.parts import BASE64, PartReader, list_of
from engine.api.conversation.providers import (
    ANSWERS_SO_FAR,
    OUTPUT_LIMITS,
    PROMPTS,
    SESSIONS,
    STORED,
    STRUCTURED,
    SYSTEM,
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
MIN_UNKNOWN_CHARS = 40  # an unknown field with less is a parameter


def from_body(body: Mapping[str, Any], path: str = "") -> Conversation:
    """Read a parsed request body.

    Args:
        body: of any format of providers.FORMATS.
        path: of the HTTP request, if known; it settles whose sizes of images apply.

    Raises:
        InvalidInputError: the body has nothing that an upstream would answer.
    """
    # Gemini CLI sends Code Assist the request within an envelope.
    if isinstance(inner := body.get("request"), Mapping) and get(inner, "contents") is not None:
        body = inner
    fields = (*TURNS, *PROMPTS, ("previous_response_id",))
    if all(follow(body, field) in (None, [], "") for field in fields):
        raise InvalidInputError(NO_TURNS)
    reader = PartReader(provider_of(path, body))
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
    turns = with_ask(turns)
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


def _turns(reader: PartReader, body: Mapping[str, Any]) -> tuple[list[ConversationTurn], int]:
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


def _prompts(reader: PartReader, value: list[Any]) -> ConversationTurn:
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


def _count_other_fields(reader: PartReader, body: Mapping[str, Any]) -> None:
    for field in (*TOOLS, *STRUCTURED, *ANSWERS_SO_FAR):
        value = follow(body, field)
        if isinstance(value, Mapping | list) or (isinstance(value, str) and len(value) > 20):
            reader.other(field[-1], _without_credentials(value), 0)
    for name, value in texts_of_other_fields(body):
        if isinstance(value, str) and len(value) < MIN_UNKNOWN_CHARS:
            continue
        if name == "images":  # Ollama's generate
            for image in list_of(value):
                reader.media("image", image)
            continue
        if isinstance(value, str) and BASE64.fullmatch(value[:1024]):
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
    return any(get(plugin, "id") == "file-parser" for plugin in list_of(body.get("plugins")))


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


def _texts(reader: PartReader, value: Any) -> tuple[str, ...]:
    """Return the texts of a field that holds a string or a list of parts."""
    texts: list[str] = []
    reader.text(value, texts, 0)
    return tuple(text for text in texts if text)


def _positive(value: Any) -> int:
    if isinstance(value, str) and len(value) < 12 and value.isdecimal():
        return int(value)  # vLLM and others take "100", and 100.0
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return int(value) if is_number and 0 < value < math.inf else 0
