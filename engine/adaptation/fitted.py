"""Correct probabilities by a fit. See Adaptation.

Shapes: E eligible candidates, M fitted ones, N remembered instructions, D width, P axes, R
landmarks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.adaptation.adaptation import CorrectedScores, FitFigures
from engine.adaptation.kernel import Landmarks
from engine.bundle.instruction_space import InstructionSpace
from engine.bundle.types import Float32Array
from engine.inference.backend import log_odds

# How far below the logits of known outcomes the common part reaches, as the width of a normal
# curve. Outcomes of strong candidates alone say little about weak ones.
REACH = 1.5
OFFSET_PRECISION = 30.0  # of a candidate's logit on all instructions, before evidence
RELATIVE_VARIANCE = 0.5  # of a candidate's logit on one kind of instruction, before evidence
SURE_COVERAGE = 0.5  # from which on outcomes count in full for standard errors
CHUNK = 8192


@dataclass(frozen=True, eq=False)
class CommonPart:
    """The part that all candidates share: reach(z) * (level + similarities @ dual).

    lowest: logit from which down the reach falls. dual: (R,).
    """

    lowest: float
    level: float
    dual: Float32Array

    def without_effect(self) -> CommonPart:
        """Return a part that is 0 everywhere."""
        return replace(self, level=0.0, dual=np.zeros_like(self.dual))


@dataclass(frozen=True, eq=False)
class CandidateParts:
    """What was learned of each of M candidates, and in a last row of one without outcomes: nothing.

    columns: candidate ID -> row. by_landmark: (M + 1, 3, R) for products with similarities:
    coefficients of the relative part, Fisher information of the outcomes nearest to each landmark,
    and their number. everywhere: (M + 1, 2) the offset in log-odds, and the information of all
    outcomes. means: (M,) mean probability over the remembered instructions, without the relative
    parts, NaN if the outcomes do not tell.
    """

    columns: Mapping[str, int]
    by_landmark: Float32Array
    everywhere: Float32Array
    means: Float32Array

    def without_effect(self) -> CandidateParts:
        """Return parts that are 0, with the errors of what nothing is known of."""
        only_counts = self.by_landmark * np.array([[0], [0], [1]], dtype=np.float32)
        nothing = np.zeros_like(self.everywhere)
        return replace(self, by_landmark=only_counts, everywhere=nothing)


def reach_of(z: NDArray[Any], lowest: float) -> NDArray[Any]:
    """Return how far the common part applies to logits z, in [0, 1]."""
    below = np.maximum(lowest - z, 0)
    return np.asarray(np.exp(below * below * (-1 / (2 * REACH**2))))


@dataclass(frozen=True, eq=False)
class FittedAdaptation:
    """See Adaptation. Its size does not grow with N but for `vectors`, which only nearest() reads.

    center: (D,) of the memory. slope: of the weights' log-odds. vectors: (N, P).
    """

    id: str
    active: bool
    decides: bool
    reason: str
    figures: FitFigures
    space: InstructionSpace
    center: Float32Array
    landmarks: Landmarks
    slope: float
    common: CommonPart
    parts: CandidateParts
    vectors: NDArray[np.float16]

    def correct(
        self, embedding: Float32Array, p: Float32Array, candidates: Sequence[str]
    ) -> CorrectedScores:
        """See Adaptation. A candidate without outcomes gets the common part alone.

        Arrays of E elements in float32 throughout: a forward pass has just driven this code out of
        the processor's caches, so that each other function costs more than its arithmetic.
        """
        similarities, coverage = self.landmarks.compare(embedding)
        parts, columns = self.parts, self.parts.columns
        rows = [columns.get(candidate, -1) for candidate in candidates]
        relative, information, outcomes = (parts.by_landmark[rows] @ similarities).T
        offset, total = parts.everywhere[rows].T
        z = log_odds(p)
        # The slope's change counts as common, because it tells no candidate from another.
        near = self.common.level + float(similarities @ self.common.dual)
        common: Float32Array = near * reach_of(z, self.common.lowest) + (self.slope - 1) * z
        common, offset, relative = common * coverage, offset * coverage, relative * coverage
        corrected = 1 / (1 + np.exp(-(z + common + offset + relative)))
        # Similarities never reach 0: many outcomes of another kind would look like evidence.
        information_here = information * min(1.0, coverage / SURE_COVERAGE)
        variance = 1 / (total + OFFSET_PRECISION) + 1 / (information_here + 1 / RELATIVE_VARIANCE)
        error = corrected * (1 - corrected) * np.sqrt(variance)
        return CorrectedScores(corrected, error, outcomes, offset, common, relative, coverage)

    def mean_probabilities(self, candidates: Sequence[str]) -> Float32Array:
        """See Adaptation. NaN for a candidate without outcomes."""
        columns = self.parts.columns
        means = [self.parts.means[columns[c]] if c in columns else np.nan for c in candidates]
        return np.array(means, dtype=np.float32)

    def without(self, candidates: Collection[str]) -> FittedAdaptation:
        """See Adaptation."""
        columns = {c: i for c, i in self.parts.columns.items() if c not in candidates}
        return replace(self, parts=replace(self.parts, columns=columns))

    def nearest(self, embedding: Float32Array, count: int) -> list[tuple[int, float]]:
        """See Adaptation."""
        vector = self.space.unit_vectors(embedding.astype(np.float32), self.center)
        starts = range(0, len(self.vectors), CHUNK)
        parts = [self.vectors[i : i + CHUNK].astype(np.float32) @ vector for i in starts]
        cosines = np.concatenate(parts) if parts else np.empty(0, dtype=np.float32)
        order = np.argsort(-cosines, kind="stable")[:count]
        return [(int(i), float(cosines[i])) for i in order]
