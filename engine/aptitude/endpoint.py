"""The LLM that is examined, and how it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from engine.aptitude.questions import Question

LOOPBACK = ("localhost", "127.0.0.1", "::1")
CHARS_PER_TOKEN = 4.0  # of English; for estimates where the endpoint does not count
STEPS = (
    "Think step by step. End with a line of its own that says: The answer is X, where X is the"
    " letter of the option you choose."
)
LETTER_ONLY = "Reply with the letter of the right option and nothing else."


@dataclass(frozen=True)
class Endpoint:
    """base_url: up to and with /v1. key: empty sends none. body: fields joined to every request,
    None removes one. timeout_s: for one try. longest_wait_s: that a Retry-After may ask for."""

    base_url: str
    model: str
    key: str = field(default="", repr=False)
    direct: bool = False
    max_tokens: int = 2048
    body: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float = 120.0
    tries: int = 8
    longest_wait_s: float = 300.0
    concurrency: int = 8
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None

    @property
    def local(self) -> bool:
        """Whether it is on this machine."""
        return urlsplit(self.base_url).hostname in LOOPBACK


def prompt_of(question: Question, *, direct: bool) -> str:
    """What the model reads."""
    return f"{question.text}\n\n{LETTER_ONLY if direct else STEPS}"


def estimated_tokens(text: str) -> int:
    """Tokens of `text`, by its length."""
    return round(len(text) / CHARS_PER_TOKEN) + 1
