"""Both kinds of store against a simple model, for changes, rollbacks and pruning in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.api.errors import ConflictError, RevisionNotFoundError, StoreError
from engine.registry.opening import open_store
from engine.registry.stores.backup import back_up, restore
from engine.registry.stores.base import Change, Store
from tests.support.postgres import Postgres, postgres
from tests.support.stores import ENCODER, candidate, fresh

pytestmark = pytest.mark.slow

WIDTH = 4
Open = Callable[..., Store]
Level = st.sampled_from([0.0, 0.25, 0.5])
Ids = st.lists(st.sampled_from("abcd"), unique=True, max_size=4)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), Ids, Level),
        st.tuples(st.just("remove"), Ids, st.just(0.0)),
        st.tuples(st.just("replace"), Ids, Level),
        st.tuples(st.just("rollback"), st.just([]), st.floats(0, 1)),
        st.tuples(st.just("conflict"), Ids, Level),
        st.tuples(st.just("reopen"), st.just([]), st.floats(0, 1)),
    ),
    max_size=14,
)
EACH = settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Gives the URL of a store that is not there yet."""
    number = count()
    if request.param == "sqlite":
        return lambda: str(tmp_path / f"{next(number)}.sqlite")
    server = request.getfixturevalue("server")
    return lambda: fresh(server, f"s{next(number)}")


def entry(identifier: str, level: float) -> tuple:
    return candidate(identifier, level), np.full(WIDTH, level + ord(identifier), np.float32)


def content(store: Store, revision: int | None = None) -> dict[str, tuple[float, float]]:
    """id -> (level, embedding's value)."""
    _, entries = store.load(revision)
    return {c.id: (c.aptitude[0].accuracy, float(e[0])) for c, e in entries}


def as_model(ids: list[str], level: float) -> dict[str, tuple[float, float]]:
    return {i: (level, level + ord(i)) for i in ids}


@given(steps=STEPS, keep=st.integers(1, 4))
@EACH
def test_store_returns_every_kept_revision(
    new_url: Callable[[], str], steps: list[tuple[str, list[str], float]], keep: int
) -> None:
    url = new_url()
    store = open_store(url, ENCODER, WIDTH, None, keep)
    tables: dict[int, dict[str, tuple[float, float]]] = {}
    number, present = 0, {}
    for kind, ids, figure in steps:
        entries = [entry(i, figure) for i in ids] if kind in ("write", "replace") else []
        change = Change(entries, ids if kind == "remove" else (), kind == "replace")
        if kind == "reopen":
            store.close()
            store = open_store(url, ENCODER, WIDTH, None, keep)
            continue
        if kind == "conflict":
            with pytest.raises(ConflictError, match=f"at revision {number}, .* for {number + 1}"):
                store.apply(Change(delete=ids), number + 1, "late")
            continue
        if kind == "rollback":
            if not tables:
                continue
            chosen = sorted(tables)[int(figure * (len(tables) - 1))]
            change = Change(store.load(chosen)[1], (), True)
            after = tables[chosen]
        else:
            kept = {} if kind == "replace" else {k: v for k, v in present.items() if k not in ids}
            after = kept if kind == "remove" else {**kept, **as_model(ids, figure)}
        made = store.apply(change, number, kind)
        number, present = number + 1, after
        assert (made.number, made.candidates) == (number, len(present))
        tables[number] = present
        tables = {n: t for n, t in tables.items() if n > number - keep}
    assert content(store) == present
    assert store.revision() == number
    stored = store.revisions(None, 99)
    assert [(r.number, r.candidates) for r in stored] == [
        (n, len(t)) for n, t in sorted(tables.items(), reverse=True)
    ]
    assert store.revisions(number, 2) == [r for r in stored if r.number < number][:2]
    for kept_number, table in tables.items():
        assert content(store, kept_number) == table
    for gone in (number - keep, number + 1):
        with pytest.raises(RevisionNotFoundError, match=f"Revision {gone} is not kept"):
            store.load(gone)
    store.close()


def test_store_of_another_encoder_is_refused_unless_reencoded(
    new_url: Callable[[], str],
) -> None:
    url, wide = new_url(), 6
    store = open_store(url, ENCODER, WIDTH, None, 9)
    store.apply(Change([entry("a", 0.5)]), 0, "one")
    store.apply(Change([entry("b", 0.5)]), 1, "two")
    store.close()
    with pytest.raises(
        StoreError, match=r"encoder_id is 'encoder-1'.*'encoder-2'.*--reencode-candidates"
    ):
        open_store(url, "encoder-2", WIDTH, None, 9)
    store = open_store(url, "encoder-2", wide, lambda c: np.full(wide, 9.0, np.float32), 9)
    assert store.revision() == 2
    for revision, size in ((1, 1), (2, 2)):
        _, entries = store.load(revision)
        assert [e.shape for _, e in entries] == [(wide,)] * size
        assert all((e == 9.0).all() for _, e in entries)
    store.close()


def test_backup_and_restore_keep_history_across_both_kinds(
    new_url: Callable[[], str], server: Postgres, tmp_path: Path
) -> None:
    url = new_url()
    store = open_store(url, ENCODER, WIDTH, None, 9)
    store.apply(Change([entry("a", 0.5), entry("b", 0.5)]), 0, "one")
    store.apply(Change([entry("a", 0.25)], ["b"]), 1, "two")
    copy = tmp_path / "copy.sqlite"
    assert back_up(url, copy) == 2, "while it is open"
    store.apply(Change(delete=["a"]), 2, "three")
    stored = store.revisions(None, 9)
    if url.startswith("postgres"):
        store.close()
    else:
        with pytest.raises(StoreError, match="open in another server"):
            restore(url, copy)
        store.close()
    assert restore(url, copy) == 4, "no number means two tables"
    for other in (fresh(server, "copied"), str(tmp_path / "copied.sqlite")):
        assert restore(other, copy) == 2
        copied = open_store(other, ENCODER, WIDTH, None, 9)
        found = copied.revisions(None, 9)
        assert [replace(r, id=s.id) for r, s in zip(found, stored[1:], strict=True)] == stored[1:]
        assert [r.id.nonce for r in found] == [s.id.nonce for s in stored[1:]]
        assert found[0].id.epoch != stored[1].id.epoch
        assert [content(copied, n) for n in (1, 2)] == [
            {"a": (0.5, 97.5), "b": (0.5, 98.5)},
            {"a": (0.25, 97.25)},
        ]
        copied.close()
    store = open_store(url, ENCODER, WIDTH, None, 9)
    assert content(store) == content(store, 2) == {"a": (0.25, 97.25)}
    assert [r.number for r in store.revisions(None, 9)] == [4, 2, 1]
    assert store.apply(Change(delete=["a"]), 4, "five").number == 5
    store.close()


def test_invalid_backup_is_refused(new_url: Callable[[], str], tmp_path: Path) -> None:
    url = new_url()
    store = open_store(url, ENCODER, WIDTH, None, 9)
    store.apply(Change([entry("a", 0.5)]), 0, "one")
    store.close()
    foreign, empty = tmp_path / "notes.txt", tmp_path / "empty"
    foreign.write_text("not a database " * 100)
    empty.touch()
    for file in (foreign, empty, tmp_path / "missing"):
        with pytest.raises(StoreError):
            restore(url, file)
    if not url.startswith("postgres"):
        with pytest.raises(StoreError, match="is the store itself"):
            back_up(url, Path(url))
    store = open_store(url, ENCODER, WIDTH, None, 9)
    assert content(store) == {"a": (0.5, 97.5)}
    store.close()
    assert not list(tmp_path.glob("*.new"))
