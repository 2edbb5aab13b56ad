"""Outcomes of a data folder, what a bundle predicts for them, and the constant to compare with.

Shapes: B instructions, M candidates, T training instructions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.bundle.types import Float32Array, FloatArray, Int64Array
from engine.datasets.outcomes import Outcomes
from training.evaluation import metrics

MIN_ROWS = 30  # instructions below which a benchmark has no metrics of its own


@dataclass(frozen=True)
class ScoredDataset:
    """Outcomes and what a bundle predicts for them.

    p: (B, M) probabilities. scores: (B, M), NaN if not measured. costs: (B, M) US dollars, NaN if
    no price is known. embeddings: (B, D) of the instructions. training_scores: (T, M) on the
    training part, which the best constant is chosen by; None or no rows takes `scores`.
    """

    outcomes: Outcomes
    p: FloatArray
    scores: FloatArray
    costs: FloatArray
    embeddings: Float32Array
    training_scores: FloatArray | None = None

    def best_constant(self, candidates: Int64Array) -> int:
        """Return the position among `candidates` of the one that is best on the training part.

        They are compared where all of them were measured, if that is on MIN_ROWS instructions;
        else those that were measured on MIN_ROWS, if there are any.
        """
        trained = self.training_scores
        scores = self.scores if trained is None or not len(trained) else trained
        scores = scores[:, candidates]
        complete = ~np.isnan(scores).any(axis=1)
        if complete.sum() >= MIN_ROWS:
            scores = scores[complete]
        enough = min(MIN_ROWS, int((~np.isnan(scores)).sum(axis=0).max(initial=0)))
        means = [
            metrics.nanmean(column) if (~np.isnan(column)).sum() >= enough else np.nan
            for column in scores.T
        ]
        return int(np.argmax(np.nan_to_num(means, nan=-1.0)))
