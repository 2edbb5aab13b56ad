"""`modelsat outcomes`: export recorded outcomes as a data folder, which training, evaluation and
`modelsat calibrate` read, import a data folder into a server's memory, delete outcomes, back up and
restore."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from engine.api.candidate import NAME_PREFIX, Candidate
from engine.api.errors import InvalidInputError, Violation
from engine.cli import server_flags
from engine.cli.outcomes import importing
from engine.cli.output import add_force, require_new
from engine.datasets.folder import instructions_file
from engine.registry.outcome_export import export_outcomes
from engine.registry.stores.backup import back_up_outcomes, restore_outcomes
from engine.registry.stores.outcome_databases import delete_recorded


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the actions of `modelsat outcomes`."""
    actions = command.add_subparsers(title="actions", required=True, metavar="ACTION")
    summary = "write recorded outcomes as a data folder for training and calibration"
    action = actions.add_parser("export", help=summary, description=f"W{summary[1:]}.")
    _add_store(action)
    for flag, required, text in (
        ("--out", True, "data folder to write"),
        ("--bundle", False, "bundle whose catalog has the candidates' aptitude results"),
    ):
        action.add_argument(flag, type=Path, required=required, metavar="DIR", help=text)
    add_force(action, "a data folder")
    about = "server whose registered candidates have the aptitude results, in place of --bundle"
    server_flags.add_optional(action, about)
    action.set_defaults(run=_export)
    summary = "record the outcomes of a data folder or file on a server, which learns from them"
    action = actions.add_parser("import", help=summary, description=f"R{summary[1:]}.")
    importing.add_arguments(action)
    summary = "delete outcomes of a candidate or a principal; servers unlearn them in seconds"
    action = actions.add_parser("delete", help=summary, description=f"D{summary[1:]}.")
    add = action.add_argument
    add("--candidate", default="", metavar="ID", help="delete the outcomes of this candidate")
    add("--principal", default="", metavar="NAME", help="delete what this principal recorded")
    add("--dry-run", action="store_true", help="say how many would be deleted, and change nothing")
    _add_store(action)
    action.set_defaults(run=_delete)
    for name, run, summary, text in (
        (
            "backup",
            _back_up,
            "copy recorded outcomes, even while they are served, to an SQLite file",
            "SQLite file to write",
        ),
        (
            "restore",
            _restore,
            "copy a backup into an empty store of outcomes",
            "SQLite file that `modelsat outcomes backup` wrote",
        ),
    ):
        description = f"{summary[0].upper()}{summary[1:]}."
        action = actions.add_parser(name, help=summary, description=description)
        action.add_argument("file", type=Path, metavar="FILE", help=text)
        _add_store(action)
        action.set_defaults(run=run)
        if run is _back_up:
            add_force(action, "the file")


def _add_store(action: argparse.ArgumentParser) -> None:
    place = os.environ.get("MODELSAT_OUTCOMES_DB")  # so that no list of processes shows a URL
    about = (
        "store of recorded outcomes, as given to serve: a file or a postgresql:// URL"
        " (MODELSAT_OUTCOMES_DB)"
    )
    action.add_argument(
        "--outcomes-db", required=place is None, default=place, metavar="LOCATION", help=about
    )


def _back_up(parsed: argparse.Namespace) -> None:
    require_new(parsed.file, force=parsed.force, argument="FILE")
    count = back_up_outcomes(parsed.outcomes_db, parsed.file)
    print(f"wrote {count} outcomes to {parsed.file}")


def _restore(parsed: argparse.Namespace) -> None:
    count = restore_outcomes(parsed.outcomes_db, parsed.file)
    print(f"restored {count} outcomes of {parsed.file}")


def _delete(parsed: argparse.Namespace) -> None:
    if not (parsed.candidate or parsed.principal):
        raise InvalidInputError(Violation("--candidate", "or --principal is required."))
    candidate, dry_run = parsed.candidate.removeprefix(NAME_PREFIX), parsed.dry_run
    count = delete_recorded(parsed.outcomes_db, candidate, parsed.principal, dry_run=dry_run)
    print(f"{'would have deleted' if dry_run else 'deleted'} {count} outcomes")


def _export(parsed: argparse.Namespace) -> None:
    require_new(instructions_file(parsed.out), force=parsed.force)
    registered: list[Candidate] = []
    if parsed.server is not None:
        with server_flags.connect(parsed) as client:
            registered = client.list_candidates()
    exported = export_outcomes(parsed.outcomes_db, parsed.out, parsed.bundle, registered)
    catalog = parsed.server or f"the catalog of {parsed.bundle}"
    print(f"{parsed.out}: {exported.instructions} instructions x {exported.candidates} candidates")
    if exported.without_text:
        print(f"skipped {exported.without_text} outcomes without text")
    for name, count in sorted(exported.unknown.items()):
        print(f"skipped {count} outcomes of {name}, which {catalog} does not have")
