"""Waits without a limit: a database or disk that hangs without closing anything."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from engine.api.errors import StoreError
from engine.client.errors import ModelsatClientError
from engine.registry import access
from engine.registry.registry import Registry
from engine.registry.stores import postgres as postgres_store
from modelsat import Client
from tests.support.postgres import Postgres, postgres
from tests.support.stores import candidate, fresh, registry
from tools.processes import serving

pytestmark = pytest.mark.integration
HEALTH_S = 5.0
GRACE_S = 2


@pytest.fixture
def server() -> Iterator[Postgres]:
    with postgres() as running:
        yield running
        running.thaw()


async def lost(member: Registry) -> None:
    """Return once the registry says that its store is lost."""
    async with asyncio.timeout(HEALTH_S):
        while member.store_state.connected:
            await asyncio.sleep(0.05)


async def test_frozen_database_is_seen_and_left(server: Postgres) -> None:
    """cases/server/04: idle, within a change, and while it stops."""
    member = registry(fresh(server, "frozen"))
    member.follow()
    server.freeze()
    change = asyncio.create_task(member.create(candidate("while")))
    await lost(member)
    with pytest.raises(StoreError, match=r"TimeLimitError|ConnectionTimeout"):
        await asyncio.wait_for(change, HEALTH_S)
    with pytest.raises(StoreError):
        await asyncio.wait_for(member.revisions(None, 9), HEALTH_S)
    assert [c.id for c in member.table().candidates] == ["first"], "it is still served"
    server.thaw()
    await asyncio.sleep(0)
    await member.create(candidate("after"))
    while not member.store_state.connected:
        await asyncio.sleep(0.05)
    server.freeze()
    change = asyncio.create_task(member.create(candidate("last")))
    await asyncio.sleep(0.1)
    await asyncio.wait_for(member.close(0.5), 0.5 + 2 * access.CLOSE_S)
    await asyncio.gather(change, return_exceptions=True)


async def test_frozen_database_is_left_without_a_listener(
    server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = registry(fresh(server, "alone"))
    monkeypatch.setattr(postgres_store, "PING_S", 0.3)
    server.freeze()
    with pytest.raises(StoreError, match="no answer within"):
        await asyncio.wait_for(member.create(candidate("new")), HEALTH_S)
    await member.close()


async def test_hung_disk_is_reported_and_operations_fail_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file on a disk that hangs: nothing can end the thread that waits for it."""
    monkeypatch.setattr(access, "SLOW_S", 0.1)
    monkeypatch.setattr(access, "LIMIT_S", 0.3)
    member = registry(str(tmp_path / "c.sqlite"))
    go_on = threading.Event()
    store = member._store
    real = store.apply

    def hang(*arguments: object) -> object:
        go_on.wait()
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "apply", hang)
    with pytest.raises(StoreError, match="did not answer within"):
        await member.create(candidate("new"))
    assert not member.store_state.connected
    with pytest.raises(StoreError, match="does not answer"):
        await asyncio.wait_for(member.revisions(None, 9), 1)
    go_on.set()
    while not member.store_state.connected:
        await asyncio.sleep(0.01)
    assert [c.id for c in member.table().candidates] == ["first", "new"], "the change was made"
    await member.close()


@pytest.mark.slow
def test_server_of_a_frozen_database_stops_in_time(server: Postgres, tmp_path: Path) -> None:
    """Health tells within 5 s, routing goes on, and SIGTERM ends within the grace period + 2 s."""
    options = ("--candidates-db", server.url(), "--shutdown-grace-period-s", str(GRACE_S))
    with serving(tmp_path / "x.sqlite", *options) as running:
        health = health_pb2_grpc.HealthStub(grpc.insecure_channel(running.address))

        def status(name: str) -> int:
            request = health_pb2.HealthCheckRequest(service=name)
            return int(health.Check(request, timeout=5).status)

        assert status("store") == health_pb2.HealthCheckResponse.SERVING
        server.freeze()
        begun = time.monotonic()
        while status("store") == health_pb2.HealthCheckResponse.SERVING:
            assert time.monotonic() - begun < HEALTH_S
            time.sleep(0.05)
        down, up = (
            health_pb2.HealthCheckResponse.NOT_SERVING,
            health_pb2.HealthCheckResponse.SERVING,
        )
        assert status("modelsat.v1.CandidateService") == down
        assert [status(n) for n in ("", "readiness", "modelsat.v1.RouterService")] == [up] * 3
        with Client(running.address, timeout_s=10, retries=False) as client:
            assert client.route("Hi").selected
            with pytest.raises(ModelsatClientError) as refused:
                client.delete_candidate(client.list_candidates()[0].id)
            assert refused.value.code == "UNAVAILABLE"
        running.process.terminate()
        assert running.process.wait(GRACE_S + 2) == 0


async def test_a_caller_who_gives_up_keeps_no_one_from_the_store(tmp_path: Path) -> None:
    """Its operation goes on: the next one waits for it instead of failing."""
    member = registry(str(tmp_path / "c.sqlite"))
    began, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        began.set()
        go_on.wait(10)

    reader = asyncio.create_task(member._access.run(slow))
    await asyncio.to_thread(began.wait)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    change = asyncio.create_task(member.create(candidate("new")))
    await asyncio.sleep(0.05)
    assert not change.done()
    go_on.set()
    await change
    assert member.table().revision == 2
    assert member.store_state.connected
    await member.close()
