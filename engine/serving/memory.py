"""Build what learns from outcomes: the store, recent decisions, scoring of texts, and refits."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from engine.adaptation.fit import fit
from engine.adaptation.recent_decisions import RecentDecisions
from engine.adaptation.refresh import AdaptationRefresher
from engine.adaptation.vectors.filling import VectorFiller
from engine.adaptation.vectors.text_scorer import TextScorer
from engine.bundle.instruction_space import InstructionSpace
from engine.bundle.manifest import Manifest, weights_id
from engine.bundle.prompt import Tokenizer
from engine.inference.batcher import Batcher
from engine.registry.registry import Registry
from engine.registry.stores.outcomes import OutcomeLimits, OutcomeStore
from engine.serving.settings import Settings

MIB, MINUTE_S = 1 << 20, 60.0


@dataclass(frozen=True)
class OutcomeMemory:
    """What learns from outcomes. refresher: not started if adaptation is turned off."""

    store: OutcomeStore
    recent: RecentDecisions
    scorer: TextScorer
    refresher: AdaptationRefresher
    filler: VectorFiller
    enabled: bool

    async def start(self) -> asyncio.Task[None] | None:
        """Make the first fit, and go on in the background; return the task that fills in vectors.

        Call it inside the event loop that serves, after the batcher has started.
        """
        if not self.enabled:
            return None
        await self.refresher.start()
        return asyncio.create_task(self.filler.run(), name="filling")

    async def close(self) -> None:
        """End the refits, and close the store."""
        await self.refresher.stop()
        await self.store.close()


def build_memory(
    settings: Settings,
    manifest: Manifest,
    space: InstructionSpace,
    registry: Registry,
    batcher: Batcher,
    tokenizer: Tokenizer,
) -> OutcomeMemory:
    """Open the store of outcomes, and build what uses it.

    space: how embeddings of instructions are compared. Raises StoreError.
    """
    limits = OutcomeLimits(
        settings.max_recorded_outcomes,
        settings.max_outcome_age_days,
        settings.memory_instructions,
        settings.memory_mib * MIB,
    )
    weights = weights_id(manifest)
    store = OutcomeStore(settings.outcomes_db, limits)
    max_age_s = settings.decisions_max_age_minutes * MINUTE_S
    recent = RecentDecisions(weights, settings.decisions_mib * MIB, max_age_s)
    scorer = TextScorer(batcher, tokenizer, registry, recent)
    enabled = settings.memory_mib > 0
    refresher = AdaptationRefresher(store, registry.table, weights, space, fit, enabled)
    filler = VectorFiller(store, recent, scorer)
    return OutcomeMemory(store, recent, scorer, refresher, filler, enabled)
