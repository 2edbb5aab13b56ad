"""Rank eligible candidates and pick one.

Pure functions of success probabilities, costs and the caller's policy. Shapes: E eligible
candidates (engine/routing/eligibility.py selects them).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.api.policy import DecisionKind, Policy
from engine.bundle.types import FloatArray
from engine.routing.guard import Evidence, first_above_bound
from engine.routing.utility import cost_adjusted_utility, target_utility


@dataclass(frozen=True)
class DecisionContext:
    """What a decision depends on besides probabilities, costs and policy.

    ood_score: out-of-distribution score of the prompt, in [0, 1]; None if unknown.
    default: ID of the server's default candidate, "" for none.
    session_candidate: ID of the session's current candidate, "" for none.
    switching_margin: utility that another candidate must gain before the session switches to it.
    fallback_reason: why the probabilities are mean accuracies instead of scores of this prompt
    ("the queue is full"); "" if they are scores.
    escalation: why the most probable candidate is to be chosen, whatever the objective and the
    session say; "" if it is not.
    confidence: standard errors that the gain over the candidate that is best on average must
    exceed, unless the policy says otherwise; 0 for no such condition.
    """

    ood_score: float | None = None
    default: str = ""
    session_candidate: str = ""
    switching_margin: float = 0.0
    fallback_reason: str = ""
    confidence: float = 0.0
    escalation: str = ""


@dataclass(frozen=True)
class RankingResult:
    """order: E positions among the eligible candidates, the selected one first. utility: (E,).
    reason: one sentence. kind: see DecisionKind in router_service.proto."""

    order: tuple[int, ...]
    utility: tuple[float, ...]
    reason: str
    kind: DecisionKind = "ranked"


def decide(
    ids: Sequence[str],
    p: FloatArray,
    costs: Sequence[float | None],
    policy: Policy,
    context: DecisionContext,
    evidence: Evidence | None = None,
) -> RankingResult:
    """Rank E >= 1 candidates and select one: the ranking's first unless `context` says otherwise.

    A fallback comes first, because without scores nothing else applies. Abstention comes before
    session affinity: a caller who set a confidence limit should see that it was missed, and the
    session keeps its candidate for the next turn. The guard comes before session affinity, so that
    a session begins with the candidate that it selects; without `evidence` there is no guard.
    """
    ranking = rank(ids, p, costs, policy)
    if context.fallback_reason:
        return _fallback(ids, ranking, context)
    if reason := _abstention_reason(ids, p, policy, context.ood_score):
        return _abstain(ids, ranking, reason, policy.default_candidate or context.default)
    confidence = context.confidence if policy.confidence is None else policy.confidence
    if evidence is not None and confidence:
        ranking = _guard(ids, ranking, p, costs, policy, evidence, confidence)
    if context.escalation:
        return _escalate(ids, p, ranking, context)
    if context.session_candidate in ids:
        return _apply_session_affinity(ids, ranking, context)
    return ranking


def _fallback(
    ids: Sequence[str], ranking: RankingResult, context: DecisionContext
) -> RankingResult:
    """Select the session's candidate, or the one with the highest mean accuracy."""
    current = context.session_candidate
    reason = f"{context.fallback_reason}, so the prompt was not scored: "
    if current in ids:
        reason += f"{current} is the session's candidate."
        return _promote(ids.index(current), ranking, reason, "fallback")
    return _promote(
        ranking.order[0], ranking, f"{reason}by mean accuracy, {ranking.reason}", "fallback"
    )


def _abstention_reason(
    ids: Sequence[str], p: FloatArray, policy: Policy, ood_score: float | None
) -> str:
    """Say which limit of the policy keeps the probabilities from deciding; "" if none does."""
    top = int(np.argmax(p))
    if float(p[top]) < policy.abstain_below_probability:
        return (
            f"no candidate reaches probability {policy.abstain_below_probability:g}; the highest is"
            f" {float(p[top]):.3f} ({ids[top]})"
        )
    limit = policy.max_ood_score
    if limit is not None and ood_score is not None and ood_score > limit:
        return f"the prompt's out-of-distribution score is {ood_score:.2f}, above {limit:g}"
    return ""


def _abstain(
    ids: Sequence[str], ranking: RankingResult, reason: str, default: str
) -> RankingResult:
    if default in ids:
        reason += f"; selected the default candidate {default}."
        return _promote(ids.index(default), ranking, reason, "defaulted")
    first = ranking.order[0]
    cause = f"the default {default} is not eligible" if default else "there is no default"
    reason += f"; {cause}, so selected the first of the ranking, {ids[first]}."
    return _promote(first, ranking, reason, "defaulted")


def _guard(
    ids: Sequence[str],
    ranking: RankingResult,
    p: FloatArray,
    costs: Sequence[float | None],
    policy: Policy,
    evidence: Evidence,
    confidence: float,
) -> RankingResult:
    """Select the first candidate that is better than the default of `evidence` by enough standard
    errors, or the default."""
    default = rank(ids, evidence.mean_p, costs, policy).order[0]
    first, name = ranking.order[0], f"{ids[default]}, {evidence.default_is}"
    errors = evidence.errors_of_differences(default)
    gains, over = [u - ranking.utility[default] for u in ranking.utility], f"utility over {name}"
    if policy.objective == "target_probability":
        # Costs are known: what is uncertain is who reaches the target.
        gains, over = (p - p[default]).tolist(), f"probability over {name}"
        if p[default] >= policy.value:
            gains, errors = (p - policy.value).tolist(), evidence.standard_error.tolist()
            over = f"probability over the target, and costs less than {name}"
    selected = first_above_bound(ranking.order, gains, errors, default, confidence)
    limit = (
        f"{confidence:g} standard error{'s' * (confidence != 1)} ({confidence * errors[first]:.3f})"
    )
    if first == default:
        reason = f"{ranking.reason[:-1]}, and is {evidence.default_is}."
    elif selected == first:
        reason = f"{ranking.reason[:-1]}; it gains {gains[first]:.3f} in {over}, more than {limit}."
    else:
        reason = f"{ids[first]} would gain {gains[first]:.3f} in {over}, not more than {limit}"
        reason += f"; selected {ids[selected]}"
        if selected != default:
            reason += f", which gains {gains[selected]:.3f} with more certainty"
        reason += "."
    return _promote(selected, ranking, reason, ranking.kind)


