"""`modelsat outcomes export`: turn recorded outcomes into a data folder, which training, evaluation
and `modelsat calibrate` read."""

from __future__ import annotations

import argparse
from pathlib import Path

from engine.registry.outcome_export import export_outcomes


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the actions of `modelsat outcomes`."""
    actions = command.add_subparsers(title="actions", required=True, metavar="ACTION")
    summary = "write recorded outcomes as a data folder for training and calibration"
    action = actions.add_parser("export", help=summary, description=f"W{summary[1:]}.")
    for flag, metavar, required, text in (
        ("--outcomes-db", "FILE", True, "SQLite file of recorded outcomes, as given to serve"),
        ("--out", "DIR", True, "data folder to write"),
        ("--bundle", "DIR", False, "bundle whose catalog has the candidates' aptitude results"),
    ):
        action.add_argument(flag, type=Path, required=required, metavar=metavar, help=text)
    action.set_defaults(run=_run)


def _run(parsed: argparse.Namespace) -> None:
    exported = export_outcomes(parsed.outcomes_db, parsed.out, parsed.bundle)
    print(f"{parsed.out}: {exported.instructions} instructions x {exported.candidates} candidates")
    if exported.without_text:
        print(f"skipped {exported.without_text} outcomes without text")
    for name, count in sorted(exported.unknown.items()):
        print(f"skipped {count} outcomes of {name}, which is not in the catalog of {parsed.bundle}")
