"""The circle test (CircularEval: Liu et al., MMBench, 2023; used by Model-SAT): a multiple-choice
question is asked once for each rotation of its options, and only who stays right was right.

Letters: N instructions, M candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Records = Sequence[Mapping[str, Any]]


def circled(records: Records, scores: Floats) -> tuple[list[int], Floats, dict[str, int]]:
    """Records that share a `circle` are one question: its first record stands for all of them, with
    each candidate's lowest measured score. A record without one is a question of its own.

    scores: (M, N), NaN = not measured. Returns the rows that are kept, their scores, and
    id -> its place among them.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for row, record in enumerate(records):
        named = record.get("circle")
        key = ("id", str(record["id"])) if named is None else ("circle", str(named))
        groups.setdefault(key, []).append(row)
    kept = [rows[0] for rows in groups.values()]
    lowest = np.empty((len(scores), len(kept)), dtype=np.float32)
    for place, rows in enumerate(groups.values()):
        lowest[:, place] = np.fmin.reduce(scores[:, rows], axis=1)  # NaN only where all are
    places = {str(records[r]["id"]): p for p, rows in enumerate(groups.values()) for r in rows}
    return kept, lowest, places
