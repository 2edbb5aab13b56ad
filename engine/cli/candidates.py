"""`modelsat candidates`: list, show and change the candidates of a server."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from engine.api.candidate import to_json
from engine.cli import server_flags
from engine.cli.server_flags import connect
from engine.registry.catalog import read_zoo


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The actions of `modelsat candidates`."""
    actions = command.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="all candidates")
    show = actions.add_parser("show", help="one candidate as JSON")
    add = actions.add_parser("add", help="register the candidates of a JSON file")
    remove = actions.add_parser("remove", help="remove a candidate")
    replace = actions.add_parser("replace", help="make a JSON file the whole table")
    revisions = actions.add_parser("revisions", help="the states of the table to roll back to")
    rollback = actions.add_parser("rollback", help="make an earlier state the newest one")
    for action in (show, remove):
        action.add_argument("id")
    for action in (add, replace):
        action.add_argument("file", type=Path)
    rollback.add_argument("revision", type=int)
    rollback.add_argument("--validate-only", action="store_true", help="change nothing")
    runs = {listing: _list, show: _show, add: _add, remove: _remove, replace: _replace}
    for action, run in {**runs, revisions: _revisions, rollback: _rollback}.items():
        action.set_defaults(run=run)
        server_flags.add_arguments(action)


def _list(parsed: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for heading in ("id", "mean accuracy", "context", "$ in/M", "$ out/M", "prices from"):
        table.add_column(heading, no_wrap=heading == "id")
    with connect(parsed) as client:
        for c in client.candidates():
            numbers = (c.context_window, c.input_usd_per_million, c.output_usd_per_million)
            shown = ["unknown" if n is None else f"{n:g}" for n in numbers]
            table.add_row(c.id, f"{c.mean_accuracy():.3f}", *shown, c.price_source)
    Console(highlight=False, markup=False).print(table)


def _show(parsed: argparse.Namespace) -> None:
    with connect(parsed) as client:
        print(json.dumps(to_json(client.candidate(parsed.id)), indent=1, ensure_ascii=False))


def _add(parsed: argparse.Namespace) -> None:
    candidates = read_zoo(parsed.file)
    with connect(parsed) as client:
        for candidate in candidates:
            print(f"registered {client.add(candidate).name}")


def _remove(parsed: argparse.Namespace) -> None:
    with connect(parsed) as client:
        client.remove(parsed.id)
    print(f"removed {parsed.id}")


def _replace(parsed: argparse.Namespace) -> None:
    with connect(parsed) as client:
        revision = client.replace(read_zoo(parsed.file))
    print(f"replaced all, revision {revision}")


def _revisions(parsed: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for heading in ("revision", "made (UTC)", "candidates", "what was changed"):
        table.add_column(heading)
    with connect(parsed) as client:
        for r in client.revisions():
            made = r.create_time.ToDatetime().isoformat(" ", "seconds")
            table.add_row(str(r.number), made, str(r.candidates), r.description)
    Console(highlight=False, markup=False).print(table)


def _rollback(parsed: argparse.Namespace) -> None:
    with connect(parsed) as client:
        made = client.rollback(parsed.revision, validate_only=parsed.validate_only)
    would = "would be" if parsed.validate_only else "is"
    print(f"{made.description}: {would} revision {made.number}, {made.candidates} candidates")
