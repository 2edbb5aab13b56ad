"""AdaptationService over a real socket: the clients and the command line, with a source of fits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest

from engine.adaptation.recent_decisions import RecentDecisions
from engine.adaptation.source import AdaptationSource
from engine.api.candidate import Candidate
from engine.api.errors import DecisionNotFoundError
from engine.api.request_context import PRINCIPAL, ROLE
from engine.cli.main import main as cli
from engine.pb import adaptation_service_pb2 as pb
from engine.pb import adaptation_service_pb2_grpc
from engine.registry.table import make_table
from engine.serving.auth.interceptor import ADMIN, NEEDED
from engine.serving.rpc.adaptation_service import AdaptationService
from engine.serving.rpc.interceptors import StatusInterceptor
from engine.serving.telemetry.change_log import ChangeLog
from modelsat import AsyncClient, ModelsatClientError
from tests.support.fake_adaptation import FakeAdaptation, FakeSource

WIDTH = 4
TABLE = make_table(5, [(Candidate(name, ()), np.ones(WIDTH, np.float32)) for name in "abc"], WIDTH)
DECISION = "d" * 32
FIRST, SECOND = FakeAdaptation({"a": -2.0}), FakeAdaptation({"a": -3.0, "c": 1.0}, id="fake-2")


@dataclass(frozen=True)
class Served:
    """A server of the service alone."""

    address: str
    source: FakeSource
    changes: Path
    service: AdaptationService


def recent(principal: str = "") -> RecentDecisions:
    """Return decisions of which one, DECISION, scored two of three candidates."""
    decisions = RecentDecisions("bundle", 1 << 20, 60.0)
    p, embedding = np.array([0.6, 0.5], np.float32), np.ones(WIDTH, np.float32)
    scored = decisions.scored(TABLE, np.array([0, 2]), p, embedding, "a")
    decisions.add(DECISION, principal, scored, "fake-1")
    return decisions


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    source = FakeSource([FIRST, SECOND])
    typed: AdaptationSource = source
    changes = ChangeLog(tmp_path / "changes.jsonl")
    service = AdaptationService(typed, recent(), changes, lambda: TABLE)
    server = grpc.aio.server(interceptors=[StatusInterceptor()])
    adaptation_service_pb2_grpc.add_AdaptationServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield Served(f"127.0.0.1:{port}", source, tmp_path / "changes.jsonl", service)
    await server.stop(None)
    changes.close()


async def test_what_is_served_is_shown_frozen_rolled_back_and_reset(served: Served) -> None:
    async with AsyncClient(served.address) as client:
        shown = await client.adaptation()
        assert (shown.id, shown.active, shown.frozen) == ("fake-2", True, False)
        assert (shown.instructions, shown.outcomes) == (200, {"comparison": 400})
        assert shown.unused_outcomes == {"candidate not registered": 3}
        assert (shown.log_loss_before, shown.log_loss_after) == (0.6, 0.5)
        assert shown.as_of is not None
        assert shown.as_of.timestamp() == 1.8e9
        assert [fit.id for fit in await client.adaptation_history()] == ["fake-2", "fake-1"]
        assert [fit.id for fit in await client.adaptation_history(1)] == ["fake-2"]
        assert (await client.freeze_adaptation()).frozen
        assert not (await client.unfreeze_adaptation()).frozen
        back = await client.rollback_adaptation("fake-1")
        assert (back.id, back.frozen) == ("fake-1", True)
        for unknown, code in (("fake-9", "NOT_FOUND"), ("", "INVALID_ARGUMENT")):
            with pytest.raises(ModelsatClientError) as refused:
                await client.rollback_adaptation(unknown)
            assert refused.value.code == code
        empty = await client.reset_adaptation()
        assert (empty.id, empty.active, empty.as_of) == ("", False, None)
        assert "No outcomes" in empty.reason
    lines = [json.loads(line) for line in served.changes.read_text().splitlines()]
    assert [(line["action"], line["result"]) for line in lines] == [
        ("froze", "OK"),
        ("unfroze", "OK"),
        ("rolled back to adaptation", "OK"),
        ("rolled back to adaptation", "NOT_FOUND"),
        ("rolled back to adaptation", "INVALID_ARGUMENT"),
        ("reset", "OK"),
    ]


async def test_a_decision_is_explained_by_its_parts_and_neighbors(served: Served) -> None:
    async with AsyncClient(served.address) as client:
        shown = await client.explain_decision(DECISION)
        assert (shown.adaptation_id, shown.decided_by) == ("fake-2", "fake-1")
        assert [each.candidate for each in shown.candidates] == ["c", "a"]
        a = shown.candidates[1]
        assert a.base_probability == pytest.approx(0.6, abs=1e-3)
        assert a.relative == pytest.approx(-3.0)
        assert a.probability == pytest.approx(0.0695, abs=1e-3)
        (neighbor,) = shown.neighbors
        assert neighbor.scores == {"a": 0.0, "b": 1.0}
        assert neighbor.category == "sql"
        served.source.fits.clear()
        plain = await client.explain_decision(DECISION)
        assert (plain.adaptation_id, plain.decided_by) == ("", "fake-1")
        assert all(each.probability == each.base_probability for each in plain.candidates)
        with pytest.raises(ModelsatClientError) as refused:
            await client.explain_decision("e" * 32)
        assert refused.value.code == "NOT_FOUND"


@pytest.mark.parametrize(
    ("role", "principal", "known", "neighbors"),
    [
        ("admin", "root", True, True),
        ("read", "eve", True, True),
        ("route", "alice", True, False),
        ("route", "bob", False, False),
    ],
)
async def test_a_caller_with_the_role_route_sees_its_own_decisions_alone(
    served: Served, role: str, principal: str, known: bool, neighbors: bool
) -> None:
    service = AdaptationService(FakeSource([FIRST]), recent("alice"), None, lambda: TABLE)
    request = pb.ExplainDecisionRequest(decision_id=DECISION)

    async def explain() -> pb.ExplainDecisionResponse:
        ROLE.set(role)
        PRINCIPAL.set(principal)
        return await service.ExplainDecision(request, None)  # type: ignore[arg-type]

    asked = asyncio.create_task(explain())
    if not known:
        with pytest.raises(DecisionNotFoundError):
            await asked
        return
    assert bool((await asked).neighbors) == neighbors


def test_every_method_that_changes_something_needs_the_role_admin() -> None:
    (service,) = pb.DESCRIPTOR.services_by_name.values()
    for method in service.methods:
        changes = not method.name.startswith(("Get", "List", "Explain"))
        needed = NEEDED[f"/{service.full_name}/{method.name}"]
        assert (needed == ADMIN) == changes, method.name


async def test_the_command_line_shows_and_steers(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run(*arguments: str) -> str:
        command = ["adaptation", *arguments, "--server", served.address]
        assert await asyncio.to_thread(cli, command) == 0
        return capsys.readouterr().out

    status = await run("status")
    assert status.startswith("fake-2: active\n")
    assert "200 instructions with outcomes: 400 comparison" in status
    assert "not used: 3 (candidate not registered)" in status
    assert "0.6000 before, 0.5000 after" in status
    assert "fake-1" in await run("history", "--count", "2")
    assert [fit["id"] for fit in json.loads(await run("history", "--json"))] == ["fake-2", "fake-1"]
    explained = await run("explain", DECISION)
    assert "decided by fake-1" in explained
    assert "(sql) comparison: a 0, b 1" in explained
    assert json.loads(await run("explain", DECISION, "--json"))["decided_by"] == "fake-1"
    assert "frozen" in await run("freeze")
    assert "frozen" not in await run("unfreeze")
    assert json.loads(await run("rollback", "fake-1", "--json"))["frozen"]
    assert (await run("reset")).startswith("none: not active, frozen\n")


async def test_a_negative_page_is_refused(served: Served) -> None:
    async with AsyncClient(served.address) as client:
        with pytest.raises(ModelsatClientError, match="page_size: is -1"):
            await client.adaptation_history(-1)
