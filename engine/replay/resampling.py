"""Bootstrap intervals of means over a log, in one pass whatever its length.

Letters: N rows, G blocks of neighbouring rows, R resamples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES, BLOCKS, SEED = 1000, 2000, 0
Floats = NDArray[np.floating]


class Resampling:
    """Resamples blocks, single rows up to BLOCKS of them: rows that came together may be alike.
    All figures of one object use the same resamples, so differences are paired."""

    def __init__(self, rows: int) -> None:
        count = max(1, min(rows, BLOCKS))
        self._starts = np.arange(count) * rows // count
        random = np.random.default_rng(SEED)
        shares = np.full(count, 1 / count)
        self._weights = random.multinomial(count, shares, size=RESAMPLES).astype(np.float64)

    def ratio(self, above: Floats, below: Floats) -> dict[str, Any]:
        """sum(above) / sum(below) of the rows where both are known, with its 95 % interval; None
        for what cannot be told. (N,) each."""
        known = ~(np.isnan(above) | np.isnan(below))
        rows = int(known.sum())
        if not rows:
            return {"value": None, "low": None, "high": None, "rows": 0}
        tops, bottoms = (
            np.add.reduceat(np.where(known, x, 0.0), self._starts) for x in (above, below)
        )
        total = float(bottoms.sum())
        value = float(tops.sum()) / total if total else None
        # einsum, not a product of matrices: no threads, so the same bits every time.
        above_each, below_each = (
            np.einsum("rg,g->r", self._weights, sums) for sums in (tops, bottoms)
        )
        drawn = above_each[below_each > 0] / below_each[below_each > 0]
        if value is None or not len(drawn):
            return {"value": value, "low": None, "high": None, "rows": rows}
        low, high = np.percentile(drawn, [2.5, 97.5]).tolist()
        # Rounding moves both past the value where all rows are alike.
        return {"value": value, "low": min(low, value), "high": max(high, value), "rows": rows}

    def mean(self, values: Floats) -> dict[str, Any]:
        """Of the known ones."""
        return self.ratio(values.astype(np.float64), np.where(np.isnan(values), np.nan, 1.0))
