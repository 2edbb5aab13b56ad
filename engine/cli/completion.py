"""`modelsat completion`: print a script that completes commands, flags and files in a shell."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path

SHELLS = ("bash", "zsh", "fish", "tcsh")
FOLDERS = {"DIR"}  # metavars of arguments that are folders


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options of `modelsat completion`."""
    text = "shell to write for; bash: source <(modelsat completion bash)"
    command.add_argument("shell", choices=SHELLS, help=text)
    command.set_defaults(run=_run)


def _run(parsed: argparse.Namespace) -> None:
    import shtab

    from engine.cli.main import COMMANDS, parser

    usable = []
    for name in COMMANDS:
        with suppress(ModuleNotFoundError):  # its extra is not installed, so it would not run
            import_module(f"engine.cli.{name}")
            usable.append(name)
    top = parser(usable)
    for action in _arguments(top):
        if action.type is Path:
            action.complete = shtab.DIRECTORY if action.metavar in FOLDERS else shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(top, parsed.shell))


def _arguments(command: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the arguments of a command and of all its subcommands."""
    for action in command._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _arguments(child)
