"""Recorded outcomes: kept once, bounded, durable, and exported as training data."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.api.errors import (
    AlreadyExistsError,
    OverloadedError,
    StoreError,
    UnavailableError,
)
from engine.api.usage import Usage
from engine.cli.main import main as cli
from engine.datasets.folder import read_folder
from engine.datasets.outcomes import read_outcomes
from engine.registry.catalog import read_catalog
from engine.registry.outcome_changes import read_fits
from engine.registry.outcome_export import export_outcomes, group_by_text
from engine.registry.stores import outcomes as outcome_store
from engine.registry.stores.outcome_databases import open_outcomes
from engine.registry.stores.outcome_sql import OutcomeWriter
from engine.registry.stores.outcome_types import (
    OutcomeLimits,
    OutcomeReport,
    ScoredCandidates,
    ScoredInstruction,
)
from engine.registry.stores.outcomes import OutcomeStore, RecordedOutcome, read_recorded
from tests.training.test_importers import MODELS, PROMPTS, check, score
from tools.processes import BUNDLE
from training.data.importers import from_modelsat, write_folder

CALL = st.builds(
    RecordedOutcome,
    decision_id=st.sampled_from(["d1", "d2", "d3"]),
    candidate=st.sampled_from(["a", "b"]),
    score=st.sampled_from([0.0, 0.5, 1.0]),
    text=st.sampled_from(["", "text"]),
)


async def record(store: OutcomeStore, call: RecordedOutcome) -> bool | str:
    try:
        return await store.record(call)
    except AlreadyExistsError:
        return "conflict"


@settings(max_examples=40)
@given(st.lists(st.lists(CALL, max_size=6), max_size=6), st.integers(1, 4))
def test_store_matches_a_model_of_its_calls(
    batches: list[list[RecordedOutcome]], limit: int
) -> None:
    """A batch is recorded together; between batches the file is closed and opened again."""
    kept: list[RecordedOutcome] = []

    async def scenario(path: Path) -> None:
        nonlocal kept
        for batch in batches:
            store = OutcomeStore(path, limit)
            answers = await asyncio.gather(*(record(store, call) for call in batch))
            await store.close()
            for call, answer in zip(batch, answers, strict=True):
                known = [k for k in kept if (k.decision_id, k.candidate) ==
                         (call.decision_id, call.candidate)]  # fmt: skip
                if not known:
                    assert answer is True
                    kept.append(call)
                else:
                    assert answer == (False if known[0].score == call.score else "conflict")
            kept = kept[-limit:]
            assert list(read_recorded(path)) == kept

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(scenario(Path(folder) / "o.sqlite"))


async def test_concurrent_calls_share_a_transaction(tmp_path: Path) -> None:
    store = OutcomeStore(tmp_path / "o.sqlite", 1000)
    commits: list[str] = []
    store._database.connection.set_trace_callback(
        lambda s: commits.append(s) if s == "COMMIT" else None
    )
    calls = [RecordedOutcome(f"d{i}", "a", 1.0) for i in range(200)]
    assert all(await asyncio.gather(*(store.record(call) for call in calls)))
    assert len(commits) < 5
    await store.close()
    assert [r.decision_id for r in read_recorded(tmp_path / "o.sqlite")] == [
        call.decision_id for call in calls
    ]
    with pytest.raises(UnavailableError):
        await store.record(calls[0])


async def test_write_failure_fails_only_that_call(
    tmp_path: Path,
) -> None:
    path = tmp_path / "o.sqlite"
    store = OutcomeStore(path, 10)
    other = sqlite3.connect(path, isolation_level=None)
    store._database.connection.execute("PRAGMA busy_timeout = 1")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="could not be written"):
        await store.record(RecordedOutcome("d1", "a", 1.0))
    other.execute("ROLLBACK")
    other.close()
    assert await store.record(RecordedOutcome("d1", "a", 1.0))
    await store.close()


async def test_a_write_takes_no_more_steps_however_much_was_forgotten(tmp_path: Path) -> None:
    limits = OutcomeLimits(100_000, instructions=3)
    store = OutcomeStore(tmp_path / "o.sqlite", limits)
    candidates = ScoredCandidates("weights", ("a",), ("f",))
    vectors = np.ones(2, dtype=np.float16), np.ones(1, dtype=np.float16)

    async def record(first: int, count: int) -> int:
        """Record instructions together; return the steps of SQLite's machine, in hundreds."""
        steps = 0

        def step() -> int:
            nonlocal steps
            steps += 1
            return 0

        reports = [
            OutcomeReport(
                [RecordedOutcome(f"{i:032x}", "a", 1.0)], ScoredInstruction(candidates, *vectors)
            )
            for i in range(first, first + count)
        ]
        store._database.connection.set_progress_handler(step, 100)
        await asyncio.gather(*(store.record_report(report) for report in reports))
        return steps

    await record(0, 10)
    few = await record(10, 10)
    await record(20, 3000)
    assert await record(3020, 10) < 2 * few
    await store.close()


