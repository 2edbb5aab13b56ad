"""`modelsat outcomes`: export recorded outcomes as a data folder, which training, evaluation and
`modelsat calibrate` read, and import a data folder into a server's memory."""

from __future__ import annotations

import argparse
from pathlib import Path

from engine.cli.outcomes import importing
from engine.registry.outcome_export import export_outcomes


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the actions of `modelsat outcomes`."""
    actions = command.add_subparsers(title="actions", required=True, metavar="ACTION")
    summary = "write recorded outcomes as a data folder for training and calibration"
    action = actions.add_parser("export", help=summary, description=f"W{summary[1:]}.")
    store = "store of recorded outcomes, as given to serve: a file or a postgresql:// URL"
    action.add_argument("--outcomes-db", required=True, metavar="LOCATION", help=store)
    for flag, required, text in (
        ("--out", True, "data folder to write"),
        ("--bundle", False, "bundle whose catalog has the candidates' aptitude results"),
    ):
        action.add_argument(flag, type=Path, required=required, metavar="DIR", help=text)
    action.set_defaults(run=_export)
    summary = "record the outcomes of a data folder or file on a server, which learns from them"
    action = actions.add_parser("import", help=summary, description=f"R{summary[1:]}.")
    importing.add_arguments(action)


def _export(parsed: argparse.Namespace) -> None:
    exported = export_outcomes(parsed.outcomes_db, parsed.out, parsed.bundle)
    print(f"{parsed.out}: {exported.instructions} instructions x {exported.candidates} candidates")
    if exported.without_text:
        print(f"skipped {exported.without_text} outcomes without text")
    for name, count in sorted(exported.unknown.items()):
        print(f"skipped {count} outcomes of {name}, which is not in the catalog of {parsed.bundle}")
