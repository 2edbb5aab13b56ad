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
class CalibrationTarget:
    """What to reach, relative to the best single candidate: at least `min_accuracy_ratio` of its
    accuracy, or at most `max_cost_ratio` of its cost. One of them is None."""

    min_accuracy_ratio: float | None
    max_cost_ratio: float | None


@dataclass(frozen=True)
class Recommendation:
    """An operating point, and what it was chosen from.

    candidates: names of the evaluated ones. best, accuracy, cost: name of the best single one, its
    accuracy in [0, 1] and its cost in US dollars a request. points: the whole curve. point: the
    recommended one, None if no cost sensitivity meets the target. unevaluated_most_expensive: ID of
    the catalog's most expensive candidate if it costs more than all evaluated ones. A cost
    sensitivity weighs costs against the highest of the eligible candidates, so with that one
    eligible the same value saves less.
    """

    candidates: list[str]
    best: str
    accuracy: float
    cost: float
    points: list[OperatingPoint]
    point: OperatingPoint | None
    unevaluated_most_expensive: str | None = None


def recommend(
    p: FloatArray,
    outcomes: FloatArray,
    costs: FloatArray,
    names: list[str],
    target: CalibrationTarget,
) -> Recommendation:
    """Recommend the cheapest point that is accurate enough, or the most accurate cheap enough one.

    Args:
        p: (B, M) success probabilities.
        outcomes: (B, M), all measured.
        costs: (B, M) in US dollars, all known.
        names: (M,) of the candidates.
        target: to meet.
    """
    accuracy, cost = tradeoff.single_candidate_baselines(outcomes, costs)
    best = int(accuracy.argmax())
    points = tradeoff.curve(p, outcomes, costs)
    if target.min_accuracy_ratio is not None:
        point = tradeoff.cheapest_at(points, target.min_accuracy_ratio * float(accuracy[best]))
    else:
        limit = (target.max_cost_ratio or 0.0) * float(cost[best]) * ROUNDING
        affordable = [x for x in points if x.cost <= limit]
        point = max(affordable, key=lambda x: (x.accuracy, -x.cost)) if affordable else None
    return Recommendation(
        names, names[best], float(accuracy[best]), float(cost[best]), points, point
    )


def calibrate(bundle: Path, data: Path, catalog: Path, target: CalibrationTarget) -> Recommendation:
    """Score a data folder with a bundle, and recommend by its outcomes.

    Args:
        bundle: folder that `make export` wrote.
        data: folder of recorded outcomes.
        catalog: JSON file of candidates with prices.
        target: to meet.

    Raises:
        InvalidInputError: fewer than two candidates have prices and outcomes of the same
            instructions.
    """
    outcomes = read_outcomes(data)
    scored = score_outcomes(bundle, outcomes)
    costs = costs_of(outcomes, scored.input_tokens, catalog, DEFAULT_OUTPUT_TOKENS)
    priced = np.flatnonzero(~np.isnan(costs).any(axis=0))
    if len(priced) < 2:
        raise InvalidInputError(_too_few_prices(outcomes, catalog, len(priced)))
    subset = tradeoff.largest_complete_subset(outcomes.scores[priced].T)
    if len(subset.candidates) < 2:
        raise InvalidInputError(_too_few_common(data, outcomes.scores[priced]))
    part = np.ix_(subset.rows, priced[subset.candidates])
    names = [outcomes.candidates[i] for i in priced[subset.candidates]]
    recommendation = recommend(scored.p[part], outcomes.scores.T[part], costs[part], names, target)
    max_cost = float(costs[part].mean(axis=0).max())
    most_expensive = _more_expensive(catalog, scored.input_tokens[subset.rows], max_cost)
    return replace(recommendation, unevaluated_most_expensive=most_expensive)


def _more_expensive(catalog: Path, input_tokens: Int64Array, max_cost: float) -> str | None:
    """Return the ID of the catalog's most expensive candidate on these instructions if its mean
    cost exceeds `max_cost`, the highest of the evaluated ones. None of those exceeds it, so names
    of catalog and data need not be matched."""
    means = {}
    for candidate in read_catalog(catalog):
        costs = [candidate.expected_cost_usd(int(t), DEFAULT_OUTPUT_TOKENS) for t in input_tokens]
        means[candidate.id] = sum(c or 0.0 for c in costs) / len(costs)
    most_expensive = max(means, key=lambda name: means[name])
    return most_expensive if means[most_expensive] > max_cost * ROUNDING else None


def _too_few_common(data: Path, scores: FloatArray) -> Violation:
    shared = int(((~np.isnan(scores)).sum(axis=0) > 1).sum())
    return Violation(
        str(data),
        f"has {shared} instructions measured for two or more of the {len(scores)} candidates with"
        " prices, and none measured for all of the most often measured ones. A choice can only be"
        " compared with alternatives that were measured too: send the same instructions to at least"
        " 2 candidates and record the outcomes.",
    )


def _too_few_prices(outcomes: Outcomes, catalog: Path, priced: int) -> Violation:
    return Violation(
        str(catalog),
        f"has prices for {priced} of {outcomes.candidates[:5]}...; at least 2 are needed. Give a"
        " catalog in which display_name or id is the candidate's name in the data.",
    )


def shares(x: OperatingPoint, recommendation: Recommendation) -> tuple[float | None, float | None]:
    """Return accuracy and cost of a point, as shares of the best single candidate's; None if that
    is 0."""
    return (
        x.accuracy / recommendation.accuracy if recommendation.accuracy else None,
        x.cost / recommendation.cost if recommendation.cost else None,
    )


def as_dict(recommendation: Recommendation) -> dict[str, Any]:
    """Return what `modelsat calibrate --json` prints."""

    def point_dict(x: OperatingPoint) -> dict[str, Any]:
        accuracy_ratio, cost_ratio = shares(x, recommendation)
        pairs = zip(recommendation.candidates, x.shares, strict=True)
        return {
            "cost_sensitivity": x.sensitivity,
            "accuracy": x.accuracy,
            "cost_usd": x.cost,
            "accuracy_ratio": accuracy_ratio,
            "cost_ratio": cost_ratio,
            "selection_share": {name: round(float(share), 4) for name, share in pairs if share},
        }

    point = recommendation.point
    return {
        "best_single": {
            "candidate": recommendation.best,
            "accuracy": recommendation.accuracy,
            "cost_usd": recommendation.cost,
        },
        "candidates": recommendation.candidates,
        "unevaluated_most_expensive": recommendation.unevaluated_most_expensive,
        "recommended": None if point is None else point_dict(point),
        "curve": [point_dict(x) for x in recommendation.points],
    }
