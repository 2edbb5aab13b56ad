"""Leave the candidate that is best on average only on evidence.

Errors of the probabilities make the first of a ranking look better than it is, the more so the more
candidates there are. So another candidate than the default, which has the highest utility on
average, is selected only if its gain exceeds `confidence` standard errors of it. Where only choices
of the router's own are known, they do not say who is best on average; the default is then what the
weights alone would select. Errors are known where outcomes are, so without an adaptation there is
no guard: with the weights' mean error and the aptitude test's order in their place, it cost up to
2.1 points of routed accuracy and won .9 at most (ten folders). Pure functions. Shapes: E eligible
candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.bundle.types import Float32Array, FloatArray

# The largest standard error that the level of a whole test can have: .5 / sqrt(50 x 20).
WHOLE_TEST_ERROR = 0.016
OUTCOME_VARIANCE = 0.25  # the largest of an outcome in [0, 1]


@dataclass(frozen=True)
class Evidence:
    """How sure the probabilities of one request are.

    mean_p: (E,) probabilities on average over instructions; if those are unknown, by the weights
    for this one. standard_error: (E,) of the corrected ones, whose errors are taken as independent.
    default_is: what the best by `mean_p` is called.
    """

    mean_p: FloatArray
    standard_error: FloatArray
    default_is: str = "the best on average"

    def errors_of_differences(self, default: int) -> list[float]:
        """Return the standard errors (E,) of the differences from the default's probability."""
        found: list[float] = np.hypot(self.standard_error, self.standard_error[default]).tolist()
        return found


def with_level_errors(
    standard_error: FloatArray, level_errors: Float32Array, similar_outcomes: FloatArray
) -> FloatArray:
    """Add to standard errors (E,) what the levels of short tests are uncertain by.

    The error of a whole test is in those that were fitted. What a level's variance exceeds it by is
    added, less what the candidate's own outcomes tell, each with OUTCOME_VARIANCE.

    Args:
        standard_error: (E,) of the probabilities.
        level_errors: (E,) of the candidates' mean accuracies.
        similar_outcomes: (E,) effective numbers of remembered outcomes.
    """
    excess = np.maximum(level_errors**2 - WHOLE_TEST_ERROR**2, 0.0)
    left = excess / (1.0 + excess * similar_outcomes / OUTCOME_VARIANCE)
    return np.asarray(np.sqrt(standard_error**2 + left))


def first_above_bound(
    order: Sequence[int],
    gains: Sequence[float],
    errors: Sequence[float],
    default: int,
    confidence: float,
) -> int:
    """Return the position of the candidate to select.

    Args:
        order: (E,) positions, best first.
        gains: (E,) over the default.
        errors: (E,) standard errors of the gains.
        default: a position.
        confidence: in standard errors. 0 selects the first of the order; the higher it is, the
            later in the order is the selected one, up to the default.
    """
    if not confidence:
        return order[0]
    for i in order:
        if i == default or gains[i] > confidence * errors[i]:
            return i
    return default
