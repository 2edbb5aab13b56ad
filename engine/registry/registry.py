"""Who can be chosen now: one reference to an immutable table, changed by one writer at a time."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine.api.candidate import MAX_CANDIDATES, NAME_PREFIX, Candidate, require_valid
from engine.api.errors import (
    AlreadyExistsError,
    ConflictError,
    EtagMismatchError,
    InvalidInputError,
    NotFoundError,
    StoreError,
    Violation,
)
from engine.registry.encoder import CapabilityEncoder
from engine.registry.stores.base import (
    DEFAULT_HISTORY_LIMIT,
    Change,
    Encode,
    Entry,
    Revision,
    Store,
    StoreState,
    is_postgres,
)
from engine.registry.stores.sqlite import SqliteStore
from engine.registry.table import Table, make_table

Merge = Callable[[Candidate | None], Candidate]
Plan = Callable[[Table], Change]
ATTEMPTS = 50  # at a change that other servers are faster than


class Registry:
    """The table and the only way to change it.

    A change is encoded and committed to the store before table() shows it. A caller that goes
    away does not tear one: it is finished all the same. Where other servers have the same store,
    follow() keeps the table up with them.
    """

    def __init__(self, store: Store, encoder: CapabilityEncoder, width: int) -> None:
        self._store = store
        self._encoder = encoder
        self._width = width
        self._lock = asyncio.Lock()  # of the store and of changes to the table
        self._running: set[asyncio.Task[Any]] = set()
        self._refreshing: asyncio.Task[None] | None = None
        self._watch = StoreHealth()
        self._current = CurrentTable(self._read())

    def table(self) -> Table:
        """The newest table; hold on to it for the length of a request."""
        return self._current.table

    def tables(self) -> AsyncGenerator[Table, None]:
        """The table as it is, then each newer one until end_watches(); see CurrentTable.newer."""
        return self._current.newer()

    def end_watches(self) -> None:
        """Let every tables() end; the server is stopping."""
        self._current.end()

    @property
    def store_state(self) -> StoreState:
        """Whether the store can be reached, and since when; always so for an SQLite file."""
        return self._watch.state

    def on_store_state(self, hook: Callable[[StoreState], None]) -> None:
        """Call `hook` on the event loop whenever store_state changes."""
        self._watch.hooks.append(hook)

    def follow(self) -> None:
        """Keep up with other servers' changes until close(); needs a running event loop."""
        loop = asyncio.get_running_loop()

        def seen(revision: int | None, reason: str) -> None:
            with suppress(RuntimeError):  # the loop ended before the thread did
                loop.call_soon_threadsafe(self._seen, revision, reason)

        self._store.follow(seen)

    async def create(self, candidate: Candidate, *, validate_only: bool = False) -> Candidate:
        """Register a new candidate; AlreadyExistsError where the id is taken."""
        require_valid([candidate], "candidate")

        def plan(table: Table) -> Change:
            if candidate.id in table.rows:
                raise AlreadyExistsError(candidate.name)
            return self._writing([candidate])

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
        """Put merge(present candidate, or None) in its place; returns it.

        Raises NotFoundError unless allow_missing, EtagMismatchError where `etag` is given and old.
        """
        merged: list[Candidate] = []

        def plan(table: Table) -> Change:
            present = _expect(table, identifier, etag, allow_missing)
            merged[:] = [merge(present)]  # planned again where another server was faster
            require_valid(merged, "candidate")
            return self._writing(merged)

        await self._change(plan, f"updated {NAME_PREFIX}{identifier}", validate_only)
        return merged[0]

    async def delete(
        self,
        identifier: str,
        *,
        etag: str = "",
        allow_missing: bool = False,
        validate_only: bool = False,
    ) -> None:
        """Remove a candidate; errors as in update()."""

        def plan(table: Table) -> Change:
            gone = allow_missing and identifier not in table.rows
            present = None if gone else _expect(table, identifier, etag, allow_missing)
            return Change(remove=[present.id] if present else [])

        await self._change(plan, f"deleted {NAME_PREFIX}{identifier}", validate_only)

    async def replace(
        self, candidates: Sequence[Candidate], *, validate_only: bool = False
    ) -> Table:
        """Make `candidates` the whole table, or change nothing."""
        if not candidates:
            raise InvalidInputError(
                Violation("candidates", "is empty; give all candidates of the new table.")
            )
        _check_count(len(candidates))
        require_valid(candidates)

        def plan(_: Table) -> Change:
            return Change(write=self._writing(candidates).write, replace_all=True)

        table, _ = await self._change(plan, f"replaced all by {len(candidates)}", validate_only)
        return table

    async def rollback(self, revision: int, *, validate_only: bool = False) -> Revision:
        """Make the table of a kept revision the newest one; returns the new revision, or what there
        would be. Raises RevisionNotFoundError."""

        found: list[Entry] = []

        def plan(_: Table) -> Change:
            found[:] = self._store.load(revision)[1]
            return Change(write=found, replace_all=True)

        description = f"rolled back to {revision}"
        table, made = await self._change(plan, description, validate_only)
        return made or Revision(table.revision + 1, 0, description, len(found))

    async def revisions(self, before: int | None, limit: int) -> list[Revision]:
        """See Store.revisions."""
        async with self._lock:
            return await asyncio.to_thread(self._store.revisions, before, limit)

    async def close(self) -> None:
        """Finish the changes that run, then close the store."""
        self.end_watches()
        await asyncio.gather(*self._running, return_exceptions=True)
        async with self._lock:
            await asyncio.to_thread(self._store.close)

    def _writing(self, candidates: Sequence[Candidate]) -> Change:
        return Change(write=[(c, self._encoder.encode(c)) for c in candidates])

    async def _change(
        self, plan: Plan, description: str, validate_only: bool
    ) -> tuple[Table, Revision | None]:
        task = asyncio.create_task(self._carry_out(plan, description, validate_only))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def _carry_out(
        self, plan: Plan, description: str, validate_only: bool
    ) -> tuple[Table, Revision | None]:
        """(the table after it, the revision that was made if one was)."""
        async with self._lock:
            for attempt in range(ATTEMPTS):
                await self._catch_up()
                table = self.table()
                change = await asyncio.to_thread(plan, table)
                entries = _entries_after(table, change)
                _check_count(len(entries))
                if validate_only or not (change.write or change.remove or change.replace_all):
                    return table, None
                arguments = (change, table.revision, description)
                try:
                    made = await asyncio.to_thread(self._store.apply, *arguments)
                except ConflictError:
                    if attempt + 1 == ATTEMPTS:
                        raise
                    await asyncio.sleep(0.05 * random.random())  # noqa: S311 - apart from others
                    self._current.show(await asyncio.to_thread(self._read))
                    continue
                self._current.show(make_table(made.number, list(entries.values()), self._width))
                return self.table(), made
        raise AssertionError("the last attempt returns or raises")

    def _read(self) -> Table:
        revision, entries = self._store.load()
        return make_table(revision, entries, self._width)

    async def _catch_up(self) -> None:
        """With other servers; the lock is held."""
        if not self._store.shared:
            return
        if await asyncio.to_thread(self._store.revision) != self.table().revision:
            self._current.show(await asyncio.to_thread(self._read))

    def _seen(self, revision: int | None, reason: str) -> None:
        if revision is None:
            self._watch.lost(reason)
        elif revision == self.table().revision:
            self._watch.reached()
        elif self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh())
            self._running.add(self._refreshing)
            self._refreshing.add_done_callback(self._running.discard)

    async def _refresh(self) -> None:
        before = self._watch.state
        try:
            async with self._lock:
                await self._catch_up()
            if self._watch.state is before:  # a loss that was noticed meanwhile is newer than this
                self._watch.reached()
        except StoreError as error:
            self._watch.lost(str(error))


