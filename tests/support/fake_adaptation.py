"""An adaptation with a result that tests can compute, instead of a fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from engine.adaptation.adaptation import CorrectedScores, FitFigures

FIGURES = FitFigures(200, {"comparison": 400}, 0.6, 0.5, 0.01, 1.8e9, 0.2)


@dataclass(frozen=True)
class FakeAdaptation:
    """Adds to each candidate's log-odds what `shifts` says, whatever the instruction.

    standard_error: of every probability. means: of candidates on average, 0.5 if missing.
    """

    shifts: Mapping[str, float] = field(default_factory=dict)
    standard_error: float = 0.05
    means: Mapping[str, float] = field(default_factory=dict)
    active: bool = True
    id: str = "fake-1"
    reason: str = "Log loss falls from 0.6 to 0.5."
    figures: FitFigures = FIGURES

    def correct(
        self, embedding: NDArray[np.float32], p: NDArray[np.float32], candidates: Sequence[str]
    ) -> CorrectedScores:
        shift = np.array([self.shifts.get(c, 0.0) for c in candidates], dtype=np.float32)
        zero = np.zeros_like(shift)
        corrected = expit(logit(np.clip(p, 1e-6, 1 - 1e-6)) + shift).astype(np.float32)
        error = np.full_like(shift, self.standard_error)
        return CorrectedScores(corrected, error, zero + 7, zero, zero, shift)

    def mean_probabilities(self, candidates: Sequence[str]) -> NDArray[np.float32]:
        return np.array([self.means.get(c, 0.5) for c in candidates], dtype=np.float32)

    def nearest(self, embedding: NDArray[np.float32], count: int) -> list[tuple[int, float]]:
        return [(i, 1.0 - i / 10) for i in range(count)]
