"""The `modelsat` command: serve, route, health, candidates, store, outcomes, token, calibrate,
replay, aptitude.

modelsat serve
modelsat route "If 3x + 7 = 22, what is x?"
modelsat health --service readiness
modelsat candidates list
modelsat store backup --store artifacts/candidates.sqlite candidates-backup.sqlite
modelsat token --role route --name gateway-1
modelsat outcomes export --outcomes FILE --out DIR
modelsat calibrate --data DIR --min-quality 0.97
modelsat replay LOG --policy thrifty=cost_sensitivity=0.3 --out DIR
modelsat aptitude run --base-url URL --model NAME --register HOST:PORT
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from engine import (
    aptitude_command,
    calibrate,
    cli_candidates,
    cli_replay,
    health_command,
    outcome_export,
    route_command,
)
from engine.contract.errors import ModelsatError
from engine.serving.settings import Settings, flag, resolve
from engine.serving.tokens import ROLES, new_token


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
    health_command.add_arguments(commands.add_parser("health", help=health_command.HELP))
    cli_candidates.add_candidates(
        commands.add_parser("candidates", help="show or change the candidates")
    )
    cli_candidates.add_store(commands.add_parser("store", help="back up or restore a store"))
    _add_token(commands.add_parser("token", help="make a bearer token and its entry for --tokens"))
    outcome_export.add_arguments(commands.add_parser("outcomes", help=outcome_export.HELP))
    calibrate.add_arguments(commands.add_parser("calibrate", help=calibrate.HELP))
    cli_replay.add_arguments(commands.add_parser("replay", help=cli_replay.HELP))
    aptitude_command.add_arguments(commands.add_parser("aptitude", help=aptitude_command.HELP))
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
    from engine.serving import logs
    from engine.serving.bursts import BurstSelector
    from engine.serving.server import serve

    config = Path(parsed.config or os.environ.get("MODELSAT_CONFIG", ""))
    given = {f.name: getattr(parsed, f.name) for f in fields(Settings)}
    resolved = resolve(given, os.environ, config)
    logs.configure(resolved.settings.log_format, resolved.settings.log_level)
    print(f"settings, defaults aside:\n{resolved.table()}", flush=True)
    bursts = BurstSelector()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(bursts)) as runner:
        runner.run(serve(resolved.settings, bursts))


def _add_token(command: argparse.ArgumentParser) -> None:
    command.add_argument("--role", required=True, choices=ROLES)
    command.add_argument("--name", required=True, help="whose it is; the log names it on refusal")
    command.set_defaults(run=_token)


def _token(parsed: argparse.Namespace) -> None:
    text, entry = new_token(parsed.role, parsed.name)
    print("the token, shown this once, and its entry for the file of --tokens:", file=sys.stderr)
    print(text)
    print(json.dumps(asdict(entry), ensure_ascii=False))


if __name__ == "__main__":
    sys.exit(main())
