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

from engine.policy import Policy
from engine.registry.table import Table
from engine.replay.columns import Columns, Floats
from engine.replay.resampling import Resampling
from engine.replay.scoring import KINDS, NOBODY

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
        "used": _used(columns, names, draws),
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
        "mix": _mix(columns.used, names),
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
        "mix": _mix(choice, names),
        "nobody_eligible": int((~chosen).sum()),
        "kinds": {
            name: int(((kind == code) & chosen).sum())
            for code, name in enumerate(KINDS)
            if ((kind == code) & chosen).any()
        },
        "estimated_cost_usd": draws.mean(cost),
        "estimated_quality": draws.mean(p),
        "against_used": {
            "changed": draws.mean(changed),
            "quality_difference": draws.mean(p - columns.used_p),
            "cost_ratio": draws.ratio(cost, columns.used_cost),
        },
        "where_it_chose_what_was_used": {
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

    def means(values: Floats) -> list[float | None]:
        kept = values[known]
        told = ~np.isnan(kept)
        sums = np.bincount(period[told], kept[told], PERIODS)
        counts = np.bincount(period[told], minlength=PERIODS)
        return [float(s / n) if n else None for s, n in zip(sums, counts, strict=True)]

    decisions = columns.decisions
    both = [("used", columns.used_cost, columns.used_p)]
    both += [(n, decisions.cost[:, j], decisions.p[:, j]) for j, n in enumerate(policies)]
    return {
        "middle": ((edges[:-1] + edges[1:]) / 2).tolist(),
        "series": [
            {"name": name, "cost_usd": means(cost), "quality": means(p)} for name, cost, p in both
        ],
    }


def _period(time: Floats) -> dict[str, str] | None:
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
    for name, part in {"used": report["used"], **report["policies"]}.items():
        yield name, part["estimated_quality"], part["estimated_cost_usd"]
