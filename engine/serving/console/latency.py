"""How long the phases of decisions took lately, from the cumulative histogram behind /metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

STEP_S = 10.0
KEPT = 61  # snapshots: ten minutes
WINDOWS = {"1 minute": 6, "10 minutes": KEPT - 1}  # steps
SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
Buckets = Mapping[str, tuple[int, ...]]  # phase -> cumulative counts, one for each bound


@dataclass(frozen=True)
class Snapshot:
    """at: Unix time, seconds."""

    at: float
    counts: Buckets


class LatencyHistory:
    """read: the histogram now. bounds: of its buckets, seconds, the last one infinite.

    sample() is for one thread, summary() for any.
    """

    def __init__(self, read: Callable[[], Buckets], bounds: Sequence[float]) -> None:
        self._read, self._bounds = read, tuple(bounds)
        self._kept: tuple[Snapshot, ...] = (Snapshot(time.time(), read()),)

    def sample(self) -> None:
        """Remember the histogram of now; every STEP_S."""
        self._kept = (*self._kept, Snapshot(time.time(), self._read()))[-KEPT:]

    def summary(self) -> dict[str, Any]:
        """windows: name -> phase -> {count, p50, p90, p99}; series: the phase `total`, oldest
        first, {at, count, p50, p99}. Times in ms, None where nothing was decided."""
        kept = self._kept
        now = Snapshot(time.time(), self._read())
        return {
            "windows": {
                name: self._between(kept[-min(steps, len(kept))], now)
                for name, steps in WINDOWS.items()
            },
            "series": [
                {"at": later.at, **self._between(sooner, later).get("total", {})}
                for sooner, later in pairwise((*kept, now))
            ],
        }

    def _between(self, sooner: Snapshot, later: Snapshot) -> dict[str, dict[str, float | None]]:
        found = {}
        for phase, counts in later.counts.items():
            before = sooner.counts.get(phase, (0,) * len(counts))
            gained = [a - b for a, b in zip(counts, before, strict=True)]
            quantiles = {name: _ms(quantile(self._bounds, gained, q)) for name, q in SHARES.items()}
            found[phase] = {"count": gained[-1], **quantiles}
        return found


def quantile(bounds: Sequence[float], cumulative: Sequence[int], share: float) -> float | None:
    """As PromQL's histogram_quantile: straight between the bounds of the bucket it falls into, the
    last finite bound where it lies beyond; None for an empty histogram."""
    if not cumulative[-1]:
        return None
    rank = share * cumulative[-1]
    lower, below = 0.0, 0
    for bound, count in zip(bounds, cumulative, strict=True):
        if count >= rank and count > below:
            if bound == float("inf"):
                return lower
            return lower + (bound - lower) * (rank - below) / (count - below)
        lower, below = bound, count
    return lower


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 3)
