"""What a candidate store is, whichever database holds it: a history of tables, one per revision.

Aptitude figures are the source; embeddings are kept beside them so that a start need not encode.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.api.candidate import Candidate
from engine.bundle.types import Float32Array

SCHEMA = "2"
DEFAULT_HISTORY_LIMIT = 100  # revisions
POSTGRES = ("postgresql://", "postgres://")
Entry = tuple[Candidate, Float32Array]
Encode = Callable[[Candidate], Float32Array]
# Called with the revision that the store has now, or None and why it cannot be asked.
RevisionCallback = Callable[[int | None, str], None]


@dataclass(frozen=True)
class Change:
    """One atomic step: remove these ids (or everyone), then write these entries."""

    write: Sequence[Entry] = ()
    remove: Sequence[str] = ()
    replace_all: bool = False


@dataclass(frozen=True)
class Revision:
    """One state of the table. created_us: microseconds since 1970 by the clock of what made it; for
    people to read, nothing is ordered by it. candidates: how many it has."""

    number: int
    created_us: int
    description: str
    candidates: int


@dataclass(frozen=True)
class StoreState:
    """Whether the store can be reached; since: of time.monotonic(). reason: why not, else empty."""

    connected: bool
    since: float
    reason: str = ""


class Store(Protocol):
    """An open store, used by one thread at a time; raises StoreError, never its database's own."""

    shared: bool  # whether other servers may change it too

    def load(self, revision: int | None = None) -> tuple[int, list[Entry]]:
        """(revision, its entries); the newest one for None. Raises RevisionNotFoundError."""

    def revision(self) -> int:
        """The newest revision; 0 for a store that has never held anything."""

    def revisions(self, before: int | None, limit: int) -> list[Revision]:
        """At most `limit` kept revisions with numbers below `before` (None: all), newest first."""

    def apply(self, change: Change, expected_revision: int, description: str) -> Revision:
        """Carry out `change` whole or not at all; returns the new revision once it is durable.

        Raises ConflictError, having changed nothing, where the store is not at expected_revision.
        """

    def follow(self, seen: RevisionCallback) -> None:
        """Call `seen`, from a thread of the store's, at every sign of life or loss till close()."""

    def close(self) -> None:
        """Let go of it."""


def is_postgres(url: str) -> bool:
    """Whether `url` names a PostgreSQL database; anything else is the path of an SQLite file."""
    return url.startswith(POSTGRES)


def without_password(url: str) -> str:
    """`url` as it may be printed and logged. Rather hides too much: up to the last @."""
    if not is_postgres(url):
        return url
    url = re.sub(r"^(postgres(?:ql)?://[^:@/]*):.*@", r"\1:***@", url)
    return re.sub(r"([?&](?:ssl)?password=)[^&]*", r"\1***", url, flags=re.IGNORECASE)
