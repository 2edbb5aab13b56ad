"""What tests share: the real bundle, and real servers on real sockets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from modelsat import Client
from tools.processes import ROOT, Server, serving

settings.register_profile("modelsat", deadline=None)  # no test asserts a time
settings.load_profile("modelsat")
CHECKPOINT = ROOT / "artifacts" / "checkpoint"
INSTRUCTIONS = (
    (Path(__file__).parent / "support" / "instructions.txt").read_text("utf-8").splitlines()
)


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with the zoo; tests that use it leave its candidates as they were."""
    with serving(tmp_path_factory.mktemp("store") / "candidates.sqlite") as server:
        yield server


@pytest.fixture
def client(shared_server: Server) -> Iterator[Client]:
    """A client of shared_server."""
    with Client(shared_server.address, timeout_s=30) as client:
        yield client
