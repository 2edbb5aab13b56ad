"""What a call of a candidate used, as callers report it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Usage:
    """What a call of a candidate used; None is unknown.

    Attributes:
        input_tokens: Tokens that it read.
        output_tokens: Tokens that it wrote, reasoning included.
        reasoning_tokens: Those of them that were reasoning.
        cost_usd: What the call cost in US dollars.
        latency_s: Seconds until the last token.
        error: Error of the upstream, such as "HTTP 529"; "" if it answered.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    cost_usd: float | None = None
    latency_s: float | None = None
    error: str = ""
