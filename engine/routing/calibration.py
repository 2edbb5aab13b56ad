"""Recommend the cost sensitivity that meets a target on a user's own outcomes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.api.candidate import DEFAULT_OUTPUT_TOKENS
from engine.api.errors import InvalidInputError, Violation
from engine.bundle.types import FloatArray, Int64Array
from engine.datasets.outcomes import Outcomes, read_outcomes
from engine.inference.offline import score_outcomes
from engine.registry.catalog import costs_of, read_catalog
from engine.routing import tradeoff
from engine.routing.tradeoff import OperatingPoint

ROUNDING = 1 + 1e-9  # the same costs added in another order have another sum


@dataclass(frozen=True)
class Target:
    """At least `quality` of the best single candidate's accuracy, at most `cost` of its cost; one
    of them is None."""

    quality: float | None
    cost: float | None


@dataclass(frozen=True)
class Recommendation:
    """point: None where no sensitivity meets the target. best, accuracy, cost: of the best single
    candidate among `candidates`; accuracy in [0, 1], cost in US dollars a request. dearer: id of
    the catalog's most expensive candidate if it costs more than all of `candidates`: a sensitivity
    weighs costs against the highest, so with that one eligible the same value saves less."""

    candidates: list[str]
    best: str
    accuracy: float
    cost: float
    points: list[OperatingPoint]
    point: OperatingPoint | None
    dearer: str | None = None


def recommend(
    p: FloatArray, scores: FloatArray, costs: FloatArray, names: list[str], to: Target
) -> Recommendation:
    """p, scores, costs: (B, M) without gaps; the cheapest point that is good enough, or the best
    one that is cheap enough."""
    accuracy, cost = tradeoff.single_candidate_baselines(scores, costs)
    best = int(accuracy.argmax())
    points = tradeoff.curve(p, scores, costs)
    if to.quality is not None:
        chosen = tradeoff.cheapest_at(points, to.quality * float(accuracy[best]))
    else:
        limit = (to.cost or 0.0) * float(cost[best]) * ROUNDING
        cheap = [x for x in points if x.cost <= limit]
        chosen = max(cheap, key=lambda x: (x.accuracy, -x.cost)) if cheap else None
    return Recommendation(
        names, names[best], float(accuracy[best]), float(cost[best]), points, chosen
    )


def calibrate(bundle: Path, data: Path, catalog: Path, to: Target) -> Recommendation:
    """Score `data` through `bundle` and recommend; `catalog` has the prices.

    Raises InvalidInputError where fewer than two candidates have prices and common outcomes.
    """
    outcomes = read_outcomes(data)
    scored = score_outcomes(bundle, outcomes)
    costs = costs_of(outcomes, scored.input_tokens, catalog, DEFAULT_OUTPUT_TOKENS)
    priced = np.flatnonzero(~np.isnan(costs).any(axis=0))
    if len(priced) < 2:
        raise InvalidInputError(_too_few(outcomes, catalog, len(priced)))
    block = tradeoff.largest_complete_subset(outcomes.scores[priced].T)
    if len(block.candidates) < 2:
        raise InvalidInputError(_too_scattered(data, outcomes.scores[priced]))
    part = np.ix_(block.rows, priced[block.candidates])
    names = [outcomes.candidates[i] for i in priced[block.candidates]]
    found = recommend(scored.p[part], outcomes.scores.T[part], costs[part], names, to)
    dearest = float(costs[part].mean(axis=0).max())
    return replace(found, dearer=_dearer(catalog, scored.input_tokens[block.rows], dearest))


def _dearer(catalog: Path, input_tokens: Int64Array, dearest: float) -> str | None:
    """The catalog's most expensive candidate on these instructions, if it costs more than
    `dearest`, the highest mean cost of a judged one; no judged one does,
    so names need not be matched."""
    means = {}
    for candidate in read_catalog(catalog):
        costs = [candidate.expected_cost_usd(int(t), DEFAULT_OUTPUT_TOKENS) for t in input_tokens]
        means[candidate.id] = sum(c or 0.0 for c in costs) / len(costs)
    most = max(means, key=lambda name: means[name])
    return most if means[most] > dearest * ROUNDING else None


def _too_scattered(data: Path, scores: FloatArray) -> Violation:
    shared = int(((~np.isnan(scores)).sum(axis=0) > 1).sum())
    return Violation(
        str(data),
        f"has {shared} instructions measured for two or more of the {len(scores)} candidates with"
        " prices, and none for all of those measured most often; a choice can only be judged where"
        " its alternatives were measured too. Send the same instructions to at least 2 candidates"
        " and record what came of each.",
    )


def _too_few(outcomes: Outcomes, catalog: Path, priced: int) -> Violation:
    return Violation(
        str(catalog),
        f"has prices for {priced} of {outcomes.candidates[:5]}...; at least 2 are needed. Give"
        " --catalog a file whose display_name or id is the candidate's name in the data.",
    )


def shares(x: OperatingPoint, found: Recommendation) -> tuple[float | None, float | None]:
    """Of the best single candidate's accuracy and of its cost; None where that is 0."""
    return (
        x.accuracy / found.accuracy if found.accuracy else None,
        x.cost / found.cost if found.cost else None,
    )


def as_dict(found: Recommendation) -> dict[str, Any]:
    """What --json prints."""

    def shown(x: OperatingPoint) -> dict[str, Any]:
        quality, cost_share = shares(x, found)
        top = {n: round(float(s), 4) for n, s in zip(found.candidates, x.shares, strict=True) if s}
        return {
            "cost_sensitivity": x.sensitivity,
            "accuracy": x.accuracy,
            "cost_usd": x.cost,
            "quality": quality,
            "cost_share": cost_share,
            "chosen": top,
        }

    return {
        "best_single": {
            "candidate": found.best,
            "accuracy": found.accuracy,
            "cost_usd": found.cost,
        },
        "candidates": found.candidates,
        "unevaluated_most_expensive": found.dearer,
        "recommended": None if found.point is None else shown(found.point),
        "curve": [shown(x) for x in found.points],
    }
