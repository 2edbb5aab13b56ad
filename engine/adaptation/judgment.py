"""Tell from known outcomes whether a correction helps, and whether the weights' choices do.

Shapes: K outcomes, M candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.adaptation.outcome_matrix import KnownOutcomes
from engine.adaptation.regression import log_loss, sigmoid
from engine.bundle.types import Float32Array, Float64Array

MIN_UNBIASED = 30  # outcomes


@dataclass(frozen=True)
class LossComparison:
    """Mean log loss of outcomes by the weights and by a correction, the standard error of the
    difference over instructions, and whether the outcomes are free of the router's choice."""

    before: float
    after: float
    standard_error: float
    unbiased: bool

    @property
    def errors(self) -> float:
        """Return the improvement in standard errors."""
        return (self.before - self.after) / max(self.standard_error, 1e-9)


def compare_losses(outcomes: KnownOutcomes, logits: Float64Array) -> LossComparison:
    """Compare on outcomes that no choice biases if there are enough, else on all.

    logits: (K,) by the correction.
    """
    enough = bool(outcomes.unbiased.sum() >= MIN_UNBIASED)
    used = outcomes.unbiased if enough else np.ones(len(outcomes.unbiased), dtype=bool)
    before = log_loss(outcomes.y, sigmoid(outcomes.z))[used]
    after = log_loss(outcomes.y, sigmoid(logits))[used]
    rows = np.unique(outcomes.n[used], return_inverse=True)[1]
    sums = np.bincount(rows, before - after)
    error = float(np.sqrt(((sums - sums.mean()) ** 2).sum()) / len(before))
    return LossComparison(float(before.mean()), float(after.mean()), error, enough)


def gain_of_weights(outcomes: KnownOutcomes, means: Float32Array) -> float:
    """Return by how much the weights' choices scored more than the best candidate on average.

    Over the instructions on which both are known and no choice of the router's biases them; 0 if
    there are none.

    Args:
        outcomes: of M candidates.
        means: (M,) probabilities on average.
    """
    default = int(means.argmax())
    kept = np.flatnonzero(outcomes.unbiased)
    n, m, z, y = (x[kept] for x in (outcomes.n, outcomes.m, outcomes.z, outcomes.y))
    by_default = dict(zip(n[m == default].tolist(), y[m == default].tolist(), strict=True))
    order = np.lexsort((z, n))
    last = order[np.append(n[order][1:] != n[order][:-1], True)[: len(order)]]
    gains = [y[k] - by_default[n[k]] for k in last if int(n[k]) in by_default]
    return float(np.mean(gains)) if gains else 0.0
