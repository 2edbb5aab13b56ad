"""Policy and Session: what a caller sets for a decision."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from engine.api.errors import InvalidInputError, Violation

MAX_SESSION_CHARS = 128
Objective = Literal["cost_sensitivity", "target_probability", "budget_usd"]
DecisionKind = Literal["ranked", "session_affinity", "defaulted", "fallback"]
# Fields of Policy that select by Candidate's word lists (candidate.WORD_LISTS), in their order.
POLICY_WORDS = ("required_modalities", "required_features", "required_tags", "allowed_regions")


@dataclass(frozen=True)
class Policy:
    """Objective and hard constraints of a decision; the fields are those of router_service.proto.

    value is that of the objective. allowed_candidates, denied_candidates and default_candidate hold
    candidate IDs. expected_output_tokens: room to leave in the context window. ranking_size: 0
    returns the whole ranking. Prices are in US dollars per million tokens; a price or max_ood_score
    of None sets no limit.
    """

    objective: Objective = "cost_sensitivity"
    value: float = 0.0
    allowed_candidates: tuple[str, ...] = ()
    denied_candidates: tuple[str, ...] = ()
    expected_output_tokens: int = 0
    ranking_size: int = 0
    required_modalities: tuple[str, ...] = ()
    required_features: tuple[str, ...] = ()
    required_tags: tuple[str, ...] = ()
    allowed_regions: tuple[str, ...] = ()
    min_context_window: int = 0
    max_input_usd_per_million: float | None = None
    max_output_usd_per_million: float | None = None
    abstain_below_probability: float = 0.0
    max_ood_score: float | None = None
    default_candidate: str = ""


@dataclass(frozen=True)
class Session:
    """A session, whose requests stick to one candidate.

    name: the caller's name for it. margin: minimum utility gain before the session switches
    candidates; None takes the server's setting.
    """

    name: str
    margin: float | None = None


def check_session(session: Session) -> None:
    """Raise InvalidInputError unless the session's name and margin are valid."""
    violations = []
    if not 1 <= len(session.name) <= MAX_SESSION_CHARS:
        size = len(session.name)
        violations.append(
            Violation("session.id", f"is {size} characters; expected 1 to {MAX_SESSION_CHARS}.")
        )
    margin = session.margin
    if margin is not None and not (math.isfinite(margin) and margin >= 0):
        violations.append(
            Violation(
                "session.switching_margin", f"is {margin}; expected a finite number of at least 0."
            )
        )
    if violations:
        raise InvalidInputError(*violations)
