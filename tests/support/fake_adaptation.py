"""An adaptation with a result that tests can compute, instead of a fit, and a source of such."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from engine.adaptation.adaptation import CorrectedScores, FitFigures
from engine.adaptation.source import FitRecord, Neighbor
from engine.api.errors import NotFoundError

FIGURES = FitFigures(200, {"comparison": 400}, 0.6, 0.5, 0.01, 1.8e9, 0.2)


@dataclass(frozen=True)
class FakeAdaptation:
    """Adds to each candidate's log-odds what `shifts` says, whatever the instruction.

    standard_error: of every probability. coverage: of every instruction. means: of candidates on
    average, 0.5 if missing. guards: if it is not active, that decisions use it all the same.
    """

    shifts: Mapping[str, float] = field(default_factory=dict)
    standard_error: float = 0.05
    means: Mapping[str, float] = field(default_factory=dict)
    active: bool = True
    id: str = "fake-1"
    reason: str = "Log loss falls from 0.6 to 0.5."
    figures: FitFigures = FIGURES
    coverage: float = 1.0
    guards: bool = False
    similar_outcomes: float = 7.0

    @property
    def decides(self) -> bool:
        return self.active or self.guards

    def correct(
        self, embedding: NDArray[np.float32], p: NDArray[np.float32], candidates: Sequence[str]
    ) -> CorrectedScores:
        shift = np.array([self.shifts.get(c, 0.0) for c in candidates], dtype=np.float32)
        zero = np.zeros_like(shift)
        corrected = expit(logit(np.clip(p, 1e-6, 1 - 1e-6)) + shift).astype(np.float32)
        error = np.full_like(shift, self.standard_error)
        return CorrectedScores(
            corrected, error, zero + self.similar_outcomes, zero, zero, shift, self.coverage
        )

    def mean_probabilities(self, candidates: Sequence[str]) -> NDArray[np.float32]:
        return np.array([self.means.get(c, 0.5) for c in candidates], dtype=np.float32)

    def without(self, candidates: Collection[str]) -> FakeAdaptation:
        kept = {c: shift for c, shift in self.shifts.items() if c not in candidates}
        return replace(self, shifts=kept)

    def nearest(self, embedding: NDArray[np.float32], count: int) -> list[tuple[int, float]]:
        return [(i, 1.0 - i / 10) for i in range(count)]


@dataclass
class FakeSource:
    """A source whose fits are a list; see AdaptationSource."""

    fits: list[FakeAdaptation] = field(default_factory=list)
    frozen: bool = False

    def current(self) -> FakeAdaptation | None:
        return self.fits[-1] if self.fits else None

    def status(self) -> FitRecord | None:
        return _record(self.fits[-1]) if self.fits else None

    async def history(self, count: int = 20) -> list[FitRecord]:
        return [_record(fit) for fit in self.fits[::-1][:count]]

    async def freeze(self) -> None:
        self.frozen = True

    async def unfreeze(self) -> None:
        self.frozen = False

    async def rollback(self, identifier: str) -> None:
        known = [fit.id for fit in self.fits]
        if identifier not in known:
            raise NotFoundError(f"adaptations/{identifier}")
        del self.fits[known.index(identifier) + 1 :]
        self.frozen = True

    async def reset(self) -> None:
        self.fits.clear()

    async def nearest(self, embedding: NDArray[np.float32], count: int) -> list[Neighbor]:
        return [Neighbor(0.9, {"a": 0.0, "b": 1.0}, "sql", 1.8e9, "comparison")]


def _record(fit: FakeAdaptation) -> FitRecord:
    unused = {"candidate not registered": 3}
    return FitRecord(fit.id, fit.active, fit.reason, fit.figures, unused, decides=fit.decides)
