"""What the console shows of the adaptation: its learning curve, and where it differs most.

Shapes: N recent decisions, M candidates of a decision, D width, K regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.adaptation.adaptation import Adaptation
from engine.adaptation.recent_decisions import RecentDecision, RecentDecisions
from engine.adaptation.source import FitRecord, Neighbor
from engine.bundle.types import Float32Array, Int64Array
from engine.registry.table import Table

MAX_DECISIONS = 300  # of which regions are made; each is corrected again
MAX_REGIONS = 8
MIN_COVERAGE = 0.5  # of a region, to be named after what is remembered near it
MIN_SIZE = 5  # decisions of a region on average
ROUNDS = 20  # of k-means, which moves little after a few
SHOWN_CANDIDATES = 3


@dataclass(frozen=True, eq=False)
class Region:
    """Decisions on similar instructions.

    decisions: their number. changed: share of them in which the candidate of the highest
    probability is another one than by the weights. shift: mean absolute difference of the
    probabilities. coverage: mean of CorrectedScores.coverage. candidates: ID -> mean probability
    before and after, those that differ most. center: (D,) embedding of the instruction that is in
    the middle.
    """

    decisions: int
    changed: float
    shift: float
    coverage: float
    candidates: dict[str, tuple[float, float]]
    center: Float32Array


def regions(
    decisions: Sequence[RecentDecision], adaptation: Adaptation, table: Table
) -> list[Region]:
    """Group recent decisions by instruction; those that the adaptation changes most come first.

    table: whose match the probabilities before are by.
    """
    if len(decisions) < MIN_SIZE:
        return []
    embeddings = np.stack([each.scored.embedding for each in decisions]).astype(np.float32)
    corrected = [_corrected(each, adaptation, table) for each in decisions]
    found = []
    for members in clusters(embeddings, min(MAX_REGIONS, len(decisions) // MIN_SIZE)):
        shown = [corrected[i] for i in members]
        middle = embeddings[members].mean(axis=0)
        nearest = members[np.argmin(((embeddings[members] - middle) ** 2).sum(axis=1))]
        found.append(_region(shown, embeddings[nearest]))
    return sorted(found, key=lambda region: -region.shift)


def clusters(embeddings: Float32Array, count: int) -> list[Int64Array]:
    """Split (N, D) embeddings into at most `count` groups of positions by k-means.

    It begins with points far from each other (S. Dasgupta and P. Long's farthest-first traversal),
    so that the same embeddings always give the same groups.
    """
    points = embeddings - embeddings.mean(axis=0)
    points /= np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-9)
    centers = points[:1]
    while len(centers) < count:
        farthest = _distances(points, centers).min(axis=1).argmax()
        centers = np.concatenate([centers, points[farthest : farthest + 1]])
    for _ in range(ROUNDS):
        nearest = _distances(points, centers).argmin(axis=1)
        means = [points[nearest == k].mean(axis=0) for k in range(count) if (nearest == k).any()]
        centers, count = np.stack(means), len(means)
    nearest = _distances(points, centers).argmin(axis=1)
    groups = [np.flatnonzero(nearest == k) for k in range(count)]
    return [group for group in groups if len(group)]


def curve_view(history: Sequence[FitRecord]) -> list[dict[str, Any]]:
    """Return a point for each fit of the past, oldest first. as_of: Unix time in seconds."""
    return [
        {
            "id": fit.id,
            "active": fit.active,
            "instructions": fit.figures.instructions,
            "log_loss_before": fit.figures.log_loss_before,
            "log_loss_after": fit.figures.log_loss_after,
            "standard_error": fit.figures.standard_error,
            "as_of": fit.figures.as_of,
        }
        for fit in reversed(history)
    ]


def region_view(region: Region, neighbors: Sequence[Neighbor]) -> dict[str, Any]:
    """Return a region with the categories of the outcomes nearest to its middle."""
    near = neighbors if region.coverage >= MIN_COVERAGE else ()
    return {
        "decisions": region.decisions,
        "changed": region.changed,
        "shift": region.shift,
        "coverage": region.coverage,
        "categories": sorted({each.category for each in near if each.category}),
        "candidates": [
            {"candidate": name, "before": before, "after": after}
            for name, (before, after) in region.candidates.items()
        ],
    }


def _corrected(
    decision: RecentDecision, adaptation: Adaptation, table: Table
) -> tuple[dict[str, tuple[float, float]], float]:
    """Return candidate ID -> probability before and after; and the coverage."""
    scored = decision.scored
    ids, base = RecentDecisions.before_correction(scored, table)
    after = adaptation.correct(scored.embedding.astype(np.float32), base, ids)
    pairs = {name: (float(base[i]), float(after.p[i])) for i, name in enumerate(ids)}
    return pairs, after.coverage


def _region(
    corrected: Sequence[tuple[dict[str, tuple[float, float]], float]], center: Float32Array
) -> Region:
    changed, shifts = 0, []
    by_candidate: dict[str, list[tuple[float, float]]] = {}
    for pair, _ in corrected:
        best = [max(pair, key=lambda name, at=at: (pair[name][at], name)) for at in (0, 1)]  # type: ignore[misc]
        changed += best[0] != best[1]
        for name, values in pair.items():
            by_candidate.setdefault(name, []).append(values)
            shifts.append(abs(values[1] - values[0]))
    means = {
        name: (float(np.mean([v[0] for v in values])), float(np.mean([v[1] for v in values])))
        for name, values in by_candidate.items()
    }
    movers = sorted(means, key=lambda name: -abs(means[name][1] - means[name][0]))
    shown = {name: means[name] for name in movers[:SHOWN_CANDIDATES]}
    shift = float(np.mean(shifts)) if shifts else 0.0
    count, coverage = len(corrected), float(np.mean([covered for _, covered in corrected]))
    return Region(count, changed / count, shift, coverage, shown, center)


def _distances(points: Float32Array, centers: Float32Array) -> Float32Array:
    """Return (N, K) squared distances, up to a constant of each point."""
    squares = (centers**2).sum(axis=1) - 2 * points @ centers.T
    return np.asarray(squares, dtype=np.float32)
