"""What a choice of cost sensitivity buys: accuracy and cost over recorded outcomes.

Pure functions. Letters: B instructions, M candidates. p, outcomes, costs: (B, M); costs in US
dollars; NaN outcomes and costs were not measured or are unknown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.bundle.types import FloatArray
from engine.routing.ranking import trade

SENSITIVITIES = (0.0, *np.geomspace(0.003, 30.0, 60).tolist())


@dataclass(frozen=True)
class Point:
    """Mean outcome and mean cost of what is chosen at one cost sensitivity. shares: (M,) how often
    each candidate is chosen."""

    sensitivity: float
    accuracy: float
    cost: float
    shares: NDArray[np.float64]


@dataclass(frozen=True)
class Block:
    """Candidates and instructions between which every outcome is measured."""

    candidates: NDArray[np.int64]
    rows: NDArray[np.int64]


def full_block(outcomes: FloatArray) -> Block:
    """The block with most outcomes among those of candidates measured at least as often as some
    candidate is; a choice can only be judged where every alternative was measured.

    Two candidates at least, for one alone leaves nothing to choose, unless there is only one in
    all. Empty where no instruction was measured for all of such a group.
    """
    known = ~np.isnan(outcomes)
    coverage = known.sum(axis=0)
    best = Block(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    for least in np.unique(coverage):
        candidates = np.flatnonzero(coverage >= least)
        if len(candidates) < min(2, known.shape[1]):
            continue
        rows = np.flatnonzero(known[:, candidates].all(axis=1))
        if len(candidates) * len(rows) > len(best.candidates) * len(best.rows):
            best = Block(candidates, rows)
    return best


def point(p: FloatArray, outcomes: FloatArray, costs: FloatArray, sensitivity: float) -> Point:
    """Outcome and cost of the best trade at `sensitivity`, as policy.choose would take it."""
    chosen = _cheapest_best(trade(p, costs, sensitivity), costs)
    rows = np.arange(len(p))
    shares = np.bincount(chosen, minlength=p.shape[1]) / max(1, len(p))
    # float64: in float32 the same outcomes in another order have another mean.
    accuracy = outcomes[rows, chosen].mean(dtype=np.float64)
    cost = costs[rows, chosen].mean()
    return Point(sensitivity, float(accuracy), float(cost), shares)


def _cheapest_best(utility: FloatArray, costs: FloatArray) -> NDArray[np.int64]:
    """(B,) the column with each row's highest utility; of equal ones the cheapest, unknown last."""
    best = utility == utility.max(axis=1, keepdims=True)
    known = np.where(np.isnan(costs), np.finfo(np.float64).max, costs)
    cheapest: NDArray[np.int64] = np.where(best, known, np.inf).argmin(axis=1)
    return cheapest


def curve(p: FloatArray, outcomes: FloatArray, costs: FloatArray) -> list[Point]:
    """A point for each of SENSITIVITIES, from the most accurate to the cheapest."""
    return [point(p, outcomes, costs, s) for s in SENSITIVITIES]


def singles(outcomes: FloatArray, costs: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(M,) mean outcome and (M,) mean cost of always taking one candidate."""
    return outcomes.mean(axis=0, dtype=np.float64), costs.mean(axis=0)


def cheapest_at(points: list[Point], accuracy: float) -> Point | None:
    """The cheapest point with at least `accuracy`; None where there is none."""
    reached = [x for x in points if x.accuracy >= accuracy - 1e-12]
    return min(reached, key=lambda x: x.cost) if reached else None


def mix_cost(accuracies: FloatArray, costs: FloatArray, accuracy: float) -> float:
    """The least mean cost at which a random mix of two candidates, the same for every instruction,
    has `accuracy`; infinite where none has."""
    best = np.inf
    for high, dear in zip(accuracies, costs, strict=True):
        if high < accuracy:
            continue
        best = min(best, float(dear))
        for low, cheap in zip(accuracies, costs, strict=True):
            if low < accuracy and cheap < dear:
                share = (accuracy - low) / (high - low)
                best = min(best, float(share * dear + (1 - share) * cheap))
    return best


def area(points: list[Point], costs: FloatArray) -> float:
    """Mean of the best accuracy at or below each cost, over costs from the cheapest candidate's to
    the dearest's; a mean of accuracies, in [0, 1]."""
    grid = np.linspace(float(costs.min()), float(costs.max()), 200)
    reached = [max((x.accuracy for x in points if x.cost <= c + 1e-15), default=0.0) for c in grid]
    return float(np.mean(reached))
