"""The interface between serving and what refits the adaptation as outcomes arrive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from engine.adaptation.adaptation import Adaptation, FitFigures
from engine.adaptation.outcome_matrix import Provenance
from engine.bundle.types import Float32Array


@dataclass(frozen=True)
class FitRecord:
    """A fit of the past, as every replica lists it.

    frozen, decides (see Adaptation): only in the record of what is served now. unused: reason ->
    recorded outcomes that the fit does not use. created_at: when a replica first made it, in
    seconds since 1970.
    """

    id: str
    active: bool
    reason: str
    figures: FitFigures
    unused: Mapping[str, int] = field(default_factory=dict)
    created_at: float = 0.0
    frozen: bool = False
    decides: bool = False


@dataclass(frozen=True)
class Neighbor:
    """A remembered instruction near another one.

    similarity: cosine of the embeddings. scores: candidate ID -> score. recorded_at: seconds since
    1970.
    """

    similarity: float
    scores: Mapping[str, float]
    category: str
    recorded_at: float
    provenance: Provenance


class AdaptationSource(Protocol):
    """Refits as outcomes arrive. For one event loop.

    Every method that changes something is stored when it returns, and refits before it does; the
    other replicas follow within seconds.
    """

    def current(self) -> Adaptation | None:
        """Return the newest fit, None if there are no outcomes. A decision uses one throughout."""

    def status(self) -> FitRecord | None:
        """Describe the newest fit; None before the first one."""

    @property
    def frozen(self) -> bool:
        """Whether outcomes that are recorded from now on are ignored."""

    async def history(self, count: int = 20) -> Sequence[FitRecord]:
        """Return the last fits, newest first. Raises StoreError."""

    async def freeze(self) -> None:
        """Ignore outcomes that are recorded from now on. Raises StoreError."""

    async def unfreeze(self) -> None:
        """Use all outcomes since the last reset again. Raises StoreError."""

    async def rollback(self, identifier: str) -> None:
        """Return to an earlier fit, and freeze. Raises AdaptationNotFoundError, StoreError."""

    async def reset(self) -> None:
        """Ignore every outcome that was recorded before. Raises StoreError."""

    async def nearest(self, embedding: Float32Array, count: int) -> Sequence[Neighbor]:
        """Return the remembered instructions nearest to (D,) `embedding`, nearest first.

        Raises StoreError.
        """
