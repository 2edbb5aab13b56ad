"""`modelsat store`: back up and restore a candidate database, without a server."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from engine.cli.output import add_force, require_new
from engine.registry.stores.backup import back_up, restore
from engine.registry.stores.location import location_problem
from engine.serving.telemetry.change_log import verify


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the actions of `modelsat store`."""
    actions = command.add_subparsers(title="actions", required=True, metavar="ACTION")
    for name, run, summary, text in (
        (
            "backup",
            _backup,
            "copy a candidate database, even while it is served, to an SQLite file",
            "SQLite file to write",
        ),
        (
            "restore",
            _restore,
            "replace the content of a candidate database by that of a backup",
            "SQLite file that `modelsat store backup` wrote",
        ),
    ):
        description = f"{summary[0].upper()}{summary[1:]}."
        action = actions.add_parser(name, help=summary, description=description)
        action.add_argument("file", type=Path, metavar="FILE", help=text)
        place = os.environ.get("MODELSAT_CANDIDATES_DB")  # so that no list of processes shows a URL
        action.add_argument(
            "--candidates-db",
            required=place is None,
            default=place,
            type=_location,
            metavar="DATABASE",
            help="candidate database of the server: an SQLite file or a postgresql:// URL"
            " (MODELSAT_CANDIDATES_DB)",
        )
        action.set_defaults(run=run)
        if run is _backup:
            add_force(action, "the file")

    name, summary = "verify-changes", "check that no line of a --changes-log was altered or removed"
    description = f"{summary[0].upper()}{summary[1:]}, and print its last hash."
    action = actions.add_parser(name, help=summary, description=description)
    action.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="the log, rotated files first"
    )
    action.set_defaults(run=_verify_changes)


def _verify_changes(parsed: argparse.Namespace) -> None:
    count, last = verify(parsed.files)
    print(f"{count} changes are intact; last hash {last}")


def _location(text: str) -> str:
    if problem := location_problem(text.strip()):
        raise argparse.ArgumentTypeError(problem)
    return text.strip()


def _backup(parsed: argparse.Namespace) -> None:
    require_new(parsed.file, force=parsed.force, argument="FILE")
    revision = back_up(parsed.candidates_db, parsed.file)
    print(f"wrote revision {revision} to {parsed.file}")


def _restore(parsed: argparse.Namespace) -> None:
    revision = restore(parsed.candidates_db, parsed.file)
    print(f"restored {parsed.file} as revision {revision}")
