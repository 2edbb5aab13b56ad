"""The SQL that both kinds of store share: versioned rows, from which every revision can be read.

A row of candidate_version belongs to the revisions r with from_revision <= r < to_revision; a row
without to_revision belongs to the newest one. `?` stands for a value.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from engine.api.candidate import MAX_CANDIDATES, Candidate, from_json, to_json
from engine.api.errors import ConflictError, RevisionNotFoundError
from engine.api.request_context import PEER, PRINCIPAL
from engine.bundle.types import Float32Array
from engine.registry.stores.base import (
    Change,
    Encode,
    Entry,
    Revision,
    RevisionId,
    StoredTable,
)

Row = tuple[Any, ...]
TABLES = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL){end}",
    "CREATE TABLE revision (number {int} PRIMARY KEY, created_us {int} NOT NULL,"
    " description TEXT NOT NULL, candidates {int} NOT NULL, nonce TEXT NOT NULL{nonce},"
    " principal TEXT NOT NULL DEFAULT '', peer TEXT NOT NULL DEFAULT ''){end}",
    "CREATE TABLE candidate_version (id TEXT NOT NULL, from_revision {int} NOT NULL,"
    " to_revision {int}, body TEXT NOT NULL, embedding {blob} NOT NULL,"
    " PRIMARY KEY (id, from_revision)){end}",
    "CREATE UNIQUE INDEX candidate_now ON candidate_version (id) WHERE to_revision IS NULL",
    "CREATE INDEX candidate_past ON candidate_version (to_revision)",
)
ADD_REVISION = (
    "INSERT INTO revision (number, created_us, description, candidates, nonce, principal, peer)"
    " VALUES (?, ?, ?, ?, ?, ?, ?)"
)
MAKER_COLUMNS = ("principal", "peer")  # who made a revision; later versions of schema 3 have them
ADD_VERSION = "INSERT INTO candidate_version VALUES (?, ?, ?, ?, ?)"
_LIVE = "SELECT id, body, embedding FROM candidate_version WHERE to_revision IS NULL"


class Database(Protocol):
    """A connection with an open transaction."""

    def run(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """Execute `sql` and return all rows of the result."""

    def run_many(self, sql: str, rows: Iterable[Row]) -> None:
        """Execute `sql` once for each of `rows`."""

    def epoch(self) -> str:
        """Return the epoch of the store; see RevisionId."""


def random_id() -> str:
    """Return 64 random bits, for an epoch or a nonce."""
    return secrets.token_hex(8)


def identity(db: Database) -> RevisionId:
    """Return the identity of the newest revision; number 0 if there is none."""
    rows = db.run("SELECT number, nonce FROM revision ORDER BY number DESC LIMIT 1")
    number, nonce = rows[0] if rows else (0, "")
    return RevisionId(db.epoch(), int(number), nonce)


def newest(db: Database, width: int) -> StoredTable:
    """Return the newest table. width: D."""
    lineage = {int(n): str(nonce) for n, nonce in db.run("SELECT number, nonce FROM revision")}
    return StoredTable(identity(db), lineage, read(db, None, width)[1])


def has_lost(known: RevisionId, lineage: Mapping[int, str]) -> bool:
    """Return True if a history does not contain the revision `known`.

    lineage: number -> nonce of the revisions that the history still keeps; older ones are taken for
    contained.
    """
    if not known.number or known.number < min(lineage, default=0):
        return False
    return lineage.get(known.number) != known.nonce


def needs_fence(newest: RevisionId, known: RevisionId, lineage: Mapping[int, str]) -> bool:
    """Return whether the store lost `known`, and its numbers may still repeat lost ones.

    A restore of PostgreSQL to a point in time begins a timeline, and thus an epoch, but the
    numbers go on from the restored revision.
    """
    if not newest.number or not has_lost(known, lineage):
        return False
    return newest.epoch == known.epoch or newest.number <= known.number


def fence(db: Database, known: RevisionId, now_us: int, history_limit: int) -> RevisionId:
    """Begin a new epoch if the store has lost `known`; see Store.fence."""
    lineage = {int(n): str(nonce) for n, nonce in db.run("SELECT number, nonce FROM revision")}
    newest = identity(db)
    if not needs_fence(newest, known, lineage):
        return newest
    new_epoch(db)
    number = max(newest.number, known.number) + 1
    description = f"went on from {newest.number} after a restore that lost {known.number}"
    return add_revision(db, number, now_us, description, history_limit).id


def new_epoch(db: Database) -> None:
    """Give the store a new epoch."""
    db.run("DELETE FROM meta WHERE key = 'epoch'")
    db.run("INSERT INTO meta VALUES ('epoch', ?)", (random_id(),))


def add_identities(db: Database) -> None:
    """Give a store of version 0.2 an epoch, and nonces to its revisions; the column is there."""
    numbers = [row[0] for row in db.run("SELECT number FROM revision WHERE nonce = ''")]
    rows = [(random_id(), number) for number in numbers]
    db.run_many("UPDATE revision SET nonce = ? WHERE number = ?", rows)
    if meta(db, "epoch") is None:
        new_epoch(db)


def add_maker_columns(db: Database, present: Collection[str]) -> None:
    """Add the columns that say who made a revision. present: the columns of the table revision."""
    for name in MAKER_COLUMNS:
        if name not in present:
            db.run(f"ALTER TABLE revision ADD COLUMN {name} TEXT NOT NULL DEFAULT ''")


def newest_revision(db: Database) -> int:
    """Return the number of the newest revision; 0 if there is none."""
    return int(db.run("SELECT COALESCE(MAX(number), 0) FROM revision")[0][0])


def read(db: Database, revision: int | None, width: int) -> tuple[int, list[Entry]]:
    """Return (number, entries) of a revision, of the newest one for None. width: D.

    Raises RevisionNotFoundError if it is not kept, ValueError if a row is damaged.
    """
    if revision is None:
        number, rows = newest_revision(db), db.run(_LIVE)
    else:
        if not db.run("SELECT 1 FROM revision WHERE number = ?", (revision,)):
            raise RevisionNotFoundError(revision)
        number = revision
        rows = db.run(
            "SELECT id, body, embedding FROM candidate_version WHERE from_revision <= ?"
            " AND (to_revision IS NULL OR to_revision > ?)",
            (revision, revision),
        )
    return number, [
        (parse_body(body), np.frombuffer(blob, dtype="<f4").reshape(width).astype(np.float32))
        for _, body, blob in rows
    ]


def revisions(db: Database, before: int | None, limit: int) -> list[Revision]:
    """List revisions; see Store.revisions."""
    rows = db.run(
        "SELECT number, created_us, description, candidates, nonce, principal, peer FROM revision"
        " WHERE number < ? ORDER BY number DESC LIMIT ?",
        (2**62 if before is None else before, limit),
    )
    epoch = db.epoch()
    return [
        Revision(number, created_us, description, count, RevisionId(epoch, number, nonce), *maker)
        for number, created_us, description, count, nonce, *maker in rows
    ]


def write(
    db: Database,
    change: Change,
    expected: tuple[int, str],
    description: str,
    now_us: int,
    history_limit: int,
) -> Revision:
    """Apply a change; see Store.apply. Rows that stay the same get no new version.

    expected: number and nonce of the newest revision; "" for any nonce.
    """
    found = identity(db)
    if found.number != expected[0] or expected[1] not in ("", found.nonce):
        raise ConflictError(found=found.number, expected=expected[0])
    new = {c.id: (json.dumps(to_json(c)), _blob(e)) for c, e in change.upsert}
    if change.replace_all:
        rows = db.run(_LIVE)
    else:
        ids = [*new, *change.delete]
        rows = [row for i in ids for row in db.run(f"{_LIVE} AND id = ?", (i,))]
    old = {row[0]: (row[1], bytes(row[2])) for row in rows}
    unchanged = {i for i, content in new.items() if old.get(i) == content}
    number = found.number + 1
    db.run_many(
        "UPDATE candidate_version SET to_revision = ? WHERE id = ? AND to_revision IS NULL",
        [(number, i) for i in old if i not in unchanged],
    )
    db.run_many(
        ADD_VERSION,
        [(i, number, None, body, blob) for i, (body, blob) in new.items() if i not in unchanged],
    )
    return add_revision(db, number, now_us, description, history_limit)


def add_revision(
    db: Database, number: int, now_us: int, description: str, history_limit: int
) -> Revision:
    """Add a revision whose rows are written, and delete those beyond the newest history_limit."""
    count = db.run("SELECT COUNT(*) FROM candidate_version WHERE to_revision IS NULL")[0][0]
    identity = RevisionId(db.epoch(), number, random_id())
    maker = (PRINCIPAL.get(), PEER.get())
    db.run(ADD_REVISION, (number, now_us, description, int(count), identity.nonce, *maker))
    oldest = db.run(
        "SELECT number FROM revision ORDER BY number DESC LIMIT 1 OFFSET ?", (history_limit - 1,)
    )
    if oldest:
        db.run("DELETE FROM revision WHERE number < ?", oldest[0])
        db.run("DELETE FROM candidate_version WHERE to_revision <= ?", oldest[0])
    return Revision(number, now_us, description, int(count), identity, *maker)


def reencode_candidates(db: Database, encode: Encode, encoder_id: str) -> None:
    """Recompute the embeddings of all revisions, unless they are from this encoder already."""
    if meta(db, "encoder_id") == encoder_id:
        return
    bodies = [row[0] for row in db.run("SELECT DISTINCT body FROM candidate_version")]
    db.run_many(
        "UPDATE candidate_version SET embedding = ? WHERE body = ?",
        [(_blob(encode(parse_body(body))), body) for body in bodies],
    )
    db.run("UPDATE meta SET value = ? WHERE key = 'encoder_id'", (encoder_id,))
    db.run("UPDATE revision SET nonce = ''")  # other embeddings are other tables
    add_identities(db)


def meta(db: Database, key: str) -> str | None:
    """Return a value of the store's metadata, or None."""
    rows = db.run("SELECT value FROM meta WHERE key = ?", (key,))
    return str(rows[0][0]) if rows else None


def decision_key(db: Database) -> bytes:
    """Return the secret that signs decision IDs (32 bytes), and make it the first time."""
    db.run(
        "INSERT INTO meta VALUES ('decision_key', ?) ON CONFLICT (key) DO NOTHING",
        (secrets.token_hex(32),),
    )
    return bytes.fromhex(meta(db, "decision_key") or "")


@lru_cache(maxsize=MAX_CANDIDATES)  # a table is read again at every change of another server
def parse_body(body: str) -> Candidate:
    """Parse the column `body`, a candidate as JSON."""
    return from_json(json.loads(body))


def _blob(embedding: Float32Array) -> bytes:
    """Encode the column `embedding`: (D,) little-endian float32."""
    return np.ascontiguousarray(embedding, dtype="<f4").tobytes()
