"""Failures on the way lower probabilities, and escalate a loop if the policy says so."""

from __future__ import annotations

import numpy as np
import pytest

from engine.api.candidate import Candidate
from engine.api.policy import Policy
from engine.routing.decision import escalation, harder
from engine.routing.ranking import DecisionContext, RankingResult, decide
from engine.routing.sessions import SessionStore

IDS = ("cheap", "middling", "strong")
P = np.array([0.86, 0.9, 0.97], np.float32)
COSTS = (0.001, 0.004, 0.03)
FRUGAL = Policy("willingness_to_pay_usd", 0.06)


def choose(failures: int, limit: int, session: str = "", policy: Policy = FRUGAL) -> RankingResult:
    context = DecisionContext(
        session_candidate=session, switching_margin=1e9, escalation=escalation(failures, limit)
    )
    return decide(IDS, harder(P, failures), COSTS, policy, context)


def test_each_failure_halves_the_odds_and_the_fourth_changes_nothing() -> None:
    odds = [harder(P, n) / (1 - harder(P, n)) for n in range(5)]
    for n in (1, 2, 3):
        assert odds[n] == pytest.approx(odds[n - 1] / 2, rel=1e-4)
    assert (odds[4] == odds[3]).all()
    edges = np.array([0, 1, np.nan], np.float32)
    np.testing.assert_array_equal(harder(edges, 2), edges)


def test_failures_make_a_better_candidate_worth_its_price() -> None:
    assert IDS[choose(0, 0).order[0]] == "cheap"
    assert IDS[choose(3, 0).order[0]] == "middling"


@pytest.mark.parametrize("failures", [0, 1, 2, 3, 9])
def test_loop_keeps_its_candidate_unless_it_is_to_escalate(failures: int) -> None:
    kept = choose(failures, 0, session="cheap")
    assert (IDS[kept.order[0]], kept.kind) == ("cheap", "session_affinity")
    asked = choose(failures, 3, session="cheap")
    assert IDS[asked.order[0]] == ("strong" if failures >= 3 else "cheap")
    if failures >= 3:
        assert asked.kind == "ranked"
        assert f"{failures} of the last 10 steps" in asked.reason
        stays = choose(failures, 3, session="strong")
        assert (IDS[stays.order[0]], stays.kind) == ("strong", "session_affinity")


def test_switch_costs_what_the_prompt_cache_saves() -> None:
    now = 0.0
    sessions = SessionStore(10, 1e6, lambda: now)
    sessions.put("s", "a", "p", 800)
    assert sessions.cached_tokens("s", "p", 1000) == 800
    assert sessions.cached_tokens("s", "q", 1000) == 0
    assert sessions.cached_tokens("s", "p", 799) == 0  # it was compacted, or is another one
    now = 301.0
    assert sessions.cached_tokens("s", "p", 1000) == 0
    prices = {"input_usd_per_million": 3.0, "cached_input_usd_per_million": 0.3}
    assert Candidate("a", (), **prices).cache_saving_usd(800) == pytest.approx(800 * 2.7e-6)
    assert Candidate("a", (), input_usd_per_million=3.0).cache_saving_usd(800) == 0
    worse = {"input_usd_per_million": 1.0, "cached_input_usd_per_million": 2.0}
    assert Candidate("a", (), **worse).cache_saving_usd(800) == 0


def test_abstention_comes_before_an_escalation() -> None:
    unsure = Policy(abstain_below_probability=0.99, default_candidate="middling")
    assert IDS[choose(5, 1, policy=unsure).order[0]] == "middling"
