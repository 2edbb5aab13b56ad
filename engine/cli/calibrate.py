"""`modelsat calibrate`: the cost sensitivity that meets a target on a user's own outcomes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from engine.routing.calibration import Recommendation, Target, as_dict, calibrate, shares

if TYPE_CHECKING:
    from rich.console import Console


HELP = "the cost sensitivity that meets a target on your own outcomes"
BUNDLE = Path("artifacts/bundle")


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
        quality, cost = ("-" if s is None else f"{s:.1%}" for s in shares(x, found))
        cells = [f"{x.sensitivity:.3g}", f"{x.accuracy:.4f}", quality]
        table.add_row(mark, *cells, f"${1e3 * x.cost:.4f}", cost)
    console.print(table)
    console.print(
        f"the best single candidate is {found.best}: accuracy {found.accuracy:.4f},"
        f" ${1e3 * found.cost:.4f} for 1,000 requests"
    )
    _print_for_whom(found, console)
    if found.point is None:
        console.print("no cost sensitivity meets the target on these outcomes")
    else:
        console.print(f"-> cost sensitivity {found.point.sensitivity:.3g}")


def _print_for_whom(found: Recommendation, console: Console) -> None:
    """Whom the sensitivities hold for, and who in the zoo changes what they mean."""
    names = ", ".join(found.candidates)
    console.print(f"a cost sensitivity holds for the candidates judged: {names}", soft_wrap=True)
    if found.dearer is not None:
        console.print(
            f"warning: {found.dearer} of the zoo is dearer than all of these and was not judged;"
            " where it is eligible the same sensitivity saves less: deny it, or measure it too",
            soft_wrap=True,
        )


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of `modelsat calibrate`."""
    add = command.add_argument
    add(
        "--data",
        type=Path,
        required=True,
        help="outcomes; docs/explanation/architecture.md, Data folders",
    )
    add("--bundle", type=Path, default=BUNDLE, help="folder that `make export` wrote")
    add("--zoo", type=Path, help="JSON file of candidates with prices; the bundle's own by default")
    add("--json", action="store_true", help="one JSON object in place of the table")
    goal = command.add_mutually_exclusive_group(required=True)
    goal.add_argument(
        "--min-accuracy-ratio",
        type=float,
        metavar="S",
        help="share of the best candidate's accuracy",
    )
    goal.add_argument("--max-cost", type=float, metavar="S", help="share of the best one's cost")
    command.set_defaults(run=_run)


def _run(parsed: argparse.Namespace) -> None:
    target = Target(parsed.min_accuracy_ratio, parsed.max_cost)
    zoo = parsed.zoo or parsed.bundle / "zoo.json"
    found = calibrate(parsed.bundle, parsed.data, zoo, target)
    if parsed.json:
        print(json.dumps(as_dict(found), ensure_ascii=False))
    else:
        from rich.console import Console

        print_recommendation(found, Console(highlight=False, markup=False))
