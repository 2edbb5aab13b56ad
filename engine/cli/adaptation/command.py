"""The actions of `modelsat adaptation`, each as a table or as JSON."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from engine.cli import server_flags
from engine.cli.output import Column, print_json, print_table, stdout_console
from engine.cli.server_flags import connect
from engine.client.adaptation import AdaptationInfo, DecisionExplanation
from engine.client.sync import Client

if TYPE_CHECKING:
    from rich.console import Console


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the actions."""
    actions = command.add_subparsers(title="actions", required=True, metavar="ACTION")

    def action(
        name: str, run: Callable[[argparse.Namespace], None], summary: str
    ) -> argparse.ArgumentParser:
        description = f"{summary[0].upper()}{summary[1:]}."
        added = actions.add_parser(name, help=summary, description=description)
        added.set_defaults(run=run)
        added.add_argument("--json", action="store_true", help="print JSON instead of a table")
        server_flags.add_arguments(added)
        return added

    action(
        "status",
        partial(_show, Client.adaptation),
        "show what is served now and how much better it is",
    )
    history = action("history", _history, "list the last fits, newest first")
    text = "ignore outcomes that are recorded from now on; they are kept"
    action("freeze", partial(_show, Client.freeze_adaptation), text)
    text = "learn from all outcomes since the last reset again"
    action("unfreeze", partial(_show, Client.unfreeze_adaptation), text)
    rollback = action("rollback", _rollback, "return to an earlier fit, and freeze")
    text = "ignore every outcome that was recorded before"
    action("reset", partial(_show, Client.reset_adaptation), text)
    explain = action("explain", _explain, "say which outcomes changed a recent decision")
    text = "how many to list (default %(default)s)"
    history.add_argument("--count", type=int, default=20, metavar="N", help=text)
    rollback.add_argument("id", help="ID of the fit, as `modelsat adaptation history` shows")
    explain.add_argument("decision_id", help="ID of the decision, as `modelsat route` shows")


def _rollback(parsed: argparse.Namespace) -> None:
    _show(lambda client: client.rollback_adaptation(parsed.id), parsed)


def _history(parsed: argparse.Namespace) -> None:
    with connect(parsed) as client:
        fits = client.adaptation_history(parsed.count)
    if parsed.json:
        print_json([asdict(fit) for fit in fits])
        return
    rows = []
    for fit in fits:
        figures = (f"{fit.log_loss_before:.4f}", f"{fit.log_loss_after:.4f}")
        at = "" if fit.as_of is None else f"{fit.as_of:%Y-%m-%d %H:%M:%S}"
        active = "yes" if fit.active else "no"
        rows.append([fit.id, at, active, f"{fit.instructions:,}", *figures])
    columns = [Column("id", text=True), *map(Column, ("newest outcome (UTC)", "active"))]
    columns += map(Column, ("instructions", "log loss", "after"))
    print_table(columns, rows)


def _explain(parsed: argparse.Namespace) -> None:
    with connect(parsed) as client:
        explanation = client.explain_decision(parsed.decision_id)
    if parsed.json:
        print_json(asdict(explanation))
    else:
        print_explanation(explanation, stdout_console())


def print_explanation(explanation: DecisionExplanation, console: Console) -> None:
    """Print the parts of each candidate's probability, and the nearest remembered instructions."""
    rows = []
    for each in explanation.candidates:
        shares = (each.base_probability, each.probability, each.standard_error)
        parts = (each.match, each.offset, each.common, each.relative)
        cells = [*(f"{share:.3f}" for share in shares), *(f"{part:+.2f}" for part in parts)]
        rows.append([each.candidate, *cells])
    headings = ("before", "probability", "error", "match", "offset", "common", "relative")
    print_table([Column("candidate", text=True), *map(Column, headings)], rows, console)
    console.print(
        f"decided by {explanation.decided_by or 'the weights'}; match is part of"
        " before; offset, common and relative are parts in log-odds by"
        f" {explanation.adaptation_id or 'no adaptation'}"
    )
    for task in explanation.tasks:
        source = "" if task.by_questions else ", by its keywords"
        console.print(f"{task.weight:.0%} near the task {task.task}{source}")
    for neighbor in explanation.neighbors:
        scores = ", ".join(f"{name} {score:g}" for name, score in neighbor.scores.items())
        category = f" ({neighbor.category})" if neighbor.category else ""
        at = f"{neighbor.recorded_at:%Y-%m-%d %H:%M}"
        console.print(f"{neighbor.similarity:.3f} {at}{category} {neighbor.provenance}: {scores}")


def _show(call: Callable[[Client], AdaptationInfo], parsed: argparse.Namespace) -> None:
    """Print what a call of a server returns."""
    with connect(parsed) as client:
        adaptation = call(client)
    if parsed.json:
        print_json(asdict(adaptation))
        return
    state = "active" if adaptation.active else "not active"
    console = stdout_console()
    console.print(f"{adaptation.id or 'none'}: {state}{', frozen' * adaptation.frozen}")
    console.print(adaptation.reason)
    if not adaptation.id:
        return
    outcomes = ", ".join(f"{n:,} {name}" for name, n in sorted(adaptation.outcomes.items()))
    console.print(f"{adaptation.instructions:,} instructions with outcomes: {outcomes}")
    for reason, count in sorted(adaptation.unused_outcomes.items()):
        console.print(f"not used: {count:,} ({reason})")
    console.print(
        f"log loss of left-out outcomes: {adaptation.log_loss_before:.4f} before,"
        f" {adaptation.log_loss_after:.4f} after, standard error of the difference"
        f" {adaptation.log_loss_standard_error:.4f}"
    )
    if adaptation.as_of is not None:
        at = f"{adaptation.as_of:%Y-%m-%d %H:%M:%S}"
        console.print(f"newest outcome {at} UTC; fitted in {adaptation.fit_seconds:.2f} s")
