"""Penalized regressions over outcomes in coordinate form: K outcomes, each of one instruction and
one candidate. Shapes: N instructions, M candidates, R features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from engine.bundle.types import Float32Array, Float64Array, Int64Array

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
    features: Float32Array, weights: Float64Array, targets: Float64Array, variance: float
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Fit weighted ridge regressions that share features and weights.

    Args:
        features: (N, R).
        weights: (N,) precisions of the targets.
        targets: (N, T).
        variance: of the coefficients' prior.

    Returns:
        Coefficients (R, T); predictions (N, T); and predictions of each target by a fit without its
        row (N, T), from the hat matrix's diagonal (Golub, Heath and Wahba, 1979).
    """
    if 2 * len(features) < features.shape[1]:
        return _fit_ridge_by_rows(features, weights, targets, variance)
    weighted = features * weights[:, None].astype(np.float32)
    gram = (features.T @ weighted).astype(np.float64)
    gram[np.diag_indices_from(gram)] += 1 / variance
    inverse = np.linalg.inv(gram)
    coefficients = inverse @ (weighted.T @ targets.astype(np.float32)).astype(np.float64)
    predicted = features.astype(np.float64) @ coefficients
    spread = (features @ inverse.astype(np.float32)) * weighted
    leverage: Float64Array = np.clip(spread.sum(axis=1, dtype=np.float64), 0, MAX_LEVERAGE)
    left_out = (predicted - leverage[:, None] * targets) / (1 - leverage[:, None])
    return np.asarray(coefficients), np.asarray(predicted), np.asarray(left_out)


def _fit_ridge_by_rows(
    features: Float32Array, weights: Float64Array, targets: Float64Array, variance: float
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Fit the same in the dual, (N, N), for fewer rows than features: each of many candidates may
    have a few outcomes of its own."""
    wide, root = features.astype(np.float64), np.sqrt(weights)[:, None]
    kernel = variance * (wide @ wide.T)
    inverse = np.linalg.inv(root * kernel * root.T + np.eye(len(wide)))
    dual = root * (inverse @ (root * targets))
    predicted = kernel @ dual
    rest = np.maximum(np.diag(inverse), 1 - MAX_LEVERAGE)[:, None]  # 1 - leverage
    left_out = (predicted - (1 - rest) * targets) / rest
    return variance * (wide.T @ dual), predicted, left_out
