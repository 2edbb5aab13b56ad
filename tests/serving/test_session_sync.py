"""Sessions survive a restart, and servers of one store share them."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.api.policy import Policy, Session
from engine.routing.sessions import SessionStore
from engine.serving import session_sync
from engine.serving.session_sync import SessionSync
from modelsat import Client, RouteDecision, Turn
from tests.support.postgres import Postgres, postgres
from tests.support.stores import fresh
from tools.processes import await_ready, launch

SECRET = b"of the fleet"
NAME = "alice@example.org"


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    with postgres() as started:
        yield started


@pytest.fixture(params=["sqlite", "postgresql"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "outcomes.sqlite")
    return fresh(request.getfixturevalue("database"), "sessions")


class Server:
    """The sessions of one server."""

    def __init__(self, location: str, limit: int = 10, ttl_s: float = 1000.0) -> None:
        self.sessions = SessionStore(limit, ttl_s, secret=SECRET)
        self.sync = SessionSync(self.sessions, location)


async def test_servers_of_one_store_share_their_sessions(location: str) -> None:
    first, second = Server(location), Server(location)
    await first.sync.start()
    await second.sync.start()
    first.sessions.put(NAME, "a", "p", 700)
    second.sessions.put("other", "b")
    for server in (first, second, first):
        await server.sync.copy()
    assert second.sessions.get(NAME, "p") == "a"
    entry = second.sessions.entry(NAME, "p")
    assert entry is not None
    assert entry.input_tokens == 700
    assert first.sessions.get("other") == "b"
    assert second.sessions.get(NAME, "q") == ""  # of another principal
    second.sessions.put(NAME, "c", "p")  # the later use counts, in any order of copies
    await first.sync.copy()
    await second.sync.copy()
    await first.sync.copy()
    assert first.sessions.get(NAME, "p") == "c"
    await first.sync.close()
    await second.sync.close()
    restarted = Server(location)
    await restarted.sync.start()
    assert (restarted.sessions.get(NAME, "p"), restarted.sessions.get("other")) == ("c", "b")
    await restarted.sync.close()


async def test_stored_sessions_are_bounded_and_expire(location: str) -> None:
    first = Server(location, limit=3)
    for i in range(7):
        first.sessions.put(f"s{i}", "a")
        await first.sync.copy()
    await first.sync.close()
    later = Server(location, limit=3)
    await later.sync.start()
    assert [later.sessions.get(f"s{i}") for i in range(7)] == ["", "", "", "", "a", "a", "a"]
    await later.sync.close()
    late = Server(location, ttl_s=0.001)
    await late.sync.start()
    assert len(late.sessions) == 0
    await late.sync.close()
    empty = Server(location)  # the late one deleted what had expired for it
    await empty.sync.start()
    assert len(empty.sessions) == 0
    await empty.sync.close()


async def test_what_cannot_be_stored_is_stored_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "outcomes.sqlite"
    path.mkdir()
    server = Server(str(path))
    server.sessions.put(NAME, "a")
    for _ in range(3):
        await server.sync.copy()
    assert caplog.text.count("sessions are kept in memory alone") == 1
    assert server.sessions.get(NAME) == "a"
    path.rmdir()
    await server.sync.copy()
    await server.sync.close()
    with sqlite3.connect(path) as db:
        ((key, candidate),) = db.execute("SELECT key, candidate FROM session")
    assert candidate == "a"
    assert NAME.encode() not in key


def cost_of(decision: RouteDecision, candidate: str) -> float:
    (cost,) = [r.expected_cost_usd for r in decision.ranking if r.candidate == candidate]
    assert cost is not None
    return cost


def test_session_and_its_prompt_cache_outlive_a_killed_server(tmp_path: Path) -> None:
    name = "llama-3.1-8b-instruct"
    asked, kept = Policy(allowed_candidates=(name,)), Session("s", 1e6)
    before = [Turn("user", "Describe each of these 12 towns. " * 30), Turn("assistant", "Done.")]
    store = tmp_path / "s.sqlite"
    server = await_ready(launch(store))
    try:
        with Client(server.address, timeout_s=30) as client:
            model = client.get_candidate(name)
            priced = replace(model, cached_input_usd_per_million=0.0)
            client.update_candidate(priced, ["cached_input_usd_per_million"])
            cached = client.route(before, asked, session=kept).input_tokens
            assert cached > 200
            assert client.route("Prove it.").selected != name
        stored = store.with_name("outcomes.sqlite")
        with sqlite3.connect(stored) as db:
            stored_by = time.monotonic() + 30
            while not db.execute("SELECT 1 FROM session").fetchone():
                assert time.monotonic() < stored_by
                time.sleep(0.05)
        server.kill()
        server = await_ready(launch(store))
        with Client(server.address, timeout_s=30) as client:
            turns = [*before, Turn("user", "Prove it.")]
            decision, new = client.route(turns, session=kept), client.route(turns)
            short = client.route("Prove it.", session=kept)  # a conversation of another beginning
            again = client.route("Prove it.")
        assert (decision.selected, decision.kind) == (name, "session_affinity")
        assert model.input_usd_per_million is not None
        saved = cached * model.input_usd_per_million / 1e6
        assert cost_of(new, name) - cost_of(decision, name) == pytest.approx(saved)
        assert cost_of(new, new.selected) == cost_of(decision, new.selected)
        assert cost_of(short, name) == cost_of(again, name)
        assert server.terminate() == 0
    finally:
        server.kill()


async def test_what_a_slow_store_gives_after_the_start_is_read_again(
    location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Server(location), Server(location)
    first.sessions.put(NAME, "a", "p")
    await first.sync.copy()
    exchange = second.sync._exchange

    def slowly(*changed: Any) -> Any:
        time.sleep(0.2)
        return exchange(*changed)

    monkeypatch.setattr(session_sync, "START_S", 0.05)
    monkeypatch.setattr(second.sync, "_exchange", slowly)
    await second.sync.start()
    assert second.sessions.get(NAME, "p") == ""
    await second.sync.copy()
    assert second.sessions.get(NAME, "p") == "a"
    for server in (first, second):
        await server.sync.close()