def _escalate(
    ids: Sequence[str], p: FloatArray, ranking: RankingResult, context: DecisionContext
) -> RankingResult:
    """Select the most probable candidate, the first of the ranking among equals."""
    top = max(ranking.order, key=lambda i: float(p[i]))
    stays = ids[top] == context.session_candidate
    reason = f"{context.escalation}: {ids[top]} has the highest probability ({float(p[top]):.3f})"
    if stays:
        reason += ", and is the session's candidate"
    return _promote(top, ranking, reason + ".", "session_affinity" if stays else "ranked")


def _apply_session_affinity(
    ids: Sequence[str], ranking: RankingResult, context: DecisionContext
) -> RankingResult:
    name, margin = context.session_candidate, context.switching_margin
    current, best = ids.index(name), ranking.order[0]
    gain = ranking.utility[best] - ranking.utility[current]
    if current == best:
        reason = f"{name} is the session's candidate and the first of the ranking."
    elif gain <= margin:
        reason = (
            f"{name} is the session's candidate; {ids[best]} would gain {gain:.3f} in utility,"
            f" within the switching margin of {margin:g}."
        )
    else:
        reason = f"{ranking.reason[:-1]}; the session switches from {name}."
        return _promote(best, ranking, reason, "ranked")
    return _promote(current, ranking, reason, "session_affinity")


def _promote(
    selected: int, ranking: RankingResult, reason: str, kind: DecisionKind
) -> RankingResult:
    """Move `selected` to the front; the others keep their order."""
    order = (selected, *(i for i in ranking.order if i != selected))
    return RankingResult(order, ranking.utility, reason, kind)


def rank(
    ids: Sequence[str],
    p: FloatArray,
    costs: Sequence[float | None],
    policy: Policy,
) -> RankingResult:
    """Rank E >= 1 eligible candidates by the policy's objective.

    Args:
        ids: (E,) candidate IDs.
        p: (E,) success probabilities.
        costs: (E,) expected costs in US dollars, None if unknown.
        policy: gives the objective and its value.

    Ties go to the cheaper candidate, then to the smaller ID, so that the same input always gives
    the same order.
    """
    probability: list[float] = p.tolist()
    known_costs = [math.inf if c is None else c for c in costs]
    if policy.objective == "target_probability":
        return _rank_by_cost(ids, probability, known_costs, policy.value)
    utility, willingness = probability, policy.willingness
    if willingness != math.inf:
        array = np.array([np.nan if c is None else c for c in costs])
        utility = cost_adjusted_utility(np.array(probability), array, willingness).tolist()
    order = sorted(range(len(ids)), key=lambda i: (-utility[i], known_costs[i], ids[i]))
    best = order[0]
    reason = f"{ids[best]} has the highest probability ({probability[best]:.3f}) of {len(ids)}"
    if policy.objective == "budget_usd":
        reason += f" within the budget of ${policy.value:.3g}"
    elif willingness != math.inf:
        reason = _explain(ids, probability, known_costs, best, policy)
    return RankingResult(tuple(order), tuple(utility), reason + ".")


def _explain(
    ids: Sequence[str],
    probability: list[float],
    known_costs: list[float],
    best: int,
    policy: Policy,
) -> str:
    top = max(range(len(ids)), key=lambda i: (probability[i], -known_costs[i]))
    if policy.objective == "cost_sensitivity":
        objective = f"cost sensitivity {policy.value:g}"
    else:
        objective = f"a willingness to pay of ${policy.value:.3g} per success"
    reason = (
        f"{ids[best]} has the highest utility at {objective}: probability"
        f" {probability[best]:.3f} for {_usd(known_costs[best])}"
    )
    if top != best:
        reason += (
            f"; the highest probability is {probability[top]:.3f} ({ids[top]}) for"
            f" {_usd(known_costs[top])}"
        )
    return reason


def _rank_by_cost(
    ids: Sequence[str], probability: list[float], known_costs: list[float], target: float
) -> RankingResult:
    """Rank candidates that reach the target probability by cost, then the others by
    probability."""

    def key(i: int) -> tuple[bool, float, float, str]:
        reaches = probability[i] >= target
        first = known_costs[i] if reaches else -probability[i]
        return (not reaches, first, -probability[i], ids[i])

    order = sorted(range(len(ids)), key=key)
    best = order[0]
    if probability[best] >= target:
        count = sum(p >= target for p in probability)
        reason = (
            f"{ids[best]} is the cheapest ({_usd(known_costs[best])}) of {count} with probability"
            f" {target:g} or more"
        )
    else:
        reason = (
            f"no candidate reaches probability {target:g}; the highest is"
            f" {probability[best]:.3f} ({ids[best]})"
        )
    utility = target_utility(np.array(probability), np.array(known_costs), target).tolist()
    return RankingResult(tuple(order), tuple(utility), reason + ".")


def _usd(cost: float) -> str:
    return "an unknown price" if cost == math.inf else f"${cost:.3g}"
