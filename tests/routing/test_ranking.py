"""Ranking: constraints hold, cost sensitivity is monotone, equal input gives equal output."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.api.candidate import Candidate
from engine.api.errors import InvalidInputError, NoEligibleCandidateError
from engine.api.policy import Policy
from engine.registry.table import Table, make_table
from engine.routing.eligibility import find_eligible, validate_policy
from engine.routing.ranking import rank
from engine.serving.rpc.status import to_status

COSTS = st.none() | st.floats(0, 10)
POOL = st.lists(st.tuples(st.floats(0, 1), COSTS), min_size=1, max_size=12)


def ids(count: int) -> list[str]:
    return [f"c{i:02}" for i in range(count)]


def chosen(pool: list[tuple[float, float | None]], policy: Policy) -> int:
    p, costs = zip(*pool, strict=True)
    return rank(ids(len(pool)), np.array(p), costs, policy).order[0]


@given(POOL, st.floats(0, 10), st.floats(0, 10))
def test_more_cost_sensitivity_never_selects_a_more_expensive_candidate(
    pool: list[tuple[float, float | None]], one: float, other: float
) -> None:
    known = [cost for _, cost in pool if cost is not None]
    low, high = sorted((one, other))
    max_cost = max(known, default=0.0)
    costs = [max_cost if cost is None else cost for _, cost in pool]
    frugal = costs[chosen(pool, Policy("cost_sensitivity", high))]
    lavish = costs[chosen(pool, Policy("cost_sensitivity", low))]
    assert frugal <= lavish + 1e-9 * max(1.0, max_cost)


@given(POOL)
def test_without_cost_sensitivity_the_highest_probability_wins(
    pool: list[tuple[float, float | None]],
) -> None:
    assert pool[chosen(pool, Policy())][0] == max(p for p, _ in pool)


@given(POOL, st.floats(0, 1))
def test_min_probability_takes_the_cheapest_that_reaches_it(
    pool: list[tuple[float, float | None]], floor: float
) -> None:
    p, cost = pool[chosen(pool, Policy("target_probability", floor))]
    reaching = [c for q, c in pool if q >= floor]
    if reaching:
        assert p >= floor
        assert (math.inf if cost is None else cost) == min(
            math.inf if c is None else c for c in reaching
        )
    else:
        assert p == max(q for q, _ in pool)


@given(POOL, st.sampled_from(["cost_sensitivity", "target_probability"]), st.floats(0, 1))
def test_the_ranking_is_a_permutation_sorted_by_utility(
    pool: list[tuple[float, float | None]], objective: str, value: float
) -> None:
    p, costs = zip(*pool, strict=True)
    policy = Policy(objective, value)  # type: ignore[arg-type]
    choice = rank(ids(len(pool)), np.array(p), costs, policy)
    ranked = [choice.utility[i] for i in choice.order]
    assert sorted(choice.order) == list(range(len(pool)))
    assert ranked == sorted(ranked, reverse=True)
    assert ids(len(pool))[choice.order[0]] in choice.reason


CHEAP = Candidate(
    "cheap", (), context_window=4096, input_usd_per_million=1, output_usd_per_million=1
)
DEAR = replace(CHEAP, id="dear", output_usd_per_million=100.0, context_window=None)
UNKNOWN = replace(CHEAP, id="unknown", input_usd_per_million=None)
SEEING = replace(
    CHEAP,
    id="seeing",
    modalities=("audio", "image"),
    features=("json_mode", "tools"),
    tags=("production", "tier-2"),
    regions=("eu",),
)
POOL_OF_FOUR = (CHEAP, DEAR, UNKNOWN, SEEING)
TABLE = make_table(7, [(c, np.zeros(4, np.float32)) for c in POOL_OF_FOUR], 4)


@pytest.mark.parametrize(
    ("policy", "left", "words"),
    [
        (Policy(), {"cheap", "dear", "unknown", "seeing"}, ""),
        (Policy(allowed_candidates=("dear",)), {"dear"}, "not among the allowed"),
        (Policy(denied_candidates=("dear",)), {"cheap", "unknown", "seeing"}, "among the denied"),
        (Policy("budget_usd", 0.01), {"cheap", "seeing"}, "price unknown"),
        (Policy(expected_output_tokens=4000), {"dear"}, "needs 4100"),
        (
            Policy(allowed_candidates=("cheap",), denied_candidates=("cheap",)),
            set(),
            "among the denied",
        ),
        (Policy(required_modalities=("image", "text")), {"seeing"}, "missing modalities: image"),
        (Policy(required_modalities=("text",)), {"cheap", "dear", "unknown", "seeing"}, ""),
        (
            Policy(required_features=("json_mode", "tools")),
            {"seeing"},
            "missing features: json_mode, tools",
        ),
        (Policy(required_tags=("production",)), {"seeing"}, "missing tags: production"),
        (
            Policy(allowed_regions=("eu", "us-east-1")),
            {"seeing"},
            "requires one of: eu, us-east-1",
        ),
        (Policy(allowed_regions=("asia",)), set(), "region is eu; policy requires one of: asia"),
        (Policy(min_context_window=4096), {"cheap", "unknown", "seeing"}, "context window unknown"),
        (Policy(min_context_window=5000), set(), "is 4096 tokens; policy requires at least 5000"),
        (Policy(max_input_usd_per_million=1), {"cheap", "dear", "seeing"}, "input price unknown"),
        (Policy(max_output_usd_per_million=2), {"cheap", "unknown", "seeing"}, "$100 per million"),
    ],
)
def test_hard_constraints_exclude_with_a_reason(policy: Policy, left: set[str], words: str) -> None:
    found = find_eligible(TABLE, policy, input_tokens=100, default_output_tokens=400)
    assert {TABLE.candidates[row].id for row in found.rows} == left
    assert set(found.excluded) == {c.id for c in TABLE.candidates} - left
    assert not words or any(words in why for why in found.excluded.values())


def pool_of(size: int) -> Table:
    """Candidates m00, m01, ... of windows of 100, 101, ... tokens, every fifth with tools."""
    pool = []
    for i in range(size):
        features = ("tools",) if i % 5 == 0 else ()
        pool.append(Candidate(f"m{i:02}", (), context_window=100 + i, features=features))
    return make_table(1, [(c, np.zeros(4, np.float32)) for c in pool], 4)


@pytest.mark.parametrize(
    ("policy", "tokens", "first", "last"),
    [
        (
            Policy(allowed_candidates=("m30",)),
            5000,
            "m30: context window is 130 tokens; the request needs 5000",
            "44 of 45: not among the allowed candidates.",
        ),
        (
            Policy(allowed_candidates=("m41", "m42"), required_features=("tools",)),
            10,
            "m41, m42: missing features: tools",
            "43 of 45: not among the allowed candidates.",
        ),
        (
            Policy(denied_candidates=tuple(f"m{i:02}" for i in range(44))),
            500,
            "m44: context window is 144 tokens; the request needs 500",
            "44 of 45: among the denied candidates.",
        ),
        (
            Policy(required_features=("tools",), max_input_usd_per_million=1.0),
            10,
            "9 of 45: input price unknown; policy sets a maximum",
            "36 of 45: missing features: tools.",
        ),
    ],
)
def test_no_eligible_candidate_leads_with_those_that_meet_most_constraints(
    policy: Policy, tokens: int, first: str, last: str
) -> None:
    found = find_eligible(pool_of(45), policy, tokens, default_output_tokens=400)
    message = str(NoEligibleCandidateError(found.excluded))
    assert message.startswith(f"No candidate is eligible. {first}")
    assert message.endswith(last)
    status = to_status(NoEligibleCandidateError(found.excluded))
    assert first in status.message


@pytest.mark.parametrize(
    "policy",
    [
        Policy("cost_sensitivity", -1.0),
        Policy("cost_sensitivity", math.nan),
        Policy("cost_sensitivity", math.inf),
        Policy("budget_usd", math.nan),
        Policy("budget_usd", -0.5),
        Policy("target_probability", 1.5),
        Policy(allowed_candidates=("no-one",)),
        Policy(denied_candidates=("no-one",)),
        Policy(ranking_size=-1),
        Policy(expected_output_tokens=-1),
        Policy(min_context_window=-1),
        Policy(max_input_usd_per_million=-1.0),
        Policy(max_output_usd_per_million=math.inf),
        Policy(abstain_below_probability=1.1),
        Policy(abstain_below_probability=math.nan),
        Policy(max_ood_score=-0.1),
        Policy(default_candidate="no-one"),
        Policy(required_features=("Tools",)),
        Policy(allowed_regions=("",)),
        Policy(required_tags=tuple(f"t{i}" for i in range(33))),
    ],
)
def test_a_wrong_policy_is_named(policy: Policy) -> None:
    with pytest.raises(InvalidInputError, match=r"policy\.\w+"):
        validate_policy(policy, TABLE)


WORDS = st.lists(st.sampled_from(["a", "b", "c"]), unique=True).map(tuple)
ANYONE = st.builds(
    Candidate,
    id=st.uuids().map(str),
    aptitude=st.just(()),
    context_window=st.none() | st.integers(1, 10_000),
    input_usd_per_million=st.none() | st.floats(0, 10),
    output_usd_per_million=st.none() | st.floats(0, 10),
    modalities=WORDS,
    features=WORDS,
    tags=WORDS,
    regions=WORDS,
)
DEMANDS = st.builds(
    Policy,
    required_modalities=WORDS,
    required_features=WORDS,
    required_tags=WORDS,
    allowed_regions=WORDS,
    min_context_window=st.integers(0, 10_000),
    expected_output_tokens=st.integers(0, 10_000),
    max_input_usd_per_million=st.none() | st.floats(0, 10),
    max_output_usd_per_million=st.none() | st.floats(0, 10),
)


def satisfies(c: Candidate, policy: Policy, input_tokens: int) -> bool:
    """The constraints once more, as the proto words them."""
    window, needed = c.context_window, input_tokens + policy.expected_output_tokens
    prices = (
        (c.input_usd_per_million, policy.max_input_usd_per_million),
        (c.output_usd_per_million, policy.max_output_usd_per_million),
    )
    return (
        set(policy.required_modalities) <= set(c.modalities)
        and set(policy.required_features) <= set(c.features)
        and set(policy.required_tags) <= set(c.tags)
        and (not policy.allowed_regions or not set(policy.allowed_regions).isdisjoint(c.regions))
        and (window is None or window >= needed)
        and (not policy.min_context_window or (window or 0) >= policy.min_context_window)
        and all(limit is None or (p is not None and p <= limit) for p, limit in prices)
    )


@given(st.lists(ANYONE, max_size=8), DEMANDS, st.integers(0, 5000))
def test_eligible_are_exactly_those_that_satisfy_every_constraint(
    pool: list[Candidate], policy: Policy, input_tokens: int
) -> None:
    table = make_table(1, [(c, np.zeros(4, np.float32)) for c in pool], 4)
    validate_policy(policy, table)
    found = find_eligible(table, policy, input_tokens, default_output_tokens=400)
    left = {table.candidates[row].id for row in found.rows}
    assert left == {c.id for c in pool if satisfies(c, policy, input_tokens)}
    assert set(found.excluded) == {c.id for c in pool} - left
    assert all(found.excluded.values())
