"""What every cost sensitivity would have given, as the ground that policies are seen against."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine import tradeoff
from engine.contract.candidate import DEFAULT_ANSWER_TOKENS
from engine.registry.table import Table
from engine.replay.scoring import Scores

ROWS = 20_000  # at most, evenly spaced over the log


class Sample:
    """Probabilities of every `stride`-th request, kept while chunks go by in any order."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[NDArray[np.float32], NDArray[np.int64]]] = {}
        self._stride = 1

    def add(self, first: int, scores: Scores) -> None:
        """Scores of the requests from number `first` on."""
        for i in range(-first % self._stride, len(scores.p), self._stride):
            self._kept[first + i] = scores.p[i].copy(), scores.input_tokens[i]
        while len(self._kept) > 2 * ROWS:
            self._stride *= 2
            self._kept = {n: v for n, v in self._kept.items() if n % self._stride == 0}

    def arrays(self, total: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """(p, input tokens) of at most 2 * ROWS of `total` requests, the same ones in any order."""
        stride = 1
        while -(-total // stride) > 2 * ROWS:
            stride *= 2
        numbers = range(0, total, stride)
        kept = [self._kept[n] for n in numbers]
        return np.stack([p for p, _ in kept]), np.array([tokens for _, tokens in kept])


def frontier(p: NDArray[np.float32], input_tokens: NDArray[np.int64], table: Table) -> Any:
    """Mean p and mean cost at each cost sensitivity, and of each candidate alone; among those with
    prices. p: (n, M); input_tokens: (n,). None where fewer than two have prices."""
    rows = [
        (i, c)
        for i, c in enumerate(table.candidates)
        if c.expected_cost_usd(1, DEFAULT_ANSWER_TOKENS) is not None
    ]
    if len(rows) < 2:
        return None
    costs = np.array(
        [
            [c.expected_cost_usd(int(t), DEFAULT_ANSWER_TOKENS) for _, c in rows]
            for t in input_tokens
        ]
    )
    kept = p[:, [i for i, _ in rows]].astype(np.float64)
    points = tradeoff.curve(kept, kept, costs)
    quality, cost = tradeoff.singles(kept, costs)
    return {
        "requests": len(p),
        "curve": [
            {"cost_sensitivity": x.sensitivity, "quality": x.accuracy, "cost_usd": x.cost}
            for x in points
        ],
        "always_one": {
            c.id: {"quality": float(q), "cost_usd": float(usd)}
            for (_, c), q, usd in zip(rows, quality, cost, strict=True)
        },
    }
