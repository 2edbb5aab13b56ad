"""Past requests under other policies: the same report however the work is cut and interrupted, the
same choices as the server's."""

from __future__ import annotations

import gzip
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import Tokenizer

from engine.api.conversation.conversation import Conversation, ConversationTurn
from engine.api.errors import InvalidInputError
from engine.api.policy import Policy
from engine.bundle.manifest import Calibration
from engine.cli.main import main as cli
from engine.cli.replay import recorded
from engine.inference.backend import BatchScores, ScoringHead
from engine.registry.catalog import read_catalog
from engine.registry.table import Table, make_table
from engine.replay import render, scoring
from engine.replay.log import COLUMNS, PastRequest, past_request
from engine.replay.policies import read_policies
from engine.replay.report import Resampling
from engine.replay.run import Checkpoint, LogSource, replay
from engine.replay.scoring import (
    NO_CANDIDATE,
    ChunkResult,
    ChunkTask,
    ReplayJob,
    Scorer,
    candidate_names,
)
from modelsat import Client, ModelsatClientError, RouteDecision
from tests.conftest import INSTRUCTIONS
from tools.processes import BUNDLE, ROOT, Server

CATALOG = read_catalog(BUNDLE / "zoo.json")
POLICIES = {
    "best": Policy(),
    "trade": Policy("cost_sensitivity", 0.3, denied_candidates=("gemini-1.5-pro-002",)),
    "cheap": Policy("budget_usd", 1e-4, max_ood_score=0.9),
    "floor": Policy(
        "target_probability", 0.6, abstain_below_probability=0.5, default_candidate="yi-6b-chat"
    ),
    "small": Policy(min_context_window=1_000_000, required_tags=("unused-tag",)),
}
SPECS = [
    *(
        "--policy",
        "best=",
        "--policy",
        "trade=cost_sensitivity=0.3,denied_candidates=gemini-1.5-pro-002",
    ),
    *("--policy", "floor=target_probability=0.6"),
]
Record = dict[str, Any]


class HashBackend:
    """Probabilities that hang on every token and on nothing else."""

    def probabilities(
        self,
        tokens: Sequence[NDArray[np.int64]],
        embeddings: NDArray[np.float32],
        rows: NDArray[np.int64],
        head: ScoringHead,
    ) -> BatchScores:
        seeds = [zlib.crc32(t.tobytes()) for t in tokens]
        p = [np.random.default_rng(s).random(len(embeddings), np.float32)[rows] for s in seeds]
        return BatchScores(np.stack(p), np.zeros((len(p), 2), np.float32), 0.0, 0.0)

    def prefetch_table(self, embeddings: NDArray[np.float32]) -> None:
        pass

    def describe(self) -> str:
        return "hash"


def quick_table() -> Table:
    return make_table(1, [(c, np.zeros(2, np.float32)) for c in CATALOG], 2)


TABLE = quick_table()
SCORER = Scorer(
    TABLE,
    list(POLICIES.values()),
    Tokenizer.from_file(str(BUNDLE / "tokenizer.json")),
    HashBackend(),
    ScoringHead(np.zeros(2, np.float32), 1e-5, Calibration(1.0, 0.0)),
)


def quick(files: Sequence[Path], out: Path, chunk: int, seed: int = 0, **more: Any) -> Record:
    """A replay in this process whose answers come in a random order."""

    def execute(tasks: Iterable[ChunkTask]) -> Iterator[ChunkResult]:
        done = [SCORER.process(task) for task in tasks]
        random.Random(seed).shuffle(done)
        yield from done

    job = ReplayJob(BUNDLE, "made-up", TABLE, POLICIES)
    log = LogSource(files, COLUMNS, chunk=chunk, **more)
    return replay(log, job, candidate_names(TABLE, []), out, execute, lambda *_: None)


def write_jsonl(path: Path, records: Iterable[Record | str]) -> Path:
    lines = "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records).encode()
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return path


