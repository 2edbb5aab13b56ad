"""Stores of both kinds, and a registry with a trivial encoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.api.candidate import TEST_TASKS, Candidate, TaskResult
from engine.bundle.arrays import Connector, TaskNorms
from engine.registry.encoder import CapabilityEncoder
from engine.registry.opening import open_registry
from engine.registry.registry import Registry
from tests.support.postgres import Postgres

ENCODER = "encoder-1"
WIDTH = 4


def encoder() -> CapabilityEncoder:
    """Return an encoder that embeds keywords as their length; E = 2."""

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        return np.array([[len(t), 1.0] for t in texts], dtype=np.float32)

    norms = TaskNorms(np.zeros(2, dtype=np.float32), {})
    connector = Connector(np.ones((WIDTH, 3), np.float32), np.zeros(WIDTH, np.float32))
    return CapabilityEncoder(embed, len, 512, norms, connector)


def candidate(identifier: str, level: float = 0.5) -> Candidate:
    """Return a valid candidate with the same accuracy in every task."""
    return Candidate(identifier, tuple(TaskResult(f"task {i}", level) for i in range(TEST_TASKS)))


def registry(url: str, *catalog: Candidate, history_limit: int = 100) -> Registry:
    """Open a registry on the store at `url`."""
    return open_registry(
        url, encoder(), ENCODER, WIDTH, catalog or [candidate("first")], history_limit=history_limit
    )


def fresh(server: Postgres, name: str) -> str:
    """Create an empty database and return its URL."""
    server.run(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    server.run(f"CREATE DATABASE {name}")
    return server.url(name)
