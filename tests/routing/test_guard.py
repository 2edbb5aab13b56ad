"""The guarded decision: leave the candidate that is best on average only on evidence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.api.policy import Objective, Policy
from engine.routing.guard import Evidence
from engine.routing.ranking import DecisionContext, RankingResult, decide, rank

# (probability, its standard error, probability on average, cost)
Guarded = list[tuple[float, float, float, float | None]]
SHARE = st.floats(0, 1)
POOL = st.lists(
    st.tuples(SHARE, st.floats(0, 0.5), SHARE, st.none() | st.floats(0, 10)),
    min_size=1,
    max_size=8,
)
OBJECTIVES = st.sampled_from(["cost_sensitivity", "target_probability", "budget_usd"])
POLICIES = st.builds(Policy, objective=OBJECTIVES, value=SHARE)


def ids(pool: Guarded) -> list[str]:
    return [f"c{i:02}" for i in range(len(pool))]


def decided(pool: Guarded, policy: Policy, confidence: float, **context: str) -> RankingResult:
    p, errors, means, costs = zip(*pool, strict=True)
    evidence = Evidence(np.array(means), np.array(errors))
    at = DecisionContext(confidence=confidence, **context)  # type: ignore[arg-type]
    return decide(ids(pool), np.array(p), costs, policy, at, evidence)


@given(POOL, POLICIES)
def test_without_confidence_the_first_of_the_ranking_is_selected(
    pool: Guarded, policy: Policy
) -> None:
    p, _, _, costs = zip(*pool, strict=True)
    assert decided(pool, policy, 0.0) == rank(ids(pool), np.array(p), costs, policy)


@given(POOL, POLICIES)
def test_with_much_confidence_the_best_on_average_is_selected(
    pool: Guarded, policy: Policy
) -> None:
    pool = [(p, max(error, 0.01), mean, cost) for p, error, mean, cost in pool]
    _, _, means, costs = zip(*pool, strict=True)
    default = rank(ids(pool), np.array(means), costs, policy).order[0]
    assert decided(pool, policy, 1e6).order[0] == default


@given(POOL, POLICIES, st.floats(0, 5), st.floats(0, 5))
def test_more_confidence_never_selects_one_of_a_higher_rank(
    pool: Guarded, policy: Policy, one: float, other: float
) -> None:
    p, _, _, costs = zip(*pool, strict=True)
    order = rank(ids(pool), np.array(p), costs, policy).order
    low, high = sorted((one, other))
    bold, careful = (order.index(decided(pool, policy, z).order[0]) for z in (low, high))
    assert bold <= careful


@given(POOL, POLICIES, st.floats(0, 5))
def test_what_is_selected_is_the_default_or_better_than_it_by_enough(
    pool: Guarded, policy: Policy, confidence: float
) -> None:
    choice = decided(pool, policy, confidence)
    _, errors, means, costs = zip(*pool, strict=True)
    default = rank(ids(pool), np.array(means), costs, policy).order[0]
    first = choice.order[0]
    error = float(np.hypot(errors[first], errors[default]))
    gain = choice.utility[first] - choice.utility[default]
    if policy.objective == "target_probability":
        gain = pool[first][0] - min(pool[default][0], policy.value)
        error = error if pool[default][0] < policy.value else errors[first]
    assert not confidence or first == default or gain > confidence * error
    assert ids(pool)[first] in choice.reason
    assert choice.reason.endswith(".")
    assert choice.kind == "ranked"


@pytest.mark.parametrize(
    ("objective", "value"),
    [("cost_sensitivity", 0.0), ("cost_sensitivity", 0.01), ("budget_usd", 5.0)],
)
def test_the_reason_says_which_of_the_two_decided(objective: Objective, value: float) -> None:
    pool: Guarded = [(0.6, 0.03, 0.7, 1.0), (0.7, 0.04, 0.5, 1.0), (0.68, 0.01, 0.5, 1.0)]
    policy = Policy(objective, value)
    bold = decided(pool, policy, 1.0)
    assert bold.order[0] == 1
    assert "gains 0.100 in utility over c00, the best on average" in bold.reason
    assert "more than 1 standard error (0.050)" in bold.reason
    sure = decided(pool, policy, 2.2)
    assert sure.order[0] == 2, "the second gains less, but with a smaller error"
    assert "c01 would gain 0.100 in utility over c00" in sure.reason
    assert "selected c02, which gains 0.080 with more certainty" in sure.reason
    careful = decided(pool, policy, 4.0)
    assert careful.order == (0, 1, 2)
    assert "not more than 4 standard errors (0.200); selected c00." in careful.reason
    agreed = decided([(0.8, 0.1, 0.8, 1.0), *pool[1:]], policy, 4.0)
    assert agreed.order[0] == 0
    assert "is the best on average" in agreed.reason


@pytest.mark.parametrize("price", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize(
    ("first", "default", "expected"),
    [
        ((0.75, 0.04), 0.9, 0),  # .05 above the target is sure
        ((0.75, 0.06), 0.9, 1),  # not sure, however much is saved
        ((0.99, 0.3), 0.9, 1),
        ((0.75, 0.06), 0.6, 0),  # the default misses the target, so what it saves does not count
        ((0.75, 0.2), 0.6, 1),
        ((0.65, 0.01), 0.6, 0),  # neither reaches it
    ],
)
def test_a_target_is_left_to_the_default_unless_another_surely_reaches_it(
    first: tuple[float, float], default: float, expected: int, price: float
) -> None:
    pool: Guarded = [(*first, 0.5, 0.9 * price), (default, 0.0, 0.9, price)]
    choice = decided(pool, Policy("target_probability", 0.7), 1.0)
    assert choice.order[0] == expected
    assert "in probability over " + ("the target" if default > 0.7 else "c01") in choice.reason


def test_the_policy_overrides_the_server_and_a_fallback_is_not_guarded() -> None:
    pool: Guarded = [(0.6, 0.1, 0.7, None), (0.7, 0.1, 0.5, None)]
    assert decided(pool, Policy(confidence=0.0), 3.0).order[0] == 1
    assert decided(pool, Policy(confidence=3.0), 0.0).order[0] == 0
    without = decided(pool, Policy(), 3.0, fallback_reason="the queue is full")
    assert (without.kind, without.order[0]) == ("fallback", 1)


def test_a_session_begins_with_what_the_guard_selects() -> None:
    pool: Guarded = [(0.6, 0.1, 0.7, None), (0.7, 0.1, 0.5, None)]
    stays = decided(pool, Policy(), 3.0, session_candidate="c00")
    assert (stays.kind, stays.order[0]) == ("session_affinity", 0)
    kept = decided(pool, Policy(), 3.0, session_candidate="c01")
    assert (kept.kind, kept.order[0]) == ("session_affinity", 1), "it would lose by a switch"
    assert replace(kept, reason="").utility == stays.utility
