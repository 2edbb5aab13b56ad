"""`modelsat candidates`: list and change the candidates of a server."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from engine.api.candidate import to_json
from engine.cli import server_flags
from engine.cli.output import stdout_console
from engine.cli.server_flags import connect


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the actions of `modelsat candidates`."""
    actions = command.add_subparsers(title="actions", required=True, metavar="ACTION")

    def action(
        name: str, run: Callable[[argparse.Namespace], None], summary: str
    ) -> argparse.ArgumentParser:
        description = f"{summary[0].upper()}{summary[1:]}."
        added = actions.add_parser(name, help=summary, description=description)
        added.set_defaults(run=run)
        server_flags.add_arguments(added)
        return added

    action(
        "list",
        _list,
        "print a table of all candidates with mean accuracy, context window and prices",
    )
    get = action("get", _get, "print one candidate as JSON")
    create = action("create", _create, "register the candidates of a JSON file")
    delete = action("delete", _delete, "remove a candidate")
    replace = action("replace", _replace, "replace all candidates by those of a JSON file")
    action("revisions", _revisions, "list the revisions that you can roll back to")
    rollback = action("rollback", _rollback, "bring back the candidates of an earlier revision")
    for with_id in (get, delete):
        with_id.add_argument("id", help="ID of the candidate, as `modelsat candidates list` shows")
    for with_file in (create, replace):
        text = 'JSON file of candidates as `get` prints them: one, a list, or {"candidates": [...]}'
        with_file.add_argument("file", type=Path, help=text)
        server_flags.add_price_unit(with_file)
        text = "register the report of an aptitude test although many replies choose no option"
        with_file.add_argument("--accept-unreadable", action="store_true", help=text)
    text = "number of the revision, as `modelsat candidates revisions` shows"
    rollback.add_argument("revision", type=int, help=text)
    text = "check that the rollback is possible, and change nothing"
    rollback.add_argument("--validate-only", action="store_true", help=text)


def _list(parsed: argparse.Namespace) -> None:
    headings = ("id", "accuracy", "context", "$/M input", "$/M output")
    with connect(parsed) as client:
        candidates = client.list_candidates()
    rows = []
    for c in candidates:
        context = "unknown" if c.context_window is None else f"{c.context_window:,}"
        prices = (c.input_usd_per_million, c.output_usd_per_million)
        cells = ["unknown" if price is None else f"{price:g}" for price in prices]
        rows.append([c.id, f"{c.mean_accuracy():.3f}", context, *cells])
    _print_table(headings, rows)


def _get(parsed: argparse.Namespace) -> None:
    with connect(parsed) as client:
        candidate = client.get_candidate(parsed.id)
    print(json.dumps(to_json(candidate), indent=1, ensure_ascii=False))


def _create(parsed: argparse.Namespace) -> None:
    from engine.registry.catalog import read_catalog, require_readable_test

    candidates = read_catalog(parsed.file, parsed.price_unit)
    require_readable_test(parsed.file, accept_unreadable=parsed.accept_unreadable)
    with connect(parsed) as client:
        for candidate in candidates:
            print(f"created {client.create_candidate(candidate).id}")


def _delete(parsed: argparse.Namespace) -> None:
    with connect(parsed) as client:
        client.delete_candidate(parsed.id)
    print(f"deleted {parsed.id}")


def _replace(parsed: argparse.Namespace) -> None:
    from engine.registry.catalog import read_catalog, require_readable_test

    candidates = read_catalog(parsed.file, parsed.price_unit)
    require_readable_test(parsed.file, accept_unreadable=parsed.accept_unreadable)
    with connect(parsed) as client:
        revision = client.replace_candidates(candidates)
    print(f"replaced all candidates; revision {revision} has {len(candidates)}")


def _revisions(parsed: argparse.Namespace) -> None:
    with connect(parsed) as client:
        revisions = client.list_revisions()
    rows = [
        [
            str(r.number),
            f"{r.create_time:%Y-%m-%d %H:%M:%S}",
            str(r.candidates),
            r.description + (f", by {r.principal}" if r.principal else ""),
        ]
        for r in revisions
    ]
    _print_table(("revision", "created (UTC)", "candidates", "change"), rows)


def _rollback(parsed: argparse.Namespace) -> None:
    with connect(parsed) as client:
        revision = client.rollback(parsed.revision, validate_only=parsed.validate_only)
    verb = "would be" if parsed.validate_only else "is now"
    count = f"{revision.candidates} candidates"
    print(f"{revision.description}: revision {verb} {revision.number}, {count}")


def _print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table

    table = Table()
    for heading in headings:
        is_text = heading in ("id", "change")
        table.add_column(heading, justify="left" if is_text else "right", no_wrap=heading == "id")
    for row in rows:
        table.add_row(*row)
    stdout_console().print(table)
