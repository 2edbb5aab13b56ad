"""Leave out principals whose outcomes contradict those of the others.

Shapes: K outcomes, N instructions, M candidates, R landmarks, which stand for the instructions
around them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.adaptation.outcome_matrix import KnownOutcomes
from engine.adaptation.regression import log_loss, sigmoid
from engine.bundle.types import Float32Array, Float64Array, Int64Array

CONTRADICTION = 3.0  # standard errors
MIN_OUTCOMES, MIN_OF_CANDIDATE = 20, 5  # of a principal
SHARPNESS = 2  # power of the kernel, so that others on other kinds of instructions say nothing
FARTHEST_SHARE = 0.1  # of landmarks, whose nearest one is too far to compare with


@dataclass(frozen=True, eq=False)
class Surroundings:
    """nearest: (N,) landmark of each instruction. similarities: (R, R) of landmarks."""

    nearest: Int64Array
    similarities: Float32Array


def find_contradicting(
    owner: Int64Array, outcomes: KnownOutcomes, left_out: Float64Array, regions: Surroundings
) -> Int64Array:
    """Return the principals with a minority of outcomes, of which one of two things is true.

    The correction is clearly worse than the weights on theirs, although it helps on the others'. Or
    a candidate scored clearly more or less than on the most similar instructions of others, so that
    what they say of it is not what it is like there.

    Args:
        owner: (N,) numbers of principals.
        outcomes: of N instructions.
        left_out: (K,) logits of the correction.
        regions: of the N instructions.
    """
    principals = int(owner.max(initial=-1)) + 1
    if principals < 2:
        return np.empty(0, dtype=np.int64)
    harm = log_loss(outcomes.y, sigmoid(left_out)) - log_loss(outcomes.y, sigmoid(outcomes.z))
    tables = _Tables.of(outcomes, regions)
    # More pairs of principal and candidate have more extreme errors by chance.
    limit = np.sqrt(CONTRADICTION**2 + 2 * np.log(principals * outcomes.candidates))
    found = []
    for principal in range(principals):
        mine = owner[outcomes.n] == principal
        if mine.sum() < MIN_OUTCOMES or 2 * mine.sum() > len(mine):
            continue
        error = harm[mine].std() / np.sqrt(mine.sum())
        is_harmed = harm[mine].mean() > CONTRADICTION * error and harm[~mine].mean() < 0
        if is_harmed or tables.errors(mine).max(initial=0.0) > limit:
            found.append(principal)
    return np.array(found, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class _Tables:
    """Outcomes by landmark and candidate, cell = landmark x M + candidate.

    cells, residuals: (K,) by the weights. counts, sums: (R, M). variances: (M,) of residuals.
    """

    cells: Int64Array
    residuals: Float64Array
    counts: Float64Array
    sums: Float64Array
    variances: Float64Array
    kernel: Float64Array

    @classmethod
    def of(cls, outcomes: KnownOutcomes, regions: Surroundings) -> _Tables:
        shape = len(regions.similarities), outcomes.candidates
        cells = regions.nearest[outcomes.n] * outcomes.candidates + outcomes.m
        residuals = outcomes.y - sigmoid(outcomes.z)
        counts = _table(cells, np.ones_like(residuals), shape)
        squares = _table(cells, residuals**2, shape)
        variances = squares.sum(axis=0) / np.maximum(counts.sum(axis=0), 1)
        sums = _table(cells, residuals, shape)
        kernel = regions.similarities.astype(np.float64) ** SHARPNESS
        return cls(cells, residuals, counts, sums, variances, kernel)

    def errors(self, mine: NDArray[np.bool_]) -> Float64Array:
        """Return by how many standard errors the outcomes `mine` (K,) of each candidate (M,) differ
        from what those of others predict for them."""
        shape = self.counts.shape
        counts = _table(self.cells[mine], np.ones(int(mine.sum())), shape)
        sums = _table(self.cells[mine], self.residuals[mine], shape)
        others, their_sums = self.counts - counts, self.sums - sums
        near = self._has_others_near(others)[:, None]
        counts, sums = counts * near, sums * near
        # A weighted mean of the others' residuals predicts each; `weights` sums up those weights.
        weights = self.kernel.T @ (counts / np.maximum(self.kernel @ others, 1e-9))
        difference = sums.sum(axis=0) - (weights * their_sums).sum(axis=0)
        variance = self.variances * (counts.sum(axis=0) + (weights**2 * others).sum(axis=0))
        is_enough = counts.sum(axis=0) >= MIN_OF_CANDIDATE
        return np.where(is_enough, np.abs(difference) / np.sqrt(np.maximum(variance, 1e-9)), 0.0)

    def _has_others_near(self, others: Float64Array) -> NDArray[np.bool_]:
        """Tell of each landmark whether others have outcomes about as near as landmarks are."""
        between = self.kernel - np.diag(np.diag(self.kernel))
        typical = np.quantile(between.max(axis=1), FARTHEST_SHARE)
        has = others.sum(axis=1) > 0
        return np.asarray(has | (between[:, has].max(axis=1, initial=0.0) >= typical))


def _table(cells: Int64Array, values: Float64Array, shape: tuple[int, int]) -> Float64Array:
    total = np.bincount(cells, values, shape[0] * shape[1])
    return np.asarray(total, dtype=np.float64).reshape(shape)
