"""A backend with a result that tests can compute, instead of a forward pass."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.inference.backend import BatchScores, ScoringHead
from engine.inference.onnx import score_rows


class FakeBackend:
    """Returns embeddings[r] * first token as row r of a request, the first token itself as that of
    the null candidate, and records its batch sizes."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.error: BaseException | None = None

    def hidden(
        self, tokens: Sequence[NDArray[np.int64]], embeddings: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        self.gate.wait(10)
        time.sleep(self.delay_s)
        self.batches.append(len(tokens))
        if self.error is not None:
            raise self.error
        rows = np.stack([embeddings * np.float32(t[0]) for t in tokens])
        rows[:, ~embeddings.any(axis=1)] = np.array([t[0] for t in tokens])[:, None, None]
        return rows

    def probabilities(
        self,
        tokens: Sequence[NDArray[np.int64]],
        embeddings: NDArray[np.float32],
        rows: NDArray[np.int64],
        head: ScoringHead,
    ) -> BatchScores:
        return score_rows(self.hidden, tokens, embeddings, rows, head)

    def prefetch_table(self, embeddings: NDArray[np.float32]) -> None:
        pass

    def describe(self) -> str:
        return "fake"
