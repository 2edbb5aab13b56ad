"""Penalized regressions over outcomes in coordinate form: K outcomes, each of one instruction and
one candidate. Shapes: N instructions, M candidates, R features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from engine.bundle.types import Float32Array, Float64Array, FloatArray, Int64Array

NEWTON_STEPS, HALVINGS = 6, 12
MAX_LEVERAGE = 0.999


def sigmoid(z: Float64Array) -> Float64Array:
    """Return 1 / (1 + exp(-z)), exact for large |z|."""
    return np.asarray(0.5 * (1 + np.tanh(z / 2)))


def log_loss(y: Float64Array, p: Float64Array) -> Float64Array:
    """Return the log loss of each outcome; y in [0, 1] may be a share."""
    p = np.clip(p, 1e-6, 1 - 1e-6)
    return np.asarray(-(y * np.log(p) + (1 - y) * np.log(1 - p)))


@dataclass(frozen=True, eq=False)
class LogisticWeights:
    """common: (C,) and relative: (F,) feature weights. offsets: (M,)."""

    common: Float64Array
    relative: Float64Array
    offsets: Float64Array

    def logits(self, common: Float64Array, relative: Float64Array, m: Int64Array) -> Float64Array:
        """Return the logits of K outcomes of candidates m from features (C, K) and (F, K)."""
        return np.asarray(self.common @ common + self.relative @ relative + self.offsets[m])


def fit_logistic(
    y: Float64Array,
    m: Int64Array,
    weights: tuple[Float64Array, Float64Array],
    common: Float64Array,
    relative: Float64Array,
    prior: LogisticWeights,
    precision: tuple[Float64Array, Float64Array, float],
) -> LogisticWeights:
    """Fit a logistic regression with normal priors by Newton steps on two blocks in turn, halved
    until the penalized loss does not rise: where the prior is almost sure and wrong, the curvature
    says little of a whole step.

    Weights of common features say the same of all candidates; weights of relative features and the
    candidates' offsets decide between them. The two learn from an outcome by weights of their own.

    Args:
        y: (K,) scores in [0, 1].
        m: (K,) candidates.
        weights: of outcomes for common and for relative features and offsets, (K,) in [0, 1].
        common: (C, K) features.
        relative: (F, K) features.
        prior: the means, where the fit begins.
        precision: of common weights (C,), of relative weights (F,), and of offsets.
    """
    fitted, count = prior, len(prior.offsets)

    def loss(at: LogisticWeights, weight: Float64Array) -> float:
        z = at.logits(common, relative, m)
        penalty = precision[0] @ (at.common - prior.common) ** 2
        penalty += precision[1] @ (at.relative - prior.relative) ** 2
        penalty += precision[2] * ((at.offsets - prior.offsets) ** 2).sum()
        return float(weight @ (np.logaddexp(0, z) - y * z) + penalty / 2)

    def moved(step: LogisticWeights, weight: Float64Array) -> LogisticWeights:
        before = loss(fitted, weight)
        for share in 0.5 ** np.arange(HALVINGS):
            there = LogisticWeights(
                fitted.common - share * step.common,
                fitted.relative - share * step.relative,
                fitted.offsets - share * step.offsets,
            )
            if loss(there, weight) <= before:
                return there
        return fitted

    still = LogisticWeights(*(np.zeros_like(x) for x in vars(prior).values()))
    for _ in range(NEWTON_STEPS):
        q = sigmoid(fitted.logits(common, relative, m))
        gradient = common @ (weights[0] * (q - y)) + precision[0] * (fitted.common - prior.common)
        hessian = (common * (weights[0] * q * (1 - q))) @ common.T + np.diag(precision[0])
        step: Float64Array = np.linalg.solve(hessian, gradient).astype(np.float64)
        fitted = moved(replace(still, common=step), weights[0])
        q = sigmoid(fitted.logits(common, relative, m))
        slope, curve = weights[1] * (q - y), weights[1] * q * (1 - q)
        first = relative @ slope + precision[1] * (fitted.relative - prior.relative)
        second = np.bincount(m, slope, count) + precision[2] * (fitted.offsets - prior.offsets)
        own = np.bincount(m, curve, count) + precision[2]
        cross = np.stack([np.bincount(m, curve * each, count) for each in relative])
        # The offsets' block is diagonal, so its Schur complement is cheap.
        hessian = (relative * curve) @ relative.T + np.diag(precision[1]) - (cross / own) @ cross.T
        step = np.linalg.solve(hessian, first - (cross / own) @ second).astype(np.float64)
        offsets = (second - cross.T @ step) / own
        fitted = moved(replace(still, relative=step, offsets=offsets), weights[1])
    return fitted


def fit_ridge(
    features: Float32Array,
    weights: Float64Array,
    targets: Float64Array,
    variances: Sequence[float],
) -> list[tuple[Float64Array, Float64Array, Float64Array]]:
    """Fit weighted ridge regressions that share features and weights, by each of several variances.

    One eigendecomposition serves all variances. It is of the smaller of the two Gram matrices: each
    of many candidates may have a few outcomes of its own.

    Args:
        features: (N, R).
        weights: (N,) precisions of the targets.
        targets: (N, T).
        variances: of the coefficients' prior.

    Returns:
        For each variance, coefficients (R, T); predictions (N, T); and predictions of each target
        by a fit without its row (N, T), from the hat matrix's diagonal (Golub, Heath and Wahba,
        1979).
    """
    root, by_rows = np.sqrt(weights)[:, None], 2 * len(features) < features.shape[1]
    exact: FloatArray = features.astype(np.float64 if by_rows else np.float32, copy=False)
    weighted = exact * root.astype(exact.dtype)
    if by_rows:
        values, vectors = np.linalg.eigh(weighted @ weighted.T)
        basis, projected = weighted.T @ vectors, vectors.T @ (root * targets)
        squares = vectors**2 * values
    else:
        values, basis = np.linalg.eigh((weighted.T @ weighted).astype(np.float64))
        projected = basis.T @ (weighted.T @ (root * targets).astype(np.float32))
        squares = (weighted @ basis.astype(np.float32)) ** 2
    found = []
    for variance in variances:
        shrinkage = 1 / (np.maximum(values, 0) + 1 / variance)
        coefficients = basis @ (shrinkage[:, None] * projected)
        predicted = (exact @ coefficients.astype(exact.dtype)).astype(np.float64)
        leverage = np.clip(squares @ shrinkage.astype(exact.dtype), 0, MAX_LEVERAGE)[:, None]
        left_out = (predicted - leverage * targets) / (1 - leverage)
        found.append((coefficients, predicted, left_out))
    return found
