"""Apply a policy's hard constraints before anything is scored.

Shapes: M candidates of the table, E eligible ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress

import numpy as np

from engine.api.candidate import Candidate, check_word_lists
from engine.api.conversation.providers import APIS
from engine.api.errors import InvalidInputError, UnavailableError, Violation
from engine.api.policy import POLICY_WORDS, Policy
from engine.bundle.types import Float32Array, Int64Array
from engine.registry.table import Table

COUNTS = (
    *("expected_output_tokens", "ranking_size", "min_context_window"),
    "escalate_after_failures",
)
IMPLIED_MODALITY = "text"  # every candidate supports it, so requiring it excludes none
OutputTokens = Callable[[Candidate], float | None]
Latency = Callable[[Candidate], float | None]  # in milliseconds
Check = Callable[[Candidate, float | None], str]  # (candidate, expected cost) -> why not, or ""


@dataclass(frozen=True)
class Eligible:
    """rows: (E,) table rows, ascending. costs: (E,) expected costs in US dollars, None if unknown.

    excluded: candidate ID -> why it may not be selected. If all are excluded, those that come
    closest to being eligible are first.
    """

    rows: Int64Array
    costs: tuple[float | None, ...]
    excluded: dict[str, str]


def validate_policy(policy: Policy, table: Table) -> None:
    """Raise one InvalidInputError that lists every invalid value of `policy`."""
    violations = _check_numbers(policy)
    violations += check_word_lists(policy, "policy", POLICY_WORDS)
    for field in ("allowed_candidates", "denied_candidates"):
        for i, identifier in enumerate(getattr(policy, field)):
            if identifier not in table.rows:
                violations.append(_not_registered(f"{field}[{i}]", identifier, table))
    if policy.required_api and policy.required_api not in APIS:
        expected = f"is {policy.required_api[:80]!r}; expected one of: {', '.join(sorted(APIS))}."
        violations.append(Violation("policy.required_api", expected))
    default = policy.default_candidate
    if default and default not in table.rows:
        violations.append(_not_registered("default_candidate", default, table))
    if violations:
        raise InvalidInputError(*violations)


def _check_numbers(policy: Policy) -> list[Violation]:
    value = policy.value
    is_share = policy.objective == "target_probability"
    is_willingness = policy.objective == "willingness_to_pay_usd"
    violations = []
    if is_willingness and not value > 0:  # true for NaN too
        expected = f"is {value}; expected US dollars per success, above 0."
        violations.append(Violation("policy.willingness_to_pay_usd", expected))
    for field, share in (
        ("abstain_below_probability", policy.abstain_below_probability),
        ("max_ood_score", policy.max_ood_score),
        (policy.objective, value if is_share else None),
    ):
        if share is not None and not 0 <= share <= 1:  # true for NaN too
            expected = f"is {share}; expected a number in [0, 1]."
            violations.append(Violation(f"policy.{field}", expected))
    for field, amount in (
        ("max_input_usd_per_million", policy.max_input_usd_per_million),
        ("max_output_usd_per_million", policy.max_output_usd_per_million),
        ("confidence", policy.confidence),
        ("max_latency_ms", policy.max_latency_ms),
        (policy.objective, None if is_share or is_willingness else value),
    ):
        if amount is not None and not (math.isfinite(amount) and amount >= 0):
            expected = f"is {amount}; expected a finite number of at least 0."
            violations.append(Violation(f"policy.{field}", expected))
    for field in COUNTS:
        if (count := getattr(policy, field) or 0) < 0:
            violations.append(Violation(f"policy.{field}", f"is {count}; expected 0 or more."))
    return violations


def _not_registered(field: str, identifier: str, table: Table) -> Violation:
    return Violation(
        f"policy.{field}",
        f"names candidates/{identifier}, which is not registered at revision"
        f" {table.revision}; `modelsat candidates list` shows all candidates.",
    )


def find_eligible(
    table: Table,
    policy: Policy,
    input_tokens: int,
    default_output_tokens: float,
    known_output_tokens: OutputTokens | None = None,
    known_latency: Latency | None = None,
) -> Eligible:
    """Split the table's candidates into eligible and excluded ones.

    Args:
        table: the M candidates.
        policy: a valid one.
        input_tokens: tokens that the selected candidate will read.
        default_output_tokens: output tokens to expect of a candidate that states no mean.
        known_output_tokens: output tokens to expect of a candidate in any case, None if unknown.
        known_latency: latency to expect of a candidate in any case, None if unknown.
    """

    def output_tokens(candidate: Candidate) -> float:
        known = None if known_output_tokens is None else known_output_tokens(candidate)
        known = candidate.mean_output_tokens if known is None else known
        return default_output_tokens if known is None else known

    def expected_cost(candidate: Candidate) -> float | None:
        return candidate.cost_usd(input_tokens, output_tokens(candidate))

    def expected_latency_ms(candidate: Candidate) -> float | None:
        known = None if known_latency is None else known_latency(candidate)
        return candidate.expected_latency_ms(output_tokens(candidate)) if known is None else known

    rows, costs, excluded = [], [], dict[str, str]()
    by_name = _name_checks(policy)
    checks = by_name + _checks(policy, input_tokens + policy.expected_output_tokens)
    if policy.max_latency_ms is not None:
        checks.append(partial(_slower, policy.max_latency_ms, expected_latency_ms))
    for row, candidate in enumerate(table.candidates):
        cost = expected_cost(candidate)
        for check in checks:
            if reason := check(candidate, cost):
                excluded[candidate.id] = reason
                break
        else:
            rows.append(row)
            costs.append(cost)
    if not rows:
        # A request that failed tells its sender what to change, so it counts how far each
        # candidate is from being eligible. One that the sender named as unwanted comes last.
        def distance(candidate: Candidate) -> tuple[int, int]:
            cost = expected_cost(candidate)
            failed = [bool(check(candidate, cost)) for check in checks]
            return sum(failed[: len(by_name)]), sum(failed)

        excluded = {c.id: excluded[c.id] for c in sorted(table.candidates, key=distance)}
    return Eligible(np.array(rows, dtype=np.int64), tuple(costs), excluded)


def leave_out(table: Table, eligible: Eligible, reasons: Mapping[str, str]) -> Eligible:
    """Exclude candidates for a time, unless that leaves none.

    reasons: candidate ID -> why.
    """
    if not reasons:
        return eligible
    ids = [table.candidates[row].id for row in eligible.rows]
    kept = np.array([identifier not in reasons for identifier in ids], dtype=bool)
    if kept.all() or not kept.any():
        return eligible
    dropped = {identifier: reasons[identifier] for identifier in ids if identifier in reasons}
    costs = tuple(compress(eligible.costs, kept))
    return Eligible(eligible.rows[kept], costs, eligible.excluded | dropped)


def drop_non_finite(
    table: Table, eligible: Eligible, p: Float32Array
) -> tuple[Eligible, Float32Array]:
    """Exclude candidates whose probability is not finite, as after a float16 overflow: NaN would
    win every comparison.

    Args:
        table: holds the candidates of `eligible`.
        eligible: E candidates.
        p: (E,) their success probabilities.

    Returns:
        The candidates that are left, and their probabilities.

    Raises:
        UnavailableError: no candidate is left.
    """
    finite = np.isfinite(p)
    if finite.all():
        return eligible, p
    if not finite.any():
        raise UnavailableError("No candidate has a finite score; try another server.")
    dropped = {table.candidates[row].id: "score is not finite" for row in eligible.rows[~finite]}
    costs = tuple(compress(eligible.costs, finite))
    return Eligible(eligible.rows[finite], costs, eligible.excluded | dropped), p[finite]


def revise_costs(
    table: Table,
    eligible: Eligible,
    p: Float32Array,
    policy: Policy,
    costs: Sequence[float | None],
) -> tuple[Eligible, Float32Array]:
    """Replace the expected costs of E candidates by better estimates.

    Under a budget, those that are above it now are excluded as well, unless all of them are.

    Args:
        table: holds the candidates of `eligible`.
        eligible: E candidates.
        p: (E,) their success probabilities.
        policy: the caller's.
        costs: E estimates in US dollars; None leaves the one that is there.
    """
    revised = [old if new is None else new for old, new in zip(eligible.costs, costs, strict=True)]
    reasons = [""] * len(revised)
    if policy.objective == "budget_usd":
        reasons = [_cost_above(cost, policy.value) for cost in revised]
    kept = np.array([not reason for reason in reasons])
    if not kept.any():
        return replace(eligible, costs=tuple(revised)), p
    ids = [table.candidates[row].id for row in eligible.rows]
    dropped = {name: reason for name, reason in zip(ids, reasons, strict=True) if reason}
    costs = tuple(compress(revised, kept))
    return Eligible(eligible.rows[kept], costs, eligible.excluded | dropped), p[kept]


def _name_checks(policy: Policy) -> list[Check]:
    """Return the checks of the policy's lists of candidates."""
    allowed, denied = frozenset(policy.allowed_candidates), frozenset(policy.denied_candidates)
    checks: list[Check] = []
    if allowed:
        checks.append(lambda c, _: "" if c.id in allowed else "not among the allowed candidates")
    if denied:
        checks.append(lambda c, _: "among the denied candidates" if c.id in denied else "")
    return checks


