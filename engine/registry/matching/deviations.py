"""Tell what candidates are good at from the chance in an aptitude test.

Shapes: M candidates, T tasks.
"""

from __future__ import annotations

import numpy as np

from engine.bundle.types import Float64Array

QUESTIONS = 20  # of a task whose number of questions is unknown


def shrunk_deviations(
    accuracies: Float64Array, questions: float | Float64Array = QUESTIONS
) -> Float64Array:
    """Return accuracies (M, T) less each candidate's mean, shrunk by their evidence.

    A deviation has a part that all candidates share, because the task is hard or easy, and one of
    its own. Each is multiplied by the share of its variance that sampling does not explain. NaN
    (not taken) gives 0. questions: of each task; one number, or (M, T).
    """
    taken = ~np.isnan(accuracies)
    values = np.where(taken, accuracies, 0.0)
    count = np.maximum(taken.sum(axis=0), 1)  # of candidates
    level = values.sum(axis=1, keepdims=True) / np.maximum(taken.sum(axis=1, keepdims=True), 1)
    deviation = np.where(taken, values - level, 0.0)
    # The second term keeps accuracies of 0 and 1 from looking certain.
    noise = np.where(taken, values * (1 - values) / questions + 0.25 / questions**2, 0.0)
    shared = deviation.sum(axis=0) / count
    own = np.where(taken, deviation - shared, 0.0)
    noise_of_one = noise.sum() / max(taken.sum(), 1)
    noise_of_mean = float((noise_of_one / count).mean()) if accuracies.size else 0.0
    kept_shared = _signal(float(shared.var()) if shared.size else 0.0, noise_of_mean)
    own_variance = float(own[taken].var()) if taken.any() else 0.0
    kept_own = _signal(own_variance, noise_of_one - noise_of_mean)
    return np.asarray(np.where(taken, kept_shared * shared + kept_own * own, 0.0))


def _signal(variance: float, noise: float) -> float:
    return max(0.0, 1 - noise / variance) if variance > 1e-12 else 0.0
