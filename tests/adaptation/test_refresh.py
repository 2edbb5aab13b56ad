"""Refits follow the store: what is recorded, deleted, frozen, rolled back and reset."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.adaptation.outcome_matrix import PROVENANCES, OutcomeMatrix
from engine.adaptation.recent_decisions import RecentDecisions
from engine.adaptation.remembered import (
    CHANGED,
    NOT_REGISTERED,
    NOT_REMEMBERED,
    NOT_SCORED,
    OTHER_WEIGHTS,
)
from engine.api.errors import AdaptationNotFoundError
from engine.api.usage import Usage
from engine.bundle.instruction_space import InstructionSpace
from engine.registry.embedding_bytes import BLOCK
from engine.registry.stores.outcome_types import (
    OutcomeLimits,
    OutcomeReport,
    RecordedOutcome,
)
from engine.registry.stores.outcomes import OutcomeStore, read_recorded
from engine.registry.table import make_table
from tests.support.fake_adaptation import FakeAdaptation
from tests.support.replicas import BUNDLE, LIMITS, WIDTH, Replica, embedding, table
from tests.support.stores import candidate


@pytest.fixture
async def replica(tmp_path: Path) -> AsyncIterator[Replica]:
    made = Replica(tmp_path / "o.sqlite")
    yield made
    await made.close()


def provenances(matrix: OutcomeMatrix, row: int) -> list[str]:
    return [PROVENANCES[k] if k >= 0 else "" for k in matrix.provenance[row]]


async def test_without_outcomes_there_is_no_adaptation(replica: Replica) -> None:
    await replica.source.refresh()
    assert replica.source.current() is None
    assert replica.source.status() is None


async def test_the_matrix_holds_what_was_recorded(replica: Replica) -> None:
    await replica.record(1, {"a": 1.0})
    await replica.record(2, {"a": 0.25, "bb": 0.1}, compared=True)
    matrix = await replica.matrix()
    assert matrix.candidates == ("a", "bb", "ccc")
    expected = np.array([embedding(1), embedding(2)])
    np.testing.assert_allclose(matrix.embeddings, expected, rtol=1e-3)
    np.testing.assert_allclose(matrix.logits, [[-1.386, 0, 1.386]] * 2, atol=1e-2)
    nan = np.nan
    np.testing.assert_allclose(matrix.scores, [[1, nan, nan], [0.25, 0.1, nan]])
    assert provenances(matrix, 0) == ["chosen", "", ""]
    assert provenances(matrix, 1) == ["comparison", "comparison", ""]
    assert np.all(np.diff(matrix.recorded_at) >= 0)


@pytest.mark.parametrize(
    ("how", "scores", "expected"),
    [
        ({"selected": "a"}, [{"a": 1.0}], ("chosen", 1.0)),
        ({"selected": "a", "propensity": 0.95}, [{"a": 1.0}], ("chosen", 0.95)),
        ({"selected": "a", "explored": True, "propensity": 0.02}, [{"a": 0.0}], ("explored", 0.02)),
        ({"selected": ""}, [{"a": 1.0}], ("chosen", 1.0)),
        ({"selected": "bb"}, [{"a": 1.0}], ("comparison", 1.0)),
        ({"selected": "a", "propensity": 0.95}, [{"a": 1.0}, {"bb": 0.0}], ("comparison", 1.0)),
    ],
)
async def test_provenance_says_how_an_outcome_came_about(
    replica: Replica, how: dict[str, object], scores: Sequence[dict[str, float]], expected: object
) -> None:
    for each in scores:
        await replica.record(1, each, replica.scored(1, **how))  # type: ignore[arg-type]
    matrix = await replica.matrix()
    assert (provenances(matrix, 0)[0], round(float(matrix.propensity[0, 0]), 4)) == expected


async def test_a_call_that_failed_says_nothing_of_the_answers(replica: Replica) -> None:
    failed = Usage(output_tokens=3, error="HTTP 529")
    for usage, scored in ((failed, 1), (Usage(latency_s=1.0), 2), (None, 3)):
        outcome = RecordedOutcome(f"{scored:032x}", "bb", 0.0, usage=usage)
        await replica.store.record_report(OutcomeReport([outcome], replica.scored(scored)))
    several = [
        RecordedOutcome("4" * 32, name, 0.0, usage=usage, compared=True)
        for name, usage in (("a", failed), ("ccc", None))
    ]
    await replica.store.record_report(OutcomeReport(several, replica.scored(4)))
    matrix = await replica.matrix()
    np.testing.assert_array_equal((~np.isnan(matrix.scores)).sum(axis=0), [0, 2, 1])


async def test_outcomes_that_cannot_be_used_are_counted_by_reason(replica: Replica) -> None:
    await replica.record(1, {"a": 1.0, "bb": 1.0, "ccc": 0.0})
    await replica.store.record(RecordedOutcome("f" * 32, "a", 1.0))  # no vectors
    elsewhere = RecentDecisions("weights-2", 1 << 20, 3600)
    rows, p = np.arange(3), np.full(3, 0.5, dtype=np.float32)
    other = elsewhere.scored(replica.table, rows, p, embedding(2))
    await replica.record(2, {"a": 1.0}, other)
    partly = replica.recent.scored(replica.table, rows[:1], p[:1], embedding(3))
    await replica.record(3, {"a": 1.0, "bb": 1.0}, partly)
    await replica.matrix()
    status = replica.source.status()
    assert status is not None
    assert status.unused == {NOT_REMEMBERED: 1, OTHER_WEIGHTS: 1, NOT_SCORED: 1}
    changed, kept = table("bb", level=0.7).embeddings[0], table("a", "dddd")
    entries = [*zip(kept.candidates, kept.embeddings, strict=True), (candidate("bb"), changed)]
    replica.table = make_table(2, entries, WIDTH)
    matrix = await replica.matrix()
    assert matrix.candidates == ("a", "bb", "dddd")
    np.testing.assert_array_equal(np.isnan(matrix.logits), [[False, True, True]] * 2)
    status = replica.source.status()
    assert status is not None
    expected = {NOT_REMEMBERED: 1, OTHER_WEIGHTS: 1, NOT_REGISTERED: 1, CHANGED: 2}
    assert status.unused == expected


async def test_a_candidate_with_other_aptitude_results_is_not_corrected_by_its_old_outcomes(
    replica: Replica,
) -> None:
    """Not even until the next fit."""
    await replica.record(1, {"a": 1.0, "bb": 0.0})
    shifts = {"a": 1.0, "bb": -1.0}
    replica.source._fit = lambda matrix, space: FakeAdaptation(shifts, id=matrix.id)
    await replica.source.refresh()
    before = replica.source.current()
    assert isinstance(before, FakeAdaptation)
    assert before.shifts == shifts
    assert replica.source.current() is before
    changed = table("a", level=0.9)
    entries = zip(replica.table.candidates, replica.table.embeddings, strict=True)
    others = [entry for entry in entries if entry[0].id != "a"]
    entries_now = [(changed.candidates[0], changed.embeddings[0]), *others]
    replica.table = make_table(2, entries_now, WIDTH)
    after = replica.source.current()
    assert isinstance(after, FakeAdaptation)
    assert (after.id, after.shifts) == (before.id, {"bb": -1.0})


async def test_an_unscored_candidate_that_returns_is_used_again(replica: Replica) -> None:
    await replica.record(1, {"a": 1.0, "bb": 0.0})
    before, known = (await replica.matrix()).id, replica.table
    replica.table = table("a", "ccc", revision=2)
    assert (await replica.matrix()).id != before
    replica.table = known
    assert (await replica.matrix()).id == before


async def test_a_restart_serves_the_same_fit(tmp_path: Path) -> None:
    first = Replica(tmp_path / "o.sqlite")
    for seed in range(30):
        await first.record(seed, {"a": seed % 2, "bb": 1.0})
    before = await first.matrix()
    await first.close()
    second = Replica(tmp_path / "o.sqlite")
    assert (await second.matrix()).id == before.id
    assert [fit.id for fit in await second.source.history()] == [before.id]
    await second.close()


async def test_a_first_fit_that_takes_long_does_not_delay_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.adaptation.refresh.FIRST_FIT_S", 0.05)
    before, after = Replica(tmp_path / "o.sqlite"), Replica(tmp_path / "o.sqlite")
    await before.record(1, {"a": 1.0})
    fitted, may_end = (await before.matrix()).id, threading.Event()

    def slowly(matrix: OutcomeMatrix, space: InstructionSpace) -> FakeAdaptation:
        may_end.wait(10)
        return after.fits(matrix, space)

    after.source._fit = slowly
    await after.source.start()
    assert after.source.current() is None
    may_end.set()
    async with asyncio.timeout(10):
        while (served := after.source.current()) is None:
            await asyncio.sleep(0.01)
    assert served.id == fitted
    for each in (before, after):
        await each.close()


async def test_a_reset_that_is_taken_back_needs_no_fit(replica: Replica) -> None:
    await replica.record(1, {"a": 1.0})
    await replica.source.refresh()
    fitted = replica.source.current()
    assert fitted is not None
    await replica.source.reset()
    replica.source._fit = lambda matrix, space: pytest.fail("fitted again")
    await replica.source.rollback(fitted.id)
    assert replica.source.current() is fitted


async def test_steps_of_reading_make_no_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, at_once = Replica(tmp_path / "o.sqlite"), Replica(tmp_path / "o.sqlite")
    monkeypatch.setattr("engine.registry.outcome_changes.BATCH_ROWS", 3)
    in_steps = Replica(tmp_path / "o.sqlite")
    for seed in range(20):
        await writer.record(seed, {"a": seed % 2})
        await writer.record(seed // 2, {"bb": 1.0})
        if seed % 3 == 0:
            await in_steps.matrix()
    monkeypatch.setattr("engine.registry.outcome_changes.BATCH_ROWS", 1000)
    assert (await in_steps.matrix()).id == (await at_once.matrix()).id
    for each in (writer, at_once, in_steps):
        await each.close()


async def test_what_the_bounds_delete_leaves_every_fit(tmp_path: Path) -> None:
    writer = Replica(tmp_path / "o.sqlite", OutcomeLimits(10))
    reader = Replica(tmp_path / "o.sqlite")
    for seed in range(10):
        await writer.record(seed, {"a": 1.0})
    assert len(await reader.matrix()) == 10
    for seed in range(10, 14):
        await writer.record(seed, {"a": 1.0})
    matrix = await reader.matrix()
    expected = np.array([embedding(seed) for seed in range(4, 14)])
    np.testing.assert_allclose(matrix.embeddings, expected, rtol=1e-3)
    fresh = Replica(tmp_path / "o.sqlite")
    assert (await fresh.matrix()).id == matrix.id
    for each in (writer, reader, fresh):
        await each.close()


@pytest.mark.parametrize(
    "limits",
    [OutcomeLimits(1000, instructions=5), OutcomeLimits(1000, memory_bytes=5 * (16 + 6 + 200))],
)
async def test_vectors_beyond_the_bounds_are_forgotten_and_the_outcomes_kept(
    tmp_path: Path, limits: OutcomeLimits
) -> None:
    writer, reader = Replica(tmp_path / "o.sqlite", limits), Replica(tmp_path / "o.sqlite")
    await writer.record(99, {"a": 1.0}, principal="quiet")
    assert len(await reader.matrix()) == 1
    for seed in range(8):
        await writer.record(seed, {"a": 1.0}, principal="noisy")
    matrix = await reader.matrix()
    assert matrix.principals == ("quiet", *["noisy"] * 4)
    status = reader.source.status()
    assert status is not None
    assert status.unused == {NOT_REMEMBERED: 4}
    for each in (writer, reader):
        await each.close()


async def test_a_server_that_does_not_learn_leaves_the_memory_to_others(tmp_path: Path) -> None:
    """It records outcomes with their propensities, and steers the others."""
    path = tmp_path / "o.sqlite"
    learner = Replica(path)
    for seed in range(3):
        await learner.record(seed, {"a": 1.0})
    other = Replica(path, OutcomeLimits(1000, memory_bytes=0), enabled=False)
    await other.record(3, {"a": 1.0}, other.scored(3, propensity=0.5))
    await other.source.freeze()
    assert other.source.current() is None
    assert len(await learner.matrix()) == 3
    assert learner.source.frozen
    assert [r.propensity for r in read_recorded(path)] == [1, 1, 1, 0.5]
    for each in (learner, other):
        await each.close()


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
async def test_one_broken_embedding_does_not_end_learning(replica: Replica, value: float) -> None:
    for seed in range(3):
        await replica.record(seed, {"a": 1.0})
    broken = replace(replica.scored(3), embedding=np.full(WIDTH, value, dtype=np.float16))
    await replica.record(3, {"a": 1.0}, broken)
    matrix = await replica.matrix()
    assert len(matrix) == 3
    assert np.isfinite(matrix.embeddings).all()
    status = replica.source.status()
    assert status is not None
    assert status.unused == {NOT_REMEMBERED: 1}


async def test_embeddings_that_an_earlier_version_kept_are_learned_from(tmp_path: Path) -> None:
    """Kind: rows of both forms of one store. Equal embeddings stay equal."""
    path, one = tmp_path / "o.sqlite", np.tile(embedding(0), BLOCK // WIDTH).astype(np.float16)
    before = Replica(path)
    for seed in range(2):
        await before.record(seed, {"a": 1.0}, replace(before.scored(seed), embedding=one))
    await before.close()
    with closing(sqlite3.connect(path)) as db, db:
        old = "UPDATE memory_instruction SET embedding = ? WHERE key = ?"
        assert db.execute(old, (one.tobytes(), f"{0:032x}")).rowcount == 1
    after = Replica(path)
    first, second = (await after.matrix()).embeddings
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, one.astype(np.float32), atol=0.02)
    await after.close()


async def test_freeze_reset_and_rollback(replica: Replica) -> None:
    await replica.record(1, {"a": 1.0})
    first = (await replica.matrix()).id
    await replica.source.freeze()
    await replica.record(2, {"a": 0.0})
    assert (await replica.matrix()).id == first
    assert replica.source.frozen
    await replica.source.unfreeze()
    second = replica.source.current()
    assert second is not None
    assert second.id not in ("", first)
    await replica.source.rollback(first)
    status = replica.source.status()
    assert status is not None
    assert (status.id, status.frozen) == (first, True)
    await replica.source.reset()
    assert replica.source.current() is None
    assert not replica.source.frozen
    await replica.record(3, {"a": 0.0})
    assert len(await replica.matrix()) == 1
    await replica.source.rollback(second.id)
    current = replica.source.current()
    assert current is not None
    assert current.id == second.id
    listed = [fit.id for fit in await replica.source.history()]
    assert len(listed) == len(set(listed)) == 3
    with pytest.raises(AdaptationNotFoundError):
        await replica.source.rollback("0123")


async def test_neighbors_are_described_from_the_store(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = RecordedOutcome(f"{1:032x}", "a", 1.0, "text", "maths")
    await replica.store.record_report(OutcomeReport([outcome], replica.scored(1)))
    await replica.record(2, {"a": 0.0, "ccc": 1.0})
    await replica.matrix()
    threads = []
    found = FakeAdaptation.nearest

    def nearest(*arguments: Any) -> list[tuple[int, float]]:
        threads.append(threading.current_thread())
        return found(*arguments)

    monkeypatch.setattr(FakeAdaptation, "nearest", nearest)
    first, second = await replica.source.nearest(embedding(1), 2)
    assert threads != [threading.main_thread()], "it looks at all instructions"
    assert (first.scores, first.category, first.provenance) == ({"a": 1.0}, "maths", "chosen")
    assert (second.scores, second.provenance) == ({"a": 0.0, "ccc": 1.0}, "comparison")


async def test_a_store_that_was_restored_and_went_on_is_read_again(tmp_path: Path) -> None:
    """The numbers of the lost outcomes were used again, by as many others."""
    path, copy = tmp_path / "o.sqlite", tmp_path / "copy.sqlite"
    writer = Replica(path)
    for seed in range(5):
        await writer.record(seed, {"a": 1.0})
    await writer.close()
    shutil.copy(path, copy)
    for seeds, file in ((range(5, 9), path), (range(20, 24), copy)):
        writer = Replica(file)
        for seed in seeds:
            await writer.record(seed, {"a": 0.0})
        await writer.close()
    reader = Replica(path)
    lost = (await reader.matrix()).id
    await reader.store.close()
    reader.store = reader.source._store = OutcomeStore(copy, LIMITS)
    matrix = await reader.matrix()
    assert matrix.id != lost
    expected = np.array([embedding(seed) for seed in (*range(5), *range(20, 24))])
    np.testing.assert_allclose(matrix.embeddings, expected, rtol=1e-3)
    await reader.close()


async def test_candidates_that_change_at_every_outcome_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.registry.stores.outcome_sql.MAX_UNUSED_LISTS", 2)
    writer = Replica(tmp_path / "o.sqlite", OutcomeLimits(6, instructions=4))
    for seed in range(20):
        writer.table = table("a", "bb", level=0.5 + seed / 100, revision=seed)
        writer.recent = RecentDecisions(BUNDLE, 1 << 20, 3600)
        await writer.record(seed, {"a": 1.0})
        await writer.source.refresh()
    await writer.store.prune()
    lists = await writer.store.read(lambda db: db.run("SELECT number FROM memory_candidate_list"))
    assert len(lists) == len(writer.source._memory.lists) == 4
    status = writer.source.status()
    assert status is not None
    assert status.unused == {CHANGED: 3, NOT_REMEMBERED: 2}
    fresh = Replica(tmp_path / "o.sqlite")
    fresh.table = writer.table
    assert (await fresh.matrix()).id == (await writer.matrix()).id
    for each in (writer, fresh):
        await each.close()
