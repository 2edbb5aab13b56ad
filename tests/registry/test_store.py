"""The SQLite store: acknowledged changes are durable; damaged files are refused, left unchanged."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from engine.api.candidate import Candidate, TaskResult, to_json
from engine.api.errors import StoreError
from engine.registry.stores.base import Change
from engine.registry.stores.sqlite import SqliteStore

WIDTH = 4
ENCODER = "encoder-1"


def entry(identifier: str, figure: float) -> tuple[Candidate, np.ndarray]:
    candidate = Candidate(identifier, (TaskResult("Mathematics", figure),), context_window=7)
    return candidate, np.full(WIDTH, figure, dtype=np.float32)


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    path = tmp_path / "candidates.sqlite"
    store = SqliteStore(path, ENCODER, WIDTH)
    store.apply(Change([entry(f"c{i}", i / 40) for i in range(40)]), 0, "begun")
    store.close()
    return path


@pytest.mark.parametrize("size", [0, 10, 3000, 5000])
def test_truncated_store_is_refused_and_left_unchanged(filled: Path, size: int) -> None:
    filled.write_bytes(filled.read_bytes()[:size])
    with pytest.raises(StoreError, match="restore a copy"):
        SqliteStore(filled, ENCODER, WIDTH)
    assert filled.stat().st_size == size


def test_store_of_another_encoder_is_refused_unless_reencoded(filled: Path) -> None:
    with pytest.raises(
        StoreError, match=r"encoder_id is 'encoder-1'.*'encoder-2'.*--reencode-candidates"
    ):
        SqliteStore(filled, "encoder-2", WIDTH)
    wide = 6
    store = SqliteStore(filled, "encoder-2", wide, lambda c: np.full(wide, 9.0, dtype=np.float32))
    _, entries = store.load()
    assert len(entries) == 40
    assert all((embedding == 9.0).all() for _, embedding in entries)
    store.close()
    with pytest.raises(StoreError, match="encoder_id"):
        SqliteStore(filled, ENCODER, WIDTH)


def test_unknown_schema_and_foreign_file_are_refused(filled: Path, tmp_path: Path) -> None:
    with sqlite3.connect(filled) as db:
        db.execute("UPDATE meta SET value = '99' WHERE key = 'schema'")
    db.close()
    with pytest.raises(StoreError, match="schema is '99'"):
        SqliteStore(filled, ENCODER, WIDTH)
    foreign = tmp_path / "notes.txt"
    foreign.write_text("not a database " * 100)
    with pytest.raises(StoreError, match="DatabaseError"):
        SqliteStore(foreign, ENCODER, WIDTH)


def test_failed_change_changes_nothing(filled: Path) -> None:
    store = SqliteStore(filled, ENCODER, WIDTH)
    good, bad = entry("new", 0.5), entry(("no", "text"), 0.5)  # type: ignore[arg-type]
    with pytest.raises(StoreError):
        store.apply(Change([good, bad], replace_all=True), 1, "")
    revision, entries = store.load()
    assert (revision, len(entries)) == (1, 40)
    store.close()


def test_new_store_ignores_the_log_of_a_removed_one(filled: Path) -> None:
    """After kill -9 the log of a removed file would replay into the next one of its name."""
    store = SqliteStore(filled, ENCODER, WIDTH)
    store.apply(Change([entry("late", 0.5)]), 1, "late")
    log = filled.with_name(filled.name + "-wal").read_bytes()
    store.close()
    filled.unlink()
    filled.with_name(filled.name + "-wal").write_bytes(log)
    begun = SqliteStore(filled, ENCODER, WIDTH)
    assert begun.load() == (0, [])
    begun.close()


def test_two_servers_cannot_open_the_same_store(filled: Path) -> None:
    first = SqliteStore(filled, ENCODER, WIDTH)
    with pytest.raises(StoreError, match="open in another server"):
        SqliteStore(filled, ENCODER, WIDTH)
    first.close()
    SqliteStore(filled, ENCODER, WIDTH).close()


def test_damaged_row_raises_store_error(filled: Path) -> None:
    with sqlite3.connect(filled) as db:
        db.execute("UPDATE candidate_version SET embedding = x'00' WHERE id = 'c3'")
    db.close()
    store = SqliteStore(filled, ENCODER, WIDTH)
    with pytest.raises(StoreError, match="could not be read"):
        store.load()
    store.close()


def test_full_disk_is_reported_and_nothing_is_changed(filled: Path) -> None:
    store = SqliteStore(filled, ENCODER, WIDTH)
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count = {pages}")
    many = [entry(f"n{i}", 0.5) for i in range(500)]
    with pytest.raises(StoreError, match=r"disk is full\); nothing was changed; free disk space"):
        store.apply(Change(many), 1, "many")
    assert store.apply(Change(delete=["c1"]), 1, "fewer").number == 2
    store.close()


OLD = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE candidate (id TEXT PRIMARY KEY, body TEXT NOT NULL, embedding BLOB NOT NULL) STRICT;
"""


def old_store(path: Path, revision: int, count: int) -> None:
    """A store as version 1 wrote it."""
    with sqlite3.connect(path) as db:
        db.executescript(OLD)
        meta = {"schema": "1", "encoder_id": ENCODER, "revision": str(revision)}
        db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
        for candidate, embedding in (entry(f"c{i}", i / 40) for i in range(count)):
            body = json.dumps(to_json(candidate))
            row = (candidate.id, body, embedding.astype("<f4").tobytes())
            db.execute("INSERT INTO candidate VALUES (?, ?, ?)", row)
    db.close()


@pytest.mark.parametrize(("revision", "count"), [(7, 3), (0, 0), (9, 0)])
def test_store_of_schema_1_is_migrated_and_keeps_its_revision(
    tmp_path: Path, revision: int, count: int
) -> None:
    path = tmp_path / "candidates.sqlite"
    old_store(path, revision, count)
    with pytest.raises(StoreError, match="encoder_id"):
        SqliteStore(path, "encoder-2", WIDTH)
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone() == ("1",)
    db.close()
    for _ in range(2):  # upgraded, then opened as it is
        store = SqliteStore(path, ENCODER, WIDTH)
        found, entries = store.load()
        assert (found, len(entries)) == (revision, count)
        assert [r.number for r in store.revisions(None, 9)] == [revision] * bool(revision)
        store.close()
    store = SqliteStore(path, ENCODER, WIDTH)
    assert store.apply(Change([entry("new", 0.5)]), revision, "new").candidates == count + 1
    store.close()


def test_failed_migration_leaves_the_old_store(tmp_path: Path) -> None:
    path = tmp_path / "candidates.sqlite"
    old_store(path, 7, 3)
    with pytest.raises(ZeroDivisionError):
        SqliteStore(path, "encoder-2", WIDTH, lambda c: np.float32(1 // 0) * np.ones(WIDTH))
    store = SqliteStore(path, ENCODER, WIDTH)
    assert (store.load()[0], len(store.load()[1])) == (7, 3)
    store.close()


@pytest.mark.parametrize("suffix", ["", "-wal"])
def test_change_of_a_removed_file_is_refused(filled: Path, suffix: str) -> None:
    store = SqliteStore(filled, ENCODER, WIDTH)
    filled.with_name(filled.name + suffix).unlink()
    with pytest.raises(StoreError, match=r"was removed or replaced while the server ran"):
        store.apply(Change(delete=["c1"]), 1, "")
    assert (store.load()[0], len(store.load()[1])) == (1, 40)
    store.close()
