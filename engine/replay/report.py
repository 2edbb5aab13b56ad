"""Compute the report of a replay. Pure: equal arrays give equal reports, to the last bit.

Shapes: N requests, P policies, M candidates.
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
from engine.replay.scoring import KINDS, NO_CANDIDATE, ResultArrays, Scores
from engine.routing import tradeoff
from engine.routing.off_policy import Estimate, LoggedOutcomes, estimate

BINS = 10  # of the reliability table
PERIODS = 40  # of the plot over time
Z_95 = 1.96  # standard errors of a 95 % interval


def report(arrays: ResultArrays, policies: Mapping[str, Policy], table: Table) -> dict[str, Any]:
    """Compute the metrics of the logged candidates and of each policy.

    Costs are US dollars per request. An estimate is {"value", "low", "high", "rows"}: the mean, its
    95 % interval, and the number of requests that it covers.
    """
    draws = Resampling(len(arrays.logged))
    names = [c.id for c in table.candidates]
    return {
        "requests": len(arrays.logged),
        "period": _period(arrays.time),
        "candidates": names,
        "logged": _logged(arrays, names, draws),
        "policies": {
            name: {"policy": _set_fields(policy), **_policy(arrays, j, names, draws)}
            for j, (name, policy) in enumerate(policies.items())
        },
        "reliability": list(_reliability(arrays)),
        "over_time": _over_time(arrays, list(policies)),
    }


def _logged(arrays: ResultArrays, names: list[str], draws: Resampling) -> dict[str, Any]:
    measured = ~np.isnan(arrays.outcome)
    p_measured = np.where(measured, arrays.logged_p, np.nan)
    return {
        "selection_share": _selection_share(arrays.logged, names),
        "with_outcome": int(measured.sum()),
        "logged_cost_usd": draws.mean(arrays.logged_cost),
        "estimated_cost_usd": draws.mean(arrays.estimated_cost),
        "estimated_quality": draws.mean(arrays.logged_p),
        "observed_quality": draws.mean(arrays.outcome),
        "estimate_minus_observed": draws.mean(p_measured - arrays.outcome),
        "brier": draws.mean((arrays.logged_p - arrays.outcome) ** 2),
        "with_propensity": int((~np.isnan(arrays.propensity)).sum()),
    }


def _policy(arrays: ResultArrays, j: int, names: list[str], draws: Resampling) -> dict[str, Any]:
    decisions = arrays.decisions
    choice, p = decisions.choice[:, j], decisions.p[:, j].astype(np.float64)
    cost, kind = decisions.cost[:, j], decisions.kind[:, j]
    chosen, known = choice != NO_CANDIDATE, arrays.logged != NO_CANDIDATE
    comparable = chosen & known
    changed = np.where(comparable, choice != arrays.logged, np.nan)
    same = np.where(comparable & (choice == arrays.logged), 1.0, np.nan)
    p_measured = np.where(np.isnan(arrays.outcome), np.nan, p)
    return {
        "selection_share": _selection_share(choice, names),
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
            "quality_difference": draws.mean(p - arrays.logged_p),
            "cost_ratio": draws.ratio(cost, arrays.estimated_cost),
        },
        "on_agreement": {
            "observed_quality": draws.mean(arrays.outcome * same),
            "estimated_quality": draws.mean(p_measured * same),
            "estimate_minus_observed": draws.mean((p - arrays.outcome) * same),
        },
        "off_policy": _off_policy(arrays, choice, p),
    }


def _off_policy(
    arrays: ResultArrays, choice: NDArray[np.int16], p: FloatArray
) -> dict[str, Any] | None:
    """Estimate the outcomes of a policy's choices from those of the log; None without a row that
    has outcome, propensity and candidates that the table knows, or if no choice was left to chance:
    the outcomes on which log and policy agree are then no fair sample."""
    known = ~(np.isnan(arrays.outcome) | np.isnan(arrays.propensity) | np.isnan(arrays.logged_p))
    known &= choice != NO_CANDIDATE
    if not (arrays.propensity[known] < 1).any():
        return None
    logged = LoggedOutcomes(arrays.outcome[known], arrays.propensity[known], arrays.logged_p[known])
    found = estimate(logged, choice[known] == arrays.logged[known], p[known])
    return {
        "inverse_propensity": _interval(found.inverse_propensity, found.rows),
        "doubly_robust": _interval(found.doubly_robust, found.rows),
        "effective_outcomes": found.effective_outcomes,
        "coverage": found.coverage,
    }


def _interval(found: Estimate, rows: int) -> dict[str, Any]:
    """Describe an estimate as Resampling.ratio does, with its standard error."""
    if np.isnan(found.value):
        return {"value": None, "low": None, "high": None, "rows": rows, "standard_error": None}
    low, high = (found.value + z * found.standard_error for z in (-Z_95, Z_95))
    error = found.standard_error
    return {"value": found.value, "low": low, "high": high, "rows": rows, "standard_error": error}


def _selection_share(rows: NDArray[np.integer], names: list[str]) -> dict[str, int]:
    """Count requests by candidate, most first; candidates that the table lacks are left out."""
    counts = np.bincount(rows[rows != NO_CANDIDATE], minlength=len(names)).tolist()
    ordered = sorted(zip(names, counts, strict=True), key=lambda pair: (-pair[1], pair[0]))
    return {name: count for name, count in ordered if count}


def _reliability(arrays: ResultArrays) -> Iterator[dict[str, Any]]:
    """Compare outcomes of the logged candidates with their probabilities, in bins of p."""
    known = ~(np.isnan(arrays.logged_p) | np.isnan(arrays.outcome))
    p, outcome = arrays.logged_p[known], arrays.outcome[known]
    bins = np.minimum((p * BINS).astype(np.int64), BINS - 1)
    for b in range(BINS):
        inside = bins == b
        if inside.any():
            draws = Resampling(int(inside.sum()))
            yield {
                "mean_p": float(p[inside].mean()),
                "observed": draws.mean(outcome[inside]),
            }


def _over_time(arrays: ResultArrays, policies: list[str]) -> dict[str, Any] | None:
    """Compute means within equal periods; None if the log has no times, or one time only."""
    known = ~np.isnan(arrays.time)
    if not known.any() or arrays.time[known].min() == arrays.time[known].max():
        return None
    time = arrays.time[known]
    edges = np.linspace(time.min(), time.max(), PERIODS + 1)
    period = np.clip(np.searchsorted(edges, time, side="right") - 1, 0, PERIODS - 1)

    def means(values: FloatArray) -> list[float | None]:
        kept = values[known]
        present = ~np.isnan(kept)
        sums = np.bincount(period[present], kept[present], PERIODS)
        counts = np.bincount(period[present], minlength=PERIODS)
        return [float(s / n) if n else None for s, n in zip(sums, counts, strict=True)]

    decisions = arrays.decisions
    series = [("logged", arrays.estimated_cost, arrays.logged_p)]
    series += [(n, decisions.cost[:, j], decisions.p[:, j]) for j, n in enumerate(policies)]
    return {
        "middle": ((edges[:-1] + edges[1:]) / 2).tolist(),
        "series": [
            {"name": name, "cost_usd": means(cost), "quality": means(p)} for name, cost, p in series
        ],
    }


def _period(time: FloatArray) -> dict[str, str] | None:
    known = time[~np.isnan(time)]
    if not len(known):
        return None
    first, last = (datetime.fromtimestamp(t, UTC) for t in (known.min(), known.max()))
    return {"from": first.isoformat(" ", "seconds"), "to": last.isoformat(" ", "seconds")}


def _set_fields(policy: Policy) -> dict[str, Any]:
    """Collect the fields that are set, by the API's names."""
    unset = asdict(Policy())
    fields = asdict(policy)
    goal = {fields.pop("objective"): fields.pop("value")}
    return goal | {k: v for k, v in fields.items() if v != unset[k]}


