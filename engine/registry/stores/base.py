"""The interface of candidate stores: a history of tables, one per revision.

Embeddings are derived from aptitude results, and stored so that servers start without encoding.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.api.candidate import Candidate
from engine.bundle.types import Float32Array

DEFAULT_HISTORY_LIMIT = 100  # revisions
POSTGRES = ("postgresql://", "postgres://")
POSTGRES_DRIVER_HINT = (
    "A postgresql:// store needs psycopg, which is not installed; pip install 'psycopg[binary]'."
)
Entry = tuple[Candidate, Float32Array]
Encode = Callable[[Candidate], Float32Array]


@dataclass(frozen=True)
class RevisionId:
    """The identity of one state of the table: no two states share one, in any history of any store.

    epoch: of the store, another one after each restore and failover. number: of the revision, which
    a restored store may use again. nonce: 64 random bits that its maker drew; "" if nothing is
    stored yet.
    """

    epoch: str = ""
    number: int = 0
    nonce: str = ""

    @property
    def token(self) -> str:
        """The identity as callers hold it; opaque to them."""
        return f"{self.epoch}.{self.number}.{self.nonce}"

    @classmethod
    def parse(cls, token: str) -> RevisionId:
        """Parse a token; raises ValueError."""
        found = TOKEN.fullmatch(token)
        if found is None:
            raise ValueError("is not a revision_token of this service")
        return cls(found[1], int(found[2]), found[3])


TOKEN = re.compile(r"([0-9a-f]{0,32})\.([0-9]{1,18})\.([0-9a-f]{0,32})")
# Called with the newest revision and "", or with None and the reason why the store cannot be read.
RevisionCallback = Callable[[RevisionId | None, str], None]


@dataclass(frozen=True)
class Change:
    """One atomic step: delete these IDs, or all with replace_all, then insert or update entries."""

    upsert: Sequence[Entry] = ()
    delete: Sequence[str] = ()
    replace_all: bool = False


@dataclass(frozen=True)
class Revision:
    """One state of the table.

    created_us: microseconds since 1970 by the clock of its maker, for people to read; nothing is
    ordered by it. candidates: their number. id: its identity. principal, peer: who made it, and
    from which address; "" if callers are not authenticated, or if the server made it.
    """

    number: int
    created_us: int
    description: str
    candidates: int
    id: RevisionId = RevisionId()
    principal: str = ""
    peer: str = ""


@dataclass(frozen=True)
class StoredTable:
    """The newest table of a store. lineage: number -> nonce of the revisions that are kept."""

    id: RevisionId
    lineage: Mapping[int, str]
    entries: Sequence[Entry]


@dataclass(frozen=True)
class StoreState:
    """Whether the store can be reached. since: of time.monotonic(). reason: "" if connected."""

    connected: bool
    since: float
    reason: str = ""


class Store(Protocol):
    """An open store, used by one thread at a time. Failures of its database become StoreError."""

    shared: bool  # True if other servers may change it

    def load(self, revision: int | None = None) -> tuple[int, list[Entry]]:
        """Return (number, entries) of a revision, of the newest one for None.

        Raises RevisionNotFoundError.
        """

    def newest(self) -> StoredTable:
        """Return the newest table."""

    def revision(self) -> int:
        """Return the newest revision; 0 for a store that has never held anything."""

    def identity(self) -> RevisionId:
        """Return the identity of the newest revision."""

    def decision_key(self) -> bytes:
        """Return the secret that signs decision IDs: 32 bytes, the same for all its servers."""

    def revisions(self, before: int | None, limit: int) -> list[Revision]:
        """List up to `limit` revisions with numbers below `before` (None: all), newest first."""

    def apply(
        self, change: Change, expected_revision: int, description: str, expected_nonce: str = ""
    ) -> Revision:
        """Apply `change` atomically, and return the new revision once it is durable.

        Raises ConflictError, having changed nothing, if the store is not at expected_revision, or
        at another revision of that number. expected_nonce: "" for any.
        """

    def fence(self, known: RevisionId) -> RevisionId:
        """Begin a new epoch if the store has lost the revision `known`, which was served from it.

        The newest table is then stored again, under a number above both, so that no later change
        takes the number of a lost one. Return the identity of the newest revision. Safe for
        servers that notice the loss together: the first one changes the epoch.
        """

    def follow(self, on_revision: RevisionCallback) -> None:
        """Report revisions and losses of the connection until close(), from a thread of its own."""

    def interrupt(self) -> None:
        """End what another thread waits for in the store, if it can be ended; it raises then."""

    def close(self) -> None:
        """Close connections and files."""


def is_postgres(url: str) -> bool:
    """Return True for a PostgreSQL URL; anything else is the path of an SQLite file."""
    return url.startswith(POSTGRES)


def without_password(url: str) -> str:
    """Mask passwords in `url` for messages and logs. It errs on the safe side: up to the last @."""
    if not is_postgres(url):
        return url
    url = re.sub(r"^(postgres(?:ql)?://[^:@/]*):.*@", r"\1:***@", url)
    return re.sub(r"([?&](?:ssl)?password=)[^&]*", r"\1***", url, flags=re.IGNORECASE)
