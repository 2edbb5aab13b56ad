"""How good predicted probabilities are. p, outcomes: (B, M); NaN outcomes are left out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

Floats = NDArray[np.floating]


def pooled_auc(p: Floats, outcomes: Floats) -> float:
    """AUC over all measured (instruction, candidate) pairs; outcomes above 0.5 count as good."""
    known = ~np.isnan(outcomes)
    return float(roc_auc_score(outcomes[known] > 0.5, p[known]))


def within_auc(p: Floats, outcomes: Floats) -> float:
    """Mean AUC of the candidates' order within an instruction, where some did well, some not."""
    values = []
    for row, truth in zip(p, outcomes, strict=True):
        known = ~np.isnan(truth)
        good = truth[known] > 0.5
        if good.any() and not good.all():
            values.append(roc_auc_score(good, row[known]))
    return float(np.mean(values))


def candidate_mean(train: Floats, rows: int) -> Floats:
    """(rows, M): what the constant predictor says, each candidate's mean outcome in training."""
    return np.tile(np.nanmean(train, axis=0), (rows, 1))


def routed(p: Floats, outcomes: Floats) -> tuple[float, float]:
    """(mean outcome of the highest p, of the best single candidate), where all were measured."""
    full = ~np.isnan(outcomes).any(axis=1)
    chosen = outcomes[full][np.arange(full.sum()), p[full].argmax(axis=1)]
    return float(chosen.mean()), float(outcomes[full].mean(axis=0).max())


def top_share(p: Floats) -> float:
    """Share of instructions whose highest p goes to the most often chosen candidate."""
    return float(np.bincount(p.argmax(axis=1)).max() / len(p))


def ece(p: Floats, outcomes: Floats, bins: int = 15) -> float:
    """Expected calibration error over `bins` equal-width bins (Guo et al., ICML 2017)."""
    known = ~np.isnan(outcomes)
    values, truth = p[known], outcomes[known]
    index = np.minimum((values * bins).astype(int), bins - 1)
    gaps = [
        abs(values[index == i].mean() - truth[index == i].mean()) * (index == i).mean()
        for i in np.unique(index)
    ]
    return float(sum(gaps))


def report(p: Floats, outcomes: Floats, train: Floats) -> dict[str, float]:
    """All of the above for p, outcomes (B, M), and of the constant predictor that `train`, the
    outcomes (N, M) of the training rows, gives."""
    constant = candidate_mean(train, len(p))
    accuracy, best = routed(p, outcomes)
    return {
        "pooled_auc": pooled_auc(p, outcomes),
        "candidate_mean_pooled_auc": pooled_auc(constant, outcomes),
        "within_auc": within_auc(p, outcomes),
        "candidate_mean_within_auc": within_auc(constant, outcomes),
        "ece": ece(p, outcomes),
        "top_share": top_share(p),
        "routed_accuracy": accuracy,
        "best_single_accuracy": best,
    }


def platt(margins: Floats, outcomes: Floats) -> tuple[float, float]:
    """(scale, offset) of p = sigmoid(scale * margin + offset) (Platt 1999).

    Outcomes between 0 and 1 count as that share of a success. The unit L2 penalty on the scale is
    lost among thousands of rows and keeps it finite where a few rows are separable.
    """
    known = ~np.isnan(outcomes)
    x, y = margins[known].astype(np.float64), outcomes[known].astype(np.float64)
    fit = LogisticRegression().fit(
        np.concatenate([x, x])[:, None],
        np.repeat([1, 0], len(y)),
        sample_weight=np.concatenate([y, 1 - y]),
    )
    return float(fit.coef_[0, 0]), float(fit.intercept_[0])
