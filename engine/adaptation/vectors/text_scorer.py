"""Score texts that were not routed here, so that their outcomes can be learned from."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import numpy as np

from engine.adaptation.recent_decisions import RecentDecisions
from engine.api.errors import OverloadedError, UnavailableError
from engine.api.request_context import PRINCIPAL, SEVERAL
from engine.bundle.prompt import Tokenizer, render
from engine.inference.batcher import Batcher
from engine.registry.registry import Registry
from engine.registry.stores.outcome_types import ScoredInstruction

CONCURRENT = 4  # texts that are scored at a time: they share a forward pass
MAX_WAITING, MAX_OF_ONE = 512, 256  # texts; of one caller
RETRY_S = 1.0
YIELD_S, MAX_YIELD_S = 0.01, 2.0  # requests go first, for at most that time


class TextScorer:
    """Scores all candidates for a text in one forward pass, after the requests that wait."""

    def __init__(
        self, batcher: Batcher, tokenizer: Tokenizer, registry: Registry, recent: RecentDecisions
    ) -> None:
        self._batcher = batcher
        self._tokenizer = tokenizer
        self._registry = registry
        self._recent = recent
        self._slots = asyncio.Semaphore(CONCURRENT)
        self._waiting: Counter[str] = Counter()  # by principal

    async def score(self, text: str, deadline: float = float("inf")) -> ScoredInstruction:
        """Score `text` for every registered candidate. deadline: of time.monotonic().

        Raises:
            OverloadedError: too many texts are waiting, of this caller or of all, or too many
                requests.
            DeadlineError: see Batcher.submit.
            UnavailableError: no candidate is registered, or the forward pass failed.
        """
        principal, waiting = PRINCIPAL.get(), self._waiting.total()
        if waiting >= MAX_WAITING:
            raise OverloadedError(waiting, MAX_WAITING, RETRY_S, "texts to score")
        if (own := self._waiting[principal]) >= MAX_OF_ONE:
            raise OverloadedError(own, MAX_OF_ONE, RETRY_S, "texts of this caller")
        self._waiting[principal] += 1
        try:
            async with self._slots:
                await self._yield()
                return await self._score(text, deadline)
        finally:
            self._waiting[principal] -= 1
            self._waiting += Counter()  # forgets those at 0

    async def _yield(self) -> None:
        """Wait while requests do."""
        until = time.monotonic() + MAX_YIELD_S
        while self._batcher.queue_size > CONCURRENT and time.monotonic() < until:
            await asyncio.sleep(YIELD_S)

    async def _score(self, text: str, deadline: float) -> ScoredInstruction:
        table = self._registry.table()
        if not table.candidates:
            raise UnavailableError("No candidate is registered, so no text can be scored.")
        rows = np.arange(len(table.candidates))
        tokens = render(text, self._tokenizer).tokens
        SEVERAL.set(True)  # one after the other in the event loop, many would hold up a request
        scored = await self._batcher.submit(tokens, table, rows, deadline)
        if scored.embedding is None:
            raise UnavailableError("This backend returns no embedding of the instruction.")
        return self._recent.scored(table, rows, scored.p, scored.embedding, match=scored.match)
