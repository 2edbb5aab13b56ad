"""Refit the adaptation as outcomes arrive, off the event loop, for all replicas of a store."""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from engine.adaptation.adaptation import Adaptation, FitFigures
from engine.adaptation.answer_length import MAX_INSTRUCTIONS, AnswerLengths
from engine.adaptation.outcome_matrix import PROVENANCES, OutcomeMatrix
from engine.adaptation.remembered import FitScope, RememberedOutcomes
from engine.adaptation.source import FitRecord, Neighbor
from engine.api.errors import AdaptationNotFoundError, ModelsatError
from engine.bundle.instruction_space import InstructionSpace
from engine.bundle.types import Float32Array, Int64Array
from engine.registry.outcome_changes import (
    StoredFit,
    StorePosition,
    read_changes,
    read_fit,
    read_fits,
    read_instructions,
)
from engine.registry.stores.outcome_sql import OutcomeWriter
from engine.registry.stores.outcome_types import fingerprint_of
from engine.registry.stores.outcomes import OutcomeStore
from engine.registry.table import Table

POLL_S = 2.0  # what other replicas recorded is noticed after this time
MIN_INTERVAL_S = 2.0  # between the starts of fits
FIRST_FIT_S = 10.0  # that a start waits for it; a larger memory is fitted while requests are served
REST_RATIO = 2.0  # time without fitting, relative to the last fit's, so that it takes no whole core
Fit = Callable[[OutcomeMatrix, InstructionSpace], Adaptation]
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class PublishedFit:
    """A fit, and what it was made from. It keeps no matrix, which may be large.

    adaptation: None if there are no outcomes. instructions: (N,) numbers in the store. provenance:
    (N,) positions in PROVENANCES. unused: see MemoryView. scope, position: what was fitted, as of
    when. lengths: of answers, None if none is known.
    """

    adaptation: Adaptation | None
    instructions: Int64Array
    provenance: NDArray[np.int8]
    unused: Mapping[str, int]
    scope: FitScope
    position: StorePosition
    lengths: AnswerLengths | None


