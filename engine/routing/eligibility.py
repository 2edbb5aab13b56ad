"""Who may be chosen at all: the hard constraints of a policy, before anything is scored.

Letters: M candidates of the table, E eligible ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from engine.api.candidate import Candidate, check_word_lists
from engine.api.errors import InvalidInputError, UnavailableError, Violation
from engine.api.policy import Policy
from engine.registry.table import Table

EVERYONE_READS = "text"  # a policy that lists it among the modalities asks for nothing
Check = Callable[[Candidate, float | None], str]


@dataclass(frozen=True)
class Eligible:
    """rows: (E,) table rows. costs: E expected costs in US dollars, None where unknown.

    excluded: candidate id -> why.
    """

    rows: NDArray[np.int64]
    costs: tuple[float | None, ...]
    excluded: dict[str, str]


def check(policy: Policy, table: Table) -> None:
    """Raise one InvalidInputError that lists every wrong value of `policy`."""
    problems = [
        *_check_shares(policy),
        *_check_amounts(policy),
        *check_word_lists(policy, "policy"),
        *_check_names(policy, table),
    ]
    if problems:
        raise InvalidInputError(*problems)


def _check_shares(policy: Policy) -> list[Violation]:
    shares = {"min_confidence": policy.min_confidence, "max_unlikeness": policy.max_unlikeness}
    if policy.objective == "min_probability":
        shares[policy.objective] = policy.value
    return [
        Violation(f"policy.{field}", f"is {value}; expected a number in [0, 1].")
        for field, value in shares.items()
        if value is not None and not 0 <= value <= 1  # true for NaN too
    ]


def _check_amounts(policy: Policy) -> list[Violation]:
    amounts: dict[str, float | None] = {
        "max_input_usd_per_million": policy.max_input_usd_per_million,
        "max_output_usd_per_million": policy.max_output_usd_per_million,
    }
    if policy.objective != "min_probability":
        amounts[policy.objective] = policy.value
    counts = ("expected_output_tokens", "ranking_size", "min_context_window")
    return [
        Violation(f"policy.{field}", f"is {value}; expected a finite number of at least 0.")
        for field, value in amounts.items()
        if value is not None and not (math.isfinite(value) and value >= 0)
    ] + [
        Violation(f"policy.{field}", f"is {getattr(policy, field)}; expected 0 or more.")
        for field in counts
        if getattr(policy, field) < 0
    ]


def _check_names(policy: Policy, table: Table) -> list[Violation]:
    named = [
        (f"policy.{field}[{i}]", identifier)
        for field in ("allow", "deny")
        for i, identifier in enumerate(getattr(policy, field))
    ]
    if policy.default_candidate:
        named.append(("policy.default_candidate", policy.default_candidate))
    return [
        Violation(
            field,
            f"names candidates/{identifier}, which is not registered at revision"
            f" {table.revision}; `modelsat candidates list` shows who is.",
        )
        for field, identifier in named
        if identifier not in table.rows
    ]


def eligible(
    table: Table, policy: Policy, input_tokens: int, default_answer_tokens: float
) -> Eligible:
    """Apply the hard constraints, before anything is scored."""
    rows, costs, excluded = [], [], {}
    checks = _checks(policy, input_tokens + policy.expected_output_tokens)
    for row, candidate in enumerate(table.candidates):
        cost = candidate.expected_cost_usd(input_tokens, default_answer_tokens)
        why = next((why for fails in checks if (why := fails(candidate, cost))), "")
        if why:
            excluded[candidate.id] = why
        else:
            rows.append(row)
            costs.append(cost)
    return Eligible(np.array(rows, dtype=np.int64), tuple(costs), excluded)


def scored(
    table: Table, able: Eligible, p: NDArray[np.float32]
) -> tuple[Eligible, NDArray[np.float32]]:
    """`able` and its probabilities (E,) without those that are no number, as where float16
    overflows: NaN would win every comparison. Raises UnavailableError where none is left."""
    finite = np.isfinite(p)
    if finite.all():
        return able, p
    if not finite.any():
        raise UnavailableError("No candidate has a finite score; try another server.")
    lost = {table.candidates[row].id: "its score is not finite" for row in able.rows[~finite]}
    costs = tuple(compress(able.costs, finite))
    return Eligible(able.rows[finite], costs, able.excluded | lost), p[finite]


def _checks(policy: Policy, needed: int) -> list[Check]:
    """Only those that `policy` asks for: a thousand candidates go through them. needed: tokens."""
    allow, deny = frozenset(policy.allow), frozenset(policy.deny)
    checks: list[Check] = []
    if allow:
        checks.append(lambda c, _: "" if c.id in allow else "is not on the allow list")
    if deny:
        checks.append(lambda c, _: "is on the deny list" if c.id in deny else "")
    checks.append(lambda c, _: _too_small(c, needed))
    if policy.min_context_window:
        checks.append(lambda c, _: _window_below(c, policy.min_context_window))
    checks += _word_checks(policy)
    for side in ("input", "output"):
        if (ceiling := getattr(policy, f"max_{side}_usd_per_million")) is not None:
            checks.append(_price_check(side, ceiling))
    if policy.objective == "max_cost_usd":
        checks.append(lambda _, cost: _dearer_than(cost, policy.value))
    return checks


def _too_small(candidate: Candidate, needed: int) -> str:
    window = candidate.context_window
    if window is None or needed <= window:
        return ""
    return f"reads {window} tokens, {needed} are needed"


def _window_below(candidate: Candidate, least: int) -> str:
    window = candidate.context_window
    if window is None:
        return f"has no known context window, and one of {least} tokens was asked for"
    return "" if window >= least else f"reads {window} tokens, at least {least} were asked for"


def _word_checks(policy: Policy) -> list[Check]:
    checks: list[Check] = []
    modalities = frozenset(policy.modalities) - {EVERYONE_READS}
    for label, words, lacks in (
        ("modalities", modalities, "does not read"),
        ("features", frozenset(policy.features), "lacks the feature"),
        ("tags", frozenset(policy.tags), "lacks the tag"),
    ):
        if words:
            checks.append(_all_check(label, words, lacks))
    if policy.regions:
        checks.append(_region_check(policy.regions))
    return checks


def _all_check(label: str, words: frozenset[str], lacks: str) -> Check:
    def fails(candidate: Candidate, _: float | None) -> str:
        missing = words.difference(getattr(candidate, label))
        return f"{lacks} {', '.join(sorted(missing))}" if missing else ""

    return fails


def _region_check(regions: tuple[str, ...]) -> Check:
    def fails(candidate: Candidate, _: float | None) -> str:
        if not candidate.regions:
            return f"has no known region, and one of {', '.join(regions)} was asked for"
        if set(regions).intersection(candidate.regions):
            return ""
        return f"is in {', '.join(candidate.regions)}, not in {', '.join(regions)}"

    return fails


def _price_check(side: str, ceiling: float) -> Check:
    def fails(candidate: Candidate, _: float | None) -> str:
        price = getattr(candidate, f"{side}_usd_per_million")
        if price is None:
            return f"has no known {side} price, and a highest one was asked for"
        if price <= ceiling:
            return ""
        return f"costs ${price:.3g} per million {side} tokens, the maximum is ${ceiling:.3g}"

    return fails


def _dearer_than(cost: float | None, most: float) -> str:
    if cost is None:
        return "has no known price, and a maximum cost was asked for"
    return "" if cost <= most else f"costs ${cost:.3g}, the maximum is ${most:.3g}"