async def test_of_old_fits_the_last_of_each_hour_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = OutcomeStore(tmp_path / "o.sqlite", 10)
    now = 0.0
    monkeypatch.setattr("engine.registry.stores.outcome_sql.time.time", lambda: now)

    def add(writer: OutcomeWriter) -> None:
        nonlocal now
        for i in range(260):  # one every ten minutes
            now = 36_000.0 + 600 * i
            writer.add_fit(str(i), 0, i, "{}")

    await store.write(add)
    listed = [int(fit.id) for fit in await store.read(lambda db: read_fits(db, 1000))]
    assert listed == [*range(259, 159, -1), 159, *range(155, 0, -6)]
    await store.close()


@pytest.mark.parametrize("suffix", ["", "-wal"])
async def test_outcome_is_not_acknowledged_after_file_was_moved(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / "o.sqlite"
    store, call = OutcomeStore(path, 10), RecordedOutcome("d1", "a", 1.0)
    before = RecordedOutcome("d0", "a", 1.0)
    assert await store.record(before)
    file, elsewhere = tmp_path / f"o.sqlite{suffix}", tmp_path / "elsewhere"
    file.rename(elsewhere)
    with pytest.raises(StoreError, match="was removed or replaced while the server ran; nothing"):
        await store.record(call)
    elsewhere.rename(file)
    assert await store.record(call), "what was refused was not kept"
    await store.close()
    assert list(read_recorded(path)) == [before, call]


TEXT = "x" * 1000


@pytest.mark.parametrize(
    ("limit", "value", "words"),
    [
        ("MAX_QUEUED", 2, "2 outcomes are waiting"),
        ("MAX_QUEUED_BYTES", 1500, "bytes of outcomes are waiting"),
    ],
)
async def test_queue_is_bounded_and_drops_cancelled_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, words: str
) -> None:
    monkeypatch.setattr(outcome_store, limit, value)
    store, disk = OutcomeStore(tmp_path / "o.sqlite", 10), threading.Event()
    store._thread.submit(disk.wait, 30)
    calls = [RecordedOutcome(f"d{i}", "a", 1.0, TEXT) for i in range(5)]
    first = asyncio.create_task(store.record(calls[0]))
    await asyncio.sleep(0.05)  # now it is with the thread
    waiting = [asyncio.create_task(store.record(call)) for call in calls[1:3]]
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError, match=words) as refused:
        await store.record(calls[3])
    assert refused.value.retry_after_s > 0
    waiting[0].cancel()
    await asyncio.gather(waiting[0], return_exceptions=True)
    assert (len(store._queue), store._queued_bytes) == (1, sys.getsizeof(TEXT))
    last = asyncio.create_task(store.record(calls[4]))
    disk.set()
    assert await asyncio.gather(first, waiting[1], last) == [True] * 3
    await store.close()
    assert [r.decision_id for r in read_recorded(tmp_path / "o.sqlite")] == ["d0", "d2", "d4"]


def test_unusable_file_is_refused_and_left_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "o.sqlite"
    path.write_text("something else, of enough length to be no database header at all " * 3)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="is no SQLite file"):
        OutcomeStore(path, 10)
    assert path.read_bytes() == before
    foreign = sqlite3.connect(tmp_path / "f.sqlite")
    foreign.execute("CREATE TABLE t (x)")
    foreign.close()
    with pytest.raises(StoreError, match="schema is 0, this version's is 2"):
        OutcomeStore(tmp_path / "f.sqlite", 10)
    with pytest.raises(StoreError, match="does not exist"):
        list(read_recorded(tmp_path / "nowhere.sqlite"))


