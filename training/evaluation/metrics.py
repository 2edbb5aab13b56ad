"""Measure the quality of predicted probabilities.

Shapes: B instructions, M candidates. p, outcomes: (B, M). NaN outcomes were not measured and are
left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from engine.bundle.types import FloatArray, Int64Array
from engine.routing.tradeoff import largest_complete_subset

RESAMPLES = 200
MIN_CELL = 20  # outcomes of a (benchmark, candidate) cell


def pooled_auc(p: FloatArray, outcomes: FloatArray) -> float:
    """AUC over all measured pairs of instruction and candidate; an outcome above 0.5 is good."""
    known = ~np.isnan(outcomes)
    good = outcomes[known] > 0.5
    return float(roc_auc_score(good, p[known])) if good.any() and not good.all() else float("nan")


def per_instruction_aucs(p: FloatArray, outcomes: FloatArray) -> FloatArray:
    """(B,) AUC of each instruction's candidates; NaN if all of them did well, or none."""
    values = np.full(len(p), np.nan)
    for i, (row, truth) in enumerate(zip(p, outcomes, strict=True)):
        good, bad = row[truth > 0.5], row[truth <= 0.5]
        if len(good) and len(bad):
            above = (good[:, None] > bad).mean() + 0.5 * (good[:, None] == bad).mean()
            values[i] = above
    return values


def per_instruction_auc(p: FloatArray, outcomes: FloatArray) -> float:
    """Mean over instructions of the AUC of their candidates."""
    return nanmean(per_instruction_aucs(p, outcomes))


def brier(p: FloatArray, outcomes: FloatArray) -> float:
    """Mean squared error of the probabilities (Brier, 1950)."""
    return nanmean((p - outcomes) ** 2)


def reliability(
    p: FloatArray, outcomes: FloatArray, bins: int = 15
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Group pairs by p into equal-width bins.

    Returns:
        (mean p, mean outcome, share of all pairs) of each bin that is not empty.
    """
    known = ~np.isnan(outcomes)
    values, truth = p[known], outcomes[known]
    index = np.minimum((values * bins).astype(int), bins - 1)
    count = np.bincount(index, minlength=bins)
    used = count > 0
    mean = np.bincount(index, values, bins)[used] / count[used]
    seen = np.bincount(index, truth, bins)[used] / count[used]
    return mean, seen, count[used] / count.sum()


def ece(p: FloatArray, outcomes: FloatArray) -> float:
    """Expected calibration error over 15 equal-width bins (Guo et al., ICML 2017)."""
    mean, seen, share = reliability(p, outcomes)
    return float((np.abs(mean - seen) * share).sum()) if len(share) else float("nan")


def cell_errors(p: FloatArray, outcomes: FloatArray, groups: Sequence[str]) -> FloatArray:
    """|mean p - mean outcome| of each cell, a cell being a candidate's outcomes in one group.

    groups: (B,) such as benchmarks. Cells of fewer than MIN_CELL outcomes are left out. Chance adds
    to a cell's error, so that resampling gives higher values than the rows themselves.
    """
    names, found = np.array(groups), []
    for group in np.unique(names):
        p_group, y_group = p[names == group], outcomes[names == group]
        known = ~np.isnan(y_group)
        count = known.sum(axis=0)
        used = count >= MIN_CELL
        error = np.where(known, p_group - np.nan_to_num(y_group), 0).sum(axis=0)
        found.append(np.abs(error[used] / count[used]))
    return np.concatenate(found) if found else np.zeros(0)


def routed(p: FloatArray, outcomes: FloatArray) -> tuple[float, float]:
    """Mean outcome of the candidate with the highest p, and of the best single candidate.

    Over the largest complete subset (engine/routing/tradeoff.py); NaN if it is empty.
    """
    block = largest_complete_subset(outcomes)
    if not len(block.rows):
        return float("nan"), float("nan")
    part = np.ix_(block.rows, block.candidates)
    chosen = outcomes[part][np.arange(len(block.rows)), p[part].argmax(axis=1)]
    return float(chosen.mean()), float(outcomes[part].mean(axis=0).max())


def top_candidate_share(p: FloatArray) -> float:
    """Share of instructions whose highest p is that of the most selected candidate."""
    return float(np.bincount(p.argmax(axis=1)).max() / len(p)) if len(p) else float("nan")


def report(p: FloatArray, outcomes: FloatArray) -> dict[str, float]:
    """Measure the metrics that training watches."""
    accuracy, best = routed(p, outcomes)
    return {
        "pooled_auc": pooled_auc(p, outcomes),
        "per_instruction_auc": per_instruction_auc(p, outcomes),
        "ece": ece(p, outcomes),
        "top_candidate_share": top_candidate_share(p),
        "routed_accuracy": accuracy,
        "best_single_accuracy": best,
    }


def interval(
    metric: Callable[[Int64Array], float], rows: int, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval of `metric` (a function of row numbers), over instructions."""
    return intervals(lambda sample: [metric(sample)], rows, seed)[0]


def intervals(
    metrics: Callable[[Int64Array], Sequence[float]], rows: int, seed: int = 0
) -> list[tuple[float, float]]:
    """95 % bootstrap intervals of several metrics, computed together on the same resamples."""
    random = np.random.default_rng(seed)
    values = np.array([metrics(random.integers(0, rows, rows)) for _ in range(RESAMPLES)])
    return [middle_95(of_metric) for of_metric in values.T]


def middle_95(values: FloatArray) -> tuple[float, float]:
    """Bounds of the middle 95 % of `values`, which may be infinite; NaN are left out."""
    known = values[~np.isnan(values)]
    if not len(known):
        return float("nan"), float("nan")
    # Between two infinities there is nothing to interpolate: their difference is NaN.
    infinite = bool(np.isinf(known).any())
    low, high = np.percentile(known, [2.5, 97.5], method="nearest" if infinite else "linear")
    return float(low), float(high)


def platt(margins: FloatArray, outcomes: FloatArray) -> tuple[float, float]:
    """Fit (scale, offset) of p = sigmoid(scale * margin + offset) (Platt, 1999).

    Outcomes between 0 and 1 count as that share of a success. The unit L2 penalty on the scale
    does not matter among thousands of rows, and keeps it finite if a few rows are separable.
    """
    known = ~np.isnan(outcomes)
    x, y = margins[known].astype(np.float64), outcomes[known].astype(np.float64)
    fit = LogisticRegression().fit(
        np.concatenate([x, x])[:, None],
        np.repeat([1, 0], len(y)),
        sample_weight=np.concatenate([y, 1 - y]),
    )
    return float(fit.coef_[0, 0]), float(fit.intercept_[0])


def nanmean(values: FloatArray) -> float:
    """Mean of the values that are not NaN; NaN, without a warning, if all are."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