def policies_in(report: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Iterate over (name, estimated quality, estimated cost): the log, then each policy."""
    for name, part in {"logged": report["logged"], **report["policies"]}.items():
        yield name, part["estimated_quality"], part["estimated_cost_usd"]


RESAMPLES, BLOCKS, SEED = 1000, 2000, 0


class Resampling:
    """Bootstrap over blocks of neighboring requests, which may be alike.

    Up to BLOCKS requests a block is a single request. All metrics of one object use the same
    resamples, so differences are paired.
    """

    def __init__(self, rows: int) -> None:
        count = max(1, min(rows, BLOCKS))
        self._starts = np.arange(count) * rows // count
        random = np.random.default_rng(SEED)
        shares = np.full(count, 1 / count)
        self._weights = random.multinomial(count, shares, size=RESAMPLES).astype(np.float64)

    def ratio(self, above: FloatArray, below: FloatArray) -> dict[str, Any]:
        """Compute sum(above) / sum(below) with its 95 % interval; above, below: (N,).

        Rows where one of them is NaN are left out. A value is None if nothing is left.
        """
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
        # If all rows are alike, rounding can move both bounds past the value.
        return {"value": value, "low": min(low, value), "high": max(high, value), "rows": rows}

    def mean(self, values: FloatArray) -> dict[str, Any]:
        """Compute the mean of the values that are not NaN, with its 95 % interval."""
        return self.ratio(values.astype(np.float64), np.where(np.isnan(values), np.nan, 1.0))


SAMPLE_ROWS = 20_000  # of the frontier, evenly spaced over the log


class Sample:
    """Keep the probabilities of every `stride`-th request while chunks pass in any order."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[NDArray[np.float32], NDArray[np.int64]]] = {}
        self._stride = 1

    def add(self, first: int, scores: Scores) -> None:
        """Add the scores of the requests from number `first` on."""
        for i in range(-first % self._stride, len(scores.p), self._stride):
            self._kept[first + i] = scores.p[i].copy(), scores.input_tokens[i]
        while len(self._kept) > 2 * SAMPLE_ROWS:
            self._stride *= 2
            self._kept = {n: v for n, v in self._kept.items() if n % self._stride == 0}

    def arrays(self, total: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return (p, input tokens) of at most 2 * SAMPLE_ROWS of `total` requests.

        They are the same ones in whatever order the chunks came.
        """
        stride = 1
        while -(-total // stride) > 2 * SAMPLE_ROWS:
            stride *= 2
        numbers = range(0, total, stride)
        kept = [self._kept[n] for n in numbers]
        return np.stack([p for p, _ in kept]), np.array([tokens for _, tokens in kept])


def frontier(p: NDArray[np.float32], input_tokens: NDArray[np.int64], table: Table) -> Any:
    """Compute mean p and mean cost at each willingness to pay, and of each candidate alone.

    Among the candidates with prices; None if fewer than two have one. p: (n, M). input_tokens:
    (n,).
    """
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
            {
                "willingness_to_pay_usd": tradeoff.finite(x.willingness_to_pay_usd),
                "quality": x.accuracy,
                "cost_usd": x.cost,
            }
            for x in points
        ],
        "always_one": {
            c.id: {"quality": float(q), "cost_usd": float(usd)}
            for (_, c), q, usd in zip(rows, quality, cost, strict=True)
        },
    }
