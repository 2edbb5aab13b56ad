"""Candidates on disk: one SQLite file. What apply() has returned is durable.

Aptitude figures are the source; embeddings are kept beside them so that a start need not encode.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.contract.candidate import Candidate, from_json, to_json
from engine.contract.errors import StoreError

SCHEMA = "1"
Floats = NDArray[np.float32]
Entry = tuple[Candidate, Floats]
_CREATE = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE candidate (id TEXT PRIMARY KEY, body TEXT NOT NULL, embedding BLOB NOT NULL) STRICT;
"""


@dataclass(frozen=True)
class Change:
    """One atomic step: remove these ids (or everyone), then write these entries."""

    write: Sequence[Entry] = ()
    remove: Sequence[str] = ()
    replace_all: bool = False


class Store:
    """An open store. Used by one thread at a time; raises StoreError, never sqlite3's own."""

    def __init__(
        self,
        path: Path,
        encoder_id: str,
        shape: tuple[int, int],
        reembed: Callable[[Candidate], Floats] | None = None,
    ) -> None:
        """Open `path`, creating it where there is none. shape: (V, D) of an embedding.

        Raises StoreError where the file is damaged, of another schema or from another encoder; the
        file is left as it is. With `reembed`, a store from another encoder is brought to this one.
        """
        self._path = path
        self._shape = shape
        with self._translated("opened"):
            if not path.exists():
                _create(path, encoder_id)
            self._check_size()
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")  # acknowledged means on disk
            self._check_content()
            self._check_meta("schema", SCHEMA, "serve it with the version that wrote it")
            if reembed and self._meta("encoder_id") != encoder_id:
                self._reembed(encoder_id, reembed)
            self._check_meta("encoder_id", encoder_id, _REEMBED)

    def load(self) -> tuple[int, list[Entry]]:
        """(revision, all entries)."""
        with self._translated("read"):
            revision = int(self._meta("revision"))
            rows = self._db.execute("SELECT body, embedding FROM candidate").fetchall()
        return revision, [(from_json(json.loads(body)), self._array(raw)) for body, raw in rows]

    def apply(self, change: Change) -> int:
        """Carry out `change` whole or not at all; returns the new revision once it is on disk."""
        rows = [(c.id, json.dumps(to_json(c)), _raw(e)) for c, e in change.write]
        with self._translated("written"), self._transaction():
            if change.replace_all:
                self._db.execute("DELETE FROM candidate")
            self._db.executemany(
                "DELETE FROM candidate WHERE id = ?", [(i,) for i in change.remove]
            )
            self._db.executemany("INSERT OR REPLACE INTO candidate VALUES (?, ?, ?)", rows)
            revision = int(self._meta("revision")) + 1
            self._set_meta("revision", str(revision))
        return revision

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _array(self, raw: bytes) -> Floats:
        return np.frombuffer(raw, dtype="<f4").reshape(self._shape).astype(np.float32)

    def _meta(self, key: str) -> str:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise StoreError(f"{self._path} has no {key}; {_REMEDY}.")
        return str(row[0])

    def _set_meta(self, key: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def _check_size(self) -> None:
        # SQLite takes an empty file for a new database; ours are never empty (see _create), so
        # this one lost its content.
        if self._path.stat().st_size == 0:
            raise StoreError(f"{self._path} is empty, so it was truncated; {_REMEDY}.")

    def _check_content(self) -> None:
        problem = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise StoreError(f"{self._path} is damaged ({problem}); {_REMEDY}.")

    def _check_meta(self, key: str, expected: str, remedy: str) -> None:
        if (found := self._meta(key)) != expected:
            raise StoreError(
                f"{self._path}: {key} is {found!r}, this server's is {expected!r}; {remedy}."
            )

    def _reembed(self, encoder_id: str, encode: Callable[[Candidate], Floats]) -> None:
        bodies = self._db.execute("SELECT body FROM candidate").fetchall()
        candidates = [from_json(json.loads(body)) for (body,) in bodies]
        rows = [(_raw(encode(c)), c.id) for c in candidates]
        with self._transaction():
            self._db.executemany("UPDATE candidate SET embedding = ? WHERE id = ?", rows)
            self._set_meta("encoder_id", encoder_id)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def _translated(self, done: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{self._path} could not be {done} ({type(error).__name__}: {error}); {_REMEDY}."
            ) from error


_REMEDY = (
    "restore a copy of it, or give --store another path to begin anew; the file was not changed"
)

_REEMBED = (
    "start once with --reembed to compute its embeddings anew from the aptitude figures it holds,"
    " or give --store another path"
)


def _raw(embedding: Floats) -> bytes:
    return np.ascontiguousarray(embedding, dtype="<f4").tobytes()


def _create(path: Path, encoder_id: str) -> None:
    """A new store appears whole: written under another name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".new")
    unfinished.unlink(missing_ok=True)
    db = sqlite3.connect(unfinished)
    with db:
        db.executescript(_CREATE)
        meta = {"schema": SCHEMA, "encoder_id": encoder_id, "revision": "0"}
        db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
    db.close()
    unfinished.replace(path)
