"""`modelsat calibrate`: find the willingness to pay that meets a target, on the traffic of a server
or on recorded outcomes."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from engine.api.errors import InvalidInputError, Violation
from engine.cli import server_flags
from engine.cli.output import stdout_console
from engine.client.channel import DEFAULT_SERVER
from engine.datasets.flags import add_data
from engine.routing.calibration import (
    ESTIMATORS,
    CalibrationTarget,
    Estimator,
    Recommendation,
    as_dict,
    calibrate,
    shares,
)
from engine.serving.settings import BUNDLE

if TYPE_CHECKING:
    from rich.console import Console


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options of `modelsat calibrate`."""
    add = command.add_argument
    command.usage = "modelsat calibrate (--traffic FILE... | --data DIR) [target] [options]"
    source = command.add_mutually_exclusive_group(required=True)
    text = (
        "requests without outcomes, judged by the server's candidates: logs as `modelsat replay`"
        " reads them, or .txt files with an instruction on each line"
    )
    source.add_argument("--traffic", nargs="+", metavar="FILE", help=text)
    text = (
        "data folder of outcomes, as `modelsat outcomes export` writes it; judged by the server's"
        " candidates with --server, else by the folder's own and --bundle"
    )
    add_data(source, text, required=False)
    text = "requests to ask the server for, evenly spaced (default %(default)s)"
    add("--sample", type=_count, default=1000, metavar="N", help=text)
    text = "without --server: bundle whose probabilities to calibrate (default %(default)s)"
    add("--bundle", type=Path, default=BUNDLE, metavar="DIR", help=text)
    text = "without --server: file of candidates with prices (default: the bundle's catalog)"
    add("--catalog", type=Path, metavar="FILE", help=text)
    text = (
        "how to find accuracies: measured, on instructions with the outcomes of all candidates;"
        " inverse-propensity or doubly-robust, from those of a server that explores; or"
        " model-assisted, from any outcomes (default: measured; with --server, the first of"
        " measured, doubly-robust and model-assisted that the outcomes allow)"
    )
    add("--estimator", choices=ESTIMATORS, metavar="METHOD", help=text)
    text = "with a server: API of the requests, such as openai.chat, if candidates list theirs"
    add("--api", default="", metavar="NAME", help=text)
    add("--json", action="store_true", help="print one JSON object instead of a table")
    target = command.add_argument_group("target (one; with --traffic, none proposes a start)")
    target = target.add_mutually_exclusive_group()
    text = "keep at least this share of the best single candidate's accuracy, such as 0.97"
    target.add_argument("--min-accuracy-ratio", type=_share, metavar="SHARE", help=text)
    text = "spend at most this share of the best single candidate's cost, such as 0.5"
    target.add_argument("--max-cost-ratio", type=_share, metavar="SHARE", help=text)
    text = "with --traffic: send at least this share of the requests to the strong candidate"
    target.add_argument("--strong-share", type=_part, metavar="SHARE", help=text)
    text = "with --traffic: the strong candidate, which is also the one that costs are compared"
    text += " with (default: the highest mean probability)"
    command.add_argument("--strong", metavar="ID", help=text)
    text = f"address of the server (with --traffic: default ${server_flags.SERVER_VARIABLE}, else"
    server_flags.add_optional(command, f"{text} {DEFAULT_SERVER})")
    command.set_defaults(run=_run)


def _share(text: str) -> float:
    number = text.removesuffix("%")
    try:
        value = float(number) / (1 if number == text else 100)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share above 0, such as 0.5 or 50%")
    return value


def _part(text: str) -> float:
    value = _share(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is more than all requests; give 0.3 or 30%")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def _run(parsed: argparse.Namespace) -> None:
    targets = (parsed.min_accuracy_ratio, parsed.max_cost_ratio)
    if parsed.data is not None and targets == (None, None):
        problem = "needs --min-accuracy-ratio or --max-cost-ratio."
        raise InvalidInputError(Violation("--data", problem))
    if parsed.traffic is not None or parsed.server is not None:
        from engine.cli.calibrate import report

        parsed.server = parsed.server or server_flags.default_server()
        report.run(parsed)
        return
    target = CalibrationTarget(parsed.min_accuracy_ratio, parsed.max_cost_ratio)
    catalog = parsed.catalog or parsed.bundle / "zoo.json"
    estimator: Estimator = parsed.estimator or "measured"
    recommendation = calibrate(parsed.bundle, parsed.data, catalog, target, estimator)
    if parsed.json:
        print(json.dumps(as_dict(recommendation), ensure_ascii=False))
    else:
        print_recommendation(recommendation, stdout_console())


def print_recommendation(recommendation: Recommendation, console: Console) -> None:
    """Print accuracy and cost by willingness to pay, with the recommended line marked."""
    from rich.table import Table

    is_estimate = recommendation.points[0].standard_error is not None
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False) if is_estimate else Table()
    headings = ["", "US$ per success", "accuracy", "of the best", "cost / 1,000", "of its cost"]
    if is_estimate:
        headings += ["standard error", "worth outcomes", "covered"]
    for heading in headings:
        table.add_column(heading, justify="right")
    previous = None
    for point in recommendation.points:
        if previous is not None and (point.accuracy, point.cost) == previous:
            continue  # the same choices as the line before
        previous = (point.accuracy, point.cost)
        chosen = recommendation.point
        mark = "->" if point is chosen else ""
        accuracy, cost = (
            "-" if share is None else f"{share:.1%}" for share in shares(point, recommendation)
        )
        cells = [_usd(point.willingness_to_pay_usd), f"{point.accuracy:.4f}", accuracy]
        cells += [f"${1e3 * point.cost:.4f}", cost]
        if is_estimate:
            error, worth = f"{point.standard_error:.4f}", f"{point.effective_outcomes:.0f}"
            cells += [error, worth, f"{point.coverage:.0%}"]
        table.add_row(mark, *cells)
    console.print(table)
    console.print(
        f"best single candidate: {recommendation.best}, accuracy {recommendation.accuracy:.4f},"
        f" ${1e3 * recommendation.cost:.4f} for 1,000 requests"
    )
    _print_scope(recommendation, console)
    if recommendation.point is None:
        console.print("no willingness to pay meets the target on these outcomes")
    elif recommendation.point.willingness_to_pay_usd == math.inf:
        console.print("-> no objective: the highest probability meets the target")
    else:
        usd = recommendation.point.willingness_to_pay_usd
        console.print(f"-> --willingness-to-pay-usd {usd:.3g}, for serve, route and the policies")


def _usd(willingness: float) -> str:
    return "any" if willingness == math.inf else f"{willingness:.3g}"


def _print_scope(recommendation: Recommendation, console: Console) -> None:
    """Print which candidates the result holds for, and which one would change its meaning."""
    names = ", ".join(recommendation.candidates)
    console.print(f"this holds for the evaluated candidates: {names}", soft_wrap=True)
    if (name := recommendation.unevaluated_most_expensive) is not None:
        console.print(
            f"warning: {name} of the catalog costs more than all of these and was not evaluated;"
            " if it is eligible, requests may go to it and cost more: deny it, or record outcomes"
            " of it too",
            soft_wrap=True,
        )
