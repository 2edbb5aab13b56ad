"""Whole servers: killed while they record and fit, restarted, and as a fleet on PostgreSQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from engine.registry.stores.outcomes import read_recorded
from modelsat import Client, ModelsatClientError
from tests.support.postgres import Postgres, postgres
from tests.support.stores import fresh
from tools.processes import Server, await_ready, launch

pytestmark = pytest.mark.integration
TEXTS = [f"Question {i}: what is {i} times {7 * i + 3}?" for i in range(12)]


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


def connect(server: Server) -> Client:
    return Client(server.address, timeout_s=30)


def until(client: Client, true: Callable[[str], bool], timeout_s: float = 60.0) -> str:
    """Wait for an adaptation, and return its ID."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if true(identifier := client.adaptation().id):
            return identifier
        time.sleep(0.1)
    pytest.fail(f"still {identifier!r} after {timeout_s:g} s")


def compare(client: Client, texts: list[str]) -> None:
    names = [c.id for c in client.list_candidates()]
    for i, text in enumerate(texts):
        scores = {name: float((i + len(name)) % 3 > 0) for name in names}
        client.record_comparison(scores, text=text)


def test_a_killed_server_serves_the_same_fit_again(tmp_path: Path) -> None:
    store, acknowledged = tmp_path / "candidates.sqlite", set()
    server = await_ready(launch(store))
    with connect(server) as client:
        compare(client, TEXTS)
        until(client, bool)

        def record() -> None:
            with connect(server) as recorder:
                for i in count():
                    decision = recorder.route(f"What is left after {i} years?")
                    recorder.record_outcome(decision.decision_id, decision.selected, 1.0)
                    acknowledged.add(decision.decision_id)

        threads = [threading.Thread(target=ignoring_errors, args=(record,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(3)  # in which it fits again
        server.kill()
        for thread in threads:
            thread.join()
    assert acknowledged
    assert acknowledged <= {r.decision_id for r in read_recorded(tmp_path / "outcomes.sqlite")}
    served = []
    for _ in range(2):
        server = await_ready(launch(store))
        with connect(server) as client:
            served.append(client.adaptation())  # at once: the first fit comes before the first call
        server.kill()
    assert served[0].id == served[1].id != ""
    assert served[0].instructions == served[1].instructions > 12


def ignoring_errors(call: Callable[[], None]) -> None:
    try:
        call()
    except ModelsatClientError:
        return


def test_a_fleet_learns_the_same_and_is_steered_together(
    database: Postgres, tmp_path: Path
) -> None:
    url = fresh(database, "fleet")
    flags = ("--candidates-db", url, "--outcomes-db", url)
    starting = []
    for i in range(3):
        (tmp_path / str(i)).mkdir()
        starting.append(launch(tmp_path / str(i) / "c.sqlite", *flags))
    servers = [await_ready(server) for server in starting]
    try:
        steer(*servers)
    finally:
        for server in servers:
            server.kill()


def steer(one: Server, two: Server, three: Server) -> None:
    with connect(one) as first, connect(two) as second, connect(three) as third:
        compare(first, TEXTS[:6])
        compare(second, TEXTS[6:12])
        decision = first.route("Which server remembers this?")
        assert third.record_outcome(decision.decision_id, decision.selected, 1.0)
        clients = (first, second, third)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            fits = [client.adaptation() for client in clients]
            if {(fit.instructions, fit.id) for fit in fits} == {(13, fits[0].id)}:
                break
            time.sleep(0.1)
        assert [fit.instructions for fit in fits] == [13] * 3
        assert len({fit.id for fit in fits}) == 1
        third.reset_adaptation()
        for client in clients:
            until(client, lambda identifier: not identifier)
        first.rollback_adaptation(fits[0].id)
        for client in clients:
            assert until(client, bool) == fits[0].id
            assert client.adaptation().frozen
