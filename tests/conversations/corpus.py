"""Request bodies in the form of clients of 2026: coding agents, SDKs and gateways.

Every text is this project's own. Each entry says what a reading of the body must find.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
GEMINI = "/v1beta/models/auto:generateContent"
CONVERSE, OLLAMA, GENERATE = "/model/auto/converse", "/api/chat", "/api/generate"

PROOF = "Prove that there are infinitely many primes congruent to 3 modulo 4."
BUG = "The parcel counter skips every tenth box. Find out why, and correct it."
MAIL = "Write a friendly mail that moves our meeting to Tuesday."
SALT = "Explique à un enfant pourquoi la mer est salée."
FACT = "Extract the name and the age: Ann is 41 years old."
ASKS = (PROOF, BUG, MAIL, SALT, FACT)
PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGA"
    "WjR9awAAAABJRU5ErkJggg=="
)
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}
FILE = "def count(boxes):\n    return sum(1 for box in boxes if box.number % 10)\n" * 40


@dataclass(frozen=True)
class Entry:
    """One request. ask: "" if there is no text to route by. needs: modalities and features."""

    name: str
    path: str
    body: dict[str, Any]
    ask: str
    needs: frozenset[str] = frozenset()
    context: int = 0  # at least so many tokens
    unknown: tuple[str, ...] = field(default=())


def said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def text(*texts: str, kind: str = "text") -> list[dict[str, Any]]:
    return [{"type": kind, "text": each} for each in texts]


def function(name: str) -> dict[str, Any]:
    about = {"name": name, "description": f"Use {name} on a file.", "parameters": SCHEMA}
    return {"type": "function", "function": about}


def messages(*turns: Any, **more: Any) -> dict[str, Any]:
    return {"model": "auto", "messages": list(turns), **more}


def entry(name: str, path: str, body: dict[str, Any], ask: str, *needs: str, **more: Any) -> Entry:
    return Entry(name, path, {"model": "auto", **body}, ask, frozenset(needs), **more)
