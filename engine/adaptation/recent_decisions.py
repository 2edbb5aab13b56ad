"""Remember recent decisions as vectors, so that outcomes can be recorded without their texts.

Shapes: M candidates of a table, E eligible ones, D width.
"""

from __future__ import annotations

import sys
import time
from collections import OrderedDict
from dataclasses import dataclass
from itertools import islice

import numpy as np

from engine.bundle.types import Float32Array, Int64Array
from engine.inference.backend import log_odds
from engine.registry.stores.base import RevisionId
from engine.registry.stores.outcome_types import ScoredCandidates, ScoredInstruction
from engine.registry.table import Table

OVERHEAD = 700  # bytes of an entry besides its arrays: objects, ID, dict and links


@dataclass(frozen=True, eq=False)
class RecentDecision:
    """A decision of the last minutes.

    principal: who asked. scored: what the weights said. adaptation_id: of what corrected it, "" if
    nothing did. at: of time.monotonic().
    """

    principal: str
    scored: ScoredInstruction
    adaptation_id: str
    at: float


class RecentDecisions:
    """Decisions by ID, bounded by bytes and age. For one event loop."""

    def __init__(self, bundle: str, limit: int, max_age_s: float) -> None:
        """Create an empty memory.

        Args:
            bundle: identity of the weights, see bundle_id.
            limit: bytes; 0 remembers nothing. The oldest decisions are forgotten first.
            max_age_s: seconds after which a decision is forgotten.
        """
        self._bundle = bundle
        self._limit = limit
        self._max_age_s = max_age_s
        self._decisions: OrderedDict[str, RecentDecision] = OrderedDict()
        self._candidates: tuple[RevisionId, ScoredCandidates] | None = None
        self.size = 0

    def __len__(self) -> int:
        return len(self._decisions)

    def scored(
        self,
        table: Table,
        rows: Int64Array,
        p: Float32Array,
        embedding: Float32Array,
        selected: str = "",
        explored: bool = False,
        propensity: float = 1.0,
        match: Float32Array | None = None,
    ) -> ScoredInstruction:
        """Pack what the weights said of an instruction.

        Args:
            table: that was scored. rows: (E,) of it. p: (E,) probabilities, before a
                correction.
            embedding: (D,) of the instruction.
            selected: ID of the chosen candidate. explored, propensity: how it was chosen.
            match: (E,) log-odds that the match added to p, None for none.
        """
        logits = np.full(len(table.candidates), np.nan, dtype=np.float16)
        # A fit adds the match again, as it is by then.
        logits[rows] = log_odds(p) if match is None else log_odds(p) - match
        if self._candidates is None or self._candidates[0] != table.id:
            self._candidates = (table.id, ScoredCandidates.of_table(self._bundle, table))
        candidates = self._candidates[1]  # the same object for the same table, to save memory
        packed = embedding.astype(np.float16)
        return ScoredInstruction(candidates, packed, logits, selected, explored, propensity)

    def add(
        self, identifier: str, principal: str, scored: ScoredInstruction, adaptation_id: str = ""
    ) -> None:
        """Remember a decision, and forget the oldest ones beyond the bounds."""
        if not self._limit:
            return
        now = time.monotonic()
        self._decisions[identifier] = RecentDecision(principal, scored, adaptation_id, now)
        self.size += _size(scored)
        while self._decisions:
            oldest = next(iter(self._decisions.values()))
            if self.size <= self._limit and now - oldest.at <= self._max_age_s:
                return
            self._decisions.popitem(last=False)
            self.size -= _size(oldest.scored)

    def get(self, identifier: str) -> RecentDecision | None:
        """Return a decision, or None if it is not remembered (any more)."""
        decision = self._decisions.get(identifier)
        if decision is None or time.monotonic() - decision.at > self._max_age_s:
            return None
        return decision

    def latest(self, count: int) -> list[RecentDecision]:
        """Return the last `count` decisions, newest first."""
        return list(islice(reversed(self._decisions.values()), count))

    @staticmethod
    def before_correction(
        scored: ScoredInstruction, table: Table
    ) -> tuple[list[str], Float32Array]:
        """Return the IDs of the E candidates of an instruction, and their probabilities (E,) by the
        weights and the match of `table`."""
        rows = np.flatnonzero(np.isfinite(scored.logits))
        ids = [scored.candidates.ids[row] for row in rows]
        logits = scored.logits[rows].astype(np.float32)
        if table.match is not None:
            added = table.match.log_odds(scored.embedding[None, :].astype(np.float32))[0]
            here = [table.rows.get(name, -1) for name in ids]
            logits = logits + np.array([added[row] if row >= 0 else 0.0 for row in here])
        return ids, np.asarray(1 / (1 + np.exp(-logits)), dtype=np.float32)


def _size(scored: ScoredInstruction) -> int:
    return scored.nbytes + OVERHEAD + sys.getsizeof(scored.selected)
