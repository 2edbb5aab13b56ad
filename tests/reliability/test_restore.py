"""PostgreSQL is restored to a point in time, under two real servers of which one is stopped."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from modelsat import Client, ModelsatClientError, RouteDecision
from tests.reliability.crash_recovery import CATALOG
from tests.support.postgres import postgres
from tools.processes import serving

pytestmark = [pytest.mark.slow, pytest.mark.integration]
QUESTION = "What is the boiling point of water?"
CATCH_UP_S = 5.0


def create(client: Client, name: str) -> None:
    """Create a candidate, again and again until the store answers."""
    deadline = time.monotonic() + 30
    while True:
        try:
            client.create_candidate(replace(CATALOG[0], id=name))
            return
        except ModelsatClientError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def await_table(client: Client, seconds: float, name: str) -> set[str]:
    """Return the IDs of the table once it has the candidate; fail after that time."""
    deadline = time.monotonic() + seconds
    while name not in (ids := {c.id for c in client.list_candidates()}):
        assert time.monotonic() < deadline, ids
        time.sleep(0.05)
    return ids


def ranked(answer: RouteDecision) -> set[str]:
    """Return the IDs that have a probability."""
    return {entry.candidate for entry in answer.ranking}


def test_stopped_server_serves_no_probability_of_a_lost_revision(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    with postgres() as database:
        database.stop()
        database.archive()
        database.start()
        url = ("--candidates-db", database.url(), "--last-table-file")
        with (
            serving(folders[0] / "x.sqlite", *url, str(folders[0] / "table")) as awake,
            serving(folders[1] / "x.sqlite", *url, str(folders[1] / "table")) as stopped,
            Client(awake.address, timeout_s=30) as one,
            Client(stopped.address, timeout_s=30) as two,
        ):
            database.base_backup()
            create(one, "kept")
            with psycopg.connect(database.url(), autocommit=True) as db:
                row = db.execute("SELECT clock_timestamp()::text").fetchone()
            assert row is not None
            time.sleep(0.1)
            create(one, "lost")
            await_table(two, CATCH_UP_S, "lost")
            stale = two.route(QUESTION)  # now cached
            assert {"lost", "kept"} <= ranked(stale)
            os.kill(stopped.process.pid, signal.SIGSTOP)
            try:
                database.stop()  # which archives the last of the log
                database.restore_to(str(row[0]))
                create(one, "found")
            finally:
                os.kill(stopped.process.pid, signal.SIGCONT)
            tables = [await_table(client, CATCH_UP_S, "found") for client in (two, one)]
            assert tables[0] == tables[1] == {*(c.id for c in CATALOG), "kept", "found"}
            answers = [client.route(QUESTION) for client in (one, two)]
            assert answers[0].revision_token == answers[1].revision_token != stale.revision_token
            assert answers[0].revision > stale.revision, "no number is used twice"
            for answer in answers:
                assert ranked(answer) == tables[0], answer.excluded
