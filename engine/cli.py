"""The `modelsat` command: serve, route, candidates, outcomes, calibrate.

modelsat serve
modelsat route "If 3x + 7 = 22, what is x?"
modelsat candidates list
modelsat outcomes export --outcomes FILE --out DIR
modelsat calibrate --data DIR --min-quality 0.97
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from engine import calibrate, outcome_export, route_command
from engine.client import DEFAULT_SERVER, Client
from engine.contract.candidate import to_json
from engine.contract.errors import ModelsatError
from engine.registry.zoo import read_zoo
from engine.serving.settings import Settings, flag, resolve


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status, 1 for an error that the user can mend."""
    parsed = parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except ModelsatError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="modelsat", description="Routes each instruction to the LLM that will do it best."
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands.add_parser("serve", help="serve a bundle"))
    route_command.add_arguments(commands.add_parser("route", help=route_command.HELP))
    _add_candidates(commands.add_parser("candidates", help="show or change the candidates"))
    outcome_export.add_arguments(commands.add_parser("outcomes", help=outcome_export.HELP))
    calibrate.add_arguments(commands.add_parser("calibrate", help=calibrate.HELP))
    return top


def _add_serve(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--config", help="TOML file of settings; flags and MODELSAT_* go before it"
    )
    for f in fields(Settings):
        about, default = f.metadata["about"], f.default
        more: dict[str, Any] = (
            {"action": "store_const", "const": "true"} if default is False else {}
        )
        shown = f" (default {default})" if default and str(default) != "." else ""
        command.add_argument(flag(f.name), dest=f.name, help=about + shown, **more)
    command.set_defaults(run=_serve)


def _serve(parsed: argparse.Namespace) -> None:
    from engine.serving.server import serve

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    config = Path(parsed.config or os.environ.get("MODELSAT_CONFIG", ""))
    given = {f.name: getattr(parsed, f.name) for f in fields(Settings)}
    resolved = resolve(given, os.environ, config)
    print(f"settings, defaults aside:\n{resolved.table()}", flush=True)
    asyncio.run(serve(resolved.settings))


def _add_candidates(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="all candidates")
    listing.set_defaults(run=_list)
    show = actions.add_parser("show", help="one candidate as JSON")
    add = actions.add_parser("add", help="register the candidates of a JSON file")
    remove = actions.add_parser("remove", help="remove a candidate")
    replace = actions.add_parser("replace", help="make a JSON file the whole table")
    for action, run in ((show, _show), (remove, _remove)):
        action.add_argument("id")
        action.set_defaults(run=run)
    for action, run in ((add, _add), (replace, _replace)):
        action.add_argument("file", type=Path)
        action.set_defaults(run=run)
    for action in (listing, show, add, remove, replace):
        action.add_argument("--server", default=DEFAULT_SERVER, metavar="HOST:PORT")


def _list(parsed: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for heading in ("id", "mean accuracy", "context", "$ in/M", "$ out/M", "prices from"):
        table.add_column(heading, no_wrap=heading == "id")
    with Client(parsed.server) as client:
        for c in client.candidates():
            numbers = (c.context_window, c.input_usd_per_million, c.output_usd_per_million)
            shown = ["unknown" if n is None else f"{n:g}" for n in numbers]
            table.add_row(c.id, f"{c.mean_accuracy():.3f}", *shown, c.price_source)
    Console(highlight=False, markup=False).print(table)


def _show(parsed: argparse.Namespace) -> None:
    with Client(parsed.server) as client:
        print(json.dumps(to_json(client.candidate(parsed.id)), indent=1, ensure_ascii=False))


def _add(parsed: argparse.Namespace) -> None:
    candidates = read_zoo(parsed.file)
    with Client(parsed.server) as client:
        for candidate in candidates:
            print(f"registered {client.add(candidate).name}")


def _remove(parsed: argparse.Namespace) -> None:
    with Client(parsed.server) as client:
        client.remove(parsed.id)
    print(f"removed {parsed.id}")


def _replace(parsed: argparse.Namespace) -> None:
    with Client(parsed.server) as client:
        revision = client.replace(read_zoo(parsed.file))
    print(f"replaced all, revision {revision}")


if __name__ == "__main__":
    sys.exit(main())
