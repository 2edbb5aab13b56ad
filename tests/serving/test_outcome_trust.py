"""Outcomes count only from the caller who asked, and no caller displaces those of another."""

from __future__ import annotations

import json
import os
import re
import secrets
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.api.errors import OverloadedError
from engine.api.request_context import PRINCIPAL
from engine.registry.stores.outcomes import OutcomeStore, RecordedOutcome, read_recorded
from engine.serving.auth import outcome_gate
from engine.serving.auth.decision_ids import DecisionIds
from engine.serving.auth.outcome_gate import Rates
from engine.serving.auth.tokens import new_token
from modelsat import Client, Credentials, ModelsatClientError
from tools.processes import serving

CALLERS = {"alice": "route", "bob": "route", "judge": "outcomes", "root": "admin", "eve": "read"}


@dataclass(frozen=True)
class Callers:
    """A server with tokens, and a client of each of CALLERS."""

    folder: Path
    clients: dict[str, Client]

    def refusal(self, who: str, decision: str, candidate: str, score: float = 0.0) -> str:
        """The status code of recording an outcome, "" if it was recorded."""
        try:
            self.clients[who].record_outcome(decision, candidate, score)
        except ModelsatClientError as error:
            return error.code
        return ""


@pytest.fixture(scope="module")
def callers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callers]:
    folder = tmp_path_factory.mktemp("outcomes")
    made = {name: new_token(role, name) for name, role in CALLERS.items()}
    tokens = folder / "tokens.json"
    tokens.write_text(json.dumps({"tokens": [vars(entry) for _, entry in made.values()]}))
    flags = ["--auth-tokens-file", str(tokens), "--outcomes-db", str(folder / "o.sqlite")]
    flags += ["--audit-log", str(folder / "audit.jsonl"), "--audit-sample-rate", "1"]
    before = os.umask(0)
    try:
        with serving(folder / "c.sqlite", *flags) as server:
            clients = {
                name: Client(server.address, 30, Credentials(token=text))
                for name, (text, _) in made.items()
            }
            yield Callers(folder, clients)
            for client in clients.values():
                client.close()
    finally:
        os.umask(before)


def test_only_the_caller_who_asked_may_report_how_it_went(callers: Callers) -> None:
    decision = callers.clients["alice"].route("a private question")
    known = (decision.decision_id, decision.selected)
    assert callers.refusal("bob", *known) == "NOT_FOUND"
    assert callers.refusal("eve", *known) == "PERMISSION_DENIED"
    assert callers.refusal("alice", *known, 1.0) == ""  # no other caller was first
    assert callers.refusal("alice", *known, 1.0) == ""
    assert callers.refusal("bob", *known, 1.0) == "NOT_FOUND"  # nor learns the score
    other = callers.clients["alice"].route("another question")
    for who, chosen in (("judge", 0), ("root", 1)):
        assert callers.refusal(who, other.decision_id, other.ranking[chosen].candidate) == ""


@pytest.mark.parametrize("who", ["alice", "judge", "root"])
def test_invented_decisions_are_refused(callers: Callers, who: str) -> None:
    decision = callers.clients[who if who != "judge" else "root"].route("Hi")
    real = decision.decision_id
    for invented in ("0" * 32, secrets.token_hex(16), real[1:] + real[:1], real[:16] + "0" * 16):
        assert callers.refusal(who, invented, decision.selected) == "NOT_FOUND"


@pytest.mark.parametrize("name", ["no-such-model", "candidates", "phi-3-mini-9000"])
def test_outcomes_of_candidates_that_are_not_registered_are_refused(
    callers: Callers, name: str
) -> None:
    decision = callers.clients["bob"].route("Hi")
    assert callers.refusal("bob", decision.decision_id, f"candidates/{name}") == "NOT_FOUND"


@pytest.mark.parametrize(
    ("who", "answer"),
    [("alice", 3), ("judge", 3), ("root", 3), ("bob", "NOT_FOUND"), ("eve", "PERMISSION_DENIED")],
)
def test_a_comparison_is_checked_as_an_outcome_is(
    who: str, answer: int | str, callers: Callers
) -> None:
    decision = callers.clients["alice"].route(f"a question of alice, for {who}")
    scores = {ranked.candidate: 1.0 for ranked in decision.ranking[:3]}
    found: int | str
    try:
        found = callers.clients[who].record_comparison(scores, decision_id=decision.decision_id)
    except ModelsatClientError as error:
        found = error.code
    assert found == answer


@pytest.mark.parametrize("text", ["Who keeps this?", "What is 12 x 12?", "Draw a map of Rome."])
def test_what_one_caller_records_of_a_text_tells_another_nothing(
    text: str, callers: Callers
) -> None:
    a, b = (r.candidate for r in callers.clients["alice"].route("Hi").ranking[:2])
    for who, score in (("alice", 1.0), ("bob", 0.0)):
        assert callers.clients[who].record_comparison({a: score, b: 0.5}, text=text) == 2
        assert callers.clients[who].record_comparison({a: score, b: 0.5}, text=text) == 0
    with pytest.raises(ModelsatClientError, match="has score 1"):
        callers.clients["alice"].record_outcome("", a, 0.0, text=text)
    with pytest.raises(ModelsatClientError) as refused:
        callers.clients["eve"].record_comparison({a: 1.0, b: 0.5}, text=text)
    assert refused.value.code == "PERMISSION_DENIED"


