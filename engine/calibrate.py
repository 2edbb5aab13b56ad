"""`modelsat calibrate`: the cost sensitivity that meets a target on a user's own outcomes."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine import tradeoff
from engine.contract.candidate import DEFAULT_ANSWER_TOKENS
from engine.contract.errors import InvalidInputError, Violation
from engine.contract.outcomes import Outcomes, read_outcomes
from engine.registry.prices import costs_of
from engine.scoring.offline import score_outcomes
from engine.tradeoff import Point

if TYPE_CHECKING:
    from rich.console import Console

Floats = NDArray[np.floating[Any]]


HELP = "the cost sensitivity that meets a target on your own outcomes"
BUNDLE = Path("artifacts/bundle")


@dataclass(frozen=True)
class Target:
    """At least `quality` of the best single candidate's accuracy, at most `cost` of its cost; one
    of them is None."""

    quality: float | None
    cost: float | None


@dataclass(frozen=True)
class Recommendation:
    """point: None where no sensitivity meets the target. best, accuracy, cost: of the best single
    candidate among `candidates`; accuracy in [0, 1], cost in US dollars a request."""

    candidates: list[str]
    best: str
    accuracy: float
    cost: float
    points: list[Point]
    point: Point | None


def recommend(
    p: Floats, scores: Floats, costs: Floats, names: list[str], to: Target
) -> Recommendation:
    """p, scores, costs: (B, M) without gaps; the cheapest point that is good enough, or the best
    one that is cheap enough."""
    accuracy, cost = tradeoff.singles(scores, costs)
    best = int(accuracy.argmax())
    points = tradeoff.curve(p, scores, costs)
    if to.quality is not None:
        chosen = tradeoff.cheapest_at(points, to.quality * float(accuracy[best]))
    else:
        limit = (to.cost or 0.0) * float(cost[best])
        cheap = [x for x in points if x.cost <= limit]
        chosen = max(cheap, key=lambda x: x.accuracy) if cheap else None
    return Recommendation(
        names, names[best], float(accuracy[best]), float(cost[best]), points, chosen
    )


def calibrate(bundle: Path, data: Path, zoo: Path, to: Target) -> Recommendation:
    """Score `data` through `bundle` and recommend; `zoo` brings the prices.

    Raises InvalidInputError where fewer than two candidates have prices and common outcomes.
    """
    outcomes = read_outcomes(data)
    scored = score_outcomes(bundle, outcomes)
    costs = costs_of(outcomes, scored.input_tokens, zoo, DEFAULT_ANSWER_TOKENS)
    priced = np.flatnonzero(~np.isnan(costs).any(axis=0))
    if len(priced) < 2:
        raise InvalidInputError(_too_few(outcomes, zoo, len(priced)))
    block = tradeoff.full_block(outcomes.scores[priced].T)
    part = np.ix_(block.rows, priced[block.candidates])
    names = [outcomes.candidates[i] for i in priced[block.candidates]]
    return recommend(scored.p[part], outcomes.scores.T[part], costs[part], names, to)


def _too_few(outcomes: Outcomes, zoo: Path, priced: int) -> Violation:
    return Violation(
        str(zoo),
        f"has prices for {priced} of {outcomes.candidates[:5]}...; at least 2 are needed. Give"
        " --zoo a file whose display_name or id is the candidate's name in the data.",
    )


def as_dict(found: Recommendation) -> dict[str, Any]:
    """What --json prints."""

    def shown(x: Point) -> dict[str, Any]:
        top = {n: round(float(s), 4) for n, s in zip(found.candidates, x.shares, strict=True) if s}
        return {
            "cost_sensitivity": x.sensitivity,
            "accuracy": x.accuracy,
            "cost_usd": x.cost,
            "quality": x.accuracy / found.accuracy if found.accuracy else None,
            "cost_share": x.cost / found.cost if found.cost else None,
            "chosen": top,
        }

    return {
        "best_single": {
            "candidate": found.best,
            "accuracy": found.accuracy,
            "cost_usd": found.cost,
        },
        "recommended": None if found.point is None else shown(found.point),
        "curve": [shown(x) for x in found.points],
    }


def print_recommendation(found: Recommendation, console: Console) -> None:
    """The curve as a table, the recommended line marked."""
    from rich.table import Table

    table = Table()
    for heading in (
        "",
        "cost sensitivity",
        "accuracy",
        "of the best",
        "cost / 1,000",
        "of its cost",
    ):
        table.add_column(heading, justify="right")
    last = None
    for x in found.points:
        if last is not None and (x.accuracy, x.cost) == (last.accuracy, last.cost):
            continue  # the same choices as the line before
        last = x
        mark = "->" if found.point is not None and x.sensitivity == found.point.sensitivity else ""
        shares = (x.accuracy / found.accuracy, x.cost / found.cost)
        cells = [f"{x.sensitivity:.3g}", f"{x.accuracy:.4f}", f"{shares[0]:.1%}"]
        table.add_row(mark, *cells, f"${1e3 * x.cost:.4f}", f"{shares[1]:.1%}")
    console.print(table)
    console.print(
        f"the best single candidate is {found.best}: accuracy {found.accuracy:.4f},"
        f" ${1e3 * found.cost:.4f} for 1,000 requests"
    )
    if found.point is None:
        console.print("no cost sensitivity meets the target on these outcomes")
    else:
        console.print(f"-> cost sensitivity {found.point.sensitivity:.3g}")


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of `modelsat calibrate`."""
    add = command.add_argument
    add("--data", type=Path, required=True, help="outcomes; docs/architecture.md, Data folders")
    add("--bundle", type=Path, default=BUNDLE, help="folder that `make export` wrote")
    add("--zoo", type=Path, help="JSON file of candidates with prices; the bundle's own by default")
    add("--json", action="store_true", help="one JSON object in place of the table")
    goal = command.add_mutually_exclusive_group(required=True)
    goal.add_argument(
        "--min-quality", type=float, metavar="S", help="share of the best candidate's accuracy"
    )
    goal.add_argument("--max-cost", type=float, metavar="S", help="share of the best one's cost")
    command.set_defaults(run=_run)


def _run(parsed: argparse.Namespace) -> None:
    target = Target(parsed.min_quality, parsed.max_cost)
    zoo = parsed.zoo or parsed.bundle / "zoo.json"
    found = calibrate(parsed.bundle, parsed.data, zoo, target)
    if parsed.json:
        print(json.dumps(as_dict(found), ensure_ascii=False))
    else:
        from rich.console import Console

        print_recommendation(found, Console(highlight=False, markup=False))