class AdaptationRefresher:
    """See AdaptationSource. Fits run in a thread of their own."""

    def __init__(
        self,
        store: OutcomeStore,
        table: Callable[[], Table],
        bundle: str,
        space: InstructionSpace,
        fit: Fit,
        enabled: bool = True,
    ) -> None:
        """Create a refresher; start() reads the store.

        Args:
            store: of the outcomes.
            table: returns the candidates that are registered now.
            bundle: identity of the weights, see bundle_id.
            space: how embeddings are compared.
            fit: makes an adaptation; called in the thread.
            enabled: if not, there never is an adaptation; what steers it holds for other servers.
        """
        self._enabled = enabled
        self._store = store
        self._table = table
        self._bundle = bundle
        self._space = space
        self._fit = fit
        self._memory = RememberedOutcomes()
        self._published: PublishedFit | None = None
        self._has_begun = asyncio.Event()
        self._last_fit: tuple[str, Adaptation] | None = None  # and the ID of its matrix
        self._fingerprints: tuple[Table, Mapping[str, str]] | None = None
        self._served: tuple[PublishedFit, Table, Adaptation] | None = None  # see current()
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="adaptation")
        self._task: asyncio.Task[None] | None = None
        self._failed = False
        self._rest_until = 0.0  # of time.monotonic()
        store.on_recorded.append(self._wake.set)

    def current(self) -> Adaptation | None:
        """See AdaptationSource.

        What was learned of a candidate that has other aptitude results since then is left out at
        once, before the next fit.
        """
        published = self._published
        if published is None or published.adaptation is None:
            return None
        table = self._table()
        if self._served is None or self._served[0] is not published or self._served[1] is not table:
            fitted, now = published.scope.candidates, self._candidates()
            changed = {name for name in fitted.keys() & now.keys() if fitted[name] != now[name]}
            fit = published.adaptation
            self._served = (published, table, fit.without(changed) if changed else fit)
        return self._served[2]

    def answer_lengths(self) -> AnswerLengths | None:
        """Return the expected lengths of answers, None if no call reported its tokens."""
        return None if self._published is None else self._published.lengths

    @property
    def frozen(self) -> bool:
        """See AdaptationSource."""
        return self._memory.ceiling >= 0

    def status(self) -> FitRecord | None:
        """See AdaptationSource."""
        published = self._published
        if published is None or published.adaptation is None:
            return None
        return _record(published.adaptation, published.unused, self.frozen)

    async def start(self) -> None:
        """Read the store, fit, and go on in the background.

        Neither a store that cannot be read nor a fit of more than FIRST_FIT_S delays the start: the
        weights' own probabilities are served until it is made.
        """
        self._task = asyncio.create_task(self._run(), name="adaptation")
        try:
            async with asyncio.timeout(FIRST_FIT_S):
                await self._has_begun.wait()
        except TimeoutError:
            log.info("the first fit takes long; until it is made, nothing that was learned is used")

    async def stop(self) -> None:
        """End the background task; a fit that runs is left to end by itself."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def refresh(self) -> None:
        """Read what changed, and fit if that makes a difference. Raises StoreError."""
        if not self._enabled:
            return
        async with self._turn:
            loop = asyncio.get_running_loop()
            while True:
                since, lists = self._memory.position, self._memory.lists
                changes = await self._store.read(
                    lambda db, since=since, lists=lists: read_changes(db, since, lists)  # type: ignore[misc]
                )
                await loop.run_in_executor(self._thread, self._memory.apply, changes)
                if not changes.more:
                    break
            match = self._table().match
            scope = FitScope(
                self._bundle,
                self._candidates(),
                self._memory.floor,
                self._memory.ceiling,
                "" if match is None else match.id,
                None if match is None else match.log_odds,
            )
            published = await loop.run_in_executor(self._thread, self._changed, scope)
            if published is None:
                return
            last, self._published = self._published, published
            fit = published.adaptation
            if fit is not None and (last is None or fit is not last.adaptation):
                await self._list(fit, published)

    async def history(self, count: int = 20) -> Sequence[FitRecord]:
        """See AdaptationSource."""
        stored = await self._store.read(lambda db: read_fits(db, count))
        return [_parsed(fit) for fit in stored]

    async def freeze(self) -> None:
        """See AdaptationSource."""
        await self._steer(lambda writer: {"ceiling": writer.position})

    async def unfreeze(self) -> None:
        """See AdaptationSource."""
        await self._steer(lambda _: {"ceiling": -1})

    async def reset(self) -> None:
        """See AdaptationSource. It unfreezes."""
        await self._steer(lambda writer: {"floor": writer.position, "ceiling": -1})

    async def rollback(self, identifier: str) -> None:
        """See AdaptationSource."""
        fit = await self._store.read(lambda db: read_fit(db, identifier))
        if fit is None:
            raise AdaptationNotFoundError(identifier)
        await self._steer(lambda _: {"floor": fit.floor, "ceiling": fit.position})

    async def nearest(self, embedding: Float32Array, count: int) -> Sequence[Neighbor]:
        """See AdaptationSource."""
        published = self._published
        if published is None or published.adaptation is None:
            return []
        # It looks at everything that is remembered.
        found = await asyncio.to_thread(published.adaptation.nearest, embedding, count)
        numbers = [int(published.instructions[row]) for row, _ in found]
        stored = await self._store.read(lambda db: read_instructions(db, numbers))
        return [
            Neighbor(
                similarity,
                stored[number].scores,
                stored[number].category,
                stored[number].recorded_at,
                PROVENANCES[published.provenance[row]],
            )
            for (row, similarity), number in zip(found, numbers, strict=True)
            if number in stored
        ]

    async def _run(self) -> None:
        await self._refresh_or_log()
        self._has_begun.set()
        while True:
            # Other servers of the store do not wake this one, nor does a change of candidates.
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._wake.wait()
            self._wake.clear()
            await asyncio.sleep(self._rest_until - time.monotonic())
            await self._refresh_or_log()

    async def _refresh_or_log(self) -> None:
        """Refresh, and log the first failure since a success."""
        try:
            await self.refresh()
        except Exception as error:
            if not self._failed:
                known = isinstance(error, ModelsatError)
                log.error("the adaptation stays as it is: %s", error, exc_info=not known)
            self._failed = True
        else:
            if self._failed:
                log.info("the adaptation follows the outcomes again")
            self._failed = False

    async def _steer(self, change: Callable[[OutcomeWriter], Mapping[str, int]]) -> None:
        await self._store.write(lambda writer: writer.set_state(change(writer)))
        await self.refresh()

    def _candidates(self) -> Mapping[str, str]:
        """Return registered ID -> fingerprint; the same object for the same table."""
        table = self._table()
        if self._fingerprints is None or self._fingerprints[0] is not table:
            rows = zip(table.candidates, table.embeddings, strict=True)
            self._fingerprints = (table, {c.id: fingerprint_of(row) for c, row in rows})
        return self._fingerprints[1]

    def _changed(self, scope: FitScope) -> PublishedFit | None:
        """Fit, in the thread; None if nothing changed since the last fit."""
        last, position = self._published, self._memory.position
        if last is not None and (last.scope, last.position) == (scope, position):
            return None
        started = time.monotonic()
        try:
            return self._fitted(scope)
        finally:
            _return_freed_memory()
            took_s = time.monotonic() - started
            self._rest_until = started + max(MIN_INTERVAL_S, (1 + REST_RATIO) * took_s)

    def _fitted(self, scope: FitScope) -> PublishedFit:
        """Fit, unless the last fit was of the same outcomes, as when a reset is taken back."""
        view = self._memory.view(scope)
        matrix, adaptation = view.matrix, None
        if len(matrix):
            if self._last_fit is None or self._last_fit[0] != matrix.id:
                self._last_fit = matrix.id, self._fit(matrix, self._space)
            adaptation = self._last_fit[1]
        provenance = matrix.provenance.max(axis=1, initial=0)
        answers = self._memory.answers(scope, MAX_INSTRUCTIONS)
        return PublishedFit(
            adaptation,
            view.instructions,
            provenance,
            view.unused,
            scope,
            self._memory.position,
            AnswerLengths.of(answers, self._space),
        )

    async def _list(self, fit: Adaptation, published: PublishedFit) -> None:
        """List a new fit in the store, for all replicas. A failure costs its place in the list."""
        scope, figures = published.scope, asdict(fit.figures)
        content = {"active": fit.active, "reason": fit.reason, "figures": figures}
        text = json.dumps({**content, "unused": published.unused}, default=dict)
        position = published.position.number if scope.ceiling < 0 else scope.ceiling
        try:
            await self._store.write(
                lambda writer: writer.add_fit(fit.id, scope.floor, position, text)
            )
        except ModelsatError as error:
            log.warning("adaptation %s is not listed: %s", fit.id, error)


def _return_freed_memory() -> None:
    """Give back what a fit freed: with 100,000 instructions malloc would keep 250 MB of it."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _record(fit: Adaptation, unused: Mapping[str, int], frozen: bool) -> FitRecord:
    return FitRecord(
        fit.id, fit.active, fit.reason, fit.figures, unused, frozen=frozen, decides=fit.decides
    )


def _parsed(fit: StoredFit) -> FitRecord:
    content = json.loads(fit.content)
    return FitRecord(
        fit.id,
        content["active"],
        content["reason"],
        FitFigures(**content["figures"]),
        content["unused"],
        fit.created_at,
    )
