"""Score any texts for the candidates of a catalog, without a server and without outcomes.

Shapes: B texts, M candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine.api.candidate import DEFAULT_OUTPUT_TOKENS, Candidate
from engine.api.policy import Policy
from engine.bundle.types import FloatArray, Int64Array
from engine.inference.offline import score_candidates
from engine.routing import tradeoff


def score_texts(
    bundle: Path, texts: Sequence[str], candidates: Sequence[Candidate]
) -> tuple[FloatArray, FloatArray]:
    """Return probabilities and costs in US dollars, (B, M) each; NaN is a cost without a price.

    Raises BundleError.
    """
    scores = score_candidates(bundle, texts, candidates)
    costs = [
        [c.expected_cost_usd(int(tokens), DEFAULT_OUTPUT_TOKENS) for c in candidates]
        for tokens in scores.input_tokens
    ]
    return scores.p, np.array(costs, dtype=np.float64).reshape(scores.p.shape)


def choose(p: FloatArray, costs: FloatArray, sensitivity: float) -> Int64Array:
    """Return the (B,) columns that are chosen at a cost sensitivity; see Policy.willingness.

    Without a single price the highest probability is chosen.
    """
    if sensitivity == 0 or np.isnan(costs).all():
        return np.asarray(p.argmax(axis=1))
    return tradeoff.select(p, costs, Policy("cost_sensitivity", sensitivity).willingness)
