"""Correct probabilities by a fit. See Adaptation.

Shapes: E eligible candidates, M fitted ones, N remembered instructions, D width, P axes, R
landmarks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.adaptation.adaptation import CorrectedScores, FitFigures
from engine.adaptation.kernel import Coverage, KernelFeatures
from engine.adaptation.regression import sigmoid
from engine.bundle.instruction_space import InstructionSpace
from engine.bundle.types import Float32Array, Float64Array

MAX_LOGIT = 9.2  # of p = 1e-4 and 1 - 1e-4
# How far below the logits of known outcomes the common part reaches, as the width of a normal
# curve. Outcomes of strong candidates alone say little about weak ones.
REACH = 1.5
OFFSET_PRECISION = 30.0  # of a candidate's logit on all instructions, before evidence
RELATIVE_VARIANCE = 0.5  # of a candidate's logit on one kind of instruction, before evidence
CHUNK = 8192


@dataclass(frozen=True, eq=False)
class CommonPart:
    """The part that all candidates share: reach(z) * (level + weight * features @ coefficients).

    lowest: logit from which down the reach falls. coefficients: (R,).
    """

    lowest: float
    level: float
    weight: float
    coefficients: Float64Array

    def reach(self, z: Float64Array) -> Float64Array:
        """Return how far the common part applies to logits z, in [0, 1]."""
        below = np.maximum(self.lowest - z, 0)
        return np.asarray(np.exp(-(below**2) / (2 * REACH**2)))

    def without_effect(self) -> CommonPart:
        """Return a part that is 0 everywhere."""
        return replace(self, level=0.0, weight=0.0)


@dataclass(frozen=True, eq=False)
class CandidateParts:
    """What was learned of each of M candidates.

    offsets: (M,) log-odds. coefficients: (R, M) of the relative part. information: (R, M) Fisher
    information of the outcomes nearest to each landmark. outcomes: (R, M) their number. means: (M,)
    mean corrected probability over the remembered instructions.
    """

    columns: Mapping[str, int]
    offsets: Float64Array
    coefficients: Float64Array
    information: Float32Array
    outcomes: Float32Array
    means: Float32Array

    def without_effect(self) -> CandidateParts:
        """Return parts that are 0, with the errors of what nothing is known of."""
        return replace(
            self,
            offsets=np.zeros_like(self.offsets),
            coefficients=np.zeros_like(self.coefficients),
            information=np.zeros_like(self.information),
        )


@dataclass(frozen=True, eq=False)
class FittedAdaptation:
    """See Adaptation. Its size does not grow with N but for `vectors`, which only nearest() reads.

    coverage: where the correction applies. slope: of the weights' log-odds. vectors: (N, P).
    """

    id: str
    active: bool
    decides: bool
    reason: str
    figures: FitFigures
    space: InstructionSpace
    center: Float32Array
    features: KernelFeatures
    coverage: Coverage
    slope: float
    common: CommonPart
    parts: CandidateParts
    vectors: NDArray[np.float16]

    def correct(
        self, embedding: Float32Array, p: Float32Array, candidates: Sequence[str]
    ) -> CorrectedScores:
        """See Adaptation. A candidate without outcomes gets the common part alone."""
        projection = self.space.project(embedding.astype(np.float32))
        away = projection - self._projected_center
        similarities = self.features.similarities(away / max(float(np.linalg.norm(away)), 1e-12))
        predicted = similarities @ self._dual
        z = logits_of(p)
        column = np.array([self.parts.columns.get(c, -1) for c in candidates], dtype=np.int64)
        known = column >= 0
        reach, coverage = self.common.reach(z), self.coverage.at(projection)
        # The slope's change counts as common, because it tells no candidate from another.
        common = coverage * (
            reach * (self.common.level + self.common.weight * predicted[-1]) + (self.slope - 1) * z
        )

        def of(values: NDArray[Any]) -> Float64Array:
            """Return the values (M,) of the candidates, 0 without outcomes."""
            found = values[column] if len(values) else np.zeros(len(column))
            return np.where(known, found, 0.0)

        offset, relative = coverage * of(self.parts.offsets), coverage * of(predicted[:-1])
        information = of(similarities @ self.parts.information)
        corrected = sigmoid(z + common + offset + relative)
        variance = 1 / (OFFSET_PRECISION + of(self._total_information))
        variance += 1 / (1 / RELATIVE_VARIANCE + information)
        error = corrected * (1 - corrected) * np.sqrt(variance)
        return CorrectedScores(
            p=corrected.astype(np.float32),
            standard_error=error.astype(np.float32),
            similar_outcomes=of(similarities @ self.parts.outcomes).astype(np.float32),
            offset=offset.astype(np.float32),
            common=common.astype(np.float32),
            relative=relative.astype(np.float32),
            coverage=coverage,
        )

    def prepare(self) -> None:
        """Compute what every request needs, where it delays none."""
        for name in ("_projected_center", "_total_information", "_dual"):
            getattr(self, name)

    @cached_property
    def _projected_center(self) -> Float32Array:
        return self.space.project(self.center)

    @cached_property
    def _total_information(self) -> Float64Array:
        return np.asarray(self.parts.information.sum(axis=0, dtype=np.float64))

    @cached_property
    def _dual(self) -> Float64Array:
        """Coefficients (R, M + 1) of similarities: of the relative parts, then of the common one.

        A request then does not read the features' (R, R) factor, which is most of a fit's memory.
        """
        own = np.column_stack([self.parts.coefficients, self.common.coefficients])
        return np.asarray(self.features.mix.astype(np.float64) @ own)

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


def logits_of(p: Float32Array) -> Float64Array:
    """Return the log-odds of probabilities, at most MAX_LOGIT in size."""
    p64 = np.asarray(p, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return np.asarray(np.clip(np.log(p64) - np.log1p(-p64), -MAX_LOGIT, MAX_LOGIT))
