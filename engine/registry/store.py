"""Candidates on disk: one SQLite file. What apply() has returned is durable.

Aptitude figures are the source; embeddings are kept beside them so that a start need not encode.
"""

from __future__ import annotations

import fcntl
import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

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
        with self._translated("opened", _RESTORE):
            self._lock = _lock(path)
            with ExitStack() as opened:
                opened.callback(self._lock.close)
                self._open(opened, encoder_id, reembed)
                opened.pop_all()  # all is well: close() does it

    def _open(
        self,
        opened: ExitStack,
        encoder_id: str,
        reembed: Callable[[Candidate], Floats] | None,
    ) -> None:
        if not self._path.exists():
            _create(self._path, encoder_id)
        self._check_size()
        self._db = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        opened.callback(self._db.close)
        self._check_content()
        self._check_meta("schema", SCHEMA, "serve it with the version that wrote it")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")  # acknowledged means on disk
        if reembed and self._meta("encoder_id") != encoder_id:
            self._reembed(encoder_id, reembed)
        self._check_meta("encoder_id", encoder_id, _REEMBED)

    def load(self) -> tuple[int, list[Entry]]:
        """(revision, all entries)."""
        with self._translated("read", _RESTORE):
            rows = self._db.execute("SELECT body, embedding FROM candidate").fetchall()
            entries = [(from_json(json.loads(body)), self._array(raw)) for body, raw in rows]
            return self.revision(), entries

    def revision(self) -> int:
        """Number of changes so far; 0 for a store that has never held anything."""
        return int(self._meta("revision"))

    def apply(self, change: Change) -> int:
        """Carry out `change` whole or not at all; returns the new revision once it is on disk."""
        rows = [(c.id, json.dumps(to_json(c)), _raw(e)) for c, e in change.write]
        with self._translated("written", _FREE), self._transaction():
            if change.replace_all:
                self._db.execute("DELETE FROM candidate")
            self._db.executemany(
                "DELETE FROM candidate WHERE id = ?", [(i,) for i in change.remove]
            )
            self._db.executemany("INSERT OR REPLACE INTO candidate VALUES (?, ?, ?)", rows)
            revision = self.revision() + 1
            self._set_meta("revision", str(revision))
        return revision

    def close(self) -> None:
        """Close the file, for another server to open."""
        self._db.close()
        self._lock.close()

    def _array(self, raw: bytes) -> Floats:
        return np.frombuffer(raw, dtype="<f4").reshape(self._shape).astype(np.float32)

    def _meta(self, key: str) -> str:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise StoreError(f"{self._path} has no {key}; {_RESTORE}.")
        return str(row[0])

    def _set_meta(self, key: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def _check_size(self) -> None:
        # SQLite takes an empty file for a new database; ours are never empty (see _create), so
        # this one lost its content.
        if self._path.stat().st_size == 0:
            raise StoreError(f"{self._path} is empty, so it was truncated; {_RESTORE}.")

    def _check_content(self) -> None:
        problem = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise StoreError(f"{self._path} is damaged ({problem}); {_RESTORE}.")

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
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # a full disk has rolled back already
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def _translated(self, done: str, remedy: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{self._path} could not be {done} ({type(error).__name__}: {error}); {remedy}."
            ) from error


_RESTORE = (
    "restore a copy of it (remove the -wal and -shm files beside it first), or give --store another"
    " path to begin anew; the file was not changed"
)
_FREE = "nothing was changed; free disk space or mend its permissions, and send the change again"

_REEMBED = (
    "start once with --reembed (make serve SERVE=--reembed) to compute its embeddings anew from the"
    " aptitude figures it holds, or give --store another path"
)


def _raw(embedding: Floats) -> bytes:
    return np.ascontiguousarray(embedding, dtype="<f4").tobytes()


def _lock(path: Path) -> IO[bytes]:
    """Two servers on one store would each serve a table of their own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(path.name + ".lock").open("wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise StoreError(
            f"{path} is open in another server; stop that one, or give --store another path."
        ) from error
    return lock


def _create(path: Path, encoder_id: str) -> None:
    """A new store appears whole: written under another name, then renamed."""
    for suffix in ("-wal", "-shm"):  # of a file that was removed: they would replay into this one
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    unfinished = path.with_name(path.name + ".new")
    unfinished.unlink(missing_ok=True)
    db = sqlite3.connect(unfinished)
    with db:
        db.executescript(_CREATE)
        meta = {"schema": SCHEMA, "encoder_id": encoder_id, "revision": "0"}
        db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
    db.close()
    unfinished.replace(path)
