"""Utility: what a candidate's success is worth, less what it costs.

Everything that orders candidates takes its utility from here: the ranking, the guard, the margin of
sessions, exploration, calibration and off-policy estimates. The utility of a candidate depends on
that candidate alone, so one that is never selected changes nothing. Pure functions. Shapes: M
candidates.
"""

from __future__ import annotations

import math

import numpy as np

from engine.api.policy import REFERENCE_COST_USD
from engine.bundle.types import FloatArray

# The lowest utility of a candidate with a price, however little a success is worth; and what one
# without a price has less than its probability, so that it comes after all of those. Far below what
# a request can cost, because utilities that are cut off lose their differences.
LOWEST, NO_PRICE = -1e9, 1e9 + 2


def cost_adjusted_utility(
    p: FloatArray, costs: FloatArray, willingness_to_pay_usd: float
) -> FloatArray:
    """Return p - cost / willingness to pay.

    It is the expected gain of a request in units of a success: p successes, less the successes
    that its cost could buy elsewhere at that price. With it a fixed total spent on many requests
    brings the most successes (H. Everett, Operations Research 1963, on Lagrange multipliers).

    Args:
        p: (..., M) success probabilities.
        costs: (..., M) expected costs in US dollars. A candidate of unknown cost (NaN) comes after
            all others.
        willingness_to_pay_usd: in US dollars per success, above 0; infinite ignores costs.
    """
    if willingness_to_pay_usd == math.inf:
        return p
    with np.errstate(over="ignore"):
        priced = np.maximum(p - costs / willingness_to_pay_usd, LOWEST)
    # In float32 they would all be the same.
    return np.where(np.isnan(costs), p.astype(np.float64) - NO_PRICE, priced)


def target_utility(p: FloatArray, costs: FloatArray, target: float) -> FloatArray:
    """Return a utility that puts candidates which reach the target probability in the order of
    their costs, above those which miss it.

    Of the former it is REFERENCE_COST_USD / (REFERENCE_COST_USD + cost), in [0, 1]; of the latter
    p - target. So the margins of sessions and exploration mean the same whatever other candidates
    cost.

    Args:
        p: (M,) success probabilities.
        costs: (M,) expected costs in US dollars, infinite if unknown.
        target: in [0, 1].
    """
    return np.where(p >= target, REFERENCE_COST_USD / (REFERENCE_COST_USD + costs), p - target)
