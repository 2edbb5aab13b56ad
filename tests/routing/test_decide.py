"""Decisions: abstention, session affinity, and fallback to mean accuracies."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.api.candidate import Candidate, TaskResult, from_json, to_json, validate
from engine.api.policy import Policy
from engine.routing.ranking import DecisionContext, RankingResult, decide, rank
from engine.routing.sessions import SessionStore

Pool = list[tuple[float, float | None]]
POOL = st.lists(st.tuples(st.floats(0, 1), st.none() | st.floats(0, 10)), min_size=1, max_size=10)
SENSITIVITY = st.floats(0, 10) | st.floats(0, 1e6)
NAMES = st.sampled_from(["", *(f"c{i:02}" for i in range(11))])
CONTEXTS = st.builds(
    DecisionContext,
    ood_score=st.none() | st.floats(0, 1),
    default=NAMES,
    session_candidate=NAMES,
    switching_margin=st.floats(0, 1),
    fallback_reason=st.sampled_from(["", "", "the queue is full"]),
)
LIMITS = st.builds(
    Policy,
    abstain_below_probability=st.floats(0, 1),
    max_ood_score=st.none() | st.floats(0, 1),
    default_candidate=NAMES,
)


def ids(pool: Pool) -> list[str]:
    return [f"c{i:02}" for i in range(len(pool))]


def decided(pool: Pool, policy: Policy, context: DecisionContext) -> RankingResult:
    p, costs = zip(*pool, strict=True)
    return decide(ids(pool), np.array(p), costs, policy, context)


@given(POOL, LIMITS, CONTEXTS, SENSITIVITY, SENSITIVITY)
def test_more_cost_sensitivity_never_costs_more_whatever_else_is_asked(
    pool: Pool, policy: Policy, context: DecisionContext, one: float, other: float
) -> None:
    max_cost = max((cost for _, cost in pool if cost is not None), default=0.0)
    costs = [max_cost if cost is None else cost for _, cost in pool]
    low, high = sorted((one, other))
    frugal = costs[decided(pool, replace(policy, value=high), context).order[0]]
    lavish = costs[decided(pool, replace(policy, value=low), context).order[0]]
    assert frugal <= lavish + 1e-9 * max(1.0, max_cost)


@given(POOL, LIMITS, CONTEXTS, st.sampled_from(["cost_sensitivity", "target_probability"]))
def test_one_comes_first_and_the_rest_keep_their_order(
    pool: Pool, policy: Policy, context: DecisionContext, objective: str
) -> None:
    policy = replace(policy, objective=objective, value=0.5)  # type: ignore[arg-type]
    p, costs = zip(*pool, strict=True)
    ranked = rank(ids(pool), np.array(p), costs, policy)
    choice = decided(pool, policy, context)
    first = choice.order[0]
    assert choice.order == (first, *(i for i in ranked.order if i != first))
    assert choice.utility == ranked.utility
    assert ids(pool)[first] in choice.reason
    assert choice.reason.endswith(".")


@given(POOL, LIMITS, CONTEXTS)
def test_each_kind_has_its_cause(pool: Pool, policy: Policy, context: DecisionContext) -> None:
    choice, names = decided(pool, policy, context), ids(pool)
    chosen = names[choice.order[0]]
    best = max(p for p, _ in pool)
    limit, unlike = policy.max_ood_score, context.ood_score
    abstains = best < policy.abstain_below_probability
    abstains |= limit is not None and unlike is not None and unlike > limit
    default = policy.default_candidate or context.default
    utility = dict(zip(names, choice.utility, strict=True))
    stays = context.session_candidate in names and max(utility.values()) - utility[
        context.session_candidate
    ] <= (context.switching_margin)
    if context.fallback_reason:
        assert choice.kind == "fallback"
        assert choice.reason.startswith(context.fallback_reason)
        assert context.session_candidate not in names or chosen == context.session_candidate
    elif abstains:
        assert choice.kind == "defaulted"
        if default in names:
            assert chosen == default
        else:
            assert pool[choice.order[0]][0] == best, "never the cheapest by accident"
            assert "not eligible" in choice.reason if default else "no default" in choice.reason
    elif stays:
        assert (choice.kind, chosen) == ("session_affinity", context.session_candidate)
    else:
        assert choice.kind == "ranked"
        assert pool[choice.order[0]][0] == best


def test_a_session_leaves_when_another_is_better_by_more_than_the_margin() -> None:
    pool: Pool = [(0.70, 1.0), (0.76, 1.0)]
    stays = decided(pool, Policy(), DecisionContext(session_candidate="c00", switching_margin=0.07))
    assert stays.kind == "session_affinity"
    assert "c01 would gain 0.060 in utility, within the switching margin of 0.07" in stays.reason
    leaves = decided(
        pool, Policy(), DecisionContext(session_candidate="c00", switching_margin=0.05)
    )
    assert (leaves.kind, leaves.order[0]) == ("ranked", 1)
    assert "the session switches from c00" in leaves.reason
    cheap = decided([(0.8, 0.97), (0.9, 1.0)], Policy("target_probability", 0.75),
                    DecisionContext(session_candidate="c01", switching_margin=0.05))  # fmt: skip
    assert (cheap.kind, cheap.order[0]) == ("session_affinity", 1), (
        "3 % of the cost is no cause to leave"
    )


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 3), st.booleans(), st.floats(0, 4)),
        max_size=40,
    ),
    st.integers(0, 4),
)
def test_sessions_are_what_a_list_of_uses_says(
    steps: list[tuple[int, int, bool, float]], limit: int
) -> None:
    """Against a plain record: the last `limit` sessions used, each for 5 seconds after its use."""
    now = 0.0
    sessions = SessionStore(limit, 5.0, lambda: now)
    used: dict[str, tuple[str, float]] = {}
    for session, candidate, write, wait in steps:
        now += wait
        name = f"s{session}"
        recent = sorted(used, key=lambda n: list(used).index(n))[-limit:] if limit else []
        alive = name in recent and now - used[name][1] < 5.0
        assert sessions.get(name) == (used[name][0] if alive else "")
        if write:
            used.pop(name, None)
            used[name] = (f"c{candidate}", now)
            sessions.put(name, f"c{candidate}")
        assert len(sessions) <= limit


def test_a_session_is_kept_under_a_hash() -> None:
    sessions = SessionStore(10, 60.0)
    sessions.put("alice@example.org", "c1")
    assert "alice" not in repr(vars(sessions))
    assert sessions.get("alice@example.org") == "c1"
    assert sessions.get("bob") == ""


@pytest.mark.parametrize(
    ("owner", "name", "other", "same_name"),
    [
        ("alice", "s-1", "bob", "s-1"),
        ("alice", "s-1", "", "s-1"),
        ("", "s-1", "alice", "s-1"),
        ("CN=a", "b", "CN=", "ab"),  # the two together read the same
        ("alice", "1", "alice1", ""),
    ],
)
def test_a_session_is_of_the_principal_who_began_it(
    owner: str, name: str, other: str, same_name: str
) -> None:
    """Kind: no share per caller. By its name, another caller neither sees nor steers a session."""
    sessions = SessionStore(10, 60.0)
    sessions.put(name, "c1", owner)
    assert sessions.get(same_name, other) == ""
    sessions.put(same_name, "c2", other)
    assert sessions.get(name, owner) == "c1"


PLAIN = Candidate("x", tuple(TaskResult(f"task {i}", 0.5) for i in range(50)))
WORD = st.text("abcdefghijklmnopqrstuvwxyz0123456789._-", min_size=1, max_size=63)
LISTS = st.lists(WORD, max_size=32, unique=True).map(lambda w: tuple(sorted(w)))


@given(LISTS, LISTS, LISTS, LISTS)
def test_word_lists_survive_the_file_and_change_the_etag(
    modalities: tuple[str, ...],
    features: tuple[str, ...],
    tags: tuple[str, ...],
    regions: tuple[str, ...],
) -> None:
    candidate = replace(PLAIN, modalities=modalities, features=features, tags=tags, regions=regions)
    assert validate(candidate) == []
    assert from_json(json.loads(json.dumps(to_json(candidate)))) == candidate
    assert (candidate.etag == PLAIN.etag) == (not (modalities or features or tags or regions))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("Tools",), "candidate.features: has 'Tools'"),
        (("a b",), "expected words of 1 to 63"),
        (("x" * 64,), "expected words of 1 to 63"),
        (("a", "a"), "repeats 'a'"),
        (tuple(f"w{i}" for i in range(33)), "has 33 words, the limit is 32"),
    ],
)
def test_a_wrong_word_is_named(words: tuple[str, ...], message: str) -> None:
    (problem,) = validate(replace(PLAIN, features=words))
    assert message in f"{problem.field}: {problem.description}"
