"""One of several servers that learn from a store of outcomes, without its gRPC side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.adaptation.outcome_matrix import OutcomeMatrix
from engine.adaptation.recent_decisions import RecentDecisions
from engine.adaptation.refresh import AdaptationRefresher
from engine.bundle.instruction_space import InstructionSpace
from engine.registry.stores.outcome_types import (
    OutcomeLimits,
    OutcomeReport,
    RecordedOutcome,
    ScoredInstruction,
)
from engine.registry.stores.outcomes import OutcomeStore
from engine.registry.table import Table, make_table
from tests.support.fake_adaptation import FakeAdaptation
from tests.support.stores import candidate

WIDTH, BUNDLE = 8, "weights-1"
LIMITS = OutcomeLimits(1000)
MEAN = InstructionSpace.unknown(WIDTH)


def table(*names: str, level: float = 0.5, revision: int = 1) -> Table:
    """A table whose embeddings depend on the names and on `level`."""
    entries = [
        (candidate(n, level), np.full(WIDTH, level + len(n), dtype=np.float32)) for n in names
    ]
    return make_table(revision, entries, WIDTH)


def embedding(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=WIDTH).astype(np.float32)


class Fitted:
    """Fits that only remember the matrix, under its ID."""

    def __init__(self) -> None:
        self.matrices: dict[str, OutcomeMatrix] = {}

    def __call__(self, matrix: OutcomeMatrix, space: InstructionSpace) -> FakeAdaptation:
        self.matrices[matrix.id] = matrix
        return FakeAdaptation(id=matrix.id)


class Replica:
    """A store, a memory of decisions and a refresher, as a server has them."""

    def __init__(
        self, location: str | Path, limits: OutcomeLimits = LIMITS, enabled: bool = True
    ) -> None:
        self.store = OutcomeStore(location, limits)
        self.table = table("a", "bb", "ccc")
        self.recent = RecentDecisions(BUNDLE, 1 << 20, 3600)
        self.fits = Fitted()
        self.source = AdaptationRefresher(
            self.store, lambda: self.table, BUNDLE, MEAN, self.fits, enabled
        )

    def scored(
        self, seed: int, selected: str = "a", explored: bool = False, propensity: float = 1.0
    ) -> ScoredInstruction:
        p = np.linspace(0.2, 0.8, len(self.table.candidates)).astype(np.float32)
        rows = np.arange(len(p))
        return self.recent.scored(
            self.table, rows, p, embedding(seed), selected, explored, propensity
        )

    async def record(
        self,
        seed: int,
        scores: dict[str, float],
        scored: ScoredInstruction | None = None,
        principal: str = "",
        compared: bool = False,
    ) -> int:
        """Record outcomes of instruction number `seed`, in one report."""
        outcomes = [
            RecordedOutcome(f"{seed:032x}", name, score, principal=principal, compared=compared)
            for name, score in scores.items()
        ]
        return await self.store.record_report(OutcomeReport(outcomes, scored or self.scored(seed)))

    async def matrix(self) -> OutcomeMatrix:
        """Refit and return what was fitted."""
        await self.source.refresh()
        current = self.source.current()
        assert current is not None
        return self.fits.matrices[current.id]

    async def close(self) -> None:
        await self.source.stop()
        await self.store.close()
