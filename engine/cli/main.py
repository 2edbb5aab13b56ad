"""The `modelsat` command.

modelsat serve
modelsat route "If 3x + 7 = 22, what is x?"
modelsat health --service readiness
modelsat candidates list
modelsat store backup --candidates-db artifacts/candidates.sqlite backup.sqlite
modelsat token --role route --name gateway-1
modelsat outcomes export --outcomes-db FILE --out DIR
modelsat adaptation status
modelsat calibrate --data DIR --min-accuracy-ratio 0.97
modelsat replay LOG --policy thrifty=willingness_to_pay_usd=0.05 --out DIR
modelsat aptitude run --base-url URL --model NAME --register HOST:PORT
modelsat aptitude from-published FILE
modelsat catalog update candidates.json
modelsat compare run --log LOG --candidates A,B,C --grader numeric --endpoints FILE
modelsat completion bash
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module

from engine import __version__
from engine.api.errors import ModelsatError
from engine.cli.output import SIGPIPE_STATUS, discard_output, reader_is_gone

# Modules load when their command runs: the client's commands need nothing of the server.
COMMANDS = {
    "serve": "start the routing server on an exported bundle",
    "route": "ask a server which candidate should answer an instruction",
    "health": "check the health of a server; exit status 0 if it is serving",
    "candidates": "list and change the candidates of a server",
    "store": "back up or restore a server's candidate database",
    "token": "create a bearer token and its entry for the server's tokens file",
    "outcomes": "export recorded outcomes as a data folder, or import one",
    "adaptation": "see and steer what a server learned from outcomes",
    "calibrate": "find the willingness to pay that meets a target on your own traffic",
    "replay": "route logged requests under other policies and compare cost and quality",
    "aptitude": "make a candidate of a live LLM's aptitude test or of published figures",
    "catalog": "renew the prices of a file of candidates",
    "compare": "ask several LLMs the same past requests and record how well each did",
    "completion": "print a script that completes this command in a shell",
}
EXTRAS = {
    "aptitude": "cpu,aptitude",
    "compare": "cpu,aptitude",
    "replay": "cpu,replay",
}  # of the other commands: cpu


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 0, 1 for an error that the user can fix, 2 for wrong arguments, 130 if
        interrupted, 141 if the reader of its output has closed the pipe.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    command = arguments[0] if arguments else ""
    try:
        try:
            top = parser([command])
            parsed, unknown = top.parse_known_args(arguments)
            if unknown:  # argparse would show the usage of `modelsat` alone
                where = command if command in COMMANDS else "COMMAND"
                top.error(f"no such arguments: {' '.join(unknown)}; see `modelsat {where} --help`")
            parsed.run(parsed)
        finally:
            sys.stdout.flush()  # here, because a closed pipe is noticed at the latest now
    except ModelsatError as error:
        is_unknown = getattr(error, "code", "") == "UNAUTHENTICATED"
        advice = " --token-file FILE or MODELSAT_TOKEN gives the token." if is_unknown else ""
        print(f"error: {error}{advice}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in {"engine", "cpp_ext"}:
            raise
        extra = EXTRAS.get(command, "cpu")
        print(
            f"error: `modelsat {command}` needs {error.name}, which is not installed:"
            f" pip install 'modelsat[{extra}]'",
            file=sys.stderr,
        )
        return 1
    except BrokenPipeError:
        if not reader_is_gone():
            raise
        discard_output()
        return SIGPIPE_STATUS
    except KeyboardInterrupt:
        return 130
    return 0


def parser(names: Iterable[str] = COMMANDS) -> argparse.ArgumentParser:
    """Build the command line, with the arguments of the commands in `names`."""
    top = argparse.ArgumentParser(
        prog="modelsat",
        description="Route each instruction to the LLM that will handle it best.",
        epilog="`modelsat COMMAND --help` describes a command.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=16),
    )
    top.add_argument(
        "--version",
        action="version",
        version=f"modelsat {__version__}",
        help="print the version and exit",
    )
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        description = f"{summary[0].upper()}{summary[1:]}."
        command = commands.add_parser(name, help=summary, description=description)
        if name in names:
            import_module(f"engine.cli.{name}").add_arguments(command)
    return top


if __name__ == "__main__":
    sys.exit(main())
