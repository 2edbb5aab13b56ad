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
