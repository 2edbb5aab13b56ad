"""The immutable table that a request reads once; a swap is one reference assignment.

Letters: M candidates, D backbone width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from engine.api.candidate import Candidate
from engine.bundle.types import Float32Array


@dataclass(frozen=True)
class Table:
    """All candidates of one revision, in order of their ids.

    embeddings: (M, D) float32, read-only. rows: id -> row number.
    """

    revision: int
    candidates: tuple[Candidate, ...]
    embeddings: Float32Array
    rows: Mapping[str, int] = field(repr=False)

    def get(self, identifier: str) -> Candidate | None:
        """The candidate of that id, or None."""
        row = self.rows.get(identifier)
        return None if row is None else self.candidates[row]

    @cached_property
    def mean_accuracies(self) -> Float32Array:
        """(M,) means of the aptitude figures: what is known of candidates without scoring them."""
        return np.array([c.mean_accuracy() for c in self.candidates], dtype=np.float32)


def make_table(
    revision: int, entries: Sequence[tuple[Candidate, Float32Array]], width: int
) -> Table:
    """entries: candidates with their (D,) embeddings, in any order. width: D."""
    ordered = sorted(entries, key=lambda entry: entry[0].id)
    embeddings = np.empty((len(ordered), width), dtype=np.float32)
    for i, (_, embedding) in enumerate(ordered):
        embeddings[i] = embedding
    embeddings.flags.writeable = False
    candidates = tuple(candidate for candidate, _ in ordered)
    return Table(revision, candidates, embeddings, {c.id: i for i, c in enumerate(candidates)})
