"""A decision by corrected probabilities says what they were and what it would have been."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.adaptation.recent_decisions import RecentDecisions
from engine.api.candidate import Candidate, TaskResult
from engine.api.policy import Policy
from engine.bundle.manifest import Calibration
from engine.inference.backend import ScoringHead
from engine.inference.batcher import Batcher
from engine.registry.table import make_table
from engine.routing.decision import (
    Correction,
    Decision,
    PromptInfo,
    build_decision,
    select_eligible,
)
from engine.routing.ranking import DecisionContext
from engine.routing.router import Router
from engine.serving.rpc.router_service import response_from
from tests.support.fake_adaptation import FakeAdaptation
from tests.support.fake_backend import FakeBackend

WIDTH = 4
TESTED = [Candidate(name, (TaskResult("task", 0.5, 1000),)) for name in ("a", "b", "c")]
TABLE = make_table(3, [(each, np.ones(WIDTH, np.float32)) for each in TESTED], WIDTH)
INFO = PromptInfo(7, truncated=False, ood_score=None)
P = np.array([0.6, 0.5, 0.4], dtype=np.float32)
EMBEDDING = np.ones(WIDTH, dtype=np.float32)


def decision(
    adaptation: FakeAdaptation | None,
    policy: Policy | None = None,
    p: NDArray[np.float32] = P,
) -> Decision:
    correction = None if adaptation is None else Correction(adaptation, EMBEDDING)
    policy = policy or Policy()
    eligible = select_eligible(TABLE, INFO, policy)
    return build_decision(TABLE, INFO, eligible, policy, p, DecisionContext(), correction)


def test_the_ranking_is_by_corrected_probabilities_and_keeps_the_weights_own() -> None:
    made = decision(FakeAdaptation({"a": -2.0, "c": 1.0}))
    assert [entry.candidate.id for entry in made.ranking] == ["c", "b", "a"]
    assert [entry.base_probability for entry in made.ranking] == pytest.approx([0.4, 0.5, 0.6])
    assert made.ranking[0].probability == pytest.approx(0.6444, abs=1e-4)
    assert made.ranking[0].standard_error == pytest.approx(0.05)
    assert (made.adaptation_id, made.unadapted) == ("fake-1", "a")
    answer = response_from(replace(made, timing={}))
    assert answer.adaptation_id == "fake-1"
    assert answer.ranking[2].base_probability == pytest.approx(0.6)
    assert answer.ranking[2].similar_outcomes == 7


def test_without_an_adaptation_nothing_of_the_answer_changes() -> None:
    made = decision(None)
    assert (made.adaptation_id, made.unadapted, made.propensity) == ("", "", None)
    answer = response_from(made)
    set_fields = {field.name for entry in answer.ranking for field, _ in entry.ListFields()}
    assert set_fields <= {"candidate", "probability", "utility", "expected_cost_usd"}
    assert not answer.HasField("propensity")


def test_a_candidate_that_is_not_scored_is_neither_corrected_nor_ranked() -> None:
    holed = np.array([0.6, np.nan, 0.4], dtype=np.float32)
    made = decision(FakeAdaptation({"b": 5.0, "c": 1.0}), p=holed)
    assert [entry.candidate.id for entry in made.ranking] == ["c", "a"]
    assert "b" in made.excluded


def test_a_correction_that_is_not_finite_is_not_used() -> None:
    made = decision(FakeAdaptation({"b": float("nan")}))
    assert [entry.probability for entry in made.ranking] == pytest.approx([0.6, 0.5, 0.4])
    assert made.adaptation_id == ""


def test_far_from_what_is_remembered_there_is_no_guard() -> None:
    adaptation = FakeAdaptation({"c": 0.1}, standard_error=0.2, means={"b": 0.9})
    assert decision(adaptation, Policy(confidence=3.0)).selected.id == "b"
    far = replace(adaptation, coverage=0.0)
    assert decision(far, Policy(confidence=3.0)).selected.id == "a"


def test_the_default_of_the_guard_is_the_best_of_the_remembered_instructions() -> None:
    adaptation = FakeAdaptation({"c": 1.0}, standard_error=0.1, means={"b": 0.9})
    made = decision(adaptation, Policy(confidence=1.1))
    assert made.selected.id == "b"
    assert "c would gain 0.144 in utility over b" in made.reason
    assert decision(adaptation, Policy(confidence=0.5)).selected.id == "c"
    assert decision(adaptation).selected.id == "c"


def test_if_none_is_known_to_be_best_on_average_the_default_is_the_weights_choice() -> None:
    unknown = FakeAdaptation({"c": 1.0}, 0.1, means=dict.fromkeys("abc", float("nan")))
    assert decision(unknown, Policy(confidence=0.1)).selected.id == "c"
    made = decision(unknown, Policy(confidence=1.0))
    assert made.selected.id == "a"
    assert "c would gain 0.044 in utility over a, the weights' choice, not more" in made.reason


def test_the_guard_asks_more_of_a_candidate_whose_test_was_short() -> None:
    """Kind: levels that rest on few questions. Many outcomes make up for them."""
    adaptation = FakeAdaptation({"c": 1.0}, standard_error=0.1, means={"b": 0.9})
    policy = Policy(confidence=0.9)

    def selected(questions: int, known: FakeAdaptation = adaptation) -> str:
        tested = [replace(c, aptitude=(TaskResult("task", 0.5, questions),)) for c in TESTED]
        table = make_table(3, [(c, np.ones(WIDTH, np.float32)) for c in tested], WIDTH)
        correction = Correction(known, EMBEDDING)
        eligible = select_eligible(table, INFO, policy)
        made = build_decision(table, INFO, eligible, policy, P, DecisionContext(), correction)
        return made.selected.id

    assert [selected(n) for n in (1, 5, 20, 1000)] == ["b", "b", "b", "c"]
    assert selected(20, replace(adaptation, similar_outcomes=1e6)) == "c"


class OneToken:
    """A tokenizer for which every text is one token, its length."""

    def encode(self, text: str, *, add_special_tokens: bool = False) -> Any:
        return SimpleNamespace(ids=[len(text) or 1])


async def test_requests_are_decided_by_one_adaptation_each_while_it_is_swapped() -> None:
    fits = {
        name: FakeAdaptation({"a": shift}, id=name) for name, shift in (("up", 3), ("down", -3))
    }
    served = itertools.cycle(fits.values())
    recent = RecentDecisions("weights", 1 << 20, 60.0)
    made = await routed(lambda: next(served), recent, 60, Policy())
    assert {each.adaptation_id for each in made} == set(fits)
    for each in made:
        assert (each.selected.id == "a") == (each.adaptation_id == "up")
        ids = [entry.candidate.id for entry in each.ranking]
        base = np.array([entry.base_probability for entry in each.ranking], dtype=np.float32)
        expected = fits[each.adaptation_id].correct(EMBEDDING, base, ids).p
        np.testing.assert_allclose([e.probability for e in each.ranking], expected, atol=1e-6)
        remembered = recent.get(each.id)
        assert remembered is not None
        assert remembered.adaptation_id == each.adaptation_id
        odds = remembered.scored.logits[[TABLE.rows[name] for name in ids]].astype(np.float64)
        np.testing.assert_allclose(1 / (1 + np.exp(-odds)), base, atol=2e-3)


async def routed(
    adaptation: Callable[[], FakeAdaptation], recent: RecentDecisions, count: int, policy: Policy
) -> list[Decision]:
    registry: Any = SimpleNamespace(table=lambda: TABLE)
    head = ScoringHead(np.full(WIDTH, 0.1, np.float32), 1e-5, Calibration(1.0, 0.0))
    batcher = Batcher(FakeBackend(), head)
    router = Router(registry, batcher, OneToken(), adaptation=adaptation, recent=recent)
    batcher.start()
    made = await asyncio.gather(*(router.route("x" * i, policy) for i in range(1, count)))
    await batcher.stop()
    return made


async def test_a_rejected_correction_decides_only_if_it_guards() -> None:
    recent = RecentDecisions("weights", 1 << 20, 60.0)
    surely = Policy(confidence=5.0)
    rejected = FakeAdaptation(means={"b": 0.9}, standard_error=0.2, active=False)
    made = await routed(lambda: rejected, recent, 3, surely)
    assert {(each.adaptation_id, each.ranking[0].standard_error) for each in made} == {("", None)}
    guarded = await routed(lambda: replace(rejected, guards=True), recent, 3, surely)
    assert {(each.adaptation_id, each.selected.id) for each in guarded} == {("fake-1", "b")}
    before, after = (
        {entry.candidate.id: entry.probability for entry in each[0].ranking}
        for each in (made, guarded)
    )
    assert after == pytest.approx(before, abs=1e-6)