def _checks(policy: Policy, needed_tokens: int) -> list[Check]:
    """Return only the checks that `policy` requires, because they run on up to 1,000 candidates."""
    checks: list[Check] = [partial(_window_exceeded, needed_tokens)]
    if policy.min_context_window:
        checks.append(partial(_window_below, policy.min_context_window))
    if modalities := frozenset(policy.required_modalities) - {IMPLIED_MODALITY}:
        checks.append(partial(_missing, "modalities", modalities))
    if policy.required_features:
        checks.append(partial(_missing, "features", frozenset(policy.required_features)))
    if policy.required_api:
        checks.append(partial(_other_api, policy.required_api))
    if policy.required_tags:
        checks.append(partial(_missing, "tags", frozenset(policy.required_tags)))
    if policy.allowed_regions:
        checks.append(partial(_elsewhere, policy.allowed_regions))
    for side in ("input", "output"):
        if (maximum := getattr(policy, f"max_{side}_usd_per_million")) is not None:
            checks.append(partial(_price_above, side, maximum))
    if policy.objective == "budget_usd":
        checks.append(lambda _, cost: _cost_above(cost, policy.value))
    return checks


def _window_exceeded(needed_tokens: int, candidate: Candidate, _: float | None) -> str:
    window = candidate.context_window
    if window is None or needed_tokens <= window:
        return ""
    return f"context window is {window} tokens; the request needs {needed_tokens}"


