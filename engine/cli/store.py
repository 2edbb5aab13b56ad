"""`modelsat store`: back up and restore the candidate store itself, without a server."""

from __future__ import annotations

import argparse
from pathlib import Path

from engine.registry.stores.backup import back_up, restore


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The actions of `modelsat store`."""
    actions = command.add_subparsers(required=True, metavar="ACTION")
    backup = actions.add_parser("backup", help="copy a store, served or not, to an SQLite file")
    bring = actions.add_parser("restore", help="make such a file the content of a store")
    for action, run, file in ((backup, _backup, "OUT"), (bring, _restore, "FROM")):
        action.add_argument("--candidates-db", required=True, help="SQLite file or postgresql://")
        action.add_argument("file", type=Path, metavar=file)
        action.set_defaults(run=run)


def _backup(parsed: argparse.Namespace) -> None:
    print(f"wrote revision {back_up(parsed.candidates_db, parsed.file)} to {parsed.file}")


def _restore(parsed: argparse.Namespace) -> None:
    print(f"restored from {parsed.file}: revision {restore(parsed.candidates_db, parsed.file)}")
