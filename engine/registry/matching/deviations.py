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
    # Accuracies of few questions say little of how much candidates differ.
    weight = np.where(taken, questions, 0.0)
    weight = weight / max(float(weight.sum()), 1e-12)
    own_share = 1 - noise_of_mean / noise_of_one if noise_of_one > 0 else 0.0
    skill = max(0.0, float((weight * (own**2 - own_share * noise)).sum()))
    # By the number of questions alone: the noise of a single accuracy is itself uncertain.
    spread = float((weight * values * (1 - values)).sum())
    own_noise = own_share * (spread / questions + 0.25 / np.square(questions))
    kept_own = skill / np.maximum(skill + own_noise, 1e-12)
    return np.asarray(np.where(taken, kept_shared * shared + kept_own * own, 0.0))


def _signal(variance: float, noise: float) -> float:
    return max(0.0, 1 - noise / variance) if variance > 1e-12 else 0.0
