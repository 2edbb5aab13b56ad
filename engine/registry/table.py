"""The immutable table of candidates that requests read, and the reference to the newest one.

Shapes: M candidates, D backbone width.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from engine.api.candidate import Candidate
from engine.bundle.types import Float32Array
from engine.registry.matching.task_match import TaskMatch
from engine.registry.stores.base import RevisionId


@dataclass(frozen=True)
class Table:
    """All candidates of one revision, sorted by ID.

    id: the revision's identity. embeddings: (M, D) float32, read-only. rows: ID -> row number.
    lineage: number -> nonce of the revisions that led to it and are kept. match: of instructions
    with the candidates' tests; None adds nothing to what the weights say.
    """

    id: RevisionId
    candidates: tuple[Candidate, ...]
    embeddings: Float32Array
    rows: Mapping[str, int] = field(repr=False)
    lineage: Mapping[int, str] = field(default_factory=dict, repr=False)
    match: TaskMatch | None = field(default=None, repr=False)

    @property
    def revision(self) -> int:
        """Number of the revision; another table may have had it, see RevisionId."""
        return self.id.number

    def includes(self, wanted: RevisionId) -> bool:
        """Return True if the table is that revision, or came after it in the same history."""
        if wanted.number in self.lineage:
            return self.lineage[wanted.number] == wanted.nonce
        oldest = min(self.lineage, default=0)
        return wanted == self.id or (wanted.epoch == self.id.epoch and wanted.number < oldest)

    def get(self, identifier: str) -> Candidate | None:
        """Return the candidate of that ID, or None."""
        row = self.rows.get(identifier)
        return None if row is None else self.candidates[row]

    @cached_property
    def mean_accuracies(self) -> Float32Array:
        """(M,) mean accuracies in the aptitude test, which rank candidates if scoring fails."""
        return np.array([c.mean_accuracy() for c in self.candidates], dtype=np.float32)

    @cached_property
    def level_errors(self) -> Float32Array:
        """(M,) standard errors of the mean accuracies."""
        return np.array([c.level_standard_error() for c in self.candidates], dtype=np.float32)


def make_table(
    revision: RevisionId | int,
    entries: Sequence[tuple[Candidate, Float32Array]],
    width: int,
    lineage: Mapping[int, str] | None = None,
    match: Callable[[Sequence[Candidate]], TaskMatch | None] | None = None,
) -> Table:
    """Build a table.

    Args:
        revision: its identity; of a table that is in no store, a number.
        entries: candidates with their (D,) embeddings, in any order.
        width: D.
        lineage: number -> nonce of the revisions that led to it.
        match: see CapabilityEncoder.match; None for no match.
    """
    ordered = sorted(entries, key=lambda entry: entry[0].id)
    embeddings = np.empty((len(ordered), width), dtype=np.float32)
    for i, (_, embedding) in enumerate(ordered):
        embeddings[i] = embedding
    embeddings.flags.writeable = False
    candidates = tuple(candidate for candidate, _ in ordered)
    rows = {c.id: i for i, c in enumerate(candidates)}
    identity = RevisionId(number=revision) if isinstance(revision, int) else revision
    matched = None if match is None else match(candidates)
    return Table(identity, candidates, embeddings, rows, lineage or {}, matched)


class CurrentTable:
    """A reference to the newest table, which can be watched.

    Any thread may read `table`; everything else belongs to the event loop's thread.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self._changed = asyncio.Event()
        self._closed = False

    def publish(self, table: Table) -> None:
        """Swap the table, and wake the watchers."""
        self.table = table
        self._wake()

    def close(self) -> None:
        """End every watch()."""
        self._closed = True
        self._wake()

    async def watch(self) -> AsyncGenerator[Table, None]:
        """Yield the current table, then newer ones until close(). Nothing is queued: a slow watcher
        skips to the newest table."""
        last = None
        while not self._closed:
            changed = self._changed
            if (table := self.table) is not last:
                last = table
                yield table
            else:
                await changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
