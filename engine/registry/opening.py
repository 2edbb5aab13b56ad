"""From the setting `store` to a registry."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from engine.contract.candidate import Candidate
from engine.contract.errors import ConflictError, StoreError
from engine.registry.encoder import CapabilityEncoder
from engine.registry.registry import Registry
from engine.registry.sqlite_store import SqliteStore
from engine.registry.store import DEFAULT_KEEP, Change, Encode, Store, is_postgres


def open_registry(
    url: str,
    encoder: CapabilityEncoder,
    encoder_id: str,
    width: int,
    zoo: Sequence[Candidate],
    *,
    reembed: bool = False,
    keep: int = DEFAULT_KEEP,
) -> Registry:
    """Open the store at `url`; a store that has never held anything begins with `zoo`.

    url: path of an SQLite file, or postgresql://. keep: revisions. Raises StoreError.
    """
    shape = (encoder.variants, width)
    store = open_store(url, encoder_id, shape, encoder.encode if reembed else None, keep)
    if store.revision() == 0:
        begun = Change(write=[(c, encoder.encode(c)) for c in zoo])
        with suppress(ConflictError):  # another server began it at the same time
            store.apply(begun, 0, f"began with the {len(zoo)} candidates of the bundle")
    return Registry(store, encoder, shape)


def open_store(
    url: str, encoder_id: str, shape: tuple[int, int], reembed: Encode | None, keep: int
) -> Store:
    """The kind of store that `url` names. shape: (V, D). Raises StoreError."""
    if not is_postgres(url):
        return SqliteStore(Path(url), encoder_id, shape, reembed, keep)
    try:
        from engine.registry.postgres_store import PostgresStore
    except ImportError as error:
        raise StoreError(NO_DRIVER) from error
    return PostgresStore(url, encoder_id, shape, reembed, keep)


NO_DRIVER = (
    "A postgresql:// store needs psycopg, which is not installed; pip install 'psycopg[binary]'."
)
