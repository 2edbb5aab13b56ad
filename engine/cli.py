"""The `modelsat` command: serve, route, candidates, store, calibrate.

modelsat serve
modelsat route "If 3x + 7 = 22, what is x?"
modelsat candidates list
modelsat store backup --store artifacts/candidates.sqlite candidates-backup.sqlite
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
from typing import TYPE_CHECKING, Any

from engine import calibrate, cli_candidates
from engine.client import Client
from engine.contract.candidate import PREFIX
from engine.contract.errors import ModelsatError
from engine.pb.router_service_pb2 import RouteResponse, Timing
from engine.policy import Policy
from engine.serving.settings import Settings, flag, resolve

if TYPE_CHECKING:
    from rich.console import Console

STRANGE = 0.98  # unlikeness from which a person is told
PHASES = tuple(field.name for field in Timing.DESCRIPTOR.fields)


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
    _add_route(commands.add_parser("route", help="choose a candidate for an instruction"))
    cli_candidates.add_candidates(
        commands.add_parser("candidates", help="show or change the candidates")
    )
    cli_candidates.add_store(commands.add_parser("store", help="back up or restore a store"))
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


def _add_route(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("text", help="the instruction")
    add("--server", default=cli_candidates.DEFAULT_SERVER, metavar="HOST:PORT")
    add("--json", action="store_true", help="one JSON object in place of the table")
    goal = command.add_mutually_exclusive_group()
    goal.add_argument("--cost-sensitivity", type=float, metavar="X", help="0 = quality alone")
    goal.add_argument("--min-probability", type=float, metavar="P", help="cheapest of at least P")
    goal.add_argument("--max-cost-usd", type=float, metavar="USD", help="best of at most USD")
    add("--allow", action="append", default=[], metavar="ID", help="only these (repeatable)")
    add("--deny", action="append", default=[], metavar="ID", help="not these (repeatable)")
    command.set_defaults(run=_route)


def _route(parsed: argparse.Namespace) -> None:
    with Client(parsed.server) as client:
        response = client.route(parsed.text, _policy(parsed))
    if parsed.json:
        print(json.dumps(as_json(response), ensure_ascii=False))
    else:
        from rich.console import Console

        print_decision(response, Console(highlight=False, markup=False))


def _policy(parsed: argparse.Namespace) -> Policy:
    allow = tuple(i.removeprefix(PREFIX) for i in parsed.allow)
    deny = tuple(i.removeprefix(PREFIX) for i in parsed.deny)
    if parsed.min_probability is not None:
        return Policy("min_probability", parsed.min_probability, allow, deny)
    if parsed.max_cost_usd is not None:
        return Policy("max_cost_usd", parsed.max_cost_usd, allow, deny)
    return Policy("cost_sensitivity", parsed.cost_sensitivity or 0.0, allow, deny)


def as_json(response: RouteResponse) -> dict[str, Any]:
    """A decision as --json prints it; costs in US dollars, null where unknown; times in ms."""
    return {
        "selected": response.selected,
        "reason": response.reason,
        "revision": response.revision,
        "ranking": [
            {
                "candidate": r.candidate,
                "probability": r.probability,
                "expected_cost_usd": r.expected_cost_usd
                if r.HasField("expected_cost_usd")
                else None,
            }
            for r in response.ranking
        ],
        "exclusions": {e.candidate: e.reason for e in response.exclusions},
        "input_tokens": response.input_tokens,
        "truncated": response.truncated,
        "unlikeness": response.unlikeness if response.HasField("unlikeness") else None,
        "timing_ms": {
            phase: getattr(response.timing, phase).ToNanoseconds() / 1e6 for phase in PHASES
        },
    }


def print_decision(response: RouteResponse, console: Console) -> None:
    """A decision as a table for people."""
    from rich.table import Table

    shown = as_json(response)
    table = Table()
    for heading in ("", "candidate"):
        table.add_column(heading)
    for heading in ("probability", "expected cost"):
        table.add_column(heading, justify="right")
    for row in shown["ranking"]:
        cost = row["expected_cost_usd"]
        table.add_row(
            "->" if row["candidate"] == shown["selected"] else "",
            row["candidate"].removeprefix(PREFIX),
            f"{row['probability']:.3f}",
            "unknown" if cost is None else f"${cost:.6f}",
        )
    for name, why in shown["exclusions"].items():
        table.add_row("", name.removeprefix(PREFIX), "excluded", why, style="dim")
    console.print(table)
    console.print(f"-> {shown['reason']}")
    times = ", ".join(f"{phase} {ms:.2f}" for phase, ms in shown["timing_ms"].items())
    console.print(
        f"revision {shown['revision']}; {shown['input_tokens']} tokens"
        f"{', middle unread' if shown['truncated'] else ''}{_strange(shown)}; ms: {times}"
    )


def _strange(shown: dict[str, Any]) -> str:
    unlikeness = shown["unlikeness"]
    if unlikeness is None or unlikeness < STRANGE:
        return ""
    return f"; unlike {unlikeness:.0%} of the training instructions, so with caution"


if __name__ == "__main__":
    sys.exit(main())
