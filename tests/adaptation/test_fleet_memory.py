"""Replicas of one PostgreSQL learn the same, and add what they remember to what others recorded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine.adaptation.vectors.filling import VectorFiller
from engine.api.usage import Usage
from engine.cli.main import main as cli
from engine.registry.outcome_changes import read_recent_reports, read_waiting
from engine.registry.stores.outcome_types import (
    OutcomeLimits,
    OutcomeReport,
    RecordedOutcome,
    ScoredInstruction,
)
from engine.registry.stores.outcomes import OutcomeStore, read_recorded
from tests.support.postgres import Postgres, postgres
from tests.support.replicas import LIMITS, Replica
from tests.support.stores import fresh


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as started:
        yield started


class TextsOnly:
    """Scores any text as instruction 7, and counts."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.texts: list[str] = []

    async def score(self, text: str) -> ScoredInstruction:
        self.texts.append(text)
        return self.replica.scored(7)


async def test_three_replicas_serve_the_same_fit(server: Postgres) -> None:
    url = fresh(server, "three")
    replicas = [Replica(url) for _ in range(3)]
    reports = [
        replicas[seed % 3].record(seed, {"a": seed % 2, "bb": 1.0}, principal=f"p{seed % 5}")
        for seed in range(60)
    ]
    await asyncio.gather(*reports)
    matrices = await asyncio.gather(*(replica.matrix() for replica in replicas))
    assert {len(matrix) for matrix in matrices} == {60}
    assert len({matrix.id for matrix in matrices}) == 1
    await replicas[0].source.freeze()
    await replicas[1].record(99, {"a": 1.0})
    assert {(await r.matrix()).id for r in replicas} == {matrices[0].id}
    await replicas[2].source.reset()
    for replica in replicas:
        await replica.source.refresh()
        assert replica.source.current() is None
    listed = await replicas[1].source.history()
    assert listed[0].id == matrices[0].id
    for replica in replicas:
        await replica.close()


async def test_replicas_in_the_background_agree_within_five_seconds(server: Postgres) -> None:
    replicas = [Replica(fresh(server, "background")) for _ in range(1)]
    replicas += [Replica(server.url("background")) for _ in range(2)]
    for replica in replicas:
        await replica.source.start()
    for seed in range(20):
        await replicas[seed % 3].record(seed, {"a": 1.0})
    deadline = time.monotonic() + 20  # a slow machine; the figure is measured elsewhere
    while time.monotonic() < deadline:
        await asyncio.sleep(0.2)
        fits = [replica.source.current() for replica in replicas]
        sizes = [
            0 if f is None else len(r.fits.matrices[f.id])
            for r, f in zip(replicas, fits, strict=True)
        ]
        if sizes == [20] * 3:
            break
    assert len({fit.id for fit in fits if fit is not None}) == 1
    assert sizes == [20] * 3
    for replica in replicas:
        await replica.close()


async def test_concurrent_writers_leave_no_gap_for_readers(server: Postgres) -> None:
    """A reader that follows while three write has read every outcome in the end."""
    url = fresh(server, "gaps")
    writers, reader = [Replica(url) for _ in range(3)], Replica(url)

    async def write(replica: Replica, first: int) -> None:
        for seed in range(first, first + 40):
            await replica.record(seed, {"a": 1.0})

    async def follow() -> None:
        while True:
            await reader.source.refresh()

    following = asyncio.create_task(follow())
    await asyncio.gather(*(write(w, 1000 * i) for i, w in enumerate(writers)))
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert len(await reader.matrix()) == 120
    for replica in (*writers, reader):
        await replica.close()


