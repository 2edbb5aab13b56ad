"""What failures on the way say about a task: that it is harder than its words show."""

from __future__ import annotations

import numpy as np

from engine.api.conversation.progress import RECENT_RESULTS
from engine.bundle.types import Float32Array

# No outcomes of agents' turns were measured: half the odds for each failure is an assumption.
ODDS_FACTOR, MAX_HALVINGS = 0.5, 3


def harder(p: Float32Array, failures: int) -> Float32Array:
    """Return the probabilities p (E,) with odds that are halved for each failure, three at most.

    All candidates share the factor, so their order stays. But of high probabilities the lower one
    falls faster, so that a better candidate is worth more than before.
    """
    if failures <= 0:
        return p
    factor = ODDS_FACTOR ** min(failures, MAX_HALVINGS)
    return np.asarray(p * factor / (1 - p * (1 - factor)), dtype=np.float32)


def escalation(failures: int, limit: int) -> str:
    """Say why the most probable candidate is to be chosen; "" if it is not. limit: 0 for never."""
    if not 0 < limit <= failures:
        return ""
    return (
        f"{failures} of the last {RECENT_RESULTS} steps on this task failed, {limit} is the limit"
    )
