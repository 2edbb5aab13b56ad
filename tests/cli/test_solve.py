"""Targets without outcomes are solved to a willingness to pay, and met."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.bundle.types import Float64Array
from engine.cli.calibrate import solve
from engine.cli.calibrate.solve import TrafficTarget
from engine.routing.calibration import assisted_estimate

COSTS = np.array([0.0002, 0.001, 0.004, 0.02])


def traffic(seed: int, count: int = 400) -> tuple[Float64Array, Float64Array]:
    """The more expensive the better on average, and not on every request."""
    random = np.random.default_rng(seed)
    hard = random.random((count, 1))
    p = 1 / (
        1 + np.exp(5 * hard - np.array([2.0, 2.6, 3.4, 4.0]) + random.normal(0, 0.4, (count, 4)))
    )
    p[random.random(count) < 0.1, 2] = -np.inf  # not eligible
    return p, np.where(np.isfinite(p), COSTS * random.uniform(0.5, 2, (count, 1)), np.nan)


@given(st.integers(0, 99), st.floats(0.05, 1))
def test_a_share_of_the_cost_is_used_and_not_exceeded(seed: int, ratio: float) -> None:
    p, costs = traffic(seed)
    best = solve.best_candidate(p, costs)
    limit = ratio * solve.always(p, costs, best).cost
    point = solve.solve(p, costs, TrafficTarget(max_cost_ratio=ratio), best)
    assert point is not None
    assert point.cost <= limit * (1 + 1e-6)
    more = solve.expected_point(p, costs, point.willingness_to_pay_usd * 1.05)
    assert more.cost > limit * 0.97 or more.cost == point.cost, "a higher value costs too much"


@given(st.integers(0, 99), st.floats(0.05, 0.95))
def test_the_strong_candidate_gets_its_share_and_little_more(seed: int, share: float) -> None:
    p, costs = traffic(seed)
    best = solve.best_candidate(p, costs)
    most = solve.expected_point(p, costs, math.inf).shares[best]
    point = solve.solve(p, costs, TrafficTarget(strong_share=share), best)
    if share > most:
        assert point is None or point.shares[best] >= share
    else:
        assert point is not None
        assert share <= point.shares[best] + 1e-9 <= share + 0.02


def test_what_cannot_be_met_has_no_answer() -> None:
    p, costs = traffic(0)
    best = solve.best_candidate(p, costs)
    assert solve.solve(p, costs, TrafficTarget(max_cost_ratio=1e-4), best) is None
    assert solve.solve(p, costs, TrafficTarget(min_probability_ratio=1.5), best) is None
    unpriced = np.full_like(costs, np.nan)
    assert solve.best_candidate(p, unpriced) == -1


def test_candidates_that_differ_alike_everywhere_change_places_within_the_budget() -> None:
    """No willingness to pay gives a share between; the answer keeps the limit."""
    p, costs = np.tile([0.6, 0.8], (50, 1)), np.tile([0.001, 0.01], (50, 1))
    point = solve.solve(p, costs, TrafficTarget(max_cost_ratio=0.5), 1)
    assert point is not None
    assert point.shares.tolist() == [1.0, 0.0]
    assert point.willingness_to_pay_usd == pytest.approx(0.045, rel=0.02)


def test_single_outcomes_correct_probabilities_that_are_off() -> None:
    """Each outcome is of the candidate that was selected; candidate 3 is worse than it looks."""
    random = np.random.default_rng(0)
    p = np.clip(random.uniform(0.3, 0.9, (3000, 4)), 0, 1)
    truth = p - np.array([0.0, 0.05, -0.05, 0.2])
    outcomes = np.full(p.shape, np.nan)
    logged, rows = p.argmax(axis=1), np.arange(len(p))
    outcomes[rows, logged] = random.random(len(p)) < truth[rows, logged]
    other = (p - 0.02 * np.arange(4)).argmax(axis=1)
    found = assisted_estimate(p, outcomes, other)
    right = truth[rows, other].mean()
    assert abs(p[rows, other].mean() - right) > 0.02
    assert found.doubly_robust.value == pytest.approx(right, abs=0.03)
    assert 0.003 < found.doubly_robust.standard_error < 0.03
    assert found.coverage == pytest.approx(1.0)
    few = np.where(rows[:, None] < 20, outcomes, np.nan)
    unsure = assisted_estimate(p, few, other)
    assert unsure.coverage < 0.5
    assert unsure.doubly_robust.standard_error > found.doubly_robust.standard_error
