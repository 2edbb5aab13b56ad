"""Solve what users ask for, on traffic without outcomes, to a willingness to pay.

Expected cost and expected probability of the selected candidates never fall as the willingness to
pay rises, so that a share of either is found by bisection. Pure functions. Shapes: B requests, M
candidates; p and costs are (B, M). Where a candidate is not eligible, p is -inf. Costs are in US
dollars, NaN if unknown.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from engine.api.policy import RECOMMENDED_WILLINGNESS_USD
from engine.bundle.types import Float64Array, FloatArray, Int64Array
from engine.routing.tradeoff import select

LOWEST_USD, HIGHEST_USD = 1e-7, 1e4
STEPS = 60  # of a bisection, in equal ratios
POINTS = 13  # of a curve


@dataclass(frozen=True)
class ExpectedPoint:
    """What the selected candidates are expected to give at one willingness to pay.

    probability, cost: means over the requests; a request of unknown cost counts for neither.
    shares: (M,) of the requests.
    """

    willingness_to_pay_usd: float
    probability: float
    cost: float
    shares: Float64Array


@dataclass(frozen=True)
class TrafficTarget:
    """What to reach; one of them is not None, or none for a start without a target.

    max_cost_ratio, min_probability_ratio: of always taking the best candidate. strong_share: of the
    requests for the strong candidate.
    """

    max_cost_ratio: float | None = None
    min_probability_ratio: float | None = None
    strong_share: float | None = None


def best_candidate(p: FloatArray, costs: FloatArray) -> int:
    """Return the column of the highest mean probability among those with prices; it counts as 0
    where a candidate is not eligible. -1 if none has a price."""
    priced = ~np.isnan(costs).all(axis=0)
    if not priced.any():
        return -1
    means = np.where(np.isfinite(p), p, 0.0).mean(axis=0, dtype=np.float64)
    return int(np.where(priced, means, -1.0).argmax())


def expected_point(
    p: FloatArray, costs: FloatArray, willingness_to_pay_usd: float
) -> ExpectedPoint:
    """Return what ranking.rank would select on average, without a guard."""
    return _point(p, costs, select(p, costs, willingness_to_pay_usd), willingness_to_pay_usd)


def always(p: FloatArray, costs: FloatArray, column: int) -> ExpectedPoint:
    """Return what always taking one candidate would give; where it is not eligible, the highest
    probability."""
    is_eligible = np.isfinite(p[:, column])
    return _point(p, costs, np.where(is_eligible, column, p.argmax(axis=1)), math.inf)


def _point(p: FloatArray, costs: FloatArray, selected: Int64Array, usd: float) -> ExpectedPoint:
    rows = np.arange(len(p))
    cost = costs[rows, selected]
    known = ~np.isnan(cost)
    shares = np.bincount(selected, minlength=p.shape[1]) / max(1, len(p))
    if not known.any():
        return ExpectedPoint(usd, math.nan, math.nan, shares)
    probability = p[rows, selected][known].mean(dtype=np.float64)
    return ExpectedPoint(usd, float(probability), float(cost[known].mean()), shares)


def solve(
    p: FloatArray, costs: FloatArray, target: TrafficTarget, strong: int
) -> ExpectedPoint | None:
    """Return the point that meets a target, None if none does.

    A limit on the cost is met by the highest willingness to pay within it, the others by the lowest
    one that reaches them. Without a target it is the knee of the curve over the recommended range.

    Args:
        p, costs: see the module.
        target: to meet.
        strong: column of the candidate that is best, or that strong_share is about.
    """
    if target.max_cost_ratio is not None:
        limit = target.max_cost_ratio * always(p, costs, strong).cost * (1 + 1e-9)
        return _highest(p, costs, lambda x: x.cost <= limit)
    if target.min_probability_ratio is not None:
        least = target.min_probability_ratio * always(p, costs, strong).probability - 1e-9
        return _lowest(p, costs, lambda x: x.probability >= least)
    if target.strong_share is not None:
        share = target.strong_share - 1e-9
        return _lowest(p, costs, lambda x: float(x.shares[strong]) >= share)
    return knee([expected_point(p, costs, usd) for usd in evenly_moving(p, costs)])


def switch_points(p: FloatArray, costs: FloatArray) -> Float64Array:
    """Return where requests get another candidate, in US dollars per success, ascending: a value
    for each candidate that a request gets from there on."""
    found: list[float] = []
    for chances, prices in zip(p, costs, strict=True):
        usable = np.isfinite(chances) & ~np.isnan(prices)
        if not usable.any():
            continue
        chance, price = chances[usable].astype(np.float64), prices[usable]
        current = int(np.lexsort((-chance, price))[0])
        while (better := chance > chance[current]).any():
            gain = np.where(better, chance - chance[current], 1.0)
            usd = np.where(better, (price - price[current]) / gain, math.inf)
            found.append(float(usd.min()))
            current = int(np.lexsort((-chance, usd))[0])
    return np.sort(np.array(found))


def evenly_moving(p: FloatArray, costs: FloatArray, count: int = POINTS) -> list[float]:
    """Return up to `count` values of the recommended range, from end to end, between which equal
    parts of the traffic move to other candidates."""
    low, high = RECOMMENDED_WILLINGNESS_USD
    switches = switch_points(p, costs)
    within = switches[(switches > low) & (switches < high)]
    # In the middle between two switches: at one, the cheaper candidate has the same utility.
    borders = np.sqrt(within[1:] * within[:-1]) if len(within) else within
    places = np.linspace(0, len(borders), count)[1:-1].round().astype(int)
    inner = borders[places[places < len(borders)]].tolist()
    return sorted({low, *inner, high})


def knee(points: list[ExpectedPoint]) -> ExpectedPoint:
    """Return the point that is highest above the line from the first to the last one, in
    probability over cost."""
    first, last = points[0], points[-1]
    gain, spent = last.probability - first.probability, last.cost - first.cost
    if not (gain > 0 and spent > 0):
        return first
    return max(
        points,
        key=lambda x: (x.probability - first.probability) / gain - (x.cost - first.cost) / spent,
    )


def _highest(
    p: FloatArray, costs: FloatArray, holds: Callable[[ExpectedPoint], bool]
) -> ExpectedPoint | None:
    """Return the highest point for which `holds`, which is false from some willingness on."""
    everything = expected_point(p, costs, math.inf)
    if holds(everything):
        return everything
    low, high = LOWEST_USD, HIGHEST_USD
    if not holds(expected_point(p, costs, low)):
        return None
    for _ in range(STEPS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if holds(expected_point(p, costs, middle)) else (low, middle)
    return expected_point(p, costs, _three_digits(low, math.floor))


def _lowest(
    p: FloatArray, costs: FloatArray, holds: Callable[[ExpectedPoint], bool]
) -> ExpectedPoint | None:
    """Return the lowest point for which `holds`; found among 20 in each decade, then bisected,
    because the share of one candidate may rise and fall."""
    grid = [*np.geomspace(LOWEST_USD, HIGHEST_USD, 221).tolist(), math.inf]
    first = next((i for i, x in enumerate(grid) if holds(expected_point(p, costs, x))), None)
    if first is None:
        return None
    if first == 0 or grid[first] == math.inf:
        return expected_point(p, costs, grid[first])
    low, high = grid[first - 1], grid[first]
    for _ in range(STEPS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if holds(expected_point(p, costs, middle)) else (middle, high)
    return expected_point(p, costs, _three_digits(high, math.ceil))


def _three_digits(usd: float, rounded: Callable[[float], int]) -> float:
    """Round to three digits, in the direction that keeps what holds."""
    unit: float = 10.0 ** (math.floor(math.log10(usd)) - 2)
    return float(f"{rounded(usd / unit) * unit:.3g}")
