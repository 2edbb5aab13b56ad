"""Calibrate by the table that serves, and print what it is expected to give."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.api.conversation.conversation import Conversation
from engine.api.conversation.providers import APIS
from engine.api.errors import InvalidInputError, Violation
from engine.cli import server_flags
from engine.cli.calibrate import solve
from engine.cli.calibrate.live import LiveMix, LiveScores, LiveTable, read_traffic
from engine.cli.calibrate.solve import ExpectedPoint, TrafficTarget
from engine.cli.output import progress_bar, stdout_console
from engine.client.errors import ModelsatClientError
from engine.client.requests import Instruction
from engine.client.sync import Client
from engine.datasets.folder import DataFolder, read_folder
from engine.datasets.outcomes import circular_eval
from engine.routing import calibration, tradeoff
from engine.routing.calibration import CalibrationTarget, Estimator, Recommendation

if TYPE_CHECKING:
    from rich.console import Console

MAX_TRIES = 12  # at lower, or higher, values until the guarded choices meet the target too
STEP = 0.8
HALVINGS = 4  # back towards the last value that missed it


def run(parsed: argparse.Namespace) -> None:
    """Calibrate on --traffic, or on the outcomes of --data, by a server."""
    folder = None if parsed.data is None else read_folder(parsed.data)
    instructions, kept = _instructions(parsed, folder)
    with server_flags.connect(parsed) as client:
        _note_candidates(client, instructions, parsed.api)
        with progress_bar(len(instructions), resumes=False) as advance:
            table = LiveTable(client, instructions, advance, parsed.api)
            scores = table.score()
        answer: dict[str, Any] = {"requests": len(scores.rows), "skipped": dict(scores.skipped)}
        console = stdout_console()
        if folder is None:
            _on_traffic(parsed, table, scores, answer, console)
        else:
            _on_outcomes(parsed, folder, kept, table, scores, answer, console)
    if parsed.json:
        print(json.dumps(answer, ensure_ascii=False))


def _note_candidates(client: Client, instructions: Sequence[Instruction], api: str) -> None:
    """Say that candidates are set aside now, and that requests of one API have fewer candidates
    than those of a traffic without paths. api: as the user named it, or ""."""
    try:
        listed = [APIS.intersection(c.features) for c in client.list_candidates()]
        set_aside = client.set_aside()
    except ModelsatClientError as error:
        if error.code != "PERMISSION_DENIED":  # a token of the role `route` is enough
            raise
        return
    if set_aside:
        names = ", ".join(sorted(set_aside))
        note = f"warning: set aside now, and so not among the choices: {names}; try again later"
        print(note, file=sys.stderr)
    named = api or all(isinstance(i, Conversation) and i.needs.api for i in instructions)
    if not named and any(listed) and any(apis != listed[0] for apis in listed):
        note = "note: not all candidates answer in the same APIs, and a gateway chooses among those"
        note += " of a request's path; --api names it, such as --api openai.chat"
        print(note, file=sys.stderr)


def _instructions(
    parsed: argparse.Namespace, folder: DataFolder | None
) -> tuple[list[Instruction], list[int]]:
    if folder is None:
        return read_traffic(parsed.traffic, parsed.sample), []
    kept, _, _ = circular_eval(folder.records, folder.scores)
    count = min(len(kept), parsed.sample)
    kept = [kept[i * len(kept) // count] for i in range(count)]
    return [str(folder.records[row]["text"]) for row in kept], kept


def _on_traffic(
    parsed: argparse.Namespace,
    table: LiveTable,
    scores: LiveScores,
    answer: dict[str, Any],
    console: Console,
) -> None:
    p, costs = scores.p, scores.costs
    strong = _strong(parsed, scores)
    target = TrafficTarget(parsed.max_cost_ratio, parsed.min_accuracy_ratio, parsed.strong_share)
    best = solve.always(p, costs, strong)
    point = solve.solve(p, costs, target, strong)
    mix = None if point is None else guarded_mix(table, point, target, best, scores.names[strong])
    points = [
        solve.expected_point(p, costs, usd) for usd in (*solve.evenly_moving(p, costs), math.inf)
    ]
    answer |= {
        "best_single": {"candidate": scores.names[strong], **_values(best, best)},
        "recommended": None if mix is None else _mix_dict(mix, best),
        "curve": [_point_dict(x, scores.names, best) for x in points],
    }
    if not parsed.json:
        _print_curve(scores, points, best, scores.names[strong], console)
        _print_mix(mix, best, target, console)


def _strong(parsed: argparse.Namespace, scores: LiveScores) -> int:
    if parsed.strong is None:
        column = solve.best_candidate(scores.p, scores.costs)
        if column < 0:
            problem = "has no candidate with prices; `modelsat candidates update` sets them."
            raise InvalidInputError(Violation("the server", problem))
        return column
    if parsed.strong not in scores.names:
        problem = f"is {parsed.strong}, which is not eligible; see `modelsat candidates list`."
        raise InvalidInputError(Violation("--strong", problem))
    return scores.names.index(parsed.strong)


def guarded_mix(
    table: LiveTable, point: ExpectedPoint, target: TrafficTarget, best: ExpectedPoint, strong: str
) -> LiveMix:
    """Return the server's mix at a point, or if with its guard that misses the target, at the
    nearest value that meets it."""
    usd = missed = point.willingness_to_pay_usd
    mix = first = table.mix(usd)
    for _ in range(MAX_TRIES):
        if _meets(mix, target, best, strong) or usd == math.inf:
            break
        missed = usd
        usd = float(f"{usd * (STEP if target.max_cost_ratio is not None else 1 / STEP):.3g}")
        mix = table.mix(usd)
    else:
        return first
    for _ in range(HALVINGS if missed != usd else 0):
        middle = float(f"{math.sqrt(missed * usd):.3g}")
        nearer = table.mix(middle)
        if _meets(nearer, target, best, strong):
            usd, mix = middle, nearer
        else:
            missed = middle
    return mix


def _meets(mix: LiveMix, target: TrafficTarget, best: ExpectedPoint, strong: str) -> bool:
    tolerance = 1e-6
    if target.max_cost_ratio is not None:
        return mix.cost <= target.max_cost_ratio * best.cost * (1 + tolerance)
    if target.min_probability_ratio is not None:
        return mix.probability >= target.min_probability_ratio * best.probability - tolerance
    if target.strong_share is not None:
        return mix.shares.get(strong, 0.0) >= target.strong_share - tolerance
    return True


def _on_outcomes(
    parsed: argparse.Namespace,
    folder: DataFolder,
    kept: list[int],
    table: LiveTable,
    scores: LiveScores,
    answer: dict[str, Any],
    console: Console,
) -> None:
    recommendation, left_out = _recommend(parsed, folder, kept, scores)
    point = recommendation.point
    mix = None if point is None else table.mix(point.willingness_to_pay_usd)
    answer |= calibration.as_dict(recommendation)
    answer |= {"live_mix": None if mix is None else mix.shares, "not_registered": left_out}
    if parsed.json:
        return
    from engine.cli.calibrate.command import print_recommendation

    print_recommendation(recommendation, console)
    if left_out:
        console.print(f"not registered, or without prices: {', '.join(left_out)}", soft_wrap=True)
    if mix is not None:
        console.print(f"the server's mix there: {_shares(mix.shares)}", soft_wrap=True)


def _recommend(
    parsed: argparse.Namespace, folder: DataFolder, kept: list[int], scores: LiveScores
) -> tuple[Recommendation, list[str]]:
    """Recommend by the outcomes of candidates that the server has; also return the other names."""
    _, merged, places = circular_eval(folder.records, folder.scores)
    position = [places[str(folder.records[kept[row]]["id"])] for row in scores.rows]
    priced = [
        name
        for name in folder.candidates
        if name in scores.names and not np.isnan(scores.costs[:, scores.names.index(name)]).any()
    ]
    left_out = [name for name in folder.candidates if name not in priced]
    if len(priced) < 2:
        problem = f"has outcomes of {priced or 'no candidate'} with prices on the server; at least"
        problem += " 2 are needed, by their IDs."
        raise InvalidInputError(Violation(str(parsed.data), problem))
    columns = [scores.names.index(name) for name in priced]
    rows = [folder.candidates.index(name) for name in priced]
    outcomes = merged[np.ix_(rows, position)].T.astype(np.float64)
    propensities = None
    if folder.propensities is not None:
        first = [kept[row] for row in scores.rows]
        propensities = folder.propensities[np.ix_(rows, first)].T
    p, costs = scores.p[:, columns], scores.costs[:, columns]
    target = CalibrationTarget(parsed.min_accuracy_ratio, parsed.max_cost_ratio)
    estimator, wanted = _estimator(parsed.estimator, outcomes, propensities)
    names = [priced[i] for i in wanted.candidates]
    part = np.ix_(wanted.rows, wanted.candidates)
    if estimator == "measured":
        found = calibration.recommend(p[part], outcomes[part], costs[part], names, target)
    else:
        weights = None
        if estimator != "model-assisted" and propensities is not None:
            weights = propensities[part]
        found = calibration.recommend_from_log(
            p[part], outcomes[part], weights, costs[part], names, target, estimator
        )
    return found, left_out


def _estimator(
    asked: Estimator | None, outcomes: np.ndarray[Any, Any], propensities: Any
) -> tuple[Estimator, tradeoff.CompleteSubset]:
    """Return how accuracies are found, by default by what was recorded, and on which part."""
    block = tradeoff.largest_complete_subset(outcomes)
    is_complete = (
        len(block.candidates) > 1 and len(block.rows) >= calibration.MIN_EFFECTIVE_OUTCOMES
    )
    if asked is None:
        single: Estimator = "model-assisted" if propensities is None else "doubly-robust"
        asked = "measured" if is_complete else single
    if asked == "measured":
        return asked, block
    measured = ~np.isnan(outcomes)
    if asked != "model-assisted":
        if propensities is None:
            problem = f"{asked} needs propensities; without exploration take model-assisted."
            raise InvalidInputError(Violation("--estimator", problem))
        measured &= ~np.isnan(propensities)
    rows = np.flatnonzero(measured.any(axis=1))
    return asked, tradeoff.CompleteSubset(np.arange(outcomes.shape[1]), rows)


def _values(point: ExpectedPoint | LiveMix, best: ExpectedPoint) -> dict[str, float]:
    return {
        "probability": point.probability,
        "cost_usd": point.cost,
        "probability_ratio": point.probability / best.probability,
        "cost_ratio": point.cost / best.cost if best.cost else 1.0,
    }


def _point_dict(point: ExpectedPoint, names: list[str], best: ExpectedPoint) -> dict[str, Any]:
    pairs = sorted(zip(point.shares.tolist(), names, strict=True), reverse=True)
    return {
        "willingness_to_pay_usd": tradeoff.finite(point.willingness_to_pay_usd),
        **_values(point, best),
        "selection_share": {name: round(share, 4) for share, name in pairs if share},
    }


def _mix_dict(mix: LiveMix, best: ExpectedPoint) -> dict[str, Any]:
    return {
        "willingness_to_pay_usd": tradeoff.finite(mix.willingness_to_pay_usd),
        **_values(mix, best),
        "selection_share": {name: round(share, 4) for name, share in mix.shares.items()},
    }


def _print_curve(
    scores: LiveScores,
    points: list[ExpectedPoint],
    best: ExpectedPoint,
    name: str,
    console: Console,
) -> None:
    from rich.table import Table

    table = Table()
    for heading in ("US$ per success", "probability", "of the best", "cost / 1,000", "of its cost"):
        table.add_column(heading, justify="right")
    for x in points:
        values = _values(x, best)
        usd = x.willingness_to_pay_usd
        table.add_row(
            "inf" if usd == math.inf else f"{usd:.3g}",
            f"{x.probability:.4f}",
            f"{values['probability_ratio']:.1%}",
            f"${1e3 * x.cost:.4f}",
            f"{values['cost_ratio']:.1%}",
        )
    console.print(table)
    console.print(
        f"{len(scores.rows)} requests; always {name}: probability {best.probability:.4f},"
        f" ${1e3 * best.cost:.4f} for 1,000 requests",
        soft_wrap=True,
    )
    for reason, count in scores.skipped.items():
        console.print(f"skipped {count} requests: {reason}", soft_wrap=True)


def _print_mix(
    mix: LiveMix | None, best: ExpectedPoint, target: TrafficTarget, console: Console
) -> None:
    if mix is None:
        console.print("no willingness to pay meets the target on these requests")
        return
    values = _values(mix, best)
    console.print(
        f"the server's mix there: {_shares(mix.shares)}; {values['probability_ratio']:.1%} of the"
        f" probability for {values['cost_ratio']:.1%} of the cost",
        soft_wrap=True,
    )
    usd = mix.willingness_to_pay_usd
    start = ", a start" if target == TrafficTarget() else ""
    value = "inf" if usd == math.inf else f"{usd:.3g}"
    console.print(f"-> --willingness-to-pay-usd {value}{start}")


def _shares(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
