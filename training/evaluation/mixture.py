"""Measure several data folders together, each with its own candidates and the same weight.

Shapes: B instructions of a folder, M candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engine.bundle.types import FloatArray, Int64Array
from engine.routing import tradeoff
from training.evaluation import metrics
from training.evaluation.scored import ScoredDataset

MEANS = (
    "pooled_auc",
    "brier",
    "cell_error",
    "routed_accuracy",
    "best_constant_accuracy",
    "gain_over_constant",
    "top_candidate_share",
    "ece",
)


def measure_mixture(folders: Sequence[ScoredDataset]) -> dict[str, Any]:
    """Return figures of all folders with their 95 % intervals under NAME_ci.

    A figure is the mean over folders, ece excepted: its bins hold the pairs of all folders, whose
    weights are such that folders count alike. Routed and constant accuracy are over each folder's
    largest complete part; a folder without one is left out of them. Instructions are resampled
    within their folders.
    """
    blocks = [tradeoff.largest_complete_subset(f.scores) for f in folders]
    constants = [
        f.best_constant(b.candidates) if len(b.rows) else 0
        for f, b in zip(folders, blocks, strict=True)
    ]
    random = np.random.default_rng(0)

    def figures(rows: Sequence[Int64Array], complete: Sequence[Int64Array]) -> list[float]:
        parts = [
            _of_folder(f, r, c, b.candidates, constant)
            for f, r, c, b, constant in zip(folders, rows, complete, blocks, constants, strict=True)
        ]
        taken = zip(folders, rows, strict=True)
        together = _even_ece([(f.p[r], f.scores[r]) for f, r in taken])
        return [*(metrics.nanmean(column) for column in np.array(parts).T), together]

    values = figures([np.arange(len(f.p)) for f in folders], [b.rows for b in blocks])
    samples = [
        figures(
            [random.integers(0, len(f.p), len(f.p)) for f in folders],
            [random.choice(b.rows, len(b.rows)) if len(b.rows) else b.rows for b in blocks],
        )
        for _ in range(metrics.RESAMPLES)
    ]
    bounds = [metrics.middle_95(column) for column in np.array(samples).T]
    result: dict[str, Any] = {
        "instructions": sum(len(f.p) for f in folders),
        "candidates": sum(f.p.shape[1] for f in folders),
    }
    for name, value, bound in zip(MEANS, values, bounds, strict=True):
        result |= {name: value, f"{name}_ci": bound}
    return result


def _of_folder(
    folder: ScoredDataset,
    rows: Int64Array,
    complete: Int64Array,
    candidates: Int64Array,
    constant: int,
) -> list[float]:
    """Return the first figures of MEANS but the last, of these rows and complete rows."""
    p, y = folder.p[rows], folder.scores[rows]
    groups = [folder.outcomes.benchmarks[i] for i in rows]
    routed = fixed = float("nan")
    if len(complete):
        part = np.ix_(complete, candidates)
        chosen = folder.p[part].argmax(axis=1)
        outcomes = folder.scores[part]
        routed = float(outcomes[np.arange(len(complete)), chosen].mean())
        fixed = float(outcomes[:, constant].mean())
    return [
        metrics.pooled_auc(p, y),
        metrics.brier(p, y),
        metrics.nanmean(metrics.cell_errors(p, y, groups)),
        routed,
        fixed,
        routed - fixed,
        metrics.top_candidate_share(p),
    ]


def _even_ece(folders: Sequence[tuple[FloatArray, FloatArray]], bins: int = 15) -> float:
    """Return the expected calibration error of the pairs of all folders, folders weighing alike."""
    gaps = np.zeros(bins)
    for p, outcomes in folders:
        known = ~np.isnan(outcomes)
        index = np.minimum((p[known] * bins).astype(int), bins - 1)
        gaps += np.bincount(index, p[known] - outcomes[known], bins) / max(1, known.sum())
    return float(np.abs(gaps).sum() / max(1, len(folders)))


def describe_worst(gains: Mapping[str, float]) -> dict[str, Any]:
    """Name the folder with the smallest gain over its best constant; gains: folder -> gain."""
    known = {name: gain for name, gain in gains.items() if not np.isnan(gain)}
    if not known:
        return {}
    worst = min(known, key=lambda name: known[name])
    return {"worst_folder": worst, "worst_gain_over_constant": known[worst]}