@pytest.mark.parametrize("location", ["postgres", "sqlite"])
async def test_the_replica_that_remembers_a_decision_fills_it_in(
    server: Postgres, tmp_path: Any, location: str
) -> None:
    url = fresh(server, "filling") if location == "postgres" else tmp_path / "o.sqlite"
    asked, other = Replica(url), Replica(url)
    asked.recent.add("1" * 32, "", asked.scored(1, explored=True, propensity=0.1))
    assert await other.store.record(RecordedOutcome("1" * 32, "a", 1.0))
    assert await other.store.record(RecordedOutcome("2" * 32, "a", 1.0, "a text"))
    fillers = [VectorFiller(r.store, r.recent, TextsOnly(r)) for r in (asked, other)]  # type: ignore[arg-type]
    assert await fillers[1].fill() == 0
    assert await fillers[0].fill() == 1
    matrix = await other.matrix()
    assert (len(matrix), matrix.provenance[0].tolist()) == (1, [1, -1, -1])
    np.testing.assert_allclose(matrix.propensity[0, 0], 0.1)
    waiting = await other.store.read(lambda db: read_waiting(db, 10))
    assert [(each.key, each.text) for each in waiting] == [("2" * 32, "a text")]
    for each in (asked, other):
        await each.close()


async def test_texts_of_decisions_that_none_remembers_are_scored_later(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = Replica(tmp_path / "o.sqlite")
    await replica.store.record(RecordedOutcome("1" * 32, "a", 1.0, "a text"))
    await replica.store.record(RecordedOutcome("2" * 32, "a", 1.0))
    scorer = TextsOnly(replica)
    filler = VectorFiller(replica.store, replica.recent, scorer)  # type: ignore[arg-type]
    assert await filler.fill() == 0
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 30)
    assert await filler.fill() == 1
    assert scorer.texts == ["a text"]
    monkeypatch.setattr(time, "time", lambda: now + 1000)
    await filler.fill()
    assert await replica.store.read(lambda db: read_waiting(db, 10)) == []
    assert len(await replica.matrix()) == 1
    await replica.close()


