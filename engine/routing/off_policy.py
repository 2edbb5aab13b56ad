"""Estimate from logged outcomes what another policy would have given.

A log holds the outcome of the candidate that was chosen, and the propensity of that choice: the
probability with which the server that explores made it (engine/routing/exploration.py). A row
counts 1 / propensity times if the other policy makes the same choice, and not at all otherwise.

Inverse propensity: the mean of the outcomes under these weights, divided by their sum
(self-normalized; A. Swaminathan and T. Joachims, NIPS 2015). Doubly robust: the mean predicted
probability of the policy's choices, plus the weighted mean of outcome minus prediction where the
choices agree (M. Dudik, J. Langford and L. Li, ICML 2011). It is unbiased if the propensities are
right or the predictions are, and varies less the better the predictions. Weights are clipped at the
square root of the number of rows (E. L. Ionides, J. Comput. Graph. Stat. 2008).

Pure functions. Shapes: N rows of a log.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.bundle.types import Float64Array, FloatArray


@dataclass(frozen=True)
class LoggedOutcomes:
    """The rows of a log that have both an outcome and a propensity.

    outcome: (N,) in [0, 1]. propensity: (N,) in (0, 1]. p: (N,) predicted probabilities of the
    logged candidates.
    """

    outcome: FloatArray
    propensity: FloatArray
    p: FloatArray

    def __len__(self) -> int:
        """Return N."""
        return len(self.outcome)


@dataclass(frozen=True)
class Estimate:
    """A mean outcome with its standard error; NaN if there are too few rows to tell."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class OffPolicyEstimates:
    """What a policy would have given.

    rows: N. effective_outcomes: of equal weight that would tell as much (L. Kish, 1965). coverage:
    estimated share of the policy's choices that the log could have held; about them alone does
    inverse propensity speak, and for the others doubly robust is the prediction.
    """

    inverse_propensity: Estimate
    doubly_robust: Estimate
    rows: int
    effective_outcomes: float
    coverage: float


def estimate(logged: LoggedOutcomes, same: NDArray[np.bool_], p: FloatArray) -> OffPolicyEstimates:
    """Estimate the mean outcome of a policy.

    Args:
        logged: the log.
        same: (N,) whether the policy chooses the logged candidate.
        p: (N,) predicted probabilities of the policy's choices.
    """
    weights = np.where(same, 1 / logged.propensity.astype(np.float64), 0.0)
    clipped = np.minimum(weights, math.sqrt(max(1, len(logged))))
    squares = float((clipped**2).sum())
    return OffPolicyEstimates(
        _inverse_propensity(logged, clipped),
        _doubly_robust(logged, clipped, p),
        len(logged),
        float(clipped.sum()) ** 2 / squares if squares else 0.0,
        min(1.0, float(weights.mean())) if len(logged) else math.nan,
    )


def _inverse_propensity(logged: LoggedOutcomes, weights: Float64Array) -> Estimate:
    total = float(weights.sum())
    if np.count_nonzero(weights) < 2:
        return Estimate(math.nan, math.nan)
    value = float((weights * logged.outcome).sum()) / total
    # By the delta method, as the sum of the weights is random too.
    error = math.sqrt(float((weights**2 * (logged.outcome - value) ** 2).sum())) / total
    return Estimate(value, error)


def _doubly_robust(logged: LoggedOutcomes, weights: Float64Array, p: FloatArray) -> Estimate:
    if len(logged) < 2:
        return Estimate(math.nan, math.nan)
    terms = p + weights * (logged.outcome - logged.p)
    return Estimate(float(terms.mean()), float(terms.std(ddof=1)) / math.sqrt(len(terms)))
