"""Hold what is remembered of instructions and candidates, as arrays that a fit reads.

Shapes: N instructions, M candidates, K outcomes, D width.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from engine.bundle.types import Float32Array, Float64Array, FloatArray, Int64Array

# How an outcome came about. "comparison": several candidates were asked, whatever was chosen.
# "explored": drawn with a known probability. "chosen": the router's choice, which biases it.
Provenance = Literal["comparison", "explored", "chosen"]
PROVENANCES: tuple[Provenance, ...] = ("comparison", "explored", "chosen")


@dataclass(frozen=True, eq=False)
class OutcomeMatrix:
    """The remembered outcomes, oldest instruction first.

    embeddings: (N, D) instruction embeddings, as a backend returns them. candidates: M IDs, sorted.
    logits: (N, M) log-odds by the weights, NaN where a candidate was not scored. scores: (N, M) in
    [0, 1], NaN where no outcome is known. provenance: (N, M) positions in PROVENANCES, -1 where no
    outcome is known. propensity: (N, M) probability of having chosen the candidate, 1 if it was not
    drawn. principals: N names of those who recorded them. recorded_at: (N,) seconds since 1970.
    """

    embeddings: Float32Array
    candidates: tuple[str, ...]
    logits: Float32Array
    scores: Float32Array
    provenance: NDArray[np.int8]
    propensity: Float32Array
    principals: tuple[str, ...]
    recorded_at: FloatArray

    def __len__(self) -> int:
        """Return N."""
        return len(self.embeddings)

    @cached_property
    def id(self) -> str:
        """Identify the content: 16 hexadecimal digits, the same for the same outcomes anywhere."""
        digest = hashlib.sha256("\n".join((*self.candidates, "", *self.principals)).encode())
        for array in (
            self.embeddings,
            self.logits,
            self.scores,
            self.provenance,
            self.propensity,
            self.recorded_at,
        ):
            # A copy of a large array would hold the interpreter's lock.
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class KnownOutcomes:
    """Known outcomes in coordinate form: instruction n, candidate m, weights' logit z, score y, and
    the weight where candidates are compared, each (K,). unbiased: (K,) not of the router's own
    choice."""

    n: Int64Array
    m: Int64Array
    z: Float64Array
    y: Float64Array
    weight: Float64Array
    unbiased: NDArray[np.bool_]
    candidates: int

    def of(self, rows: Int64Array) -> KnownOutcomes:
        """Keep the outcomes of these instructions."""
        kept = np.isin(self.n, rows)
        return KnownOutcomes(
            self.n[kept],
            self.m[kept],
            self.z[kept],
            self.y[kept],
            self.weight[kept],
            self.unbiased[kept],
            self.candidates,
        )


def is_preference(grader: str) -> bool:
    """Tell whether a grader's scores are shares of pairs that were won, as `modelsat compare`
    names its pairwise judges: they say who is better, not who succeeds."""
    return bool(grader) and all(name.startswith("pairwise ") for name in grader.split(", "))


def scores_of_preferences(shares: Float32Array, logits: Float32Array) -> Float32Array:
    """Return scores (N, M) that say the same of the order as shares of won pairs, and nothing of a
    level that the weights do not say already.

    The weights expect a share, the mean over the others of sigmoid(z_m - z_other) (Bradley and
    Terry, 1952). What a share exceeds that by is added to the probability by the weights, scaled so
    that all stay in [0, 1] and centered so that an instruction's sum stays that of the weights.

    Args:
        shares: (N, M) in [0, 1], NaN where unknown.
        logits: (N, M) by the weights, known where a share is.
    """
    known = ~np.isnan(shares)
    z = np.where(known, logits, 0).astype(np.float64)
    expected = np.zeros_like(z)
    for column in np.flatnonzero(known.any(axis=0)):
        wins = 1 / (1 + np.exp(z[:, [column]] - z))
        expected += np.where(known[:, [column]], wins, 0)
    count = np.maximum(known.sum(axis=1, keepdims=True), 1)
    expected = (expected - 0.5) / np.maximum(count - 1, 1)  # none is compared with itself
    excess = np.where(known, shares - expected, 0)
    excess -= np.where(known, excess.sum(axis=1, keepdims=True) / count, 0)
    p = 1 / (1 + np.exp(-z))
    room = np.where(excess > 0, 1 - p, p)
    scale = np.minimum(room / np.maximum(np.abs(excess), 1e-9), 1).min(axis=1, keepdims=True)
    return np.where(known, p + scale * excess, np.nan).astype(np.float32)
