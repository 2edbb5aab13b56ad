"""The SQL that both kinds of store share: versioned rows, from which every kept table can be read.

A row of candidate_version is part of the tables of revisions from_revision <= r < to_revision; no
to_revision means that it is part of the newest one. `?` stands for a value.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from engine.api.candidate import MAX_CANDIDATES, Candidate, from_json, to_json
from engine.api.errors import ConflictError, RevisionNotFoundError
from engine.bundle.types import Float32Array
from engine.registry.stores.base import Change, Entry, Revision

Row = tuple[Any, ...]
TABLES = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL){end}",
    "CREATE TABLE revision (number {int} PRIMARY KEY, created_us {int} NOT NULL,"
    " description TEXT NOT NULL, candidates {int} NOT NULL){end}",
    "CREATE TABLE candidate_version (id TEXT NOT NULL, from_revision {int} NOT NULL,"
    " to_revision {int}, body TEXT NOT NULL, embedding {blob} NOT NULL,"
    " PRIMARY KEY (id, from_revision)){end}",
    "CREATE UNIQUE INDEX candidate_now ON candidate_version (id) WHERE to_revision IS NULL",
    "CREATE INDEX candidate_past ON candidate_version (to_revision)",
)
ADD_REVISION = "INSERT INTO revision VALUES (?, ?, ?, ?)"
ADD_VERSION = "INSERT INTO candidate_version VALUES (?, ?, ?, ?, ?)"
_LIVE = "SELECT id, body, embedding FROM candidate_version WHERE to_revision IS NULL"


class Database(Protocol):
    """Runs SQL in the transaction that is open."""

    def run(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """All rows of the answer."""

    def run_many(self, sql: str, rows: Iterable[Row]) -> None:
        """`sql` once for each of `rows`."""


def newest(db: Database) -> int:
    """Number of the newest revision; 0 where there is none."""
    return int(db.run("SELECT COALESCE(MAX(number), 0) FROM revision")[0][0])


def read(db: Database, revision: int | None, width: int) -> tuple[int, list[Entry]]:
    """(number, entries) of a revision, of the newest one for None; width: D.

    Raises RevisionNotFoundError where it is not kept, ValueError where a row is damaged.
    """
    if revision is None:
        number, found = newest(db), db.run(_LIVE)
    else:
        if not db.run("SELECT 1 FROM revision WHERE number = ?", (revision,)):
            raise RevisionNotFoundError(revision)
        number = revision
        found = db.run(
            "SELECT id, body, embedding FROM candidate_version WHERE from_revision <= ?"
            " AND (to_revision IS NULL OR to_revision > ?)",
            (revision, revision),
        )
    return number, [(candidate_of(body), _array(raw, width)) for _, body, raw in found]


def revisions(db: Database, before: int | None, limit: int) -> list[Revision]:
    """See Store.revisions."""
    found = db.run(
        "SELECT number, created_us, description, candidates FROM revision WHERE number < ?"
        " ORDER BY number DESC LIMIT ?",
        (2**62 if before is None else before, limit),
    )
    return [Revision(*row) for row in found]


def write(
    db: Database, change: Change, expected: int, description: str, now_us: int, keep: int
) -> Revision:
    """See Store.apply. A row that stays as it is gets no new version."""
    if (present := newest(db)) != expected:
        raise ConflictError(found=present, expected=expected)
    new = {c.id: (body_of(c), raw_of(e)) for c, e in change.write}
    touched = None if change.replace_all else [*new, *change.remove]
    old = {row[0]: (row[1], bytes(row[2])) for row in _live(db, touched)}
    same = {i for i, content in new.items() if old.get(i) == content}
    number = present + 1
    db.run_many(
        "UPDATE candidate_version SET to_revision = ? WHERE id = ? AND to_revision IS NULL",
        [(number, i) for i in old if i not in same],
    )
    rows = [(i, number, None, body, raw) for i, (body, raw) in new.items() if i not in same]
    db.run_many(ADD_VERSION, rows)
    return add_revision(db, Revision(number, now_us, description, 0), keep)


def add_revision(db: Database, made: Revision, keep: int) -> Revision:
    """Note a revision whose rows are written, count its candidates, forget what is too old."""
    count = db.run("SELECT COUNT(*) FROM candidate_version WHERE to_revision IS NULL")[0][0]
    made = Revision(made.number, made.created_us, made.description, int(count))
    db.run(ADD_REVISION, (made.number, made.created_us, made.description, made.candidates))
    prune(db, keep)
    return made


def prune(db: Database, keep: int) -> None:
    """Keep the newest `keep` revisions and the rows that they need."""
    oldest = db.run(
        "SELECT number FROM revision ORDER BY number DESC LIMIT 1 OFFSET ?", (keep - 1,)
    )
    if oldest:
        db.run("DELETE FROM revision WHERE number < ?", oldest[0])
        db.run("DELETE FROM candidate_version WHERE to_revision <= ?", oldest[0])


def replace_embeddings(db: Database, encoded: Sequence[tuple[str, bytes]], encoder_id: str) -> None:
    """Give every version with one of these bodies its new embedding; all kept revisions."""
    db.run_many(
        "UPDATE candidate_version SET embedding = ? WHERE body = ?", [(e, b) for b, e in encoded]
    )
    db.run("UPDATE meta SET value = ? WHERE key = 'encoder_id'", (encoder_id,))


def bodies(db: Database) -> list[str]:
    """Every distinct candidate of the history, as JSON."""
    return [row[0] for row in db.run("SELECT DISTINCT body FROM candidate_version")]


def meta(db: Database, key: str) -> str | None:
    """A value of the store's own; None where it has none."""
    found = db.run("SELECT value FROM meta WHERE key = ?", (key,))
    return str(found[0][0]) if found else None


def body_of(candidate: Candidate) -> str:
    """The column `body`."""
    return json.dumps(to_json(candidate))


@lru_cache(maxsize=MAX_CANDIDATES)  # a table is read again at every change of another server
def candidate_of(body: str) -> Candidate:
    """The inverse of body_of."""
    return from_json(json.loads(body))


def raw_of(embedding: Float32Array) -> bytes:
    """The column `embedding`: (D,) little-endian float32."""
    return np.ascontiguousarray(embedding, dtype="<f4").tobytes()


def _array(raw: bytes, width: int) -> Float32Array:
    return np.frombuffer(raw, dtype="<f4").reshape(width).astype(np.float32)


def _live(db: Database, ids: Sequence[str] | None) -> list[Row]:
    if ids is None:
        return db.run(_LIVE)
    return [row for i in ids for row in db.run(f"{_LIVE} AND id = ?", (i,))]
