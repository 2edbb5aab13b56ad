"""Whom to take: pure functions of probabilities, candidates and the caller's policy.

Letters: M candidates of the table, E eligible ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from engine.contract.candidate import Candidate
from engine.contract.errors import InvalidInputError, Violation
from engine.registry.table import Table

Objective = Literal["cost_sensitivity", "min_probability", "max_cost_usd"]


@dataclass(frozen=True)
class Policy:
    """What a caller wants. objective and value belong together, see router_service.proto.

    allow, deny: candidate ids. expected_output_tokens: room to leave in the context window.
    ranking_size: 0 means all.
    """

    objective: Objective = "cost_sensitivity"
    value: float = 0.0
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    expected_output_tokens: int = 0
    ranking_size: int = 0


@dataclass(frozen=True)
class Eligible:
    """rows: (E,) table rows. costs: E expected costs in US dollars, None where unknown.

    excluded: candidate id -> why.
    """

    rows: NDArray[np.int64]
    costs: tuple[float | None, ...]
    excluded: dict[str, str]


@dataclass(frozen=True)
class Choice:
    """order: E positions among the eligible, best first. utility: E. reason: one sentence."""

    order: tuple[int, ...]
    utility: tuple[float, ...]
    reason: str


def check(policy: Policy, table: Table) -> None:
    """Raise one InvalidInputError that lists every wrong value of `policy`."""
    problems = []
    value, upper = policy.value, 1.0 if policy.objective == "min_probability" else math.inf
    if not (math.isfinite(value) and 0 <= value <= upper):
        bound = "a number in [0, 1]" if upper == 1 else "a finite number of at least 0"
        problems.append(Violation(f"policy.{policy.objective}", f"is {value}; expected {bound}."))
    for field in ("expected_output_tokens", "ranking_size"):
        if getattr(policy, field) < 0:
            problems.append(
                Violation(f"policy.{field}", f"is {getattr(policy, field)}; expected 0 or more.")
            )
    for field in ("allow", "deny"):
        for i, identifier in enumerate(getattr(policy, field)):
            if identifier not in table.rows:
                problems.append(
                    Violation(
                        f"policy.{field}[{i}]",
                        f"names candidates/{identifier}, which is not registered at revision"
                        f" {table.revision}; `modelsat candidates list` shows who is.",
                    )
                )
    if problems:
        raise InvalidInputError(*problems)


def eligible(
    table: Table, policy: Policy, input_tokens: int, default_answer_tokens: float
) -> Eligible:
    """Apply the hard constraints, before anything is scored."""
    rows, costs, excluded = [], [], {}
    allow, deny = set(policy.allow), set(policy.deny)
    for row, candidate in enumerate(table.candidates):
        cost = candidate.expected_cost_usd(input_tokens, default_answer_tokens)
        why = _excluded(candidate, cost, policy, input_tokens, allow, deny)
        if why:
            excluded[candidate.id] = why
        else:
            rows.append(row)
            costs.append(cost)
    return Eligible(np.array(rows, dtype=np.int64), tuple(costs), excluded)


def _excluded(
    candidate: Candidate,
    cost: float | None,
    policy: Policy,
    input_tokens: int,
    allow: set[str],
    deny: set[str],
) -> str:
    """Why `candidate` cannot be chosen; empty where it can."""
    if allow and candidate.id not in allow:
        return "is not on the allow list"
    if candidate.id in deny:
        return "is on the deny list"
    needed = input_tokens + policy.expected_output_tokens
    if candidate.context_window is not None and needed > candidate.context_window:
        return f"reads {candidate.context_window} tokens, {needed} are needed"
    if policy.objective == "max_cost_usd":
        if cost is None:
            return "has no known price, and a maximum cost was asked for"
        if cost > policy.value:
            return f"costs ${cost:.3g}, the maximum is ${policy.value:.3g}"
    return ""


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
    # Position in the order, so that what is sorted by is also what is reported.
    utility = [0.0] * len(ids)
    for place, i in enumerate(order):
        utility[i] = 1.0 - place / len(ids)
    return Choice(tuple(order), tuple(utility), reason + ".")


def _usd(cost: float) -> str:
    return "an unknown price" if cost == math.inf else f"${cost:.3g}"
