"""From the columns of a log to figures. Pure: equal columns give equal reports, to the last bit.

Letters: N requests, P policies, M candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.api.candidate import DEFAULT_OUTPUT_TOKENS
from engine.api.policy import Policy
from engine.bundle.types import FloatArray
from engine.registry.table import Table
from engine.replay.scoring import KINDS, NOBODY, Columns, Scores
from engine.routing import tradeoff

BINS = 10  # of the reliability table
PERIODS = 40  # of the plot over time


def report(columns: Columns, policies: Mapping[str, Policy], table: Table) -> dict[str, Any]:
    """Figures of what was used and of each policy; costs in US dollars a request.

    An estimate is {"value", "low", "high", "rows"}: the mean, its 95 % interval, and over how many
    requests.
    """
    draws = Resampling(len(columns.used))
    names = [c.id for c in table.candidates]
    return {
        "requests": len(columns.used),
        "period": _period(columns.time),
        "candidates": names,
        "logged": _used(columns, names, draws),
        "policies": {
            name: {"policy": _shown(policy), **_policy(columns, j, names, draws)}
            for j, (name, policy) in enumerate(policies.items())
        },
        "reliability": list(_reliability(columns)),
        "over_time": _over_time(columns, list(policies)),
    }


def _used(columns: Columns, names: list[str], draws: Resampling) -> dict[str, Any]:
    told = ~np.isnan(columns.outcome)
    p_told = np.where(told, columns.used_p, np.nan)
    return {
        "selection_share": _mix(columns.used, names),
        "with_outcome": int(told.sum()),
        "logged_cost_usd": draws.mean(columns.logged_cost),
        "estimated_cost_usd": draws.mean(columns.used_cost),
        "estimated_quality": draws.mean(columns.used_p),
        "observed_quality": draws.mean(columns.outcome),
        "estimate_minus_observed": draws.mean(p_told - columns.outcome),
        "brier": draws.mean((columns.used_p - columns.outcome) ** 2),
    }


def _policy(columns: Columns, j: int, names: list[str], draws: Resampling) -> dict[str, Any]:
    decisions = columns.decisions
    choice, p = decisions.choice[:, j], decisions.p[:, j].astype(np.float64)
    cost, kind = decisions.cost[:, j], decisions.kind[:, j]
    chosen, known = choice != NOBODY, columns.used != NOBODY
    comparable = chosen & known
    changed = np.where(comparable, choice != columns.used, np.nan)
    same = np.where(comparable & (choice == columns.used), 1.0, np.nan)
    p_told = np.where(np.isnan(columns.outcome), np.nan, p)
    return {
        "selection_share": _mix(choice, names),
        "no_eligible_candidate": int((~chosen).sum()),
        "kinds": {
            name: int(((kind == code) & chosen).sum())
            for code, name in enumerate(KINDS)
            if ((kind == code) & chosen).any()
        },
        "estimated_cost_usd": draws.mean(cost),
        "estimated_quality": draws.mean(p),
        "vs_logged": {
            "changed": draws.mean(changed),
            "quality_difference": draws.mean(p - columns.used_p),
            "cost_ratio": draws.ratio(cost, columns.used_cost),
        },
        "on_agreement": {
            "observed_quality": draws.mean(columns.outcome * same),
            "estimated_quality": draws.mean(p_told * same),
            "estimate_minus_observed": draws.mean((p - columns.outcome) * same),
        },
    }


def _mix(rows: NDArray[np.integer], names: list[str]) -> dict[str, int]:
    """Requests by candidate, most first; those of nobody in the table are left out."""
    counts = np.bincount(rows[rows != NOBODY], minlength=len(names)).tolist()
    ordered = sorted(zip(names, counts, strict=True), key=lambda pair: (-pair[1], pair[0]))
    return {name: count for name, count in ordered if count}


def _reliability(columns: Columns) -> Iterator[dict[str, Any]]:
    """Of what was used: outcomes beside the probabilities that foretold them."""
    known = ~(np.isnan(columns.used_p) | np.isnan(columns.outcome))
    p, outcome = columns.used_p[known], columns.outcome[known]
    bins = np.minimum((p * BINS).astype(np.int64), BINS - 1)
    for b in range(BINS):
        inside = bins == b
        if inside.any():
            draws = Resampling(int(inside.sum()))
            yield {
                "mean_p": float(p[inside].mean()),
                "observed": draws.mean(outcome[inside]),
            }


def _over_time(columns: Columns, policies: list[str]) -> dict[str, Any] | None:
    """Means within equal periods; None where the log says no times or they do not differ."""
    known = ~np.isnan(columns.time)
    if not known.any() or columns.time[known].min() == columns.time[known].max():
        return None
    time = columns.time[known]
    edges = np.linspace(time.min(), time.max(), PERIODS + 1)
    period = np.clip(np.searchsorted(edges, time, side="right") - 1, 0, PERIODS - 1)

    def means(values: FloatArray) -> list[float | None]:
        kept = values[known]
        told = ~np.isnan(kept)
        sums = np.bincount(period[told], kept[told], PERIODS)
        counts = np.bincount(period[told], minlength=PERIODS)
        return [float(s / n) if n else None for s, n in zip(sums, counts, strict=True)]

    decisions = columns.decisions
    both = [("logged", columns.used_cost, columns.used_p)]
    both += [(n, decisions.cost[:, j], decisions.p[:, j]) for j, n in enumerate(policies)]
    return {
        "middle": ((edges[:-1] + edges[1:]) / 2).tolist(),
        "series": [
            {"name": name, "cost_usd": means(cost), "quality": means(p)} for name, cost, p in both
        ],
    }


def _period(time: FloatArray) -> dict[str, str] | None:
    known = time[~np.isnan(time)]
    if not len(known):
        return None
    first, last = (datetime.fromtimestamp(t, UTC) for t in (known.min(), known.max()))
    return {"from": first.isoformat(" ", "seconds"), "to": last.isoformat(" ", "seconds")}


def _shown(policy: Policy) -> dict[str, Any]:
    """What is set, by the API's names."""
    unset = asdict(Policy())
    fields = asdict(policy)
    goal = {fields.pop("objective"): fields.pop("value")}
    return goal | {k: v for k, v in fields.items() if v != unset[k]}


