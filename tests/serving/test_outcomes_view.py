"""What the console computes of recorded outcomes: spend and savings, and reliability."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.adaptation.recent_decisions import RecentDecisions
from engine.api.candidate import Candidate
from engine.api.usage import Usage
from engine.registry.outcome_changes import RecentReports, read_recent_reports
from engine.registry.stores.outcome_types import OutcomeReport, RecordedOutcome
from engine.registry.stores.outcomes import OutcomeStore
from engine.registry.table import Table, make_table
from engine.serving.console.outcomes import outcomes_view, predicted

WIDTH, BUNDLE = 64, "weights"


def candidate(
    name: str,
    input_usd: float | None = None,
    output_usd: float | None = None,
    length: float | None = None,
) -> Candidate:
    return Candidate(
        name,
        (),
        input_usd_per_million=input_usd,
        output_usd_per_million=output_usd,
        mean_output_tokens=length,
    )


# Dear and good, cheap and short, without a price.
CANDIDATES = [
    candidate("dear", 10.0, 40.0, 200.0),
    candidate("cheap", 1.0, 2.0, 100.0),
    candidate("unpriced"),
]
P = {"cheap": 0.6, "dear": 0.9, "unpriced": 0.3}


def table_of(*candidates: Candidate) -> Table:
    ordered = sorted(candidates, key=lambda c: c.id)
    return make_table(1, [(c, np.ones(WIDTH, np.float32)) for c in ordered], WIDTH)


async def recent(path: Path, outcomes: list[RecordedOutcome], table: Table) -> RecentReports:
    """Record outcomes of decisions that predicted P, and read them back."""
    store, decisions = OutcomeStore(path, 1000), RecentDecisions(BUNDLE, 1 << 24, 60.0)
    p = np.array([P[c.id] for c in table.candidates], dtype=np.float32)
    for outcome in outcomes:
        embedding = np.ones(WIDTH, np.float32)
        scored = decisions.scored(table, np.arange(len(p)), p, embedding, outcome.candidate)
        await store.record_report(OutcomeReport([outcome], scored))
    found = await store.read(lambda db: read_recent_reports(db, 100))
    await store.close()
    return found


def outcome(number: int, candidate: str, score: float, usage: Usage | None) -> RecordedOutcome:
    return RecordedOutcome(f"{number:032x}", candidate, score, usage=usage)


async def test_spend_is_compared_with_each_candidate_alone(tmp_path: Path) -> None:
    table = table_of(*CANDIDATES)
    outcomes = [
        outcome(1, "cheap", 1.0, Usage(1000, 100)),
        outcome(2, "dear", 1.0, Usage(2000, 300)),
        outcome(3, "cheap", 0.0, Usage(cost_usd=0.5)),  # a price of its own, and no tokens
        outcome(4, "unpriced", 1.0, Usage(1000, 100)),
        outcome(5, "dear", 1.0, None),
        replace(outcome(6, "dear", 1.0, Usage(9000, 9000)), compared=True),
    ]
    view = outcomes_view(await recent(tmp_path / "o", outcomes, table), table, BUNDLE)["spend"]
    assert (view["outcomes"], view["with_usage"], view["calls"]) == (5, 4, 3)
    own = [1000e-6 + 200e-6, 20000e-6 + 12000e-6]
    assert view["usd"] == pytest.approx(sum(own) + 0.5)
    assert [(c["candidate"], c["calls"]) for c in view["candidates"]] == [("cheap", 2), ("dear", 1)]
    assert view["compared"]["usd"] == pytest.approx(sum(own))
    assert view["compared"]["probability"] == pytest.approx((0.6 + 0.9) / 2, abs=2e-3)
    assert [a["candidate"] for a in view["always"]] == ["dear", "cheap"], "the best comes first"
    # Its answers are twice as long as those of the other one, and half as long the other way.
    assert view["always"][0]["usd"] == pytest.approx(30000e-6 + 40e-6 * (200 + 300))
    assert view["always"][1]["usd"] == pytest.approx(3000e-6 + 2e-6 * (100 + 150))


async def test_reliability_says_who_is_overrated(tmp_path: Path) -> None:
    table = table_of(*CANDIDATES)
    outcomes = [outcome(i, "dear", float(i % 2), None) for i in range(40)]
    outcomes += [outcome(100 + i, "cheap", float(i % 5 < 3), None) for i in range(20)]
    found = await recent(tmp_path / "o", outcomes, table)
    view = outcomes_view(found, table, BUNDLE)["reliability"]
    dear, cheap = view["candidates"]
    assert (dear["candidate"], dear["outcomes"], cheap["outcomes"]) == ("dear", 40, 20)
    assert (dear["predicted"], dear["observed"]) == (pytest.approx(0.9, abs=2e-3), 0.5)
    assert dear["predicted"] - dear["observed"] > 2 * dear["standard_error"]
    assert abs(cheap["predicted"] - cheap["observed"]) < cheap["standard_error"]
    assert sum(part["outcomes"] for part in view["all"]["bins"]) == view["all"]["outcomes"] == 60
    assert view["without_prediction"] == 0


async def test_a_few_equal_outcomes_prove_little(tmp_path: Path) -> None:
    table = table_of(*CANDIDATES)
    found = await recent(tmp_path / "o", [outcome(i, "cheap", 1.0, None) for i in range(3)], table)
    (cheap,) = outcomes_view(found, table, BUNDLE)["reliability"]["candidates"]
    assert cheap["observed"] - cheap["predicted"] < 2 * cheap["standard_error"]


async def test_calls_that_failed_say_nothing_of_answers(tmp_path: Path) -> None:
    """Kind: an upstream that was down made its candidate look overrated."""
    table = table_of(*CANDIDATES)
    failed = [outcome(i, "dear", 0.0, Usage(10, 0, error="HTTP 529")) for i in range(1, 9)]
    answered = outcome(9, "dear", 1.0, Usage(10, 10))
    found = await recent(tmp_path / "o", [*failed, answered], table)
    view = outcomes_view(found, table, BUNDLE)
    assert [(c["outcomes"], c["observed"]) for c in view["reliability"]["candidates"]] == [(1, 1)]
    assert [(c["calls"], c["score"]) for c in view["spend"]["candidates"]] == [(9, 1.0)]


async def test_what_is_not_known_is_counted_and_not_guessed(tmp_path: Path) -> None:
    before = table_of(*CANDIDATES)
    found = await recent(tmp_path / "o", [outcome(1, "dear", 1.0, Usage(10, 10))], before)
    left = table_of(*CANDIDATES[1:])
    view = outcomes_view(found, left, BUNDLE)
    assert view["reliability"] == {"without_prediction": 1, "all": None, "candidates": []}
    assert (view["spend"]["calls"], view["spend"]["always"]) == (0, [])
    p = predicted(found, before, "other weights")
    assert np.isnan(p).all()
    empty = outcomes_view(RecentReports([], {}), before, BUNDLE)
    assert (empty["reports"], empty["since"], empty["spend"]["usd"]) == (0, None, 0)
