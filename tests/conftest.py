"""Fixtures that many tests share: a real server with the real bundle, and a client of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from modelsat import Client
from tools.processes import ROOT, Server, serving

# No test asserts a time, and one commit gets one verdict: the same examples on every run. `explore`
# draws new ones.
settings.register_profile("modelsat", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "modelsat"))
CHECKPOINT = ROOT / "artifacts" / "checkpoint"
INSTRUCTIONS = (
    (Path(__file__).parent / "support" / "instructions.txt").read_text("utf-8").splitlines()
)


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the shipped candidates. Tests that change them restore them."""
    with serving(tmp_path_factory.mktemp("store") / "candidates.sqlite") as server:
        yield server


@pytest.fixture
def client(shared_server: Server) -> Iterator[Client]:
    """A client of shared_server."""
    with Client(shared_server.address, timeout_s=30) as client:
        yield client
