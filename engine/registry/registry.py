"""Who can be chosen now: one reference to an immutable table, changed by one writer at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.contract.candidate import MAX_CANDIDATES, PREFIX, Candidate, require_valid
from engine.contract.errors import (
    AlreadyExistsError,
    EtagMismatchError,
    InvalidInputError,
    NotFoundError,
    Violation,
)
from engine.registry.encoder import CapabilityEncoder
from engine.registry.store import Change, Entry, Store
from engine.registry.table import Table, make_table

Floats = NDArray[np.float32]
Merge = Callable[[Candidate | None], Candidate]


class Registry:
    """The table and the only way to change it.

    A change is encoded and committed to the store before table() shows it. A caller that goes
    away does not tear one: it is finished all the same.
    """

    def __init__(self, store: Store, encoder: CapabilityEncoder, shape: tuple[int, int]) -> None:
        self._store = store
        self._encoder = encoder
        self._shape = shape
        self._lock = asyncio.Lock()
        self._running: set[asyncio.Task[Table]] = set()
        revision, entries = store.load()
        self._table = make_table(revision, entries, shape)

    def table(self) -> Table:
        """The newest table; hold on to it for the length of a request."""
        return self._table

    async def create(self, candidate: Candidate, *, validate_only: bool = False) -> Candidate:
        """Register a new candidate; AlreadyExistsError where the id is taken."""
        require_valid([candidate], "candidate")

        def plan(table: Table) -> Change:
            if candidate.id in table.rows:
                raise AlreadyExistsError(candidate.name)
            return self._writing([candidate])

        await self._change(plan, validate_only)
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
            merged.append(merge(present))
            require_valid(merged, "candidate")
            return self._writing(merged)

        await self._change(plan, validate_only)
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

        await self._change(plan, validate_only)

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
            change = self._writing(candidates)
            return Change(write=change.write, replace_all=True)

        return await self._change(plan, validate_only)

    async def close(self) -> None:
        """Finish the changes that run, then close the store."""
        await asyncio.gather(*self._running, return_exceptions=True)
        self._store.close()

    def _writing(self, candidates: Sequence[Candidate]) -> Change:
        return Change(write=[(c, self._encoder.encode(c)) for c in candidates])

    async def _change(self, plan: Callable[[Table], Change], validate_only: bool) -> Table:
        task = asyncio.create_task(self._carry_out(plan, validate_only))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def _carry_out(self, plan: Callable[[Table], Change], validate_only: bool) -> Table:
        async with self._lock:
            table = self._table
            change = await asyncio.to_thread(plan, table)
            entries = _entries_after(table, change)
            _check_count(len(entries))
            if validate_only or not (change.write or change.remove or change.replace_all):
                return table
            revision = await asyncio.to_thread(self._store.apply, change)
            self._table = make_table(revision, list(entries.values()), self._shape)
            return self._table


def _check_count(count: int) -> None:
    if count > MAX_CANDIDATES:
        raise InvalidInputError(
            Violation("candidates", f"would be {count}, the limit is {MAX_CANDIDATES}.")
        )


def _expect(table: Table, identifier: str, etag: str, allow_missing: bool) -> Candidate | None:
    present = table.get(identifier)
    name = PREFIX + identifier
    if present is None and not allow_missing:
        raise NotFoundError(name)
    found = present.etag if present else "none: it is gone"
    if etag and etag != found:
        raise EtagMismatchError(name, found=etag, expected=found)
    return present


def _entries_after(table: Table, change: Change) -> Mapping[str, Entry]:
    entries: dict[str, Entry] = {}
    if not change.replace_all:
        entries = {c.id: (c, e) for c, e in zip(table.candidates, table.embeddings, strict=True)}
    for identifier in change.remove:
        entries.pop(identifier, None)
    entries.update({c.id: (c, e) for c, e in change.write})
    return entries


def open_registry(
    path: Path,
    encoder: CapabilityEncoder,
    encoder_id: str,
    width: int,
    zoo: Sequence[Candidate],
    *,
    reembed: bool = False,
) -> Registry:
    """Open the store at `path`; a store that has never held anything begins with `zoo`."""
    shape = (encoder.variants, width)
    store = Store(path, encoder_id, shape, encoder.encode if reembed else None)
    if store.revision() == 0:
        store.apply(Change(write=[(c, encoder.encode(c)) for c in zoo]))
    return Registry(store, encoder, shape)
