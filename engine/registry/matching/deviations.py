"""Tell what candidates are good at from the chance in an aptitude test.

Shapes: M candidates, T tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.bundle.types import Float64Array

QUESTIONS = 20  # of a task whose number of questions is unknown


@dataclass(frozen=True, eq=False)
class DeviationStatistics:
    """How accuracies deviate from the means of candidates.

    shared: (T,) of each task. kept_shared: share of its variance that sampling does not explain.
    skill: variance of what is a candidate's own. spread: mean variance of one answer. own_share: of
    sampling in what is a candidate's own.
    """

    shared: Float64Array
    kept_shared: float
    skill: float
    spread: float
    own_share: float


def shrunk_deviations(
    accuracies: Float64Array,
    questions: float | Float64Array = QUESTIONS,
    found: DeviationStatistics | None = None,
) -> Float64Array:
    """Return accuracies (M, T) less each candidate's mean, shrunk by their evidence.

    A deviation has a part that all candidates share, because the task is hard or easy, and one of
    its own. Each is multiplied by the share of its variance that sampling does not explain. NaN
    (not taken) gives 0. questions: of each task; one number, or (M, T). found: of other candidates,
    by which these are judged; None takes their own.
    """
    found = found or deviation_statistics(accuracies, questions)
    taken = ~np.isnan(accuracies)
    own = np.where(taken, _from_level(accuracies, taken) - found.shared, 0.0)
    # By the number of questions alone: the noise of a single accuracy is itself uncertain.
    own_noise = found.own_share * (found.spread / questions + 0.25 / np.square(questions))
    kept_own = found.skill / np.maximum(found.skill + own_noise, 1e-12)
    shrunk = found.kept_shared * found.shared + kept_own * own
    return np.asarray(np.where(taken, shrunk, 0.0))


def _from_level(accuracies: Float64Array, taken: NDArray[np.bool_]) -> Float64Array:
    values = np.where(taken, accuracies, 0.0)
    level = values.sum(axis=1, keepdims=True) / np.maximum(taken.sum(axis=1, keepdims=True), 1)
    return np.asarray(np.where(taken, values - level, 0.0))


def deviation_statistics(
    accuracies: Float64Array, questions: float | Float64Array = QUESTIONS
) -> DeviationStatistics:
    """Return the statistics of accuracies (M, T), NaN if not taken; see shrunk_deviations."""
    taken = ~np.isnan(accuracies)
    values = np.where(taken, accuracies, 0.0)
    count = np.maximum(taken.sum(axis=0), 1)  # of candidates
    deviation = _from_level(accuracies, taken)
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
    spread = float((weight * values * (1 - values)).sum())
    return DeviationStatistics(shared, kept_shared, skill, spread, own_share)


def _signal(variance: float, noise: float) -> float:
    return max(0.0, 1 - noise / variance) if variance > 1e-12 else 0.0
