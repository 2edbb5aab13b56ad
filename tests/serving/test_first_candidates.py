"""What a new store is filled with (`--catalog`), and a server that has no candidate."""

from __future__ import annotations

import json
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from engine.api.errors import InvalidInputError, NoEligibleCandidateError
from engine.registry.catalog import read_catalog
from engine.serving.components import first_candidates
from engine.serving.settings import Settings
from modelsat import Client, ModelsatClientError
from tests.support.stores import registry
from tools.processes import ROOT, serving

TUTOR = ROOT / "examples" / "candidates" / "calculus-tutor.json"
UP, DOWN = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
ROUTER, CANDIDATES = "modelsat.v1.RouterService", "modelsat.v1.CandidateService"


def statuses(address: str, expected: list[int]) -> list[int]:
    """Return the health of what routes and of what does not, once it is as expected."""
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for _ in range(100):
            seen = [
                stub.Check(health_pb2.HealthCheckRequest(service=name)).status
                for name in ("readiness", ROUTER, "liveness", CANDIDATES, "store")
            ]
            if seen == expected:
                break
            time.sleep(0.05)
    return seen


def test_a_server_without_candidates_says_so_and_takes_some(tmp_path: Path) -> None:
    tutor = read_catalog(TUTOR)[0]
    empty, filled = [DOWN, DOWN, UP, UP, UP], [UP] * 5
    with (
        serving(tmp_path / "c.sqlite", "--catalog", "none") as server,
        Client(server.address) as client,
    ):
        assert statuses(server.address, empty) == empty
        for _ in range(2):  # before the first candidate, and after the last one is deleted
            with pytest.raises(ModelsatClientError, match="modelsat candidates create") as refused:
                client.route("What is 2 + 2?")
            assert refused.value.code == "FAILED_PRECONDITION"
            assert client.list_candidates() == []
            client.create_candidate(tutor)
            assert statuses(server.address, filled) == filled
            assert client.route("What is 2 + 2?").selected == tutor.id
            client.delete_candidate(tutor.id)
            assert statuses(server.address, empty) == empty
    again = serving(tmp_path / "c.sqlite", "--catalog", str(TUTOR))
    with again as server, Client(server.address) as client:
        assert client.list_candidates() == [], "the store was filled before, with nothing"


def test_callers_who_may_not_list_candidates_learn_that_there_is_none() -> None:
    message = str(NoEligibleCandidateError({}).for_outsiders())
    assert "No candidate is registered" in message
    assert "candidates create" in message


async def test_a_file_fills_a_new_store(tmp_path: Path) -> None:
    settings = Settings(catalog=str(TUTOR))
    opened = registry(str(tmp_path / "c.sqlite"), *first_candidates(settings))
    assert [c.id for c in opened.table().candidates] == ["calculus-tutor"]
    await opened.close()
    assert len(first_candidates(Settings())) > 10
    typo = tmp_path / "typo.json"
    typo.write_text(json.dumps([{"id": "calculus-tutor", "tagz": []}]), "utf-8")
    for wrong in (str(typo), "nnoe", "None", "", str(tmp_path / "missing.json")):
        with pytest.raises(InvalidInputError, match="--catalog"):
            first_candidates(Settings(catalog=wrong))
