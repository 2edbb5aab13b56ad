"""Whom to take: pure functions of probabilities, costs and the caller's policy.

Letters: E eligible candidates (engine/routing/eligibility.py says who is).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.api.policy import Kind, Policy


@dataclass(frozen=True)
class Circumstances:
    """What bears on a choice beside scores and policy.

    unlikeness: of the instruction, in [0, 1], None where unknown. default: id chosen on
    abstention, "" for none. session: id of the session's candidate, "" for none. margin: utility
    that another must gain to end the session's. unscored: why p is no score of this instruction
    but the mean of the aptitude figures ("the queue is full"), "" where it is one.
    """

    unlikeness: float | None = None
    default: str = ""
    session: str = ""
    margin: float = 0.0
    unscored: str = ""


@dataclass(frozen=True)
class Choice:
    """order: E positions among the eligible, the chosen one first. utility: E. reason: one
    sentence. kind: see DecisionKind in router_service.proto."""

    order: tuple[int, ...]
    utility: tuple[float, ...]
    reason: str
    kind: Kind = "scored"


def decide(
    ids: Sequence[str],
    p: NDArray[np.floating],
    costs: Sequence[float | None],
    policy: Policy,
    under: Circumstances,
) -> Choice:
    """The ranking of choose(), unless there is cause to take another than its first.

    Static figures first (nothing else can be said of them), then abstention, then the session: a
    caller who asked for doubt to be shown is shown it, and the session keeps its candidate for the
    next turn.
    """
    ranked = choose(ids, p, costs, policy)
    if under.unscored:
        return _static(ids, ranked, under)
    if doubt := _doubt(ids, p, policy, under.unlikeness):
        return _abstain(ids, ranked, doubt, policy.default_candidate or under.default)
    if under.session in ids:
        return _stay(ids, ranked, under)
    return ranked


def _static(ids: Sequence[str], ranked: Choice, under: Circumstances) -> Choice:
    """Without scores nobody is known to be better than the session's candidate."""
    why = f"{under.unscored}, so nothing was scored and mean aptitude decides: "
    if under.session in ids:
        kept = f"{why}{under.session} is the session's candidate."
        return _first(ids.index(under.session), ranked, kept, "fallback")
    return _first(ranked.order[0], ranked, why + ranked.reason, "fallback")


def _doubt(
    ids: Sequence[str], p: NDArray[np.floating], policy: Policy, unlikeness: float | None
) -> str:
    """Why the probabilities should not decide; empty where they may."""
    top = int(np.argmax(p))
    if float(p[top]) < policy.min_confidence:
        return (
            f"no candidate reaches confidence {policy.min_confidence:g}; the most probable,"
            f" {ids[top]}, has {float(p[top]):.3f}"
        )
    limit = policy.max_unlikeness
    if limit is not None and unlikeness is not None and unlikeness > limit:
        return (
            f"the instruction is unlike {unlikeness:.0%} of the training instructions, the limit"
            f" is {limit:.0%}"
        )
    return ""


def _abstain(ids: Sequence[str], ranked: Choice, doubt: str, default: str) -> Choice:
    if default in ids:
        reason = f"{doubt}, so the default {default} is taken."
        return _first(ids.index(default), ranked, reason, "abstained")
    first = ranked.order[0]
    why = f"the default {default} is not eligible" if default else "there is no default"
    reason = f"{doubt}; {why}, so the ranking's first, {ids[first]}, is taken."
    return _first(first, ranked, reason, "abstained")


def _stay(ids: Sequence[str], ranked: Choice, under: Circumstances) -> Choice:
    kept, best = ids.index(under.session), ranked.order[0]
    gain = ranked.utility[best] - ranked.utility[kept]
    if kept == best:
        reason = f"{under.session} is the session's candidate, and the ranking's first."
    elif gain <= under.margin:
        reason = (
            f"{under.session} is the session's candidate; {ids[best]} is better by {gain:.3f} in"
            f" utility, the margin is {under.margin:g}."
        )
    else:
        reason = f"{ranked.reason[:-1]}; the session leaves {under.session} for it."
        return _first(best, ranked, reason, "scored")
    return _first(kept, ranked, reason, "session")


