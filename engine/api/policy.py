"""Policy and Session: what a caller sets for a decision."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from engine.api.errors import InvalidInputError, Violation
from engine.api.limits import is_utf8

MAX_SESSION_CHARS = 128
# What cost_sensitivity counts costs in, in US dollars: about 50 tokens read and 400 written at the
# prices of an expensive model, $5 and $25 per million.
REFERENCE_COST_USD = 0.01
# Within it a willingness to pay moves choices from the cheapest useful candidate to the best, for
# requests of a chat; see docs/explanation/decisions.md.
RECOMMENDED_WILLINGNESS_USD = (0.001, 1.0)
Objective = Literal[
    "cost_sensitivity", "target_probability", "budget_usd", "willingness_to_pay_usd"
]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
DecisionKind = Literal["ranked", "session_affinity", "defaulted", "fallback", "explored"]
# Fields of Policy that select by Candidate's word lists (candidate.WORD_LISTS), in their order.
POLICY_WORDS = ("required_modalities", "required_features", "required_tags", "allowed_regions")


@dataclass(frozen=True)
class Policy:
    """Objective and hard constraints of a decision; the fields are those of router_service.proto.

    value is that of the objective; a cost_sensitivity of 0 is none, which leaves it to the server:
    its willingness to pay, or else the highest probability. allowed_candidates, denied_candidates
    and default_candidate hold candidate IDs. expected_output_tokens: room to leave in the context
    window. ranking_size: 0 returns the whole ranking. Prices are in US dollars per million tokens;
    a price or max_ood_score of None sets no limit. confidence: standard errors, None for the
    server's setting. required_api: the API that the candidate must answer in, of
    conversation.providers.APIS; "" for any. max_latency_ms: until the last token, None for no
    limit. escalate_after_failures: 0 for never, None for the server's setting.
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
    escalate_after_failures: int | None = None
    required_api: str = ""
    max_latency_ms: float | None = None

    @property
    def has_objective(self) -> bool:
        """Whether the caller chose an objective."""
        return self.objective != "cost_sensitivity" or self.value != 0

    @property
    def willingness(self) -> float:
        """US dollars per success at which costs are weighed against probabilities; infinite if they
        are not."""
        if self.objective == "willingness_to_pay_usd":
            return self.value
        if self.objective == "cost_sensitivity" and self.value:
            return REFERENCE_COST_USD / self.value
        return math.inf

    def or_willingness(self, usd: float) -> Policy:
        """Return the policy with a willingness to pay if it has no objective of its own."""
        if self.has_objective or usd == math.inf:
            return self
        return replace(self, objective="willingness_to_pay_usd", value=usd)


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
