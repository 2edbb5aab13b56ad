"""Open the candidate store at a location, and the registry on it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from engine.api.candidate import Candidate
from engine.api.errors import ConflictError, StoreError
from engine.registry.encoder import CapabilityEncoder
from engine.registry.last_table import LastTableFile
from engine.registry.registry import Registry
from engine.registry.stores.base import (
    DEFAULT_HISTORY_LIMIT,
    POSTGRES_DRIVER_HINT,
    Change,
    Encode,
    Store,
    is_postgres,
)
from engine.registry.stores.location import location_problem
from engine.registry.stores.sqlite import SqliteStore


def open_registry(
    url: str,
    encoder: CapabilityEncoder,
    encoder_id: str,
    width: int,
    catalog: Sequence[Candidate],
    *,
    reencode_candidates: bool = False,
    history_limit: int = DEFAULT_HISTORY_LIMIT,
    last_table: Path | None = None,
) -> Registry:
    """Open the store at `url`, and fill it from `catalog` if it has never held anything.

    Args:
        url: path of an SQLite file, or a postgresql:// URL.
        encoder: computes the embeddings of candidates.
        encoder_id: identifies the encoder; a store that another one filled is refused.
        width: D, of an embedding.
        catalog: candidates of a new store; there may be none.
        reencode_candidates: recompute the embeddings of a store of another encoder instead.
        history_limit: revisions that the store keeps.
        last_table: file of the last table, for a start while the PostgreSQL database is away.

    Raises:
        StoreError: the store cannot be opened, or was filled by another encoder.
    """
    last = None
    if last_table is not None and is_postgres(url):
        last = LastTableFile(last_table, _store_id(url), encoder_id, width)
    try:
        store = open_store(
            url, encoder_id, width, encoder.encode if reencode_candidates else None, history_limit
        )
    except StoreError as error:
        if last is None or reencode_candidates or not error.unreachable:
            raise
        return _open_away(url, encoder, last, history_limit, error)
    if store.revision() == 0:
        initial = Change([(c, encoder.encode(c)) for c in catalog])
        with suppress(ConflictError):  # another server did it at the same time
            store.apply(initial, 0, f"initialized with {len(catalog) or 'no'} candidates")
    return Registry(store, encoder, width, last)


def _open_away(
    url: str,
    encoder: CapabilityEncoder,
    last: LastTableFile,
    history_limit: int,
    reason: StoreError,
) -> Registry:
    """Start with the last table; raises the reason why the store is away if there is none."""
    from engine.registry.stores.postgres import PostgresStore

    store = PostgresStore(url, last.encoder_id, last.width, None, history_limit, connect=False)
    try:
        return Registry(store, encoder, last.width, last, away=str(reason))
    except StoreError as missing:
        store.close()
        raise StoreError(f"{reason} There is no last table to start with: {missing}") from reason


def _store_id(url: str) -> str:
    """Identify the database of a PostgreSQL URL, without its secrets."""
    return hashlib.sha256(re.sub(r"//[^/]*@", "//", url.partition("?")[0]).encode()).hexdigest()


def open_store(
    url: str, encoder_id: str, width: int, reencode_candidates: Encode | None, history_limit: int
) -> Store:
    """Open an SQLite or PostgreSQL store; the arguments are those of SqliteStore.

    Raises StoreError, also for a URL of an unknown kind.
    """
    if problem := location_problem(url):
        raise StoreError(f"--candidates-db {problem}")
    if not is_postgres(url):
        return SqliteStore(Path(url), encoder_id, width, reencode_candidates, history_limit)
    try:
        from engine.registry.stores.postgres import PostgresStore
    except ImportError as error:
        raise StoreError(POSTGRES_DRIVER_HINT) from error
    return PostgresStore(url, encoder_id, width, reencode_candidates, history_limit)