def _window_below(minimum: int, candidate: Candidate, _: float | None) -> str:
    window = candidate.context_window
    if window is None:
        return f"context window unknown; policy requires at least {minimum} tokens"
    if window >= minimum:
        return ""
    return f"context window is {window} tokens; policy requires at least {minimum}"


def _missing(field: str, words: frozenset[str], candidate: Candidate, _: float | None) -> str:
    missing = words.difference(getattr(candidate, field))
    return f"missing {field}: {', '.join(sorted(missing))}" if missing else ""


def _other_api(required: str, candidate: Candidate, _: float | None) -> str:
    apis = APIS.intersection(candidate.features)
    if not apis or required in apis:
        return ""
    return f"answers in {', '.join(sorted(apis))}; the request is of {required}"


def _elsewhere(allowed: tuple[str, ...], candidate: Candidate, _: float | None) -> str:
    if set(allowed).intersection(candidate.regions):
        return ""
    region = f"region is {', '.join(candidate.regions)}" if candidate.regions else ""
    return f"{region or 'region unknown'}; policy requires one of: {', '.join(allowed)}"


def _price_above(side: str, maximum: float, candidate: Candidate, _: float | None) -> str:
    price = getattr(candidate, f"{side}_usd_per_million")
    if price is None:
        return f"{side} price unknown; policy sets a maximum"
    if price <= maximum:
        return ""
    return f"{side} price is ${price:.3g} per million tokens; the maximum is ${maximum:.3g}"


def _slower(maximum: float, expected: Latency, candidate: Candidate, _: float | None) -> str:
    latency_ms = expected(candidate)
    if latency_ms is None:
        return "latency unknown; policy sets a maximum"
    if latency_ms <= maximum:
        return ""
    return f"expected latency is {latency_ms:.0f} ms; the maximum is {maximum:g} ms"


def _cost_above(cost: float | None, budget: float) -> str:
    if cost is None:
        return "price unknown; policy sets a budget"
    return "" if cost <= budget else f"expected cost is ${cost:.3g}; the budget is ${budget:.3g}"
