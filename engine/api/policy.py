"""Policy and Session: what a caller asks of a decision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Objective = Literal["cost_sensitivity", "min_probability", "max_cost_usd"]


Kind = Literal["scored", "session", "abstained", "fallback"]


@dataclass(frozen=True)
class Policy:
    """What a caller wants. objective and value belong together, see router_service.proto.

    allow, deny, default_candidate: candidate ids. expected_output_tokens: room to leave in the
    context window. ranking_size: 0 means all. Prices are US dollars per million tokens; None of
    them, and of max_unlikeness, means no limit.
    """

    objective: Objective = "cost_sensitivity"
    value: float = 0.0
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    expected_output_tokens: int = 0
    ranking_size: int = 0
    modalities: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    min_context_window: int = 0
    max_input_usd_per_million: float | None = None
    max_output_usd_per_million: float | None = None
    min_confidence: float = 0.0
    max_unlikeness: float | None = None
    default_candidate: str = ""


@dataclass(frozen=True)
class Session:
    """name: the caller's; margin: its own, None for the server's."""

    name: str
    margin: float | None = None
