"""`modelsat outcomes export`: recorded outcomes as a data folder that training, evaluation and
`modelsat calibrate` read."""

from __future__ import annotations

import argparse
from pathlib import Path

from engine.registry.recorded import export

HELP = "turn recorded outcomes into data"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The actions of `modelsat outcomes`."""
    actions = command.add_subparsers(required=True, metavar="ACTION")
    action = actions.add_parser("export", help="write them as a data folder")
    add = action.add_argument
    add("--outcomes-db", type=Path, required=True, help="the server's SQLite file")
    add("--out", type=Path, required=True, help="docs/explanation/architecture.md, Data folders")
    add("--bundle", type=Path, help="take the candidates' aptitude figures from its zoo")
    action.set_defaults(run=_run)


def _run(parsed: argparse.Namespace) -> None:
    done = export(parsed.outcomes_db, parsed.out, parsed.bundle)
    print(f"{parsed.out}: {done.instructions} instructions x {done.candidates} candidates")
    if done.without_text:
        print(f"left out: {done.without_text} outcomes without text")
    for name, count in sorted(done.unknown.items()):
        print(f"left out: {count} outcomes of {name}, which {parsed.bundle} does not know")
