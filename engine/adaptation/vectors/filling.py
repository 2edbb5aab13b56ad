"""Add vectors to outcomes that were recorded where their decision was not remembered."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping

from engine.adaptation.recent_decisions import RecentDecisions
from engine.adaptation.vectors.text_scorer import TextScorer
from engine.api.errors import ModelsatError
from engine.registry.outcome_changes import WaitingInstruction, read_waiting
from engine.registry.stores.outcome_types import ScoredInstruction
from engine.registry.stores.outcomes import OutcomeStore

POLL_S = 2.0
MAX_WAITING = 500  # instructions of one round
TEXT_AFTER_S = 10.0  # time in which the server that remembers the decision should have answered
GIVE_UP_AFTER_S = 600.0
log = logging.getLogger(__name__)


class VectorFiller:
    """Fills in what this server remembers of decisions whose outcomes another one recorded, and
    scores stored texts of decisions that none remembers."""

    def __init__(self, store: OutcomeStore, recent: RecentDecisions, scorer: TextScorer) -> None:
        self._store = store
        self._recent = recent
        self._scorer = scorer

    async def run(self) -> None:
        """Poll until cancelled."""
        failed = False
        while True:
            await asyncio.sleep(POLL_S)
            try:
                await self.fill()
                failed = False
            except Exception as error:
                if not failed:
                    known = isinstance(error, ModelsatError)
                    log.warning("outcomes wait for vectors: %s", error, exc_info=not known)
                failed = True

    async def fill(self) -> int:
        """Fill in what can be; return how many instructions were. Raises StoreError."""
        waiting = await self._store.read(lambda db: read_waiting(db, MAX_WAITING))
        known = {
            each.key: recent.scored
            for each in waiting
            if (recent := self._recent.get(each.key)) is not None
        }
        now = time.time()
        late = [
            each
            for each in waiting
            if each.key not in known and each.text and now - each.recorded_at > TEXT_AFTER_S
        ]
        filled: Mapping[str, ScoredInstruction] = {**known, **await self._score(late)}
        expired = any(now - each.recorded_at > GIVE_UP_AFTER_S for each in waiting)
        if not filled and not expired:
            return 0
        count = await self._store.fill(filled, give_up_before=now - GIVE_UP_AFTER_S)
        if count:
            self._store.notify()
        return count

    async def _score(self, late: list[WaitingInstruction]) -> dict[str, ScoredInstruction]:
        """Score texts until one fails: the others are tried in the next round."""
        scored = {}
        for each in late:
            try:
                scored[each.key] = await self._scorer.score(each.text)
            except ModelsatError:
                break
        return scored