def policies_in(report: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(name, estimated quality, estimated cost) of what was used and of each policy."""
    for name, part in {"logged": report["logged"], **report["policies"]}.items():
        yield name, part["estimated_quality"], part["estimated_cost_usd"]


RESAMPLES, BLOCKS, SEED = 1000, 2000, 0


class Resampling:
    """Resamples blocks, single rows up to BLOCKS of them: rows that came together may be alike.
    All figures of one object use the same resamples, so differences are paired."""

    def __init__(self, rows: int) -> None:
        count = max(1, min(rows, BLOCKS))
        self._starts = np.arange(count) * rows // count
        random = np.random.default_rng(SEED)
        shares = np.full(count, 1 / count)
        self._weights = random.multinomial(count, shares, size=RESAMPLES).astype(np.float64)

    def ratio(self, above: FloatArray, below: FloatArray) -> dict[str, Any]:
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

    def mean(self, values: FloatArray) -> dict[str, Any]:
        """Of the known ones."""
        return self.ratio(values.astype(np.float64), np.where(np.isnan(values), np.nan, 1.0))


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
        if c.expected_cost_usd(1, DEFAULT_OUTPUT_TOKENS) is not None
    ]
    if len(rows) < 2:
        return None
    costs = np.array(
        [
            [c.expected_cost_usd(int(t), DEFAULT_OUTPUT_TOKENS) for _, c in rows]
            for t in input_tokens
        ]
    )
    kept = p[:, [i for i, _ in rows]].astype(np.float64)
    points = tradeoff.curve(kept, kept, costs)
    quality, cost = tradeoff.single_candidate_baselines(kept, costs)
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