def _first(chosen: int, ranked: Choice, reason: str, kind: Kind) -> Choice:
    """`chosen` before the others, which keep their order."""
    order = (chosen, *(i for i in ranked.order if i != chosen))
    return Choice(order, ranked.utility, reason, kind)


def choose(
    ids: Sequence[str],
    p: NDArray[np.floating],
    costs: Sequence[float | None],
    policy: Policy,
) -> Choice:
    """Rank E >= 1 eligible candidates. ids, p, costs: E each.

    Ties go to the cheaper one, then to the first id, so that equal input gives equal output.
    """
    probability = [float(x) for x in p]
    known = [math.inf if c is None else c for c in costs]
    if policy.objective == "min_probability":
        return _cheapest_of(ids, probability, known, policy.value)
    utility = _utility(probability, costs, policy)
    order = sorted(range(len(ids)), key=lambda i: (-utility[i], known[i], ids[i]))
    best = order[0]
    reason = f"{ids[best]} has the highest probability ({probability[best]:.3f}) of {len(ids)}"
    if policy.objective == "max_cost_usd":
        reason += f" that cost at most ${policy.value:.3g}"
    elif policy.value > 0:
        reason = _trade(ids, probability, known, best, policy.value)
    return Choice(tuple(order), tuple(utility), reason + ".")


def trade(
    p: NDArray[np.floating], costs: NDArray[np.floating], value: float
) -> NDArray[np.floating]:
    """(..., M) utility p - value * cost / dearest cost; unknown (NaN) costs count as the dearest.

    The dearest is that of the same instruction, so that one sensitivity means the same for short
    and long ones.
    """
    if value == 0:
        return p
    known = np.where(np.isnan(costs), -np.inf, costs)
    dearest = known.max(axis=-1, keepdims=True)
    dearest = np.where(dearest > 0, dearest, 1.0)
    return p - value * (np.where(np.isnan(costs), dearest, costs) / dearest)


def _utility(
    probability: list[float], costs: Sequence[float | None], policy: Policy
) -> list[float]:
    value = 0.0 if policy.objective == "max_cost_usd" else policy.value
    array = np.array([np.nan if c is None else c for c in costs])
    utility: list[float] = trade(np.array(probability), array, value).tolist()
    return utility


def _trade(
    ids: Sequence[str], probability: list[float], known: list[float], best: int, value: float
) -> str:
    top = max(range(len(ids)), key=lambda i: (probability[i], -known[i]))
    reason = f"{ids[best]} is the best trade at cost sensitivity {value:g}: probability"
    reason += f" {probability[best]:.3f} for {_usd(known[best])}"
    if top != best:
        reason += f"; the most probable, {ids[top]}, has {probability[top]:.3f} for"
        reason += f" {_usd(known[top])}"
    return reason


def _cheapest_of(
    ids: Sequence[str], probability: list[float], known: list[float], floor: float
) -> Choice:
    """Those that reach `floor` by cost, then the others by probability."""

    def key(i: int) -> tuple[bool, float, float, str]:
        enough = probability[i] >= floor
        return (not enough, known[i] if enough else -probability[i], -probability[i], ids[i])

    order = sorted(range(len(ids)), key=key)
    best = order[0]
    if probability[best] >= floor:
        reached = sum(p >= floor for p in probability)
        reason = f"{ids[best]} is the cheapest ({_usd(known[best])}) of {reached} with probability"
        reason += f" {floor:g} or more"
    else:
        reason = f"no candidate reaches probability {floor:g}; {ids[best]} comes nearest with"
        reason += f" {probability[best]:.3f}"
    utility = _thrift(probability, known, floor)
    return Choice(tuple(order), tuple(utility), reason + ".")


def _thrift(probability: list[float], known: list[float], floor: float) -> list[float]:
    """The share of the dearest's cost that is saved, in [0, 1], of those that reach `floor`; what
    the others miss of it, below 0. So that a session's margin means something here too."""
    dearest = max((c for c in known if c != math.inf), default=0.0) or 1.0
    return [
        1.0 - min(cost, dearest) / dearest if p >= floor else p - floor
        for p, cost in zip(probability, known, strict=True)
    ]


def _usd(cost: float) -> str:
    return "an unknown price" if cost == math.inf else f"${cost:.3g}"
