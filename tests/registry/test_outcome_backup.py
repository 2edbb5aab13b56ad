"""Copies of recorded outcomes: of open stores, and restored into either kind of store."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.api.errors import StoreError
from engine.cli.main import main as cli
from engine.registry.stores.backup import (
    back_up,
    back_up_outcomes,
    restore,
    restore_outcomes,
)
from engine.registry.stores.outcomes import OutcomeStore, RecordedOutcome, read_recorded
from engine.routing.sessions import SessionStore
from engine.serving.session_sync import SessionSync
from tests.support.postgres import Postgres, postgres
from tests.support.stores import fresh, registry

OUTCOMES = [
    RecordedOutcome("d1", "a", 1.0, "Zwei Äpfel?", "fruit"),
    RecordedOutcome("d1", "b", 0.25, "Zwei Äpfel?", "fruit"),
    RecordedOutcome("d2", "a", 0.0, "", ""),
]


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as started:
        yield started


@pytest.fixture(params=["sqlite", "postgresql"])
def new_place(
    request: pytest.FixtureRequest, server: Postgres, tmp_path: Path
) -> Callable[[str], str]:
    """Return a function that gives the place of an empty store by its name."""
    if request.param == "sqlite":
        return lambda name: str(tmp_path / f"{name}.db")
    return lambda name: fresh(server, name)


async def filled(place: str) -> OutcomeStore:
    store = OutcomeStore(place, 100)
    await (sessions := SessionSync(SessionStore(10, 60), place)).start()  # as a server does
    await sessions.close()
    await asyncio.gather(*(store.record(outcome) for outcome in OUTCOMES))
    return store


async def test_a_copy_of_an_open_store_is_restored_into_either_kind(
    new_place: Callable[[str], str], server: Postgres, tmp_path: Path
) -> None:
    served, copy = new_place("served"), tmp_path / "copy.sqlite"
    store = await filled(served)
    assert back_up_outcomes(served, copy) == 3
    assert copy.stat().st_mode & 0o077 == 0
    places = (fresh(server, "restored"), str(tmp_path / "restored.db"))
    for place in places:
        assert restore_outcomes(place, copy) == 3
        assert list(read_recorded(place)) == list(read_recorded(copy))
        assert [(r.decision_id, r.candidate, r.score, r.text) for r in read_recorded(place)] == [
            (o.decision_id, o.candidate, o.score, o.text) for o in OUTCOMES
        ]
        again = OutcomeStore(place, 100)
        assert not await again.record(OUTCOMES[0]), "it is known"
        assert await again.record(RecordedOutcome("d3", "a", 1.0))
        await again.close()
        with pytest.raises(StoreError, match="holds outcomes already"):
            restore_outcomes(place, copy)
    await store.close()


async def test_what_is_no_copy_of_outcomes_changes_nothing(
    new_place: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = registry(str(tmp_path / "c.sqlite"))
    back_up(str(tmp_path / "c.sqlite"), candidates := tmp_path / "candidates.sqlite")
    await table.close()
    (text := tmp_path / "notes.txt").write_text("not a database " * 100)
    place = new_place("untouched")
    for file in (candidates, text, tmp_path / "missing", tmp_path):
        assert cli(["outcomes", "restore", "--outcomes-db", place, str(file)]) == 1
        assert capsys.readouterr().err.startswith(f"error: {file}")
    store = await filled(place)
    await store.close()
    assert len(list(read_recorded(place))) == 3
    assert not list(tmp_path.glob("*.new"))


async def test_the_store_itself_and_an_empty_database_are_refused(
    server: Postgres, tmp_path: Path
) -> None:
    place = tmp_path / "o.db"
    await (await filled(str(place))).close()
    with pytest.raises(StoreError, match="is the store itself"):
        back_up_outcomes(str(place), place)
    with pytest.raises(StoreError, match="holds no store of outcomes"):
        back_up_outcomes(fresh(server, "nothing"), tmp_path / "copy.sqlite")
    assert not (tmp_path / "copy.sqlite").exists()


async def test_the_command_reads_the_place_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "o.db"
    await (await filled(str(place))).close()
    monkeypatch.setenv("MODELSAT_OUTCOMES_DB", str(place))
    cli(["outcomes", "backup", str(tmp_path / "copy.sqlite")])
    assert capsys.readouterr().out == f"wrote 3 outcomes to {tmp_path / 'copy.sqlite'}\n"


def test_a_file_of_version_0_1_is_copied_and_restored(server: Postgres, tmp_path: Path) -> None:
    old, copy = tmp_path / "old.sqlite", tmp_path / "copy.sqlite"
    shutil.copy(Path(__file__).parent / "fixtures_0_1" / "outcomes.sqlite", old)
    before = [(r.decision_id, r.candidate, r.score, r.text) for r in read_recorded(old)]
    assert back_up_outcomes(str(old), copy) == len(before) == 4
    for file in (old, copy):
        for place in (fresh(server, "new"), str(tmp_path / f"from-{file.name}")):
            assert restore_outcomes(place, file) == 4
            found = read_recorded(place)
            assert [(r.decision_id, r.candidate, r.score, r.text) for r in found] == before


@pytest.mark.parametrize("name", ["traffic.csv", "missing.sqlite"])
def test_the_file_that_is_no_store_is_named(tmp_path: Path, name: str) -> None:
    """Kind: the error of copying named the new file, or advised to free disk space."""
    (tmp_path / "traffic.csv").write_text("when;who;prompt\n" * 100)
    refused, out = tmp_path / name, tmp_path / "out.sqlite"
    for attempt in (
        lambda: back_up(str(refused), out),
        lambda: restore(str(out), refused),
        lambda: back_up_outcomes(str(refused), out),
        lambda: restore_outcomes(str(out), refused),
    ):
        with pytest.raises(StoreError, match=re.escape(str(refused))) as error:
            attempt()
        assert "disk space" not in str(error.value)
        assert not out.exists()