def _check_count(count: int) -> None:
    if count > MAX_CANDIDATES:
        raise InvalidInputError(
            Violation("candidates", f"would be {count}, the limit is {MAX_CANDIDATES}.")
        )


def _expect(table: Table, identifier: str, etag: str, allow_missing: bool) -> Candidate | None:
    present = table.get(identifier)
    name = NAME_PREFIX + identifier
    if present is None and not allow_missing:
        raise NotFoundError(name)
    found = present.etag if present else "none: it is gone"
    if etag and etag != found:
        raise EtagMismatchError(name, sent=etag, current=found)
    return present


def _entries_after(table: Table, change: Change) -> Mapping[str, Entry]:
    entries: dict[str, Entry] = {}
    if not change.replace_all:
        entries = {c.id: (c, e) for c, e in zip(table.candidates, table.embeddings, strict=True)}
    for identifier in change.remove:
        entries.pop(identifier, None)
    entries.update({c.id: (c, e) for c, e in change.write})
    return entries


log = logging.getLogger(__name__)


class CurrentTable:
    """One reference to an immutable table. Everything but table is for the event loop's thread."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self._changed = asyncio.Event()
        self._ended = False

    def show(self, table: Table) -> None:
        """Swap it, and wake those who wait."""
        self.table = table
        self._wake()

    def end(self) -> None:
        """Let every newer() end."""
        self._ended = True
        self._wake()

    async def newer(self) -> AsyncGenerator[Table, None]:
        """The table as it is, then each newer one until end(). Who is slow gets the newest, not
        every step: nothing is queued."""
        last = None
        while not self._ended:
            changed = self._changed
            if (table := self.table) is not last:
                last = table
                yield table
            else:
                await changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class StoreHealth:
    """Whether the store can be reached, for health and metrics; of the event loop's thread."""

    def __init__(self) -> None:
        self.state = StoreState(True, time.monotonic())
        self.hooks: list[Callable[[StoreState], None]] = []

    def reached(self) -> None:
        """It answers."""
        if not self.state.connected:
            log.info("the candidate store is back")
            self._set(StoreState(True, time.monotonic()))

    def lost(self, reason: str) -> None:
        """It does not, because of `reason`."""
        if self.state.connected:
            log.error("the candidate store is lost (%s); serving the last revision", reason)
            self._set(StoreState(False, time.monotonic(), reason))

    def _set(self, state: StoreState) -> None:
        self.state = state
        for hook in self.hooks:
            hook(state)


