"""Accuracy and cost on recorded outcomes, as a function of the willingness to pay.

Pure functions. Shapes: B instructions, M candidates; p, outcomes and costs are (B, M). Costs are
in US dollars. A NaN outcome was not measured, a NaN cost is unknown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.bundle.types import Float64Array, FloatArray, Int64Array
from engine.routing.utility import cost_adjusted_utility

# In US dollars per success, from quality alone to next to nothing, ten in each decade.
WILLINGNESSES_USD = (np.inf, *np.geomspace(1e3, 1e-6, 91).tolist())


@dataclass(frozen=True)
class OperatingPoint:
    """Mean outcome and mean cost of the selected candidates at one willingness to pay, in US
    dollars per success.

    shares: (M,) how often each candidate is selected. standard_error: of accuracy; None if every
    outcome was measured. effective_outcomes, coverage: see OffPolicyEstimates; None if every
    outcome was measured.
    """

    willingness_to_pay_usd: float
    accuracy: float
    cost: float
    shares: Float64Array
    standard_error: float | None = None
    effective_outcomes: float | None = None
    coverage: float | None = None


@dataclass(frozen=True)
class CompleteSubset:
    """Columns (candidates) and rows (instructions) in which every outcome was measured."""

    candidates: Int64Array
    rows: Int64Array


def largest_complete_subset(outcomes: FloatArray) -> CompleteSubset:
    """Return the subset with the most outcomes, all measured: only there can a choice be compared
    with every alternative.

    Candidates join in the order of how often they were measured. There are at least two, because
    one alone leaves nothing to choose, unless there is only one in all. Empty if no instruction was
    measured for all candidates of such a group.
    """
    measured = ~np.isnan(outcomes)
    coverage = measured.sum(axis=0)
    largest = CompleteSubset(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    for minimum in np.unique(coverage):
        candidates = np.flatnonzero(coverage >= minimum)
        if len(candidates) < min(2, measured.shape[1]):
            continue
        rows = np.flatnonzero(measured[:, candidates].all(axis=1))
        if len(candidates) * len(rows) > len(largest.candidates) * len(largest.rows):
            largest = CompleteSubset(candidates, rows)
    return largest


def operating_point(
    p: FloatArray, outcomes: FloatArray, costs: FloatArray, willingness_to_pay_usd: float
) -> OperatingPoint:
    """Select by cost-adjusted utility, as ranking.rank does, and measure the result."""
    selected = select(p, costs, willingness_to_pay_usd)
    rows = np.arange(len(p))
    shares = np.bincount(selected, minlength=p.shape[1]) / max(1, len(p))
    # float64: in float32 the mean depends on the order of the outcomes.
    accuracy = outcomes[rows, selected].mean(dtype=np.float64)
    cost = costs[rows, selected].mean()
    return OperatingPoint(willingness_to_pay_usd, float(accuracy), float(cost), shares)


def select(p: FloatArray, costs: FloatArray, willingness_to_pay_usd: float) -> Int64Array:
    """Return (B,) columns that ranking.rank selects at a willingness to pay."""
    return _cheapest_best(cost_adjusted_utility(p, costs, willingness_to_pay_usd), costs)


def _cheapest_best(utility: FloatArray, costs: FloatArray) -> Int64Array:
    """Return (B,) columns of highest utility; among ties the cheapest, unknown costs last."""
    best = utility == utility.max(axis=1, keepdims=True)
    known = np.where(np.isnan(costs), np.finfo(np.float64).max, costs)
    cheapest: Int64Array = np.where(best, known, np.inf).argmin(axis=1)
    return cheapest


def curve(p: FloatArray, outcomes: FloatArray, costs: FloatArray) -> list[OperatingPoint]:
    """Return a point for each of WILLINGNESSES_USD, from the most accurate to the cheapest."""
    return [operating_point(p, outcomes, costs, usd) for usd in WILLINGNESSES_USD]


def finite(willingness_to_pay_usd: float) -> float | None:
    """Return a willingness to pay as JSON has it: None if only the probability counts."""
    return None if willingness_to_pay_usd == np.inf else willingness_to_pay_usd


def single_candidate_baselines(
    outcomes: FloatArray, costs: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return (M,) mean outcomes and (M,) mean costs of always using one candidate."""
    return outcomes.mean(axis=0, dtype=np.float64), costs.mean(axis=0)


def cheapest_at(points: list[OperatingPoint], accuracy: float) -> OperatingPoint | None:
    """Return the cheapest point with at least `accuracy`, None if there is none."""
    reached = [x for x in points if x.accuracy >= accuracy - 1e-12]
    return min(reached, key=lambda x: x.cost) if reached else None


def cheapest_mixture_cost(accuracies: FloatArray, costs: FloatArray, accuracy: float) -> float:
    """Return the lowest mean cost at which a random mixture of two candidates, the same for every
    instruction, reaches `accuracy`; infinite if none does.

    Args:
        accuracies: (M,) mean outcome of each candidate.
        costs: (M,) mean cost of each candidate.
        accuracy: to reach.
    """
    lowest = np.inf
    for high, high_cost in zip(accuracies, costs, strict=True):
        if high < accuracy:
            continue
        lowest = min(lowest, float(high_cost))
        for low, low_cost in zip(accuracies, costs, strict=True):
            if low < accuracy and low_cost < high_cost:
                share = (accuracy - low) / (high - low)
                lowest = min(lowest, float(share * high_cost + (1 - share) * low_cost))
    return lowest


def area_under_curve(points: list[OperatingPoint], costs: FloatArray) -> float:
    """Return the mean, over costs from the cheapest candidate's to the most expensive one's, of the
    best accuracy at or below each cost.

    Args:
        points: of one curve.
        costs: (M,) mean cost of each candidate.
    """
    grid = np.linspace(float(costs.min()), float(costs.max()), 200)
    reached = [max((x.accuracy for x in points if x.cost <= c + 1e-15), default=0.0) for c in grid]
    return float(np.mean(reached))