def test_outcomes_are_grouped_by_text_and_averaged() -> None:
    found, without = group_by_text(
        [
            RecordedOutcome("d1", "a", 1.0),
            RecordedOutcome("d1", "b", 0.0, "one", "maths"),
            RecordedOutcome("d2", "a", 0.0, "one"),
            RecordedOutcome("d3", "a", 0.5),
        ]
    )
    (only,) = found
    assert (only.id, only.text, only.category) == ("d1", "one", "maths")
    assert (only.mean("a"), only.mean("b")) == (0.5, 0.0)
    assert np.isnan(only.mean("c"))
    assert without == 1


def test_a_text_that_was_routed_several_times_has_one_propensity() -> None:
    """The number of decisions over the sum of reciprocals, so that its reciprocal is a weight."""
    found, _ = group_by_text(
        [
            RecordedOutcome("d1", "a", 1.0, "one", propensity=0.8),
            RecordedOutcome("d1", "b", 0.0, "one"),  # a comparison, which chose nothing
            RecordedOutcome("d2", "a", 0.0, "one", propensity=0.8),
            RecordedOutcome("d3", "b", 1.0, "one", propensity=0.1),
            RecordedOutcome("d4", "a", 1.0, "two", propensity=0.8),
        ]
    )
    one, two = found
    assert one.propensity("a") == pytest.approx(3 / (2 / 0.8))
    assert one.propensity("b") == pytest.approx(3 * 0.1)
    assert np.isnan(one.propensity("c"))
    assert (two.propensity("a"), two.mean("a")) == (pytest.approx(0.8), 1.0)


@pytest.mark.parametrize(("share", "explored"), [(0.3, True), (0.0, False)])
async def test_export_holds_propensities_if_the_server_explored(
    tmp_path: Path, share: float, explored: bool
) -> None:
    """Through the store, as decisions are remembered and recorded by their IDs."""
    store = OutcomeStore(tmp_path / "o.sqlite", 1000)
    candidates = ScoredCandidates("weights", MODELS, ("x", "y", "z"))
    vectors = np.zeros(4, np.float16), np.zeros(3, np.float16)
    for i, prompt in enumerate(PROMPTS):
        drawn = explored and i % 4 == 0
        name = MODELS[1 if drawn else 0]
        propensity = share / 2 if drawn else 1 - share
        scored = ScoredInstruction(candidates, *vectors, name, drawn, propensity)
        outcomes = [
            RecordedOutcome(f"d{i:03}", model, score(model, i), prompt)
            for model in (MODELS if i % 10 == 0 else (name,))
        ]
        await store.record_report(OutcomeReport(outcomes, scored))
    await store.close()
    export_outcomes(tmp_path / "o.sqlite", tmp_path / "out")
    found = read_folder(tmp_path / "out").propensities
    if not explored:
        assert found is None
        return
    assert found is not None
    (first, second, third) = found[[sorted(MODELS).index(name) for name in MODELS]]
    drawn = np.arange(len(PROMPTS)) % 4 == 0
    np.testing.assert_allclose(first, np.where(drawn, np.nan, 0.7), rtol=1e-6)
    np.testing.assert_allclose(second, np.where(drawn, 0.15, np.nan), rtol=1e-6)
    assert np.isnan(third).all()


async def test_export_holds_what_calls_used(tmp_path: Path) -> None:
    store = OutcomeStore(tmp_path / "o.sqlite", 100)
    used = [Usage(output_tokens=10, cost_usd=0.5), Usage(output_tokens=30), Usage(900, error="no")]
    for i, usage in enumerate(used):
        await store.record(RecordedOutcome(f"d{i}", "a", 1.0, "text", usage=usage))
    await store.record(RecordedOutcome("d0", "b", 1.0, "text"))
    await store.close()
    export_outcomes(tmp_path / "o.sqlite", tmp_path / "out")
    with np.load(tmp_path / "out" / "scores.npz") as file:
        assert set(file) == {"scores", "output_tokens", "cost_usd"}
        np.testing.assert_array_equal(file["output_tokens"], [[20], [np.nan]])
        np.testing.assert_array_equal(file["cost_usd"], [[0.5], [np.nan]])


async def recorded(path: Path, names: tuple[str, ...] = MODELS) -> Path:
    """80 decisions on which every candidate was judged; one without a text."""
    store = OutcomeStore(path, 1000)
    calls = [
        RecordedOutcome(f"d{i:03}", name, score(model, i), prompt, ["maths", "places"][i % 2])
        for i, prompt in enumerate(PROMPTS)
        for name, model in zip(names, MODELS, strict=True)
    ]
    await asyncio.gather(
        *(store.record(c) for c in [*calls, RecordedOutcome("d999", names[0], 1.0)])
    )
    await store.close()
    return path


