"""The store: what was acknowledged is there; what is damaged is refused and left alone."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.contract.candidate import Candidate, TaskResult
from engine.contract.errors import StoreError
from engine.registry.store import Change, Store

SHAPE = (1, 4)
ENCODER = "encoder-1"


def entry(identifier: str, figure: float) -> tuple[Candidate, np.ndarray]:
    candidate = Candidate(identifier, (TaskResult("Mathematics", figure),), context_window=7)
    return candidate, np.full(SHAPE, figure, dtype=np.float32)


CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.sampled_from("abc"), st.floats(0, 1, width=32)),
        st.tuples(st.just("remove"), st.sampled_from("abc"), st.just(0.0)),
        st.tuples(st.just("replace"), st.sampled_from("abc"), st.floats(0, 1, width=32)),
        st.tuples(st.just("reopen"), st.just("a"), st.just(0.0)),
    ),
    max_size=12,
)


@given(CHANGES)
@settings(max_examples=30, deadline=None)
def test_the_store_holds_what_a_dict_would(changes: list[tuple[str, str, float]]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "candidates.sqlite"
        store, model, revision = Store(path, ENCODER, SHAPE), {}, 0
        for kind, identifier, figure in changes:
            if kind == "reopen":
                store.close()
                store = Store(path, ENCODER, SHAPE)
                continue
            if kind == "replace":
                model.clear()
            if kind == "remove":
                model.pop(identifier, None)
                change = Change(remove=[identifier])
            else:
                model[identifier] = entry(identifier, figure)
                change = Change(write=[model[identifier]], replace_all=kind == "replace")
            revision += 1
            assert store.apply(change) == revision
        found_revision, entries = store.load()
        assert found_revision == revision
        assert {c.id: c for c, _ in entries} == {i: c for i, (c, _) in model.items()}
        for candidate, embedding in entries:
            np.testing.assert_array_equal(embedding, model[candidate.id][1])
        store.close()


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    path = tmp_path / "candidates.sqlite"
    store = Store(path, ENCODER, SHAPE)
    store.apply(Change(write=[entry(f"c{i}", i / 40) for i in range(40)]))
    store.close()
    return path


@pytest.mark.parametrize("size", [0, 10, 3000, 5000])
def test_a_truncated_store_is_refused_and_left_as_it_is(filled: Path, size: int) -> None:
    filled.write_bytes(filled.read_bytes()[:size])
    with pytest.raises(StoreError, match="restore a copy"):
        Store(filled, ENCODER, SHAPE)
    assert filled.stat().st_size == size


def test_a_store_of_another_encoder_is_refused_until_reembedded(filled: Path) -> None:
    with pytest.raises(StoreError, match=r"encoder_id is 'encoder-1'.*'encoder-2'.*--reembed"):
        Store(filled, "encoder-2", SHAPE)
    wide = (2, 3)
    store = Store(filled, "encoder-2", wide, lambda c: np.full(wide, 9.0, dtype=np.float32))
    _, entries = store.load()
    assert len(entries) == 40
    assert all((embedding == 9.0).all() for _, embedding in entries)
    store.close()
    with pytest.raises(StoreError, match="encoder_id"):
        Store(filled, ENCODER, SHAPE)


def test_another_schema_and_a_foreign_file_are_refused(filled: Path, tmp_path: Path) -> None:
    with sqlite3.connect(filled) as db:
        db.execute("UPDATE meta SET value = '99' WHERE key = 'schema'")
    db.close()
    with pytest.raises(StoreError, match="schema is '99'"):
        Store(filled, ENCODER, SHAPE)
    foreign = tmp_path / "notes.txt"
    foreign.write_text("not a database " * 100)
    with pytest.raises(StoreError, match="DatabaseError"):
        Store(foreign, ENCODER, SHAPE)


def test_a_failed_change_leaves_no_part_of_itself(filled: Path) -> None:
    store = Store(filled, ENCODER, SHAPE)
    good, bad = entry("new", 0.5), entry(("no", "text"), 0.5)  # type: ignore[arg-type]
    with pytest.raises(StoreError):
        store.apply(Change(write=[good, bad], replace_all=True))
    revision, entries = store.load()
    assert (revision, len(entries)) == (1, 40)
    store.close()


def test_a_removed_store_begins_anew_whatever_lies_beside_it(filled: Path) -> None:
    """After kill -9 the log of a removed file would replay into the next one of its name."""
    store = Store(filled, ENCODER, SHAPE)
    store.apply(Change(write=[entry("late", 0.5)]))
    log = filled.with_name(filled.name + "-wal").read_bytes()
    store.close()
    filled.unlink()
    filled.with_name(filled.name + "-wal").write_bytes(log)
    begun = Store(filled, ENCODER, SHAPE)
    assert begun.load() == (0, [])
    begun.close()


def test_two_servers_cannot_have_one_store(filled: Path) -> None:
    first = Store(filled, ENCODER, SHAPE)
    with pytest.raises(StoreError, match="open in another server"):
        Store(filled, ENCODER, SHAPE)
    first.close()
    Store(filled, ENCODER, SHAPE).close()


def test_a_damaged_row_is_a_store_error(filled: Path) -> None:
    with sqlite3.connect(filled) as db:
        db.execute("UPDATE candidate SET embedding = x'00' WHERE id = 'c3'")
    db.close()
    store = Store(filled, ENCODER, SHAPE)
    with pytest.raises(StoreError, match="could not be read"):
        store.load()
    store.close()


def test_a_full_disk_is_said_and_nothing_is_changed(filled: Path) -> None:
    store = Store(filled, ENCODER, SHAPE)
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    many = [entry(f"n{i}", 0.5) for i in range(500)]
    with pytest.raises(StoreError, match=r"disk is full\); nothing was changed; free disk space"):
        store.apply(Change(write=many))
    assert store.apply(Change(remove=["c1"])) == 2
    store.close()
