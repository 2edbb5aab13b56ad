"""The `modelsat` command: serve, route, health, candidates, store, outcomes, token, calibrate,
replay, aptitude.

modelsat serve
modelsat route "If 3x + 7 = 22, what is x?"
modelsat health --service readiness
modelsat candidates list
modelsat store backup --candidates-db artifacts/candidates.sqlite candidates-backup.sqlite
modelsat token --role route --name gateway-1
modelsat outcomes export --outcomes-db FILE --out DIR
modelsat calibrate --data DIR --min-accuracy-ratio 0.97
modelsat replay LOG --policy thrifty=cost_sensitivity=0.3 --out DIR
modelsat aptitude run --base-url URL --model NAME --register HOST:PORT
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from engine import __version__
from engine.api.errors import ModelsatError
from engine.cli import (
    aptitude,
    calibrate,
    candidates,
    health,
    outcomes,
    replay,
    route,
    serve,
    store,
    token,
)


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
    top.add_argument("--version", action="version", version=f"modelsat {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    serve.add_arguments(commands.add_parser("serve", help="serve a bundle"))
    route.add_arguments(commands.add_parser("route", help=route.HELP))
    health.add_arguments(commands.add_parser("health", help=health.HELP))
    candidates.add_arguments(
        commands.add_parser("candidates", help="show or change the candidates")
    )
    store.add_arguments(commands.add_parser("store", help="back up or restore a store"))
    token.add_arguments(
        commands.add_parser(
            "token", help="make a bearer token and its entry for --auth-tokens-file"
        )
    )
    outcomes.add_arguments(commands.add_parser("outcomes", help=outcomes.HELP))
    calibrate.add_arguments(commands.add_parser("calibrate", help=calibrate.HELP))
    replay.add_arguments(commands.add_parser("replay", help=replay.HELP))
    aptitude.add_arguments(commands.add_parser("aptitude", help=aptitude.HELP))
    return top


if __name__ == "__main__":
    sys.exit(main())
