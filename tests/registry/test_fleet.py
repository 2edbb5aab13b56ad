"""Several registries on one PostgreSQL: they agree, lose no change, and survive its failure."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from engine.api.errors import StoreError
from engine.registry.opening import open_store
from engine.registry.registry import Registry
from engine.registry.stores.base import RevisionId, StoreState, without_password
from engine.serving.settings import ResolvedSettings, Settings
from tests.support.postgres import ESCAPED, PASSWORD, Postgres, postgres
from tests.support.stores import ENCODER, candidate, encoder, fresh, registry

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


@asynccontextmanager
async def fleet(url: str, size: int) -> AsyncIterator[list[Registry]]:
    members = [registry(url) for _ in range(size)]
    for member in members:
        member.follow()
    try:
        yield members
    finally:
        await asyncio.gather(*(member.close() for member in members))


async def until(true: Callable[[], bool]) -> None:
    for _ in range(1200):
        if true():
            return
        await asyncio.sleep(0.05)
    pytest.fail("not within a minute")


def ids(member: Registry) -> list[str]:
    return [c.id for c in member.table().candidates]


async def test_changes_of_one_server_reach_the_others(server: Postgres) -> None:
    async with fleet(fresh(server, "fleet"), 2) as (one, two):
        await one.create(candidate("new"))
        await until(lambda: ids(two) == ["first", "new"])
        await two.rollback(1)
        await until(lambda: ids(one) == ["first"])
        assert one.table().revision == two.table().revision == 3
        stored = [r.description for r in await one.revisions(None, 9)]
        assert stored[:2] == ["rolled back to 1", "created candidates/new"]


async def test_change_is_computed_from_the_newest_table(server: Postgres) -> None:
    """Two at once, none following: each sees what the other did before it plans."""
    url = fresh(server, "newest")
    one, two = registry(url), registry(url)
    await one.create(candidate("new", 0.25))
    changed = await two.update("new", lambda c: candidate("new", c.aptitude[0].accuracy * 2))
    assert changed.aptitude[0].accuracy == 0.5
    await one.delete("new")
    await two.create(candidate("new"))
    await asyncio.gather(one.close(), two.close())


async def test_concurrent_writers_lose_nothing(server: Postgres) -> None:
    async with fleet(fresh(server, "writers"), 3) as members:
        new = [(member, f"m{k}-{i}") for i in range(8) for k, member in enumerate(members)]
        await asyncio.gather(*(member.create(candidate(i)) for member, i in new))
        expected = sorted(["first", *(i for _, i in new)])
        await until(lambda: all(ids(member) == expected for member in members))
        assert {member.table().revision for member in members} == {1 + len(new)}


def test_servers_that_start_together_set_up_one_store(server: Postgres) -> None:
    url = fresh(server, "setup")
    opened, barrier = [], threading.Barrier(6)

    def start() -> None:
        barrier.wait()
        opened.append(registry(url))

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(r.table().revision, ids(r)) for r in opened] == [(1, ["first"])] * 6
    for member in opened:
        asyncio.run(member.close())


async def test_read_before_a_loss_does_not_mark_the_store_up(tmp_path: Path) -> None:
    """A refresh is under way when the listener hears that the database is gone."""
    one = registry(str(tmp_path / "s.sqlite"))
    async with one._access._lock:
        one._on_revision(RevisionId(number=9), "")
        await asyncio.sleep(0)  # the refresh has begun, and waits
        one._on_revision(None, "OperationalError")
    await asyncio.gather(*one._running)
    assert not one.store_state.connected
    one._on_revision(one.table().id, "")
    assert one.store_state.connected
    await one.close()


@pytest.mark.parametrize("end", [Postgres.kill, Postgres.stop])
async def test_a_registry_outlives_its_database(
    server: Postgres, end: Callable[[Postgres], None]
) -> None:
    states: list[StoreState] = []
    async with fleet(fresh(server, "outlived"), 2) as (one, two):
        one.on_store_state(states.append)
        await one.create(candidate("before"))
        try:
            end(server)
            await until(lambda: not one.store_state.connected)
            with pytest.raises(StoreError, match="nothing was changed") as refused:
                await one.create(candidate("while"))
            assert PASSWORD not in str(refused.value)
            assert ids(one) == ["before", "first"], "it goes on with what it has"
        finally:
            server.start()
        await one.create(candidate("after"))
        await until(lambda: ids(two) == ["after", "before", "first"])
        await until(lambda: one.store_state.connected)
    assert [s.connected for s in states] == [False, True]
    assert states[0].reason
    assert states[0].since <= states[1].since


async def test_server_of_an_old_encoder_cannot_write(server: Postgres) -> None:
    url = fresh(server, "encoders")
    one = registry(url)
    renewed = open_store(url, "encoder-2", 4, encoder().encode, 9)
    renewed.close()
    with pytest.raises(
        StoreError, match=r"encoder_id is 'encoder-2', this server's is 'encoder-1'"
    ):
        await one.create(candidate("new"))
    assert ids(one) == ["first"]
    await one.close()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://u:s3cret@127.0.0.1:1/d", "could not be opened .*refused"),
        (
            "postgresql://u:s3cret@127.0.0.1:port/d",
            "not a valid PostgreSQL URL|could not be opened",
        ),
        ("postgres://u:s3cret@[::1/d?x=y", "not a valid PostgreSQL URL"),
        ("postgresql://u@127.0.0.1:1/d?nonsense=1&password=s3cret", "not a valid PostgreSQL URL"),
    ],
)
def test_unreachable_database_is_reported_in_one_sentence(url: str, words: str) -> None:
    with pytest.raises(StoreError, match=words) as refused:
        open_store(url, ENCODER, 4, None, 9)
    assert "s3cret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_wrong_password_is_not_in_the_error(server: Postgres) -> None:
    with pytest.raises(StoreError, match="authentication failed") as refused:
        open_store(server.url(password="wr0ng"), ENCODER, 4, None, 9)
    assert "wr0ng" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:pw@h:5/d", "postgresql://u:***@h:5/d"),
        ("postgres://u:p/w@x@h/d", "postgres://u:***@h/d"),
        ("postgresql://u@h/d?sslmode=require&password=pw", None),
        ("postgresql://h:5/d", "postgresql://h:5/d"),
        ("postgresql:///d?host=/tmp&sslpassword=pw", "postgresql:///d?host=/tmp&sslpassword=***"),
        ("a:b@c.sqlite", "a:b@c.sqlite"),
    ],
)
def test_the_password_is_never_shown(url: str, shown: str | None) -> None:
    shown = shown or "postgresql://u@h/d?sslmode=require&password=***"
    assert without_password(url) == shown
    table = ResolvedSettings(Settings(candidates_db=url), {"candidates_db": "flag"}).table()
    assert table == f"  candidates_db = {shown} (flag)"
    assert ESCAPED not in table