def open_registry(
    url: str,
    encoder: CapabilityEncoder,
    encoder_id: str,
    width: int,
    catalog: Sequence[Candidate],
    *,
    reencode_candidates: bool = False,
    keep: int = DEFAULT_HISTORY_LIMIT,
) -> Registry:
    """Open the store at `url`; a store that has never held anything begins with `catalog`.

    url: path of an SQLite file, or postgresql://. keep: revisions. Raises StoreError.
    """
    store = open_store(
        url, encoder_id, width, encoder.encode if reencode_candidates else None, keep
    )
    if store.revision() == 0:
        begun = Change(write=[(c, encoder.encode(c)) for c in catalog])
        with suppress(ConflictError):  # another server began it at the same time
            store.apply(begun, 0, f"began with the {len(catalog)} candidates of the bundle")
    return Registry(store, encoder, width)


def open_store(
    url: str, encoder_id: str, width: int, reencode_candidates: Encode | None, keep: int
) -> Store:
    """The kind of store that `url` names. width: D. Raises StoreError."""
    if not is_postgres(url):
        return SqliteStore(Path(url), encoder_id, width, reencode_candidates, keep)
    try:
        from engine.registry.stores.postgres import PostgresStore
    except ImportError as error:
        raise StoreError(NO_DRIVER) from error
    return PostgresStore(url, encoder_id, width, reencode_candidates, keep)


NO_DRIVER = (
    "A postgresql:// store needs psycopg, which is not installed; pip install 'psycopg[binary]'."
)
