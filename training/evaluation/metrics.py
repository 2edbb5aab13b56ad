"""How good predicted probabilities are.

Letters: B instructions, M candidates. p, outcomes: (B, M); NaN outcomes are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from engine.bundle.types import FloatArray, Int64Array
from engine.routing.tradeoff import largest_complete_subset

RESAMPLES = 200


def pooled_auc(p: FloatArray, outcomes: FloatArray) -> float:
    """AUC over all measured (instruction, candidate) pairs; outcomes above 0.5 count as good."""
    known = ~np.isnan(outcomes)
    good = outcomes[known] > 0.5
    return float(roc_auc_score(good, p[known])) if good.any() and not good.all() else float("nan")


def within_aucs(p: FloatArray, outcomes: FloatArray) -> FloatArray:
    """(B,) AUC of the candidates' order within each instruction; NaN where all did well or none."""
    values = np.full(len(p), np.nan)
    for i, (row, truth) in enumerate(zip(p, outcomes, strict=True)):
        good, bad = row[truth > 0.5], row[truth <= 0.5]
        if len(good) and len(bad):
            above = (good[:, None] > bad).mean() + 0.5 * (good[:, None] == bad).mean()
            values[i] = above
    return values


def per_instruction_auc(p: FloatArray, outcomes: FloatArray) -> float:
    """Mean of within_aucs."""
    return nanmean(within_aucs(p, outcomes))


def brier(p: FloatArray, outcomes: FloatArray) -> float:
    """Mean squared difference (Brier, 1950)."""
    return nanmean((p - outcomes) ** 2)


def reliability(
    p: FloatArray, outcomes: FloatArray, bins: int = 15
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(mean p, mean outcome, share of the pairs) of each of `bins` equal-width bins in use."""
    known = ~np.isnan(outcomes)
    values, truth = p[known], outcomes[known]
    index = np.minimum((values * bins).astype(int), bins - 1)
    count = np.bincount(index, minlength=bins)
    used = count > 0
    mean = np.bincount(index, values, bins)[used] / count[used]
    seen = np.bincount(index, truth, bins)[used] / count[used]
    return mean, seen, count[used] / count.sum()


def ece(p: FloatArray, outcomes: FloatArray) -> float:
    """Expected calibration error over 15 equal-width bins (Guo et al., ICML 2017); NaN of none."""
    mean, seen, share = reliability(p, outcomes)
    return float((np.abs(mean - seen) * share).sum()) if len(share) else float("nan")


def routed(p: FloatArray, outcomes: FloatArray) -> tuple[float, float]:
    """(mean outcome of the highest p, of the best single candidate), on
    tradeoff.largest_complete_subset; NaN
    where that is empty."""
    block = largest_complete_subset(outcomes)
    if not len(block.rows):
        return float("nan"), float("nan")
    part = np.ix_(block.rows, block.candidates)
    chosen = outcomes[part][np.arange(len(block.rows)), p[part].argmax(axis=1)]
    return float(chosen.mean()), float(outcomes[part].mean(axis=0).max())


def top_candidate_share(p: FloatArray) -> float:
    """Share of instructions whose highest p goes to the most often chosen candidate; NaN where
    there are none."""
    return float(np.bincount(p.argmax(axis=1)).max() / len(p)) if len(p) else float("nan")


def report(p: FloatArray, outcomes: FloatArray) -> dict[str, float]:
    """The figures that training watches, for p, outcomes (B, M)."""
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
    figure: Callable[[Int64Array], float], rows: int, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval of `figure` (of row numbers), over resampled instructions."""
    return intervals(lambda drawn: [figure(drawn)], rows, seed)[0]


def intervals(
    figures: Callable[[Int64Array], Sequence[float]], rows: int, seed: int = 0
) -> list[tuple[float, float]]:
    """The same of several figures of the same resamples, which share what they are made of."""
    random = np.random.default_rng(seed)
    values = np.array([figures(random.integers(0, rows, rows)) for _ in range(RESAMPLES)])
    return [_middle(of_one) for of_one in values.T]


def _middle(values: FloatArray) -> tuple[float, float]:
    """The middle 95 % of `values`, which may be infinite; NaN ones are left out."""
    known = values[~np.isnan(values)]
    if not len(known):
        return float("nan"), float("nan")
    # Between two infinities there is nothing to interpolate: their difference is NaN.
    infinite = bool(np.isinf(known).any())
    low, high = np.percentile(known, [2.5, 97.5], method="nearest" if infinite else "linear")
    return float(low), float(high)


def platt(margins: FloatArray, outcomes: FloatArray) -> tuple[float, float]:
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


def nanmean(values: FloatArray) -> float:
    """Mean of what is no NaN; NaN, without a warning, where nothing is left."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
