"""What is kept of every request until the report: numbers, about 60 bytes and 15 for each policy.

Letters: N requests that were read, P policies.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engine.contract.candidate import DEFAULT_ANSWER_TOKENS
from engine.contract.errors import InvalidInputError, Violation
from engine.registry.table import Table
from engine.replay.requests import PastRequest
from engine.replay.scoring import NOBODY, Decisions, Scores

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Columns:
    """(N,) each. used: table row of what answered, NOBODY where the table has none of that name or
    none was logged. used_p, used_cost: what scoring and price list say of it. logged_cost, outcome,
    time: see PastRequest. NaN is unknown. decisions: (N, P)."""

    used: NDArray[np.int16]
    used_p: Floats
    used_cost: Floats
    logged_cost: Floats
    outcome: Floats
    time: Floats
    input_tokens: NDArray[np.int64]
    decisions: Decisions


@dataclass
class Names:
    """From the log's names of candidates to rows of `table`, and those it does not have."""

    table: Table
    rows: dict[str, int]
    unknown: Counter[str] = field(default_factory=Counter)
    unnamed: int = 0

    def row(self, name: str) -> int:
        """NOBODY where there is none, which is counted."""
        found = self.rows.get(name, NOBODY)
        if not name:
            self.unnamed += 1
        elif found == NOBODY:
            self.unknown[name] += 1
        return found


def names_of(table: Table, aliases: Sequence[str]) -> Names:
    """Candidates go by their ids, display names and `aliases` (LOGGED=ID).

    Raises InvalidInputError where an alias leads nowhere.
    """
    rows = {c.display_name: row for row, c in enumerate(table.candidates) if c.display_name}
    rows |= table.rows
    problems = []
    for alias in aliases:
        logged, _, identifier = alias.rpartition("=")
        if not logged or identifier not in table.rows:
            problems.append(
                Violation("--alias", f"is {alias!r}; expected LOGGED=ID, ID of the table.")
            )
        else:
            rows[logged] = table.rows[identifier]
    if problems:
        raise InvalidInputError(*problems)
    return Names(table, rows)


def columns_of(
    requests: Sequence[PastRequest], names: Names, scores: Scores, decisions: Decisions
) -> Columns:
    """The columns of one chunk."""
    used = np.array([names.row(r.used) for r in requests], dtype=np.int16)
    costs = np.full(len(used), np.nan)
    for i, row in enumerate(used):
        if row != NOBODY:
            candidate = names.table.candidates[row]
            tokens = int(scores.input_tokens[i])
            cost = candidate.expected_cost_usd(tokens, DEFAULT_ANSWER_TOKENS)
            costs[i] = math.nan if cost is None else cost
    p = scores.p[np.arange(len(used)), used].astype(np.float64)
    return Columns(
        used,
        np.where(used == NOBODY, np.nan, p),
        costs,
        np.array([r.cost for r in requests]),
        np.array([r.outcome for r in requests]),
        np.array([r.time for r in requests]),
        scores.input_tokens,
        decisions,
    )


def joined(parts: Mapping[int, Columns]) -> Columns:
    """All chunks in the order of their numbers."""
    ordered = [parts[number] for number in sorted(parts)]

    def whole(of: Sequence[object]) -> dict[str, NDArray[np.generic]]:
        keys = [k for k, v in vars(of[0]).items() if isinstance(v, np.ndarray)]
        return {k: np.concatenate([getattr(part, k) for part in of]) for k in keys}

    decisions = Decisions(**whole([c.decisions for c in ordered]))  # type: ignore[arg-type]
    return Columns(**whole(ordered), decisions=decisions)  # type: ignore[arg-type]