async def test_export_can_be_read_by_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = await recorded(tmp_path / "o.sqlite")
    out = tmp_path / "out"
    assert cli(["outcomes", "export", "--outcomes-db", str(file), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "80 instructions x 3 candidates" in said
    assert "skipped 1 outcomes without text" in said
    outcomes = read_outcomes(out)
    check(outcomes)
    assert set(outcomes.subjects) == {"maths", "places"}
    assert len(outcomes.test.keywords) == 2
    assert write_folder(from_modelsat(file), tmp_path / "imported") == (80, 3)
    check(read_outcomes(tmp_path / "imported"))


async def test_export_takes_aptitude_results_from_the_bundle(tmp_path: Path) -> None:
    catalog = read_catalog(BUNDLE / "zoo.json")
    names = (catalog[0].id, catalog[1].id, "stranger")
    file = await recorded(tmp_path / "o.sqlite", names)
    done = export_outcomes(file, tmp_path / "out", BUNDLE)
    assert (done.instructions, done.candidates) == (80, 2)
    assert done.unknown == {"stranger": 80}
    outcomes = read_outcomes(tmp_path / "out")
    assert outcomes.candidates == sorted(names[:2])
    row = outcomes.candidates.index(catalog[0].id)
    figures = {r.task: r.accuracy for r in catalog[0].aptitude}
    found = dict(zip(outcomes.test.keywords, outcomes.test.accuracies[row], strict=True))
    assert found == pytest.approx(figures)


def test_export_of_nothing_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "o.sqlite"
    asyncio.run(OutcomeStore(file, 10).close())
    assert cli(["outcomes", "export", "--outcomes-db", str(file), "--out", str(tmp_path)]) == 1
    assert "has no outcome to export" in capsys.readouterr().err


OLD = """
CREATE TABLE outcome (number INTEGER PRIMARY KEY, decision_id TEXT NOT NULL,
  candidate TEXT NOT NULL, score REAL NOT NULL, text TEXT NOT NULL,
  category TEXT NOT NULL, recorded_at REAL NOT NULL,
  principal TEXT NOT NULL DEFAULT '', UNIQUE (decision_id, candidate)) STRICT;
CREATE TABLE share (principal TEXT PRIMARY KEY, outcomes INTEGER NOT NULL) STRICT;
PRAGMA user_version = 1
"""


async def test_an_old_file_that_several_servers_open_at_once_is_converted_once(
    tmp_path: Path,
) -> None:
    path = tmp_path / "o.sqlite"
    now = time.time()
    rows = [
        (
            i,
            f"d{i // 2}",
            "ab"[i % 2],
            i / 8,
            "text" * (i % 3 > 0),
            "kind" * (i % 2),
            now + i,
            "pq"[i % 2],
        )
        for i in range(9)
    ]
    with closing(sqlite3.connect(path)) as db:
        db.executescript(OLD)
        db.executemany("INSERT INTO outcome VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        db.commit()
    before = list(read_recorded(path))
    assert [(r.decision_id, r.candidate, r.score, r.principal) for r in before] == [
        (row[1], row[2], row[3], row[7]) for row in rows
    ]
    with ThreadPoolExecutor(4) as threads:
        stores = list(threads.map(lambda _: OutcomeStore(path, 100), range(4)))
    assert list(read_recorded(path)) == before
    assert not await stores[0].record(before[3])
    with pytest.raises(AlreadyExistsError):
        await stores[1].record(replace(before[4], score=0.9))
    for store in stores:
        await store.close()


def test_a_file_that_is_open_twice_keeps_its_log(tmp_path: Path) -> None:
    """To open it again released the locks of the first; then a reader that left took the log
    with it, and nothing was recorded any more."""
    path = tmp_path / "outcomes.sqlite"
    first, second = open_outcomes(path), open_outcomes(path)
    leave = (
        "import sqlite3, sys; opened = sqlite3.connect(sys.argv[1]);"
        " opened.execute('SELECT 1 FROM memory_state'); opened.close()"
    )
    for write_with in (first, second):
        subprocess.run([sys.executable, "-c", leave, str(path)], check=True)
        with write_with.write() as database:
            database.run("SELECT 1")
    first.close()
    second.close()
