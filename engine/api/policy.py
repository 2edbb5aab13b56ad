"""Policy and Session: what a caller sets for a decision."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Literal

from engine.api.errors import InvalidInputError, Violation
from engine.api.limits import is_utf8

MAX_SESSION_CHARS = 128
Objective = Literal["cost_sensitivity", "target_probability", "budget_usd"]
DecisionKind = Literal["ranked", "session_affinity", "defaulted", "fallback", "explored"]
# Fields of Policy that select by Candidate's word lists (candidate.WORD_LISTS), in their order.
POLICY_WORDS = ("required_modalities", "required_features", "required_tags", "allowed_regions")


@dataclass(frozen=True)
class Policy:
    """Objective and hard constraints of a decision; the fields are those of router_service.proto.

    value is that of the objective. allowed_candidates, denied_candidates and default_candidate hold
    candidate IDs. expected_output_tokens: room to leave in the context window. ranking_size: 0
    returns the whole ranking. Prices are in US dollars per million tokens; a price or max_ood_score
    of None sets no limit. confidence: standard errors, None for the server's setting. required_api:
    the API that the candidate must answer in, of conversation.providers.APIS; "" for any.
    max_latency_ms: until the last token, None for no limit.
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
    confidence: float | None = None
    required_api: str = ""
    max_latency_ms: float | None = None


@dataclass(frozen=True)
class Session:
    """A session, whose requests stick to one candidate.

    name: the caller's name for it; see session_name. margin: minimum utility gain before the
    session switches candidates; None takes the server's setting.
    """

    name: str
    margin: float | None = None


def session_name(text: str) -> str:
    """Return the name by which every surface knows a session; "" if `text` is blank.

    A session is a hint, so no name is refused. One of over MAX_SESSION_CHARS characters, or that is
    not valid Unicode, is replaced by its hash.
    """
    name = text.strip()
    if len(name) <= MAX_SESSION_CHARS and is_utf8(name):
        return name
    return "sha256-" + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()


def named_session(text: str, margin: float | None = None) -> Session | None:
    """Return the session of a name from outside, None for a blank one.

    Raises InvalidInputError if the margin is negative or not finite.
    """
    if margin is not None and not (math.isfinite(margin) and margin >= 0):
        problem = f"is {margin}; expected a finite number of at least 0."
        raise InvalidInputError(Violation("session.switching_margin", problem))
    name = session_name(text)
    return Session(name, margin) if name else None
