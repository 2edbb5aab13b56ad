"""Read turns and content parts of any provider's format: text, tool results, media, the rest."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from engine.api.conversation.conversation import ROLES, ConversationTurn, Role
from engine.api.conversation.media import media_tokens
from engine.api.conversation.providers import (
    ITEM_ROLES,
    MODALITIES,
    SOURCES,
    TOOL_RESULT_KEYS,
    TOOL_RESULTS,
    get,
)

MAX_DEPTH = 40  # of nested values; what is deeper is not read
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
            "qualifiers",
            "ttl",
        ),
        *("container_id", "fileUri", "file_uri", "server_label", "approval_request_id", "encoding"),
    )
)
_TEXT_KEYS = ("text", "content", "refusal", "input_text", "output_text")
_RESULT_KEYS = ("output", "response", "result", "tool_result", "toolResult")
BASE64 = re.compile(r"[A-Za-z0-9+/_=-]+\s*")
_MIME_MODALITIES = ("image", "audio", "video")
_DATA_URL = re.compile(r"data:[\w.+/-]*(?:;[\w.+=/-]+)*;base64,")
MIN_BINARY_CHARS = 256  # a shorter string of base64's letters may be a word


class PartReader:
    """Collects what the parts of one body say.

    provider: whose sizes of media apply, unless a part's form says otherwise. texts: what the model
    reads besides the turns. media_tokens: of images, audio and files. uncounted: what has no known
    size, in order. modalities: of the media. parts: how many were read.
    """

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
            item_role = ROLES.get(ITEM_ROLES.get(kind, ""), "tool")
            role = default_role if is_message or _is_text_item(value) else item_role
        if kind in TOOL_RESULTS:
            role = "tool"
        texts: list[str] = []
        results: list[str] = []
        has_result = False
        failed = _says_failed(value)
        for part in _parts(value):
            if _is_tool_result(part):
                has_result = True
                failed = failed or _says_failed(part)
                self.part(part, results)
            else:
                self.part(part, texts)
        images = value.get("images")  # Ollama's; elsewhere parts hold them
        for image in images if isinstance(images, list) else ():
            self.media("image", image)
        if kind == "image_generation_call" and value.get("result"):
            self.media("image", value["result"])
        if kind == "item_reference":
            self.uncounted["stored history"] = None
        for name, other in value.items():
            if name not in ("role", "content", "parts", "images", *_ID_FIELDS):
                self.other(name, other, 0)
        turns = [ConversationTurn("tool", tuple(results), failed)] if has_result else []
        if texts or not has_result:
            turns.append(ConversationTurn(role, tuple(texts), failed and role == "tool"))
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
        if kind in SOURCES:
            texts = self.texts
        for name, value in part.items():
            is_text = name in _TEXT_KEYS and kind not in ("tool_use", "thinking")
            if is_text or (name in _RESULT_KEYS and _is_tool_result(part)):
                self.text(value, texts, depth)
            elif name in ("guard_content", "guardContent"):  # Bedrock's
                qualifiers = list_of(get(get(value, "text"), "qualifiers"))
                is_source = "grounding_source" in qualifiers and "query" not in qualifiers
                self.part(value, self.texts if is_source else texts, depth + 1)
            elif name in ("function_response", "functionResponse"):
                self.text(get(value, "response"), texts, depth)
                for each in list_of(get(value, "parts")):
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


def _says_failed(result: Mapping[str, Any]) -> bool:
    """Return True if a result, or the object that holds it, is marked as an error."""
    for value in (result, *(get(result, name) for name in TOOL_RESULT_KEYS)):
        if isinstance(value, Mapping) and (
            get(value, "is_error") is True
            or value.get("status") in ("error", "failed", "incomplete")
            or value.get("success") is False
        ):
            return True
    return False


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
        return _DATA_URL.match(text[:1024]) is not None  # each parameter takes memory
    if len(text) < MIN_BINARY_CHARS:
        return False
    head = text[:1024]
    return (
        BASE64.fullmatch(head) is not None
        and any(c.isdigit() for c in head)
        and any(c.isupper() for c in head)
    )


def _utf8(text: str) -> str:
    """JSON may hold half of a surrogate pair."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def _string(value: Any) -> str:
    """Return a string unchanged, "" for anything else: str() of a large or deeply nested value is
    slow, or overflows the stack."""
    return value if isinstance(value, str) else ""


def list_of(value: Any) -> list[Any]:
    """Return a list unchanged, an empty one for anything else."""
    return value if isinstance(value, list) else []