def some_records(count: int) -> list[Record]:
    """Texts and conversations, known and unknown candidates, outcomes here and there."""
    draw = random.Random(count)
    records: list[Record] = []
    for i in range(count):
        text = draw.choice(INSTRUCTIONS)
        turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
        used = draw.choice([c.id for c in CATALOG[:4]] + [CATALOG[5].display_name, "a-stranger"])
        records.append(
            {
                "messages": turns if i % 2 else None,
                "text": None if i % 2 else text,
                "model": used,
                "outcome": draw.choice([None, 0.0, 0.25, 1.0]),
                "cost": draw.choice([None, 1e-4]),
                "timestamp": 1_700_000_000 + 60 * i,
            }
        )
    return records


# --- however it is cut -----------------------------------------------------------------------


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(1, 40),
    chunk=st.integers(1, 45),
    seed=st.integers(0, 9),
    cut=st.integers(0, 40),
    kept=st.floats(0, 1),
)
def test_report_does_not_depend_on_chunks_order_files_or_interruptions(
    tmp_path_factory: pytest.TempPathFactory,
    count: int,
    chunk: int,
    seed: int,
    cut: int,
    kept: float,
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    here = tmp_path_factory.mktemp("cut")
    records = some_records(count)
    whole = quick([write_jsonl(here / "whole.jsonl", records)], here / "a", count)
    halves = [
        write_jsonl(here / "1.jsonl.gz", records[:cut]),
        write_jsonl(here / "2.jsonl", records[cut:]),
    ]
    assert quick(halves, here / "b", chunk, seed) == whole
    for finished in sorted((here / "b").iterdir()):  # a run that was killed, torn files and all
        if random.Random(seed).random() > kept:
            finished.write_bytes(finished.read_bytes()[: int(kept * finished.stat().st_size)])
    assert quick(halves, here / "b", chunk, seed + 1) == whole
    pq.write_table(pa.Table.from_pylist(records), here / "same.parquet", row_group_size=7)
    assert quick([here / "same.parquet"], here / "c", chunk) == whole


def spoken(text: str) -> Conversation:
    return Conversation((ConversationTurn("user", (text,)),))


def chunk_task(conversations: Iterable[Conversation]) -> ChunkTask:
    asked = tuple(conversations)
    return ChunkTask(0, asked, tuple(each.needs for each in asked), None)


def test_report_agrees_with_the_rows(tmp_path: Path) -> None:
    """Against a count by hand, over rows whose scores are known."""
    records = some_records(30)
    found = quick([write_jsonl(tmp_path / "log.jsonl", records)], tmp_path / "out", 8)
    rows = {c.id: i for i, c in enumerate(TABLE.candidates)}
    rows |= {c.display_name: rows[c.id] for c in CATALOG}
    requests = [past_request(r, COLUMNS) for r in records]
    done = SCORER.process(chunk_task(r.conversation for r in requests))  # type: ignore[union-attr]
    used = [rows.get(r["model"], NO_CANDIDATE) for r in records]
    assert found["log"]["unknown_candidates"] == {"a-stranger": used.count(NO_CANDIDATE)}
    best = done.decisions.choice[:, 0]
    assert (best == done.scores.p.argmax(axis=1)).all()
    part = found["policies"]["best"]
    assert part["estimated_quality"]["value"] == pytest.approx(done.scores.p.max(axis=1).mean())
    pairs = [(u, b) for u, b in zip(used, best, strict=True) if u != NO_CANDIDATE]
    share = sum(u != b for u, b in pairs) / len(pairs)
    assert part["vs_logged"]["changed"]["value"] == pytest.approx(share)
    same = [
        r["outcome"]
        for r, u, b in zip(records, used, best, strict=True)
        if u == b and r["outcome"] is not None
    ]
    assert part["on_agreement"]["observed_quality"]["rows"] == len(same)
    over = {name: count for name, count, *_ in render.rows(found)}
    assert over["logged"].split()[0] == str(len(pairs))
    priced = part["estimated_cost_usd"]["rows"]
    assert over["best"] == f"{len(records)} (cost: {priced})"
    assert found["policies"]["small"]["no_eligible_candidate"] == len(records)
    outcomes = [r["outcome"] for r in records if r["outcome"] is not None]
    observed = found["logged"]["observed_quality"]
    assert observed["value"] == pytest.approx(np.mean(outcomes))
    assert observed["low"] < observed["value"] < observed["high"]


def test_interval_contains_its_value_if_all_rows_are_alike() -> None:
    """A picture is drawn of the differences, which must not be negative."""
    for rows in range(1, 200):
        found = Resampling(rows).mean(np.full(rows, 0.7123))
        assert found["low"] <= found["value"] <= found["high"]


def test_empty_columns_are_skipped() -> None:
    record = {"messages": [], "text": "", "prompt": "Hi", "candidate": "", "model": "yi-6b-chat"}
    found = past_request({**record, "outcome": math.nan, "score": 0.5, "cost": 0.0}, COLUMNS)
    assert found == PastRequest(spoken("Hi"), "yi-6b-chat", 0.0, 0.5, ANY)


def test_invalid_lines_are_listed_and_limited_without_their_text(tmp_path: Path) -> None:
    secret = "a secret that must not leak"
    invalid: list[Record | str] = [
        f'{{"text": "{secret}"',
        json.dumps([secret]),
        {"text": " "},
        {"messages": [{"role": "narrator", "content": secret}]},
        {"text": [1, secret]},
        {"messages": f'[{{"role": "user", "content": "{secret}"'},
        {"messages": [{"role": "user", "content": "\udfff" + secret}]},
        {"text": "\ud800" + secret},
        {"model": "x"},
    ]
    lines = [*some_records(3), *invalid, {"text": secret}]
    log = write_jsonl(tmp_path / "log.jsonl", lines)
    found = quick([log], tmp_path / "out", 4)
    assert found["requests"] == 4
    assert found["log"]["invalid_rows"]["count"] == len(invalid)
    assert [x["line"] for x in found["log"]["invalid_rows"]["first"]] == list(
        range(4, 4 + len(invalid))
    )
    assert secret not in json.dumps(found)
    assert not any(secret.encode() in f.read_bytes() for f in (tmp_path / "out").iterdir())
    with pytest.raises(InvalidInputError, match=r"log.jsonl:4: not valid JSON") as refused:
        quick([log], tmp_path / "out", 4, max_invalid_rows=5)
    assert secret not in str(refused.value)
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(write_jsonl(tmp_path / "x.jsonl.gz", [{"text": "Hi"}] * 9).read_bytes()[:-8])
    found = quick([cut], tmp_path / "out", 4)
    assert found["requests"] == 9
    (torn,) = found["log"]["invalid_rows"]["first"]
    assert (torn["line"], torn["problem"][:23]) == (10, "the file is cut off or ")


def test_policies_use_the_field_names_of_the_api(tmp_path: Path) -> None:
    file = tmp_path / "policies.toml"
    file.write_text(
        '[capped]\nbudget_usd = 0.001\nallowed_candidates = ["candidates/yi-6b-chat"]\n'
    )
    spec = "trade=cost_sensitivity=0.3,denied_candidates=yi-6b-chat"
    spec += ",denied_candidates=command-r-v01,max_ood_score=0.9"
    found = read_policies([spec, "plain="], file, TABLE)
    denied = ("yi-6b-chat", "command-r-v01")
    assert found == {
        "capped": Policy("budget_usd", 0.001, allowed_candidates=("yi-6b-chat",)),
        "trade": Policy("cost_sensitivity", 0.3, denied_candidates=denied, max_ood_score=0.9),
        "plain": Policy(),
    }
    for wrong, words in {
        "a=cost=1": "policy a: has unknown fields",
        "a=cost_sensitivity=1,budget_usd=1": "policy a: .*objective",
        "a=target_probability=7": "policy a, policy.target_probability: is 7",
        "a=denied_candidates=missing": "candidates/missing, which is not registered",
        "a=abstain_below_probability=x": "policy a: cannot be read",
    }.items():
        with pytest.raises(InvalidInputError, match=words):
            read_policies([wrong], None, TABLE)


# --- the real bundle -------------------------------------------------------------------------


def test_replay_selects_as_the_server_does(client: Client) -> None:
    table = scoring.open_table(BUNDLE, CATALOG)
    job = scoring.make_job(BUNDLE, table, POLICIES)
    texts = INSTRUCTIONS[:12]
    done = scoring.open_scorer(job).process(chunk_task(map(spoken, texts)))
    for j, policy in enumerate(POLICIES.values()):
        for i, answer in enumerate(client.route_many(texts, policy)):
            row = int(done.decisions.choice[i, j])
            if row == NO_CANDIDATE:
                assert isinstance(answer, ModelsatClientError)
                assert answer.reason == "NO_ELIGIBLE_CANDIDATE"
                continue
            assert isinstance(answer, RouteDecision)
            first = answer.ranking[0]
            # Joined into one forward, p moves by some thousandths (int8 rounding).
            assert float(done.decisions.p[i, j]) == pytest.approx(first.probability, abs=0.02)
            near = [r for r in answer.ranking if r.utility > first.utility - 0.01]
            assert table.candidates[row].id in {r.candidate for r in near}
            alone = client.route(texts[i], policy)
            assert alone.selected == table.candidates[row].id
            assert scoring.KINDS[done.decisions.kind[i, j]] == alone.kind


def test_recorded_outcomes_are_joined_by_decision_id(
    shared_server: Server, client: Client, tmp_path: Path
) -> None:
    answers = [client.route(text) for text in INSTRUCTIONS[:2]]
    for answer, score in zip(answers, (0.25, 0.75), strict=True):
        client.record_outcome(answer.decision_id, answer.selected, score)
    records: list[Record] = [
        {"query": "Hi", "decision_id": a.decision_id, "selected": a.selected} for a in answers
    ]
    records.append({"query": "Hi", "decision_id": answers[0].decision_id, "model": "yi-6b-chat"})
    log = write_jsonl(tmp_path / "log.jsonl", records)
    known = recorded(shared_server.log.with_name("outcomes.sqlite"))
    found = quick([log], tmp_path / "out", 4, outcome_of=known)["logged"]["observed_quality"]
    assert (found["value"], found["rows"]) == (0.5, 2)


def command(log: Path, out: Path, *more: str) -> list[str]:
    python = [sys.executable, "-W", "error", "-m", "engine.cli.main", "replay", str(log)]
    return [*python, "--out", str(out), "--bundle", str(BUNDLE), "--chunk-size", "4", *SPECS, *more]


def run(log: Path, out: Path, *more: str) -> bytes:
    done = subprocess.run(
        command(log, out, *more), cwd=ROOT, capture_output=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr.decode()
    return (out / "report.json").read_bytes()


def start(log: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    """A run that has finished a chunk and not the last one."""
    process = subprocess.Popen(
        command(log, out, *more), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        if list(out.glob("scores/*.npz")):
            return process
        time.sleep(0.01)
    raise AssertionError(process.communicate()[0].decode())


def descendants(pid: int) -> list[int]:
    """Of a process of ours, children before theirs."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *descendants(child)]
    return found


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 requests of real texts."""
    return write_jsonl(tmp_path_factory.mktemp("log") / "log.jsonl", some_records(60))


@pytest.fixture(scope="module")
def uninterrupted(log: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """report.json of one worker."""
    return run(log, tmp_path_factory.mktemp("one"), "--workers", "1")


def test_scores_are_not_those_of_another_test_of_the_same_candidates(tmp_path: Path) -> None:
    """Kind: what the match sees and an embedding does not."""
    first = TABLE.candidates[0]
    placed = replace(first, aptitude=[replace(r, place=b"a place") for r in first.aptitude])
    other = replace(TABLE, candidates=(placed, *TABLE.candidates[1:]))
    keys = {
        Checkpoint(tmp_path, ReplayJob(BUNDLE, "made-up", table, POLICIES)).key([])
        for table in (TABLE, other)
    }
    assert len(keys) == 2


def test_killed_and_resumed_run_gives_the_same_report(
    log: Path, uninterrupted: bytes, tmp_path: Path
) -> None:
    process = start(log, tmp_path, "--workers", "2")
    workers = descendants(process.pid)
    process.kill()
    process.communicate()
    finished = {f: f.stat().st_mtime_ns for f in tmp_path.glob("scores/*.npz")}
    assert 0 < len(finished) < 15
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and any(_alive(pid) for pid in workers):
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in workers)
    assert run(log, tmp_path, "--workers", "2") == uninterrupted
    assert all(f.stat().st_mtime_ns == made for f, made in finished.items())
    pictures = {"cost-quality.png", "selection-share.png", "agreement.png", "over-time.png"}
    assert pictures | {"report.md"} <= {f.name for f in tmp_path.iterdir()}


def test_ray_cluster_gives_the_same_report_though_a_worker_dies(
    log: Path, uninterrupted: bytes, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    process = start(log, tmp_path, "--ray", "local", "--workers", "2")
    actors = [pid for pid in descendants(process.pid) if _name(pid).startswith("ray::RayWorker")]
    os.kill(actors[0], signal.SIGKILL)
    output = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 0, output
    assert (tmp_path / "report.json").read_bytes() == uninterrupted
    assert "Warning" not in output


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_missing_inputs_are_reported_before_scoring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = write_jsonl(tmp_path / "log.jsonl", [{"text": "Hi"}])
    arguments = ["replay", str(log), "--out", str(tmp_path / "out"), "--bundle", str(BUNDLE)]
    for wrong, words in {
        "--map-column=colour=red": "FIELD of messages, text",
        "--candidate-alias=a=b": "expected LOGGED=ID",
        "--chunk-size=0": "--chunk-size: is 0",
    }.items():
        assert cli([*arguments, wrong]) == 1
        assert words in capsys.readouterr().err
    assert cli(["replay", str(tmp_path / "*.csv"), "--out", str(tmp_path)]) == 1
    assert "matches no file" in capsys.readouterr().err
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    assert cli([*arguments, "--ray", "127.0.0.1:1"]) == 1
    assert "cannot reach a cluster at '127.0.0.1:1'" in capsys.readouterr().err
    table = tmp_path / "empty.parquet"
    table.touch()
    for package, extra, more in (
        ("ray", ".[ray]", ("--ray", "local")),
        ("pyarrow", ".[replay]", (str(table),)),
        ("matplotlib", ".[replay]", ()),
    ):
        monkeypatch.setitem(sys.modules, package, None)
        assert cli([arguments[0], *more, *arguments[1:]]) == 1
        assert extra in capsys.readouterr().err


# --- off-policy estimates --------------------------------------------------------------------


def explored_records(count: int, share: float = 0.4) -> list[Record]:
    """The log of a server that takes the first of three candidates, or with `share` another one;
    the second of them is the best by its outcomes."""
    draw = random.Random(count)
    right = dict(zip([c.id for c in CATALOG[:3]], (0.3, 0.9, 0.1), strict=True))
    first, *others = right
    records: list[Record] = []
    for i in range(count):
        explored = draw.random() < share
        used = draw.choice(others) if explored else first
        records.append(
            {
                "text": f"{i} {draw.choice(INSTRUCTIONS)}",
                "model": used,
                "outcome": float(draw.random() < right[used]),
                "propensity": share / 2 if explored else 1 - share,
            }
        )
    return records


def test_outcomes_with_propensities_tell_what_another_policy_would_have_given(
    tmp_path: Path,
) -> None:
    log = write_jsonl(tmp_path / "log.jsonl", explored_records(3000))
    policies = {name: Policy(allowed_candidates=(name,)) for name in (c.id for c in CATALOG[:4])}
    scorer = Scorer(
        TABLE,
        list(policies.values()),
        Tokenizer.from_file(str(BUNDLE / "tokenizer.json")),
        HashBackend(),
        ScoringHead(np.zeros(2, np.float32), 1e-5, Calibration(1.0, 0.0)),
    )
    found = replay(
        LogSource([log], COLUMNS),
        ReplayJob(BUNDLE, "made-up", TABLE, policies),
        candidate_names(TABLE, []),
        tmp_path / "out",
        lambda tasks: map(scorer.process, tasks),
        lambda *_: None,
    )
    assert found["logged"]["with_propensity"] == 3000
    values = [found["policies"][c.id]["off_policy"] for c in CATALOG[:4]]
    for part, truth in zip(values, (0.3, 0.9, 0.1), strict=False):
        for name in ("inverse_propensity", "doubly_robust"):
            assert part[name]["value"] == pytest.approx(truth, abs=4 * part[name]["standard_error"])
            assert part[name]["low"] < part[name]["value"] < part[name]["high"]
            assert 0 < part[name]["standard_error"] < 0.05
        assert part["coverage"] == pytest.approx(1, abs=0.15)
    never = values[3]
    assert (never["coverage"], never["inverse_propensity"]["value"]) == (0, None)
    said = "\n".join(render.summary_lines(found))
    assert f"{CATALOG[3].id}: the log can hold 0% of its choices" in said
    assert (
        f"{CATALOG[1].id}: quality by the logged outcomes and propensities (3000 requests)" in said
    )


@pytest.mark.parametrize("value", [0, -0.1, 1.5, "often", math.inf])
def test_a_propensity_that_is_none_is_dropped_and_the_request_kept(value: Any) -> None:
    record = {"text": "Hi", "model": "yi-6b-chat", "outcome": 1, "propensity": value}
    found = past_request(record, COLUMNS)
    assert isinstance(found, PastRequest)
    assert math.isnan(found.propensity)
    assert found.dropped == ("propensity",)
    assert found.outcome == 1


def test_the_audit_log_of_an_exploring_server_carries_the_propensity() -> None:
    record = {"decision_id": "d", "selected": "candidates/yi-6b-chat", "probabilities": {}}
    found = past_request({**record, "text": "Hi", "propensity": 0.025}, COLUMNS)
    assert isinstance(found, PastRequest)
    assert (found.candidate, found.propensity) == ("yi-6b-chat", 0.025)
    silent = past_request({**record, "text": "Hi", "propensity": None}, COLUMNS)
    assert isinstance(silent, PastRequest)
    assert math.isnan(silent.propensity)
    assert silent.dropped == ()


def test_recorded_propensities_are_joined_by_decision_id_and_candidate() -> None:
    """Of another candidate than the one that was chosen, nothing is known."""
    known = {("d", "yi-6b-chat"): (1.0, 0.05)}

    def outcome_of(decision: str, candidate: str) -> tuple[float, float]:
        return known.get((decision, candidate), (math.nan, math.nan))

    base = {"text": "Hi", "decision_id": "d"}
    joined = past_request({**base, "model": "yi-6b-chat"}, COLUMNS, outcome_of)
    assert isinstance(joined, PastRequest)
    assert (joined.outcome, joined.propensity) == (1.0, 0.05)
    own = past_request({**base, "model": "yi-6b-chat", "outcome": 0.0}, COLUMNS, outcome_of)
    assert isinstance(own, PastRequest)
    assert (own.outcome, own.propensity) == (0.0, 0.05)
    other = past_request({**base, "model": "another"}, COLUMNS, outcome_of)
    assert isinstance(other, PastRequest)
    assert math.isnan(other.propensity)


def test_a_log_in_which_nothing_was_drawn_has_no_off_policy_estimate(tmp_path: Path) -> None:
    """Where log and policy agree is no fair sample then."""
    records = [{**r, "propensity": 1.0} for r in some_records(20)]
    found = quick([write_jsonl(tmp_path / "log.jsonl", records)], tmp_path / "out", 8)
    assert found["logged"]["with_propensity"] == 20
    assert {part["off_policy"] for part in found["policies"].values()} == {None}
