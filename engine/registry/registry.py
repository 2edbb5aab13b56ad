"""Registry of candidates: requests read an immutable table, which one writer at a time swaps."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from engine.api.candidate import NAME_PREFIX, Candidate, check_table_size, require_valid
from engine.api.errors import (
    AlreadyExistsError,
    ConflictError,
    EtagMismatchError,
    InvalidInputError,
    NotFoundError,
    RevisionLostError,
    StoreError,
    UnavailableError,
    Violation,
)
from engine.registry.access import StoreAccess
from engine.registry.encoder import CapabilityEncoder
from engine.registry.health import StoreHealth
from engine.registry.last_table import LastTableFile
from engine.registry.stores.base import (
    Change,
    Entry,
    Revision,
    RevisionId,
    Store,
    StoredTable,
    StoreState,
)
from engine.registry.stores.sql import needs_fence
from engine.registry.table import CurrentTable, Table, make_table

Merge = Callable[[Candidate | None], Candidate]
PlanChange = Callable[[Table], Change]
MAX_ATTEMPTS = 50  # to apply a change on top of what other servers keep changing
MAX_REQUIRE_S, REQUIRE_RESERVE_S = 10.0, 0.02
CLOSE_S = 10.0  # for changes in progress
_HANGS = ("TimeLimitError", "ConnectionTimeout")  # losses that the other connection shares
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Applied:
    """A change after it was applied.

    table: the newest table. revision: the new revision; None if nothing was to be changed.
    """

    change: Change
    table: Table
    revision: Revision | None


class Registry:
    """The table of candidates, and the only way to change it.

    A change is encoded and committed to the store before table() returns it, and it is completed
    even if its caller is cancelled. If other servers share the store, follow() keeps the table up
    to date with their changes.
    """

    def __init__(
        self,
        store: Store,
        encoder: CapabilityEncoder,
        width: int,
        last: LastTableFile | None = None,
        away: str = "",
    ) -> None:
        """Load the newest table from `store`.

        Args:
            store: of the candidates.
            encoder: computes their embeddings.
            width: D, of an embedding.
            last: keeps the newest table on disk.
            away: why the store cannot be reached; the table is that of `last` then, until it can.

        Raises:
            StoreError: the table cannot be read.
        """
        self._store = store
        self._encoder = encoder
        self._width = width
        self._changes = asyncio.Lock()  # one change of this server at a time
        self._access = StoreAccess(store, self._on_slow, self._on_answer)
        self._unsure = False  # True if the store may hold something else than its last answer said
        self._running: set[asyncio.Task[Any]] = set()
        self._refreshing: asyncio.Task[None] | None = None
        self._health = StoreHealth()
        self._last = last
        self._saving: asyncio.Task[None] | None = None
        self._answers = self._published = 0  # numbers of the store's answers, see _publish_built
        self.from_file = bool(away)
        if away and last is not None:
            stored, self.decision_key = last.load()
            self._health.mark_down(away)
            log.error("starting with revision %d from %s", stored.id.number, last.path)
        else:
            stored, self.decision_key = store.newest(), store.decision_key()
        self._current = CurrentTable(self._build(stored))
        if last is not None and not away:
            last.save(self.table(), self.decision_key)

    def table(self) -> Table:
        """Return the newest table; a request should use one table throughout."""
        return self._current.table

    def watch(self) -> AsyncGenerator[Table, None]:
        """Yield the current table and every newer one, until close_watches(); see CurrentTable."""
        return self._current.watch()

    def close_watches(self) -> None:
        """End every watch(), because the server is stopping."""
        self._current.close()

    @property
    def store_state(self) -> StoreState:
        """Whether the store can be reached, and since when. An SQLite file always can."""
        return self._health.state

    def on_store_state(self, hook: Callable[[StoreState], None]) -> None:
        """Call `hook` on the event loop whenever store_state changes."""
        self._health.hooks.append(hook)

    def follow(self) -> None:
        """Follow other servers' changes until close(). Needs a running event loop."""
        loop = asyncio.get_running_loop()

        def on_revision(revision: RevisionId | None, reason: str) -> None:
            with suppress(RuntimeError):  # the loop ended before the thread did
                loop.call_soon_threadsafe(self._on_revision, revision, reason)

        self._store.follow(on_revision)

    async def require(self, token: str, deadline: float) -> None:
        """Return once the table includes the revision of `token`, at once if it is "".

        deadline: of time.monotonic(); MAX_REQUIRE_S from now is the latest. Raises
        InvalidInputError, RevisionLostError, or UnavailableError at the deadline.
        """
        if not token:
            return
        try:
            wanted = RevisionId.parse(token)
        except ValueError as error:
            raise InvalidInputError(Violation("min_revision_token", f"{error}.")) from error
        reads = 0
        deadline = min(deadline, time.monotonic() + MAX_REQUIRE_S)
        while not self.table().includes(wanted):
            if reads > 1 and self.store_state.connected:  # the second read began after the call
                raise RevisionLostError(wanted.number)
            left = deadline - time.monotonic() - REQUIRE_RESERVE_S
            if left <= 0:
                raise UnavailableError(
                    f"This server is at revision {self.table().revision}, the request demands"
                    f" {wanted.number}; the candidate store does not answer. Ask another server."
                )
            await asyncio.wait({self._start_refresh()}, timeout=left)
            reads += self.store_state.connected
            if not self.store_state.connected:
                await asyncio.sleep(min(left, 0.1))

    async def create(self, candidate: Candidate, *, validate_only: bool = False) -> Candidate:
        """Register a new candidate; raise AlreadyExistsError if its ID is taken."""
        require_valid([candidate], "candidate")

        def plan(table: Table) -> Change:
            if candidate.id in table.rows:
                raise AlreadyExistsError(candidate.name)
            return self._encode_all([candidate])

        await self._change(plan, f"created {candidate.name}", validate_only)
        return candidate

    async def update(
        self,
        identifier: str,
        merge: Merge,
        *,
        etag: str = "",
        allow_missing: bool = False,
        validate_only: bool = False,
    ) -> Candidate:
        """Replace a candidate by merge(current candidate or None), and return the new one.

        merge may be called again if another server changed the table in the meantime. Raises
        NotFoundError unless allow_missing, and EtagMismatchError if `etag` is set and outdated.
        """

        def plan(table: Table) -> Change:
            merged = merge(_expect(table, identifier, etag, allow_missing))
            require_valid([merged], "candidate")
            return self._encode_all([merged])

        applied = await self._change(plan, f"updated {NAME_PREFIX}{identifier}", validate_only)
        ((candidate, _),) = applied.change.upsert
        return candidate

    async def delete(
        self,
        identifier: str,
        *,
        etag: str = "",
        allow_missing: bool = False,
        validate_only: bool = False,
    ) -> None:
        """Remove a candidate; raises as update() does."""

        def plan(table: Table) -> Change:
            if allow_missing and identifier not in table.rows:
                return Change()
            _expect(table, identifier, etag, allow_missing)
            return Change(delete=[identifier])

        await self._change(plan, f"deleted {NAME_PREFIX}{identifier}", validate_only)

    async def replace(
        self, candidates: Sequence[Candidate], *, validate_only: bool = False
    ) -> Table:
        """Make `candidates` the whole table, or change nothing; return the newest table."""
        if not candidates:
            raise InvalidInputError(
                Violation("candidates", "is empty; give all candidates of the new table.")
            )
        check_table_size(len(candidates))
        await asyncio.to_thread(require_valid, candidates)

        def plan(_: Table) -> Change:
            return Change(self._encode_all(candidates).upsert, replace_all=True)

        description = f"replaced all by {len(candidates)}"
        return (await self._change(plan, description, validate_only)).table

    async def rollback(self, revision: int, *, validate_only: bool = False) -> Revision:
        """Make the table of an earlier revision the newest one.

        Returns the new revision, with validate_only the one that would be made. Raises
        RevisionNotFoundError.
        """

        _, entries = await self._access.run(self._store.load, revision)

        def plan(_: Table) -> Change:
            return Change(entries, replace_all=True)

        description = f"rolled back to {revision}"
        applied = await self._change(plan, description, validate_only)
        if applied.revision is not None:
            return applied.revision
        count = len(applied.change.upsert)
        number = applied.table.revision + 1
        return Revision(number, 0, description, count)

    async def revisions(self, before: int | None, limit: int) -> list[Revision]:
        """List revisions, newest first; see Store.revisions."""
        return await self._access.run(self._store.revisions, before, limit)

    async def close(self, timeout_s: float = CLOSE_S) -> None:
        """Finish the changes in progress within timeout_s, then close the store.

        What does not end is left behind: each change is made completely or not at all.
        """
        self.close_watches()
        if self._running:
            await asyncio.wait(self._running, timeout=timeout_s)
        for task in self._running:
            task.cancel()
        await self._access.close()

    def _encode_all(self, candidates: Sequence[Candidate]) -> Change:
        return Change([(c, self._encoder.encode(c)) for c in candidates])

    async def _change(self, plan: PlanChange, description: str, validate_only: bool) -> _Applied:
        """Apply the change that `plan` computes from the newest table, shielded from cancellation.

        plan: runs in a thread, once per attempt.
        """
        task = asyncio.create_task(self._apply(plan, description, validate_only))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def _apply(self, plan: PlanChange, description: str, validate_only: bool) -> _Applied:
        async with self._changes:
            for attempt in range(MAX_ATTEMPTS):
                await self._catch_up()
                table = self.table()
                change = await asyncio.to_thread(plan, table)
                entries = _entries_after(table, change)
                check_table_size(len(entries))
                if validate_only or not (change.upsert or change.delete or change.replace_all):
                    return _Applied(change, table, None)
                arguments = (change, table.revision, description, table.id.nonce)
                try:
                    revision = await self._access.run(self._store.apply, *arguments)
                except ConflictError:
                    if attempt + 1 == MAX_ATTEMPTS:
                        raise
                    await asyncio.sleep(0.05 * random.random())  # noqa: S311 - apart from others
                    await self._read()
                    continue
                except StoreError:
                    self._unsure = True
                    raise
                lineage = {**table.lineage, revision.number: revision.id.nonce}
                stored = StoredTable(revision.id, lineage, list(entries.values()))
                table = await self._publish_built(stored)
                return _Applied(change, table, revision)
        raise AssertionError("the last attempt returns or raises")

    def _build(self, stored: StoredTable) -> Table:
        table = make_table(
            stored.id, stored.entries, self._width, stored.lineage, self._encoder.match
        )
        # 40 ms of 1,000 candidates, which the first guarded decision would spend on the event loop.
        _ = table.level_errors
        return table

    async def _read(self) -> None:
        """Publish the newest table of the store. If the store lost the one that was served until
        now, it begins a new epoch first."""
        stored = await self._access.run(self._store.newest)
        known = self.table().id
        if known.number and not stored.id.number:
            raise StoreError("The candidate store is empty; restore a backup. Nothing was changed.")
        if needs_fence(stored.id, known, stored.lineage):
            log.error("the store lost revision %d: restored or failed over", known.number)
            await self._access.run(self._store.fence, known)
            stored = await self._access.run(self._store.newest)
        self._unsure = self.from_file = False
        if stored.id != self.table().id:
            await self._publish_built(stored)

    async def _publish_built(self, stored: StoredTable) -> Table:
        """Build a table in a thread, and publish it unless a later answer of the store already
        is: it may be built sooner, and the table must not go back."""
        self._answers += 1
        answer = self._answers
        table = await asyncio.to_thread(self._build, stored)
        if answer > self._published:
            self._published = answer
            self._publish(table)
        return table

    def _publish(self, table: Table) -> None:
        self._current.publish(table)
        if self._last is not None and (self._saving is None or self._saving.done()):
            self._saving = asyncio.create_task(self._save(self._last))
            self._running.add(self._saving)
            self._saving.add_done_callback(self._running.discard)

    async def _save(self, last: LastTableFile) -> None:
        """Save the newest table, and again while it changes."""
        saved = None
        while saved is not (table := self.table()):
            await asyncio.to_thread(last.save, table, self.decision_key)
            saved = table

    async def _catch_up(self) -> None:
        """Publish what other servers changed."""
        if not (self._store.shared or self._unsure):
            return
        identity = await self._access.run(self._store.identity)
        if self._unsure or self.from_file or identity != self.table().id:
            await self._read()

    def _on_revision(self, revision: RevisionId | None, reason: str) -> None:
        """Handle what the store reports; see stores.base.RevisionCallback."""
        if revision is None:
            self._health.mark_down(reason)
            if reason in _HANGS:
                self._store.interrupt()  # what waits for it would wait as long
        elif revision == self.table().id and not (self._unsure or self.from_file):
            self._health.mark_up()
        else:
            self._start_refresh()

    def _start_refresh(self) -> asyncio.Task[None]:
        """Return the refresh in progress, a new one if there is none."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh())
            self._running.add(self._refreshing)
            self._refreshing.add_done_callback(self._running.discard)
        return self._refreshing

    async def _refresh(self) -> None:
        before = self._health.state
        try:
            await self._catch_up()
            if self._health.state is before:  # a loss reported in the meantime is newer than this
                self._health.mark_up()
        except StoreError as error:
            self._health.mark_down(str(error))

    def _on_slow(self, reason: str) -> None:
        self._unsure = True
        self._health.mark_down(reason)

    def _on_answer(self) -> None:
        self._start_refresh()


def _expect(table: Table, identifier: str, etag: str, allow_missing: bool) -> Candidate | None:
    """Return the candidate, or None if it may be missing; raise as Registry.update does."""
    candidate = table.get(identifier)
    name = NAME_PREFIX + identifier
    if candidate is None and not allow_missing:
        raise NotFoundError(name)
    current = candidate.etag if candidate else "none (no such candidate)"
    if etag and etag != current:
        raise EtagMismatchError(name, sent=etag, current=current)
    return candidate


def _entries_after(table: Table, change: Change) -> Mapping[str, Entry]:
    """Return ID -> entry of the table that results from `change`."""
    entries: dict[str, Entry] = {}
    if not change.replace_all:
        entries = {c.id: (c, e) for c, e in zip(table.candidates, table.embeddings, strict=True)}
    for identifier in change.delete:
        entries.pop(identifier, None)
    entries.update({c.id: (c, e) for c, e in change.upsert})
    return entries
