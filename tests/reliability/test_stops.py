"""SIGTERM ends a server within the grace period + 2 s, whatever it is in the middle of."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from engine.api.candidate import TEST_TASKS, Candidate, TaskResult
from modelsat import Client, ModelsatClientError
from tests.reliability.crash_recovery import CATALOG
from tests.reliability.faults.cases import NEEDS_ROOT, fill, small_disk, try_create
from tests.support.postgres import postgres
from tools.processes import Server, serving

pytestmark = [pytest.mark.slow, pytest.mark.integration]
GRACE_S = 2
GRACE = ("--shutdown-grace-period-s", str(GRACE_S))


def with_new_tasks(number: int) -> Candidate:
    """Return a candidate whose tasks were never encoded before."""
    tasks = (TaskResult(f"the task {number}-{i} of many", 0.5) for i in range(TEST_TASKS))
    return replace(CATALOG[0], id=f"new-{number}", aptitude=tuple(tasks))


@contextmanager
def replacing(server: Server, *candidates: Candidate) -> Iterator[threading.Thread]:
    """Replace all candidates in another thread, whatever comes of it."""

    def replace_all() -> None:
        client = Client(server.address, timeout_s=60, retries=False)
        with client, suppress(ModelsatClientError):
            client.replace_candidates(candidates)

    thread = threading.Thread(target=replace_all)
    thread.start()
    yield thread
    thread.join()


def assert_ends(server: Server, statuses: set[int]) -> None:
    server.process.terminate()
    assert server.process.wait(GRACE_S + 2) in statuses, server.printed()


def test_while_ten_thousand_tasks_are_encoded(tmp_path: Path) -> None:
    many = [with_new_tasks(i) for i in range(10_000 // TEST_TASKS)]
    with serving(tmp_path / "s.sqlite", *GRACE) as server, replacing(server, *many) as change:
        time.sleep(2)
        assert change.is_alive(), "they are being encoded"
        assert_ends(server, {0, 1})
    with serving(tmp_path / "s.sqlite") as server, Client(server.address) as client:
        assert {c.id for c in client.list_candidates()} == {c.id for c in CATALOG}, "all or nothing"


def test_on_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path) as disk:
        if disk is None:
            pytest.skip(NEEDS_ROOT)
        with serving(disk / "s.sqlite", *GRACE) as server, Client(server.address) as client:
            fill(disk / "filler")
            for number in range(40):
                code, message = try_create(client, f"during-{number}")
            assert (code, "disk is full" in message) == ("UNAVAILABLE", True)
            with replacing(server, *CATALOG):
                assert_ends(server, {0})


def test_while_a_frozen_database_is_written(tmp_path: Path) -> None:
    with postgres() as database:
        url = ("--candidates-db", database.url(), "--last-table-file", str(tmp_path / "t"))
        with serving(tmp_path / "x.sqlite", *url, *GRACE) as server:
            database.freeze()
            with replacing(server, *CATALOG):
                time.sleep(0.5)
                assert_ends(server, {0})
            database.thaw()


@pytest.mark.parametrize("stopped_after_s", [0.0, 0.5])
def test_while_a_frozen_database_is_not_written(tmp_path: Path, stopped_after_s: float) -> None:
    with postgres() as database:
        url = ("--candidates-db", database.url(), "--last-table-file", str(tmp_path / "t"))
        with serving(tmp_path / "x.sqlite", *url, *GRACE) as server:
            database.freeze()
            time.sleep(stopped_after_s)
            assert_ends(server, {0})
            database.thaw()
