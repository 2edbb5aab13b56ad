"""A server starts from its last table on disk while its database is away, and catches up."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.api.errors import StoreError
from engine.registry.opening import open_registry
from engine.registry.registry import Registry
from tests.support.postgres import Postgres, postgres
from tests.support.stores import ENCODER, WIDTH, candidate, encoder, fresh, registry

pytestmark = pytest.mark.integration


@pytest.fixture
def server() -> Iterator[Postgres]:
    with postgres() as running:
        yield running
        running.thaw()


def opened(url: str, file: Path, encoder_id: str = ENCODER) -> Registry:
    return open_registry(url, encoder(), encoder_id, WIDTH, [candidate("first")], last_table=file)


@pytest.mark.parametrize("end", [Postgres.stop, Postgres.kill, Postgres.freeze])
async def test_starts_and_catches_up(
    end: Callable[[Postgres], None], server: Postgres, tmp_path: Path
) -> None:
    url, file = fresh(server, "away"), tmp_path / "state" / "last.json"
    before = opened(url, file)
    await before.create(candidate("second"))
    await before.close()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    other = registry(url)
    await other.create(candidate("third"))
    await other.close()
    end(server)
    started = opened(url, file)
    assert [c.id for c in started.table().candidates] == ["first", "second"]
    assert started.table().id == before.table().id
    assert started.decision_key == before.decision_key
    assert started.from_file
    assert not started.store_state.connected
    started.follow()
    with pytest.raises(StoreError):
        await started.create(candidate("refused"))
    server.thaw()
    if end is not Postgres.freeze:
        server.start()
    async with asyncio.timeout(20):
        while started.from_file or not started.store_state.connected:
            await asyncio.sleep(0.05)
    assert [c.id for c in started.table().candidates] == ["first", "second", "third"]
    await started.create(candidate("fourth"))
    await started.close()
    server.stop()
    again = opened(url, file)
    assert again.table().revision == 4, "what it caught up with was kept"
    await again.close()


async def test_file_of_another_store_or_encoder_or_damaged_is_not_served(
    server: Postgres, tmp_path: Path
) -> None:
    url, other, file = fresh(server, "one"), fresh(server, "two"), tmp_path / "last.json"
    await opened(url, file).close()
    server.stop()
    await opened(url, file).close()
    for refused, encoder_id, reason in (
        (other, ENCODER, "of another database"),
        (url, "encoder-2", "of another database, encoder"),
    ):
        with pytest.raises(StoreError, match=reason):
            opened(refused, file, encoder_id)
    whole = file.read_bytes()
    for damaged in (whole[:-20], whole.replace(b"first", b"other"), b"", b"{}"):
        file.write_bytes(damaged)
        with pytest.raises(StoreError, match=r"could not be opened.*There is no last table"):
            opened(url, file)
    file.unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        opened(url, file)


async def test_emptied_database_does_not_empty_the_table(server: Postgres, tmp_path: Path) -> None:
    url = fresh(server, "emptied")
    member = opened(url, tmp_path / "last.json")
    server.run("DELETE FROM modelsat.revision; DELETE FROM modelsat.candidate_version", "emptied")
    member.follow()
    async with asyncio.timeout(10):
        while member.store_state.connected:
            await asyncio.sleep(0.05)
    assert [c.id for c in member.table().candidates] == ["first"]
    await member.close()