def test_what_is_written_is_for_its_owner_alone_whatever_the_umask_is(callers: Callers) -> None:
    decision = callers.clients["alice"].route("Hi")
    callers.clients["alice"].record_outcome(decision.decision_id, decision.selected, 1.0)
    ours = re.compile(r"(c|o)\.sqlite.*|audit\.jsonl")
    files = [f for f in callers.folder.iterdir() if ours.fullmatch(f.name) and f.suffix != ".log"]
    assert {"c.sqlite", "o.sqlite", "o.sqlite-wal", "audit.jsonl"} <= {f.name for f in files}
    assert [file.name for file in files if file.stat().st_mode & 0o077] == []


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
async def test_a_file_that_others_could_read_is_closed_to_them(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / "o.sqlite"
    first = OutcomeStore(path, 10)
    await first.record(RecordedOutcome("d", "c", 1.0))
    path.with_name(path.name + suffix).chmod(0o644)
    second = OutcomeStore(path, 10)
    assert path.with_name(path.name + suffix).stat().st_mode & 0o077 == 0
    await second.close()
    await first.close()


@pytest.mark.parametrize("text", ["a private plan", "What is 7 x 8?", "Write a haiku on rain."])
def test_a_caller_cannot_see_what_another_asked_before(callers: Callers, text: str) -> None:
    """An answer from the cache took no inference, and only the caller who asked gets one."""
    asked = {name: callers.clients[name] for name in ("alice", "bob", "root")}
    assert asked["alice"].route(text).timing_s["inference"] > 0
    assert asked["alice"].route(text).timing_s["inference"] == 0
    for name in ("bob", "root"):
        assert asked[name].route(text).timing_s["inference"] > 0


# --- shares and ages ----------------------------------------------------------------------------


@pytest.mark.parametrize(("honest", "noisy"), [(1, 60), (20, 200), (25, 49)])
async def test_a_flood_displaces_its_own_outcomes(honest: int, noisy: int, tmp_path: Path) -> None:
    store = OutcomeStore(tmp_path / "o.sqlite", 50)
    for number in range(honest):
        await store.record(RecordedOutcome(f"h{number}", "c", 1.0, principal="honest"))
    for number in range(noisy):
        await store.record(RecordedOutcome(f"n{number}", "c", 0.0, principal="noisy"))
    await store.close()
    kept = [r.decision_id for r in read_recorded(tmp_path / "o.sqlite")]
    assert kept[:honest] == [f"h{number}" for number in range(honest)]
    expected = range(max(0, noisy - (50 - honest)), noisy)
    assert kept[honest:] == [f"n{number}" for number in expected]


async def test_old_outcomes_are_deleted_with_and_without_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, now = tmp_path / "o.sqlite", time.time()
    store = OutcomeStore(path, 100, max_age_days=30)
    for days in (31, 30.5, 29, 1):
        monkeypatch.setattr(time, "time", lambda days=days: now - days * 86_400)
        await store.record(RecordedOutcome(f"{days}", "c", 1.0))
    assert [r.decision_id for r in read_recorded(path)] == ["31", "30.5", "29", "1"]
    monkeypatch.setattr(time, "time", lambda: now)
    await store.prune()
    assert [r.decision_id for r in read_recorded(path)] == ["29", "1"]
    monkeypatch.setattr(time, "time", lambda: now + 2 * 86_400)
    await store.record(RecordedOutcome("new", "c", 1.0))
    assert [r.decision_id for r in read_recorded(path)] == ["1", "new"]
    await store.close()


async def test_a_file_of_an_earlier_version_gets_its_shares(tmp_path: Path) -> None:
    path = tmp_path / "o.sqlite"
    old = sqlite3.connect(path)
    old.executescript(
        "CREATE TABLE outcome (number INTEGER PRIMARY KEY, decision_id TEXT NOT NULL,"
        " candidate TEXT NOT NULL, score REAL NOT NULL, text TEXT NOT NULL,"
        " category TEXT NOT NULL, recorded_at REAL NOT NULL, UNIQUE (decision_id, candidate))"
        " STRICT; INSERT INTO outcome VALUES (1, 'a', 'c', 1, '', '', 1), (2, 'b', 'c', 1, '', '',"
        " 2); PRAGMA user_version = 1"
    )
    old.close()
    store = OutcomeStore(path, 2)
    await store.record(RecordedOutcome("new", "c", 1.0, principal="p"))
    await store.close()
    assert [r.decision_id for r in read_recorded(path)] == ["b", "new"]


def test_one_caller_cannot_record_without_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcome_gate, "BURST", 3.0)
    monkeypatch.setattr(outcome_gate, "RATE_PER_S", 1e-9)
    monkeypatch.setattr(outcome_gate, "MAX_PRINCIPALS", 2)
    rates = Rates()
    for _ in range(3):
        rates.take("noisy")
    with pytest.raises(OverloadedError):
        rates.take("noisy")
    for other in ("a", "b", "c"):
        rates.take(other)
    assert len(rates._buckets) == 2


NAMES = st.text(max_size=20)


@given(st.binary(min_size=32, max_size=32), NAMES, NAMES)
def test_an_id_is_of_its_caller_and_of_its_store(key: bytes, name: str, other: str) -> None:
    ids, foreign = DecisionIds(key), DecisionIds(bytes(byte ^ 1 for byte in key))
    reset = PRINCIPAL.set(name)
    made = ids.new()
    PRINCIPAL.reset(reset)
    assert (len(made), int(made, 16) > 0) == (32, True)
    assert ids.is_ours(made)
    assert ids.is_of(made, name)
    assert ids.is_of(made, other) == (name == other)
    assert not foreign.is_ours(made)
    assert not foreign.is_of(made, name)
