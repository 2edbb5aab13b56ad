"""The correction of probabilities by remembered comparisons that figures of null rows are taken
with: a plain form of the outcome memory (penalised logistic regressions and kernel residuals).

Shapes: N instructions, B tested ones, M candidates, D width, K features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
TAU, NEAR, LAM = 0.15, 100, 2.0  # kernel width over cosine, neighbours, shrinkage of residuals
PEN_W, PEN_B = 30.0, 30.0  # precision of the global weights' and the offsets' priors


def fit(features: Floats, y: Floats, start: Floats, precision: Floats) -> tuple[Floats, Floats]:
    """Penalised logistic regression: global weights of (N, M, K) features and an offset for each
    candidate. y: (N, M), NaN = unknown."""
    _, m, k = features.shape
    w, b, c = start.copy(), np.zeros(m), 0.0
    known = ~np.isnan(y)
    target = np.where(known, y, 0)
    prior = np.concatenate([precision, np.full(m, PEN_B), [2.0]])
    for _ in range(30):
        q = expit((features * w).sum(2) + b + c)
        g, h = np.where(known, q - target, 0), np.where(known, q * (1 - q), 0)
        cross = np.einsum("nm,nmk->mk", h, features)
        grad = np.concatenate([(g[..., None] * features).sum((0, 1)), g.sum(0), [g.sum()]])
        grad += prior * np.concatenate([w - start, b, [c]])
        hess = np.zeros((k + m + 1, k + m + 1))
        hess[:k, :k] = np.einsum("nm,nmi,nmj->ij", h, features, features)
        hess[:k, k:-1], hess[k:-1, :k] = cross.T, cross
        hess[k:-1, k:-1] = np.diag(h.sum(0))
        hess[:k, -1] = hess[-1, :k] = cross.sum(0)
        hess[k:-1, -1] = hess[-1, k:-1] = h.sum(0)
        hess[-1, -1] = h.sum()
        step = np.linalg.solve(hess + np.diag(prior), grad)
        w, b, c = w - step[:k], b - step[k:-1], c - step[-1]
        if np.abs(step).max() < 1e-6:
            break
    return w, b + c


def residuals(
    z: Floats, y: Floats, at: Floats, memory: Floats, leave_one_out: bool = False
) -> tuple[Floats, Floats]:
    """Kernel-weighted residuals in logits: the part common to all candidates, and the rest."""
    similarity = at @ memory.T
    if leave_one_out:
        np.fill_diagonal(similarity, -9)
    k = min(NEAR, max(5, len(memory) // 2), len(memory) - 1)
    near = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
    weight = np.exp((np.take_along_axis(similarity, near, 1) - 1) / TAU)
    q, known = expit(z), ~np.isnan(y)
    r, v = np.where(known, y - q, 0), np.where(known, q * (1 - q), 0)
    num, den = (np.einsum("bk,bkm->bm", weight, x[near]) for x in (r, v))
    common = num.sum(1, keepdims=True) / (den.sum(1, keepdims=True) + LAM)
    return np.broadcast_to(common, num.shape), (num - common * den) / (den + LAM)


def parts(z: Floats) -> tuple[Floats, Floats]:
    """What tells candidates apart, and what is common to them."""
    mean = z.mean(1, keepdims=True)
    return z - mean, np.broadcast_to(mean, z.shape)


def adapt(z: Floats, u: Floats, y: Floats, memory: Ints, test: Ints) -> Floats:
    """Correct the (B, M) probabilities of `test` rows by the outcomes of `memory` rows.

    z: (N, M) logits of the model. u: (N, D) null rows. y: (N, M) outcomes.
    """
    u = (u - u.mean(0)) / np.linalg.norm(
        u - u.mean(0), axis=1, keepdims=True
    )  # the bundle would hold the mean
    w, b = fit(np.stack(parts(z[memory]), 2), y[memory], np.ones(2), np.full(2, PEN_W))
    z = (np.stack(parts(z), 2) * w).sum(2) + b
    seen = np.stack(
        [*parts(z[memory]), *residuals(z[memory], y[memory], u[memory], u[memory], True)], 2
    )
    w, b = fit(
        seen, y[memory], np.array([1, 1, 0.5, 0.5]), np.array([PEN_W, PEN_W, PEN_W / 3, PEN_W / 3])
    )
    new = np.stack([*parts(z[test]), *residuals(z[memory], y[memory], u[test], u[memory])], 2)
    return np.asarray(expit((new * w).sum(2) + b))
