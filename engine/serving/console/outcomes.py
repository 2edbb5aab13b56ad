"""What the console shows of recorded outcomes: money spent, and outcomes against probabilities.

Shapes: N reports of outcomes, M candidates of the table.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.api.candidate import Candidate
from engine.api.usage import Usage
from engine.bundle.types import Float32Array, Float64Array
from engine.registry.embedding_bytes import unpack_embedding
from engine.registry.outcome_changes import RecentReport, RecentReports
from engine.registry.table import Table

MAX_REPORTS = 2000
MATCHED_AT_ONCE = 64  # instructions: a match of many tests takes memory for each
BIN_OUTCOMES, MAX_BINS = 10, 10  # of a reliability diagram: at least so many outcomes in a bin
MIN_SCORED = 0.5  # share of the calls that a candidate must have been eligible for, to be compared
MILLION = 1e6


@dataclass(frozen=True)
class PricedCall:
    """A call in production with known tokens and price. row: of its report."""

    row: int
    candidate: str
    input_tokens: int
    output_tokens: int
    usd: float


def predicted(recent: RecentReports, table: Table, bundle: str) -> Float32Array:
    """Return (N, M) probabilities by the weights `bundle` and the match of `table`, before the
    correction by outcomes; NaN where they are not known."""
    found = np.full((len(recent.reports), len(table.candidates)), np.nan, dtype=np.float32)
    groups: dict[int, list[int]] = defaultdict(list)
    for row, report in enumerate(recent.reports):
        if report.candidates is not None and recent.lists[report.candidates].bundle == bundle:
            groups[report.candidates].append(row)
    for number, rows in groups.items():
        ids = recent.lists[number].ids
        known = [(i, table.rows[name]) for i, name in enumerate(ids) if name in table.rows]
        if not known:
            continue
        old, new = (list(places) for places in zip(*known, strict=True))
        logits = np.stack([np.frombuffer(recent.reports[r].logits or b"", "<f2") for r in rows])
        found[np.ix_(rows, new)] = logits[:, old]
    scored = np.flatnonzero(np.isfinite(found).any(axis=1))
    for start in range(0, len(scored) if table.match is not None else 0, MATCHED_AT_ONCE):
        rows_now = scored[start : start + MATCHED_AT_ONCE]
        packed = [recent.reports[row].embedding or b"" for row in rows_now.tolist()]
        found[rows_now] += table.match.log_odds(np.stack([*map(unpack_embedding, packed)]))  # type: ignore[union-attr]
    return np.asarray(1 / (1 + np.exp(-found)), dtype=np.float32)


def outcomes_view(recent: RecentReports, table: Table, bundle: str) -> dict[str, Any]:
    """Return what /api/outcomes answers, see docs/how-to/console.md."""
    p = predicted(recent, table, bundle)
    oldest = recent.reports[-1].recorded_at if recent.reports else None
    return {
        "reports": len(recent.reports),
        "max_reports": MAX_REPORTS,
        "since": oldest,
        "spend": spend_view(recent.reports, table, p),
        "reliability": reliability_view(recent.reports, table, p),
    }


def spend_view(reports: Sequence[RecentReport], table: Table, p: Float32Array) -> dict[str, Any]:
    """Return what calls cost, and what the same calls would have cost with one candidate alone.

    Comparisons are left out: they are tests, and not production. A call costs what was reported,
    otherwise its tokens at today's prices.
    """
    calls, used, by_candidate = [], 0, defaultdict[str, list[tuple[Usage, float, float]]](list)
    for row, report in enumerate(reports):
        for name, usage in report.usage.items() if not report.compared else ():
            used += 1
            candidate = table.get(name)
            usd = _cost(usage, candidate)
            if usd is None:
                continue
            by_candidate[name].append((usage, usd, report.outcomes[name]))
            if candidate is not None and None not in (usage.input_tokens, usage.output_tokens):
                tokens = usage.input_tokens or 0, usage.output_tokens or 0
                calls.append(PricedCall(row, name, *tokens, usd))
    shown = [
        {
            "candidate": name,
            "calls": len(found),
            "input_tokens": sum(usage.input_tokens or 0 for usage, _, _ in found),
            "output_tokens": sum(usage.output_tokens or 0 for usage, _, _ in found),
            "usd": sum(usd for _, usd, _ in found),
            "score": _mean(np.array([score for usage, _, score in found if not usage.error])),
        }
        for name, found in by_candidate.items()
    ]
    return {
        "outcomes": sum(len(r.outcomes) for r in reports if not r.compared),
        "with_usage": used,
        "calls": sum(len(found) for found in by_candidate.values()),
        "usd": sum(entry["usd"] for entry in shown),
        "candidates": sorted(shown, key=lambda entry: (-entry["usd"], entry["candidate"])),
        "compared": {
            "calls": len(calls),
            "usd": sum(call.usd for call in calls),
            "probability": _mean(
                p[[c.row for c in calls], [table.rows[c.candidate] for c in calls]]
            ),
        },
        "always": always(calls, table, p),
    }


def always(calls: Sequence[PricedCall], table: Table, p: Float32Array) -> list[dict[str, Any]]:
    """Return what each candidate would have cost for all of `calls`; the most probable one first.

    It reads as many tokens as the one that was called. Its answers are longer in the ratio of the
    two candidates' mean answer lengths, and as long if one of these is not known.
    """
    if not calls:
        return []
    rows = [call.row for call in calls]
    read = np.array([call.input_tokens for call in calls], dtype=np.float64)
    written = np.array([call.output_tokens for call in calls], dtype=np.float64)
    own = np.array([_length(table.get(call.candidate)) for call in calls])
    found = []
    for column, candidate in enumerate(table.candidates):
        prices = candidate.input_usd_per_million, candidate.output_usd_per_million
        scored = p[rows, column]
        known = np.isfinite(scored)
        if None in prices or known.mean() < MIN_SCORED:
            continue
        ratio = np.nan_to_num(_length(candidate) / own, nan=1.0)
        input_usd, output_usd = (price or 0.0 for price in prices)
        usd = float((read * input_usd + written * ratio * output_usd).sum()) / MILLION
        found.append({"candidate": candidate.id, "usd": usd, "probability": _mean(scored)})
    return sorted(found, key=lambda entry: (-entry["probability"], entry["usd"]))


def reliability_view(
    reports: Sequence[RecentReport], table: Table, p: Float32Array
) -> dict[str, Any]:
    """Compare outcomes with probabilities, for all candidates together and for each.

    Calls that failed are left out: their scores say nothing about answers.
    """
    pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    unknown = 0
    for row, report in enumerate(reports):
        for name, score in report.outcomes.items():
            if name in report.usage and report.usage[name].error:
                continue
            probability = p[row, table.rows[name]] if name in table.rows else np.nan
            if np.isfinite(probability):
                pairs[name].append((float(probability), score))
            else:
                unknown += 1
    shown = [{"candidate": name, **_reliability(found)} for name, found in pairs.items()]
    everything = [pair for found in pairs.values() for pair in found]
    return {
        "without_prediction": unknown,
        "all": _reliability(everything) if everything else None,
        "candidates": sorted(shown, key=lambda entry: (-entry["outcomes"], entry["candidate"])),
    }


def _reliability(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """standard_error: of observed - predicted. bins: by rising probability, as many in each."""
    ordered = np.array(sorted(pairs), dtype=np.float64)
    count = max(1, min(MAX_BINS, len(ordered) // BIN_OUTCOMES))
    return {
        "outcomes": len(ordered),
        "predicted": _mean(ordered[:, 0]),
        "observed": _mean(ordered[:, 1]),
        "standard_error": _standard_error(ordered),
        "bins": [
            {
                "predicted": _mean(part[:, 0]),
                "observed": _mean(part[:, 1]),
                "outcomes": len(part),
                "standard_error": _standard_error(part),
            }
            for part in np.array_split(ordered, count)
        ],
    }


def _cost(usage: Usage, candidate: Candidate | None) -> float | None:
    """Return what a call cost in US dollars, None if that is not known."""
    if usage.cost_usd is not None:
        return usage.cost_usd
    if candidate is None:
        return None
    numbers = (
        usage.input_tokens,
        candidate.input_usd_per_million,
        usage.output_tokens,
        candidate.output_usd_per_million,
    )
    if None in numbers:
        return None
    read, input_usd, written, output_usd = (number or 0.0 for number in numbers)
    return (read * input_usd + written * output_usd) / MILLION


def _length(candidate: Candidate | None) -> float:
    """Return the mean answer length in tokens, NaN if it is not known."""
    return (candidate and candidate.mean_output_tokens) or np.nan


def _mean(values: Float32Array | Float64Array) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def _standard_error(pairs: Float64Array) -> float:
    """Return that of the mean of score - probability, of (K, 2) pairs of probability and score.

    It is not below what outcomes of 0 and 1 would have if the probabilities were right: a few equal
    outcomes have no variance, and prove little.
    """
    p, scores = pairs.T
    variance = max(float((scores - p).var()), float((p * (1 - p)).mean()))
    return float(np.sqrt(variance / len(p)))