async def test_filling_outlives_any_error(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.adaptation.vectors.filling.POLL_S", 0.01)
    replica = Replica(tmp_path / "o.sqlite")
    filler = VectorFiller(replica.store, replica.recent, TextsOnly(replica))  # type: ignore[arg-type]
    again = asyncio.Event()

    async def fill() -> int:
        if fails:
            raise fails.pop()
        again.set()
        return 0

    fails: list[Exception] = [ValueError("a row that this version does not read")]
    monkeypatch.setattr(filler, "fill", fill)
    running = asyncio.create_task(filler.run())
    async with asyncio.timeout(10):
        await again.wait()
    assert (fails, running.done()) == ([], False)
    running.cancel()
    await replica.close()


async def test_a_database_that_comes_later_is_used_then(server: Postgres) -> None:
    url = fresh(server, "later")
    server.stop()
    replica = Replica(url)
    report = OutcomeReport([RecordedOutcome("1" * 32, "a", 1.0)], replica.scored(1))
    with pytest.raises(Exception, match="nothing was recorded"):
        await replica.store.record_report(report)
    await replica.source.start()
    assert replica.source.current() is None
    server.start()
    assert await replica.store.record_report(report) == 1
    assert len(await replica.matrix()) == 1
    await replica.close()
    server.run("SELECT 1", "later")
    assert [r.candidate for r in read_recorded(url)] == ["a"]


async def test_the_bounds_hold_for_all_replicas(server: Postgres) -> None:
    url = fresh(server, "bounds")
    first, second = (Replica(url, OutcomeLimits(12, instructions=8)) for _ in range(2))
    for seed in range(20):
        await (first, second)[seed % 2].record(seed, {"a": 1.0})
    matrices = [await first.matrix(), await second.matrix()]
    assert [len(m) for m in matrices] == [8, 8]
    assert matrices[0].id == matrices[1].id
    assert len(list(read_recorded(url))) == 12
    assert LIMITS.outcomes == 1000
    for replica in (first, second):
        await replica.close()


@pytest.mark.parametrize("field", ["text", "category", "grader"])
async def test_no_character_of_one_caller_fails_the_outcomes_of_others(
    server: Postgres, field: str
) -> None:
    """They share a transaction, and PostgreSQL stores no U+0000."""
    url = fresh(server, f"nul_{field}")
    replica = Replica(url)
    odd = RecordedOutcome("1" * 32, "a", 1.0, **{field: "a\0b"})  # type: ignore[arg-type]
    calls = [replica.store.record(odd), replica.store.record(RecordedOutcome("2" * 32, "a", 1.0))]
    assert await asyncio.gather(*calls) == [True, True]
    assert await replica.store.record(replace(odd, candidate="bb"))
    assert [getattr(r, field)[:1] for r in read_recorded(url)] == ["a", "", "a"]
    await replica.close()


async def test_who_reads_slowly_reads_all(
    server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = fresh(server, "slowly")
    replica = Replica(url)
    for seed in range(3):
        await replica.record(seed, {"a": 1.0})
    await replica.close()
    monkeypatch.setattr("engine.registry.stores.outcome_databases.STATEMENT_S", 1.0)
    read = []
    for outcome in read_recorded(url):
        time.sleep(0.5)
        read.append(outcome.decision_id)
    assert read == [f"{seed:032x}" for seed in range(3)]


def test_a_store_of_outcomes_needs_a_valid_location() -> None:
    with pytest.raises(Exception, match="--outcomes-db"):
        OutcomeStore("mysql://x/y", 10)


@pytest.mark.parametrize("location", ["postgres", "sqlite"])
async def test_what_is_deleted_is_unlearned_by_servers_that_remember_it(
    server: Postgres, tmp_path: Any, location: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A comparison keeps the outcomes of its other candidates, and a principal the others'."""
    url = str(fresh(server, "deleting") if location == "postgres" else tmp_path / "o.sqlite")
    replica = Replica(url)
    await replica.record(1, {"a": 1.0, "bb": 0.0}, principal="judge")
    await replica.record(2, {"a": 1.0}, principal="judge")
    await replica.record(3, {"bb": 1.0}, principal="liar")
    await replica.record(4, {"bb": 0.5}, principal="judge")
    assert len(await replica.matrix()) == 4
    used = RecordedOutcome(f"{1:032x}", "c", 0.5, principal="judge", usage=Usage(9, 9))
    both = OutcomeReport([used, replace(used, candidate="dd")])
    await replica.store.record_report(both)

    def delete(*words: str) -> str:
        assert cli(["outcomes", "delete", "--outcomes-db", url, *words]) == 0
        return capsys.readouterr().out

    assert delete("--candidate", "stranger") == "deleted 0 outcomes\n"
    would = delete("--candidate", "candidates/a", "--dry-run")
    assert would == "would have deleted 2 outcomes\n"
    assert delete("--candidate", "a") == "deleted 2 outcomes\n"
    assert delete("--candidate", "c") == "deleted 1 outcomes\n"
    recent = await replica.store.read(lambda db: read_recent_reports(db, 9))
    assert [list(r.usage) for r in recent.reports if "dd" in r.outcomes] == [["dd"]]
    assert delete("--candidate", "dd") == "deleted 1 outcomes\n"
    kept = [(o.candidate, o.score, o.principal) for o in read_recorded(url)]
    assert sorted(kept) == [("bb", 0.0, "judge"), ("bb", 0.5, "judge"), ("bb", 1.0, "liar")]
    assert len(await replica.matrix()) == 3
    assert delete("--principal", "liar", "--candidate", "bb") == "deleted 1 outcomes\n"
    assert sorted(o.score for o in read_recorded(url)) == [0.0, 0.5]
    assert len(await replica.matrix()) == 2
    assert cli(["outcomes", "delete", "--outcomes-db", url]) == 1
    assert "or --principal is required" in capsys.readouterr().err
    assert cli(["outcomes", "delete", "--outcomes-db", str(tmp_path / "no"), *("--principal", "x")])
    assert not (tmp_path / "no").exists()
    await replica.close()
