"""A pairwise judge's shares say who is better, and nothing of how probable success is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.adaptation.fit import fit
from engine.adaptation.outcome_matrix import is_preference, scores_of_preferences
from engine.adaptation.regression import sigmoid
from engine.registry.stores.outcome_types import OutcomeReport, RecordedOutcome
from tests.adaptation.test_fit import NAMES, SPACE, World, corrected
from tests.support.replicas import Replica

SHARES = st.lists(
    st.tuples(st.none() | st.floats(0, 1, width=32), st.floats(-8, 8, width=32)),
    min_size=1,
    max_size=6,
)


@given(SHARES)
def test_the_sum_stays_that_of_the_weights(pairs: list[tuple[float | None, float]]) -> None:
    shares = np.array([[np.nan if s is None else s for s, _ in pairs]], dtype=np.float32)
    logits = np.array([[z for _, z in pairs]], dtype=np.float32)
    scores, known = scores_of_preferences(shares, logits), ~np.isnan(shares)
    p = sigmoid(logits.astype(np.float64))
    assert np.array_equal(np.isnan(scores), ~known)
    assert scores[known].sum() == pytest.approx(p[known].sum(), abs=1e-5)
    assert ((scores[known] > -1e-6) & (scores[known] < 1 + 1e-6)).all()
    if known.sum() == 1:
        np.testing.assert_allclose(scores[known], p[known], atol=1e-6)


@pytest.mark.parametrize("level", [-3.0, 0.0, 3.0])
@pytest.mark.parametrize("shares", [(1.0, 0.5, 0.0), (0.0, 1.0, 0.5), (0.25, 0.25, 1.0)])
def test_who_wins_more_than_expected_gets_more(level: float, shares: tuple[float, ...]) -> None:
    logits = np.full((1, 3), level, dtype=np.float32)
    (scores,) = scores_of_preferences(np.array([shares], dtype=np.float32), logits)
    assert (
        np.sign(np.subtract.outer(scores, scores)) == np.sign(np.subtract.outer(shares, shares))
    ).all()
    expected = np.array([[2.0, 0.0]], dtype=np.float32)
    as_thought = np.array([[sigmoid(np.array(2.0)), sigmoid(np.array(-2.0))]], dtype=np.float32)
    found = scores_of_preferences(as_thought, expected)
    np.testing.assert_allclose(found, sigmoid(expected.astype(np.float64)), atol=1e-6)


@pytest.mark.parametrize(
    ("grader", "expected"),
    [
        ("pairwise referee", True),
        ("pairwise one, pairwise other", True),
        ("numeric, pairwise referee", False),
        ("judge referee", False),
        ("", False),
    ],
)
async def test_what_is_recorded_as_pairwise_is_a_preference(
    tmp_path: Path, grader: str, expected: bool
) -> None:
    assert is_preference(grader) is expected
    replica = Replica(tmp_path / "o.sqlite")
    outcomes = [
        RecordedOutcome("1" * 32, name, score, compared=True, grader=grader)
        for name, score in (("a", 1.0), ("bb", 1.0), ("ccc", 0.0))
    ]
    await replica.store.record_report(OutcomeReport(outcomes, replica.scored(1)))
    matrix = await replica.matrix()
    p = sigmoid(matrix.logits.astype(np.float64))
    assert bool(abs(matrix.scores.sum() - p.sum()) < 1e-3) is expected
    await replica.close()


def test_preferences_teach_the_order_and_not_the_level() -> None:
    """All answers fail more often than the weights think, which no judge of pairs says."""
    gains, shifts = [], []
    for seed in range(6):
        world = World.of(seed)
        drawn, new = world.draw(300, seed), world.draw(300, seed + 1)
        better = (drawn.scores[:, :, None] - drawn.scores[:, None, :] + 1) / 2
        shares = (better.sum(axis=2) - 0.5) / (len(NAMES) - 1)
        drawn.logits[:] += 1.0
        new.logits[:] += 1.0
        drawn.scores[:] = scores_of_preferences(shares, drawn.logits)
        before, after = sigmoid(new.logits.astype(np.float64)), corrected(fit(drawn, SPACE), new)
        rows = np.arange(len(new))
        chosen = [new.scores[rows, p.argmax(axis=1)].mean() for p in (before, after)]
        gains.append(chosen[1] - chosen[0])
        shifts.append(abs(after.mean() - before.mean()))
    assert np.mean(gains) > 0.02
    assert max(shifts) < 0.03
