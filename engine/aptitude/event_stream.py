"""Read a reply that came as server-sent events although none were asked for.

Some gateways stream whatever `stream` says, or end a whole object with "data: [DONE]".
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from engine.aptitude.completion import FailedReplyError

DONE = "[DONE]"
_ENDED = ("response.completed", "response.incomplete", "response.failed")


def looks_like_events(content: bytes) -> bool:
    """Whether the body of a response holds server-sent events."""
    start = content[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    return start.startswith((b"data:", b"event:", b":")) or content.rstrip().endswith(DONE.encode())


def joined_events(content: bytes) -> Any:
    """Return the events as one chat completion, or the whole object that one of them holds.

    Raises:
        FailedReplyError: the events end before the reply does.
        ValueError: an event is not JSON.
    """
    parts: list[Any] = []
    finish, usage = None, None
    for event in _events(content):
        if event.get("error") or event.get("type") == "error":
            return event
        if isinstance(whole := event.get("response"), dict):  # the responses API
            if event.get("type") in _ENDED:
                return whole
            continue
        usage = event["usage"] if isinstance(event.get("usage"), dict) else usage
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict) or choice.get("index") not in (0, None):
            continue
        if "message" in choice:
            return event
        delta = choice.get("delta")
        piece = delta.get("content") if isinstance(delta, dict) else choice.get("text")
        parts += [piece] if isinstance(piece, str | list) else []
        finish = choice.get("finish_reason") or finish
    if finish is None:
        raise FailedReplyError("a stream that ended before the reply did")
    reply = {"message": {"content": parts}, "finish_reason": finish}
    return {"choices": [reply], "usage": usage}


def _events(content: bytes) -> Iterator[dict[str, Any]]:
    text = content.decode("utf-8-sig").strip()
    if text.startswith("{"):  # a whole object, and the end of a stream
        lines = [text.removesuffix(DONE).rstrip().removesuffix("data:")]
    else:
        lines = [line.strip() for line in text.split("\n") if line.startswith("data:")]
    for line in lines:
        data = line.removeprefix("data:").strip()
        event = json.loads(data) if data and data != DONE else None
        if isinstance(event, dict):
            yield event
