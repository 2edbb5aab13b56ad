"""A number is taken for an identity, or a name for a file: after a restore, a failover or a second
name of one file, no two tables share an identity, and servers that were paused catch up."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import numpy as np
import pytest

from engine.api.errors import StoreError
from engine.inference.cache import ScoreCache
from engine.registry.opening import open_store
from engine.registry.registry import Registry
from engine.registry.stores import sql
from engine.registry.stores.backup import back_up, restore
from engine.registry.stores.base import RevisionId
from tests.support.postgres import Postgres, postgres
from tests.support.stores import ENCODER, WIDTH, candidate, encoder, fresh, registry


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


def ids(member: Registry) -> list[str]:
    return [c.id for c in member.table().candidates]


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Registry]:
    member = registry(url)
    try:
        yield member
    finally:
        await member.close()


async def until(true: Callable[[], bool], seconds: float = 20) -> None:
    for _ in range(int(seconds / 0.05)):
        if true():
            return
        await asyncio.sleep(0.05)
    pytest.fail(f"not within {seconds} s")


def cached(member: Registry, cache: ScoreCache, value: float) -> float:
    """Return what the cache has for the first row of the table; put `value` if it has nothing."""
    key = cache.key(member.table(), np.arange(3), np.zeros(1, np.int64))
    known = cache.get(key)
    if known is None:
        cache.put(key, np.array([value], np.float32), np.zeros(2, np.float32))
        return value
    return float(known[0][0])


def symlink(store: Path, other: Path) -> Path:
    other.symlink_to(store)
    return other


def hard_link(store: Path, other: Path) -> Path:
    other.hardlink_to(store)
    return other


def renamed(store: Path, other: Path) -> Path:
    return store.rename(other)


def linked_folder(store: Path, other: Path) -> Path:
    other.symlink_to(store.parent)
    return other / store.name


def lock_file_removed(store: Path, other: Path) -> Path:
    store.with_name(store.name + ".lock").unlink()
    return store


@pytest.mark.parametrize(
    "rename",
    [symlink, hard_link, renamed, linked_folder, lock_file_removed],
    ids=lambda f: f.__name__,
)
async def test_name_is_not_the_file(rename: Callable[[Path, Path], Path], tmp_path: Path) -> None:
    """cases/server/08: a store is open once, whatever it is called."""
    store = tmp_path / "c.sqlite"
    async with opened(str(store)):
        back_up(str(store), copy := tmp_path / "copy.sqlite")
        second = rename(store, tmp_path / "other")
        with pytest.raises(StoreError, match="open in another server"):
            registry(str(second))
        with pytest.raises(StoreError, match="open in another server"):
            restore(str(second), copy)


@pytest.mark.parametrize("rename", [hard_link, renamed], ids=lambda f: f.__name__)
async def test_backup_under_a_name_without_the_log_is_refused(
    rename: Callable[[Path, Path], Path], tmp_path: Path
) -> None:
    """SQLite would look for the log under that name, and copy an old table."""
    store, copy = tmp_path / "c.sqlite", tmp_path / "copy.sqlite"
    async with opened(str(store)) as member:
        await member.create(candidate("in-the-log"))
        second = rename(store, tmp_path / "other")
        with pytest.raises(StoreError, match="open in a server under another name"):
            back_up(str(second), copy)
        assert not copy.exists()


async def test_backup_of_a_crashed_store_needs_the_name_of_its_log(tmp_path: Path) -> None:
    store, crashed, copy = tmp_path / "c.sqlite", tmp_path / "d", tmp_path / "copy.sqlite"
    async with opened(str(store)) as member:
        await member.create(candidate("in-the-log"))
        crashed.mkdir()
        for file in (store, tmp_path / "c.sqlite-wal"):
            shutil.copy(file, crashed)
    link = hard_link(crashed / "c.sqlite", crashed / "other")
    with pytest.raises(StoreError, match=r"logged as c\.sqlite-wal"):
        back_up(str(link), copy)
    assert back_up(str(symlink(crashed / "c.sqlite", tmp_path / "s")), copy) == 2


async def test_backup_under_any_name_of_a_closed_store(tmp_path: Path) -> None:
    async with opened(str(tmp_path / "c.sqlite")) as member:
        await member.create(candidate("second"))
    link = hard_link(tmp_path / "c.sqlite", tmp_path / "other")
    for number, name in enumerate((link, tmp_path / "c.sqlite")):
        assert back_up(str(name), tmp_path / f"copy-{number}.sqlite") == 2


async def test_restore_to_a_link_keeps_the_link(tmp_path: Path) -> None:
    store, link, copy = tmp_path / "c.sqlite", tmp_path / "link", tmp_path / "copy.sqlite"
    async with opened(str(store)):
        pass
    link.symlink_to(store)
    back_up(str(link), copy)
    restore(str(link), copy)
    assert link.is_symlink()
    async with opened(str(store)) as member:
        assert member.table().revision == 2, "the file behind the link was restored"


async def test_restored_copy_has_another_identity(tmp_path: Path) -> None:
    """Two histories that continue one copy give their revisions the same numbers."""
    first, second, copy = (tmp_path / name for name in ("a.sqlite", "b.sqlite", "copy.sqlite"))
    cache = ScoreCache(1 << 20)
    async with opened(str(first)) as member:
        before = member.table()
    shutil.copy(first, second)
    async with opened(str(first)) as one, opened(str(second)) as two:
        await one.create(candidate("of-one"))
        await two.create(candidate("of-two"))
        assert one.table().revision == two.table().revision == 2
        assert one.table().id != two.table().id
        assert (cached(one, cache, 0.25), cached(two, cache, 0.75)) == (0.25, 0.75)
        back_up(str(first), copy)
    restore(str(second), copy)
    async with opened(str(second)) as two:
        assert two.table().id.epoch != before.id.epoch
        assert cached(two, cache, 0.5) == 0.5


async def test_encoding_again_changes_the_identity(tmp_path: Path) -> None:
    store = str(tmp_path / "c.sqlite")
    async with opened(store) as member:
        before = member.table().id
    open_store(store, "encoder-2", WIDTH, encoder().encode, 9).close()
    renewed = open_store(store, "encoder-2", WIDTH, None, 9)
    assert renewed.identity().number == before.number
    assert renewed.identity() != before
    renewed.close()


async def test_paused_servers_catch_up_after_a_restore_of_the_database(server: Postgres) -> None:
    """The database goes back in time, and then makes other revisions of the same numbers. `paused`
    heard of none of it, `witness` saw the loss, `late` starts afterwards."""
    url = fresh(server, "restored")
    cache = ScoreCache(1 << 20)
    async with opened(url) as paused, opened(url) as witness:
        server.stop()
        server.copy_data()
        server.start()
        await paused.create(candidate("lost"))
        witness.follow()
        await until(lambda: ids(witness) == ["first", "lost"])
        assert cached(paused, cache, 0.25) == 0.25
        lost = paused.table().id
        server.stop()
        server.restore_data()
        server.start()
        async with opened(url) as late:
            await late.create(candidate("found"))
            await until(lambda: ids(witness) == ["first", "found"], 10)
            paused.follow()  # it goes on
            await until(lambda: ids(paused) == ["first", "found"], 5)
            late.follow()
            await until(lambda: paused.table().id == witness.table().id == late.table().id, 5)
            assert paused.table().id.number > lost.number, "no number is used twice from now on"
            assert paused.table().id.epoch != lost.epoch
            assert cached(paused, cache, 0.75) == 0.75


async def test_change_is_not_applied_to_another_history(server: Postgres) -> None:
    """The same number, but not the same revision: the change is planned again."""
    url = fresh(server, "rewritten")
    async with opened(url) as member:
        await member.create(candidate("second"))
        server.run("UPDATE modelsat.revision SET nonce = 'aa' WHERE number = 2", "rewritten")
        server.run("DELETE FROM modelsat.candidate_version WHERE id = 'second'", "rewritten")
        await member.create(candidate("third"))
        assert ids(member) == ["first", "third"]


async def test_failover_begins_an_epoch(server: Postgres) -> None:
    """A standby that was promoted is on another timeline, also if no server remembers a loss."""
    url = fresh(server, "promoted")
    store = open_store(url, ENCODER, WIDTH, None, 9)
    before = store.identity()
    connection = store._alive()  # type: ignore[attr-defined]
    timeline = connection.execute("SHOW modelsat.timeline").fetchone()[0]
    assert timeline.endswith("/00000001")
    connection.execute("SELECT set_config('modelsat.timeline', 'other/00000002', false)")
    assert store.identity().epoch != before.epoch
    store.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_store_of_0_2_is_migrated_in_place(
    kind: str, server: Postgres, tmp_path: Path
) -> None:
    """It has no nonces and no epoch; a PostgreSQL store can still be written by version 0.2."""
    old = "INSERT INTO {}revision VALUES (9, 0, 'by version 0.2', 1)"
    if kind == "sqlite":
        url = str(tmp_path / "c.sqlite")
        async with opened(url):
            pass
        with closing(sqlite3.connect(url)) as db, db:
            for column in ("nonce", *sql.MAKER_COLUMNS):
                db.execute(f"ALTER TABLE revision DROP COLUMN {column}")
            db.execute("DELETE FROM meta WHERE key = 'epoch'")
            db.execute("UPDATE meta SET value = '2' WHERE key = 'schema'")
            db.execute(old.format(""))
    else:
        url = fresh(server, "migrated")
        async with opened(url):
            pass
        server.run("DELETE FROM modelsat.meta WHERE key = 'epoch'", "migrated")
        for column in ("nonce", *sql.MAKER_COLUMNS):
            server.run(f"ALTER TABLE modelsat.revision DROP COLUMN {column}", "migrated")
        server.run(old.format("modelsat."), "migrated")
        assert back_up(url, tmp_path / "copy.sqlite") == 9  # before it is migrated
        assert restore(fresh(server, "copied"), tmp_path / "copy.sqlite") == 9
    async with opened(url) as member:
        kept = [r.id for r in await member.revisions(None, 9)]
        assert [i.number for i in kept] == [9, 1]
        assert len({i.nonce for i in kept}) == 2
        assert all(len(i.nonce) == len(i.epoch) == 16 for i in kept)
        await member.create(candidate("new"))
        if kind == "postgres":
            server.run(old.format("modelsat.").replace("9", "11"), "migrated")
            assert len({r.id.nonce for r in await member.revisions(None, 9)}) == 4


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "a.1", "0.-1.0", ".1.x", "a" * 33 + ".1.a"])
def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="revision_token"):
        RevisionId.parse(token)
