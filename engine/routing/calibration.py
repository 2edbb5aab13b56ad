"""Recommend the willingness to pay that meets a target on a user's own outcomes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from engine.api.candidate import DEFAULT_OUTPUT_TOKENS
from engine.api.errors import InvalidInputError, Violation
from engine.bundle.types import FloatArray, Int64Array
from engine.datasets.outcomes import Outcomes, read_outcomes
from engine.inference.offline import score_outcomes
from engine.registry.catalog import costs_of, read_catalog
from engine.routing import tradeoff
from engine.routing.off_policy import Estimate, LoggedOutcomes, OffPolicyEstimates, estimate
from engine.routing.tradeoff import OperatingPoint

ROUNDING = 1 + 1e-9  # the same costs added in another order have another sum
# What an off-policy estimate must be worth, and must cover, to be recommended.
MIN_EFFECTIVE_OUTCOMES, MIN_COVERAGE = 30, 0.5
# Standard error of the mean prediction of a candidate without outcomes; ECE of unseen kinds.
LARGEST_ERROR = 0.1
# How accuracies are found: "measured" on instructions with the outcomes of all candidates, or
# estimated from single outcomes: of a server that explores, see off_policy, or of any server, see
# assisted_estimate.
Estimator = Literal["measured", "inverse-propensity", "doubly-robust", "model-assisted"]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)


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
    recommended one, None if no willingness to pay meets the target. unevaluated_most_expensive:
    ID of the catalog's most expensive candidate if it costs more than all evaluated ones: if it is
    eligible, requests may go to it as well, and cost more than the curve says.
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
    return _recommend(accuracy, cost, tradeoff.curve(p, outcomes, costs), names, target)


def recommend_from_log(
    p: FloatArray,
    outcomes: FloatArray,
    propensities: FloatArray | None,
    costs: FloatArray,
    names: list[str],
    target: CalibrationTarget,
    estimator: Estimator,
) -> Recommendation:
    """Recommend as `recommend` does, from outcomes of one candidate a request.

    What is worth fewer than MIN_EFFECTIVE_OUTCOMES, or covered by less than MIN_COVERAGE, is not
    the best candidate, and not recommended.

    Args:
        p: (B, M) success probabilities.
        outcomes: (B, M), NaN where none is known.
        propensities: (B, M), NaN where none is known; see Outcomes. None for "model-assisted".
        costs: (B, M) in US dollars, all known.
        names: (M,) of the candidates.
        target: to meet.
        estimator: not "measured".

    Raises:
        InvalidInputError: no candidate has enough outcomes.
    """

    def point(selected: Int64Array, willingness: float) -> OperatingPoint:
        if propensities is None:
            found = assisted_estimate(p, outcomes, selected)
        else:
            found = estimate_choices(p, outcomes, propensities, selected)
        is_weighted = estimator == "inverse-propensity"
        accuracy = found.inverse_propensity if is_weighted else found.doubly_robust
        shares = np.bincount(selected, minlength=len(names)) / len(selected)
        cost = float(costs[np.arange(len(selected)), selected].mean())
        return OperatingPoint(
            willingness,
            accuracy.value,
            cost,
            shares,
            accuracy.standard_error,
            found.effective_outcomes,
            found.coverage,
        )

    alone = [point(np.full(len(p), m), np.inf) for m in range(len(names))]
    if not any(map(_is_known, alone)):
        most = max(alone, key=lambda x: x.effective_outcomes or 0.0)
        raise InvalidInputError(
            Violation(
                "outcomes" if propensities is None else "outcomes with propensities",
                f"are worth at most {most.effective_outcomes:.0f} outcomes of one candidate, which"
                f" could be drawn for {most.coverage:.0%} of the requests; at least"
                f" {MIN_EFFECTIVE_OUTCOMES} and {MIN_COVERAGE:.0%} are needed. Explore longer, or"
                " with a larger --exploration-max-loss, or record comparisons.",
            )
        )
    accuracy = np.array([x.accuracy if _is_known(x) else -np.inf for x in alone])
    points = [point(tradeoff.select(p, costs, w), w) for w in tradeoff.WILLINGNESSES_USD]
    return _recommend(accuracy, costs.mean(axis=0), points, names, target)


def estimate_choices(
    p: FloatArray, outcomes: FloatArray, propensities: FloatArray, selected: Int64Array
) -> OffPolicyEstimates:
    """Estimate what (B,) selected columns would have given; arrays as in recommend_from_log."""
    rows = np.arange(len(selected))
    outcome, propensity = outcomes[rows, selected], propensities[rows, selected]
    predicted = p[rows, selected].astype(np.float64)
    same = ~(np.isnan(outcome) | np.isnan(propensity))
    logged = LoggedOutcomes(
        np.where(same, outcome, 0.0), np.where(same, propensity, 1.0), predicted
    )
    return estimate(logged, same, predicted)


def assisted_estimate(
    p: FloatArray, outcomes: FloatArray, selected: Int64Array
) -> OffPolicyEstimates:
    """Estimate what (B,) selected columns would have given, from outcomes without propensities.

    It is the mean predicted probability of the choices plus, for each candidate by its share of
    them, the mean of outcome minus prediction over its own outcomes (the model-assisted difference
    estimator of survey sampling; C.-E. Sarndal et al., 1992). It is right if a candidate errs
    alike on the requests that it had and on those that it would have, which a server cannot test
    that does not explore. coverage: share of the choices of candidates with
    MIN_EFFECTIVE_OUTCOMES outcomes; the others are taken at their predictions.
    """
    rows, count = np.arange(len(selected)), p.shape[1]
    shares = np.bincount(selected, minlength=count) / len(selected)
    value = float(p[rows, selected].mean(dtype=np.float64))
    variance = float(p[rows, selected].var(dtype=np.float64)) / len(selected)
    covered, spread = 0.0, 0.0
    for column in np.flatnonzero(shares):
        measured = ~np.isnan(outcomes[:, column])
        error = (outcomes[measured, column] - p[measured, column]).astype(np.float64)
        share = float(shares[column])
        if len(error) < MIN_EFFECTIVE_OUTCOMES:
            variance += share**2 * LARGEST_ERROR**2
            continue
        value += share * float(error.mean())
        variance += share**2 * float(error.var(ddof=1)) / len(error)
        covered += share
        spread += share**2 / len(error)
    found = Estimate(value, math.sqrt(variance))
    worth = covered**2 / spread if spread else 0.0
    nothing = Estimate(math.nan, math.nan)
    return OffPolicyEstimates(nothing, found, len(selected), worth, covered)


def _is_known(point: OperatingPoint) -> bool:
    if point.effective_outcomes is None or point.coverage is None:
        return True
    enough = point.effective_outcomes >= MIN_EFFECTIVE_OUTCOMES
    return enough and point.coverage >= MIN_COVERAGE


def _recommend(
    accuracy: FloatArray,
    cost: FloatArray,
    points: list[OperatingPoint],
    names: list[str],
    target: CalibrationTarget,
) -> Recommendation:
    """accuracy, cost: (M,) of each candidate alone."""
    best = int(accuracy.argmax())
    known = [x for x in points if _is_known(x)]
    if target.min_accuracy_ratio is not None:
        point = tradeoff.cheapest_at(known, target.min_accuracy_ratio * float(accuracy[best]))
    else:
        limit = (target.max_cost_ratio or 0.0) * float(cost[best]) * ROUNDING
        affordable = [x for x in known if x.cost <= limit]
        point = max(affordable, key=lambda x: (x.accuracy, -x.cost)) if affordable else None
    return Recommendation(
        names, names[best], float(accuracy[best]), float(cost[best]), points, point
    )


def calibrate(
    bundle: Path,
    data: Path,
    catalog: Path,
    target: CalibrationTarget,
    estimator: Estimator = "measured",
) -> Recommendation:
    """Score a data folder with a bundle, and recommend by its outcomes.

    Args:
        bundle: folder that `make export` wrote.
        data: folder of recorded outcomes.
        catalog: JSON file of candidates with prices.
        target: to meet.
        estimator: how accuracies are found.

    Raises:
        InvalidInputError: fewer than two candidates have prices and, if accuracies are measured,
            outcomes of the same instructions; or the folder has too few propensities to estimate.
    """
    outcomes = read_outcomes(data)
    scored = score_outcomes(bundle, outcomes)
    costs = costs_of(outcomes, scored.input_tokens, catalog, DEFAULT_OUTPUT_TOKENS)
    priced = np.flatnonzero(~np.isnan(costs).any(axis=0))
    if len(priced) < 2:
        raise InvalidInputError(_too_few_prices(outcomes, catalog, len(priced)))
    if estimator == "measured":
        subset = tradeoff.largest_complete_subset(outcomes.scores[priced].T)
        if len(subset.candidates) < 2:
            raise InvalidInputError(_too_few_common(data, outcomes.scores[priced]))
        rows, columns = subset.rows, priced[subset.candidates]
    elif estimator == "model-assisted":
        columns = priced
        rows = np.flatnonzero(~np.isnan(outcomes.scores[priced]).all(axis=0))
    else:
        rows, columns = _logged_rows(data, outcomes), priced
    part = np.ix_(rows, columns)
    names = [outcomes.candidates[i] for i in columns]
    p, scores = scored.p[part], outcomes.scores.T[part]
    if estimator == "measured":
        recommendation = recommend(p, scores, costs[part], names, target)
    else:
        propensities = None
        if estimator != "model-assisted" and outcomes.propensities is not None:
            propensities = outcomes.propensities.T[part]
        recommendation = recommend_from_log(
            p, scores, propensities, costs[part], names, target, estimator
        )
    max_cost = float(costs[part].mean(axis=0).max())
    most_expensive = _more_expensive(catalog, scored.input_tokens[rows], max_cost)
    return replace(recommendation, unevaluated_most_expensive=most_expensive)


def _logged_rows(data: Path, outcomes: Outcomes) -> Int64Array:
    """Return the instructions that a server routed while it explored."""
    if outcomes.propensities is None:
        raise InvalidInputError(
            Violation(
                str(data),
                "has no propensities; `modelsat outcomes export` writes them if the server explored"
                " (--exploration-share).",
            )
        )
    is_logged = ~np.isnan(outcomes.propensities) & ~np.isnan(outcomes.scores)
    return np.flatnonzero(is_logged.any(axis=0))


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
        " 2 candidates and record the outcomes, or add --estimator model-assisted.",
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
        off_policy = {
            "standard_error": x.standard_error,
            "effective_outcomes": x.effective_outcomes,
            "coverage": x.coverage,
        }
        return {
            "willingness_to_pay_usd": tradeoff.finite(x.willingness_to_pay_usd),
            "accuracy": x.accuracy,
            **({} if x.standard_error is None else off_policy),
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
