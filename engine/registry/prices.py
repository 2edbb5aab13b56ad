"""What each candidate of a data folder would cost, from its own entry or from a zoo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.contract.outcomes import Ints, Outcomes
from engine.registry.zoo import read_zoo


def costs_of(
    outcomes: Outcomes, input_tokens: Ints, zoo: Path | None, answer_tokens: float
) -> NDArray[np.float64]:
    """(B, M) US dollars of each instruction and candidate; NaN where no price is known.

    A candidate is matched to the zoo by its id or display name. input_tokens: (B,). answer_tokens:
    of an answer, where the zoo does not say.
    """
    known = {} if zoo is None else {n: c for c in read_zoo(zoo) for n in (c.id, c.display_name)}
    costs = np.full((len(input_tokens), len(outcomes.candidates)), np.nan)
    for column, name in enumerate(outcomes.candidates):
        candidate = known.get(name)
        for row, tokens in enumerate(input_tokens if candidate else ()):
            cost = candidate and candidate.expected_cost_usd(int(tokens), answer_tokens)
            costs[row, column] = np.nan if cost is None else cost
    return costs
