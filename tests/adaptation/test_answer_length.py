"""Expected answer lengths follow the calls on similar instructions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.adaptation.answer_length import MAX_LANDMARKS, AnswerLengths, AnswerTokens
from engine.api.policy import Policy
from engine.api.usage import Usage
from engine.bundle.instruction_space import InstructionSpace
from engine.registry.stores.outcome_types import OutcomeReport, RecordedOutcome
from engine.routing.eligibility import find_eligible, revise_costs
from tests.support.replicas import WIDTH, Replica, embedding, table

SPACE = InstructionSpace.unknown(WIDTH)
A, BB, CCC = (
    replace(c, input_usd_per_million=0.0, output_usd_per_million=1.0)
    for c in table("a", "bb", "ccc").candidates
)


def lengths(tokens: list[list[float]], seeds: list[int]) -> AnswerLengths:
    embeddings = np.array([embedding(seed) for seed in seeds])
    answers = AnswerTokens(embeddings, ("a", "bb", "ccc"), np.array(tokens, dtype=np.float32))
    found = AnswerLengths.of(answers, SPACE)
    assert found is not None
    return found


def test_similar_instructions_count_most() -> None:
    nan = np.nan
    found = lengths([[1000, 20, nan]] * 30 + [[50, 20, nan]] * 30, [1] * 30 + [2] * 30)
    long_a, long_b, unknown = found.expected(embedding(1), (A, BB, CCC))
    short_a, short_b, _ = found.expected(embedding(2), (A, BB, CCC))
    assert unknown is None
    assert long_a is not None
    assert short_a is not None
    assert long_a > 800 > 250 > short_a
    assert long_b == pytest.approx(short_b, rel=0.01)


def test_many_instructions_go_by_the_nearest_landmarks() -> None:
    """More kinds than landmarks: a kind has the length of its neighborhood, not of all."""
    random = np.random.default_rng(0)
    kinds = random.normal(size=(4, WIDTH))
    kind = random.integers(4, size=3000)
    embeddings = (kinds[kind] + 0.1 * random.normal(size=(3000, WIDTH))).astype(np.float32)
    tokens = np.full((3000, 1), 100.0, dtype=np.float32) * (1 + kind[:, None])
    found = AnswerLengths.of(AnswerTokens(embeddings, ("a",), tokens), SPACE)
    assert found is not None
    assert len(found.landmarks) <= MAX_LANDMARKS
    for number, vector in enumerate(kinds.astype(np.float32)):
        (length,) = found.expected(vector, (A,))
        assert length == pytest.approx(100 * (1 + number), rel=0.15)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_of_a_broken_embedding_no_length_is_expected(value: float) -> None:
    found = lengths([[1000, 20, np.nan]], [1])
    broken = np.append(embedding(1)[1:], np.float32(value))
    assert found.expected(broken, (A, BB, CCC)) == [None, None, None]


@pytest.mark.parametrize(("stated", "expected"), [(None, 400), (1500.0, 1500)])
def test_few_calls_stay_near_what_the_candidate_states(
    stated: float | None, expected: float
) -> None:
    found = lengths([[10, np.nan, np.nan]], [1])
    (near,) = found.expected(embedding(1), [replace(A, mean_output_tokens=stated)])
    (far,) = found.expected(-embedding(1), [replace(A, mean_output_tokens=stated)])
    assert near is not None
    assert far is not None
    assert 10 < near < far < expected


def test_one_absurd_report_in_twenty_moves_nothing() -> None:
    seeds = list(range(40))
    honest = lengths([[100.0, np.nan, np.nan]] * 40, seeds)
    poisoned = lengths([[1e6, np.nan, np.nan]] * 2 + [[100.0, np.nan, np.nan]] * 38, seeds)
    for seed in seeds:
        assert poisoned.expected(embedding(seed), [A]) == honest.expected(embedding(seed), [A])


def test_a_budget_excludes_by_the_better_estimate() -> None:
    candidates = (A, BB, CCC)
    priced = replace(table("a", "bb", "ccc"), candidates=candidates)
    policy = Policy("budget_usd", 5e-4)
    eligible = find_eligible(priced, policy, 10, 400.0)
    p = np.array([0.9, 0.5, 0.1], dtype=np.float32)
    revised, left = revise_costs(priced, eligible, p, policy, [6e-4, 1e-4, None])
    assert (list(revised.rows), revised.costs) == ([1, 2], (1e-4, 4e-4))
    assert left.tolist() == p[1:].tolist()
    assert "the budget is $0.0005" in revised.excluded["a"]
    all_above, left = revise_costs(priced, eligible, p, policy, [1.0, 1.0, 1.0])
    assert len(all_above.rows) == len(left) == 3


@pytest.mark.parametrize(("tokens", "budget"), [(20.0, 2e-4), (5000.0, 3e-3), (800.0, 5e-4)])
def test_known_lengths_admit_and_exclude_before_scoring(tokens: float, budget: float) -> None:
    """A budget between the cost of 400 tokens and that of the known length."""
    priced = replace(table("a", "bb", "ccc"), candidates=(A, BB, CCC))
    found = lengths([[tokens, np.nan, np.nan]] * 500, list(range(500)))
    policy = Policy("budget_usd", budget)
    stated = find_eligible(priced, policy, 10, 400.0)
    known = find_eligible(priced, policy, 10, 400.0, found.mean)
    assert (0 in known.rows) == (tokens < 400) != (0 in stated.rows)
    assert [row in known.rows for row in (1, 2)] == [row in stated.rows for row in (1, 2)]


async def test_recorded_usage_is_read_until_it_is_reset(tmp_path: Path) -> None:
    replica = Replica(tmp_path / "o.sqlite")
    used = [Usage(output_tokens=9000), Usage(output_tokens=9000, error="HTTP 529"), Usage()]
    for seed in range(30):
        outcome = RecordedOutcome(f"{seed:032x}", "a", 1.0, usage=used[seed % 3])
        await replica.store.record_report(OutcomeReport([outcome], replica.scored(seed)))
    await replica.source.refresh()
    found = replica.source.answer_lengths()
    assert found is not None
    assert found.counts == [10, 0, 0]
    (expected, unknown) = found.expected(embedding(0), (A, BB))
    assert expected is not None
    assert expected > 4000
    assert unknown is None
    await replica.source.reset()
    assert replica.source.answer_lengths() is None
    await replica.close()
