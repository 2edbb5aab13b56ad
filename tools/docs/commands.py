"""Generate the command-line page from argparse and the Makefile."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from engine.cli.main import parser
from tools.docs.markdown import cell, code, table

MAKEFILE = Path(__file__).resolve().parents[2] / "Makefile"
WIDTH = 100
HEAD = """# Command line

Generated from the commands themselves; `--help` says the same. What all of them have in common,
such as exit statuses, JSON and environment variables, is in
[Conventions of the command line](cli.md).

"""
MAKE = """## make

Run `make` in the root of a clone. Each target first builds what is missing.

"""


def page() -> str:
    """Return the page: a section for each command, then the targets of make."""
    sections = [_section(name, command) for name, command in leaves("modelsat", parser())]
    rows = [[code(f"make {t}"), cell(about)] for t, about in targets()]
    return HEAD + "\n".join(sections) + "\n" + MAKE + table(["target", "meaning"], rows)


def targets() -> list[tuple[str, str]]:
    """Return the targets of make with their descriptions."""
    return re.findall(r"^([a-z-]+):.*?## (.*)$", MAKEFILE.read_text("utf-8"), re.MULTILINE)


def leaves(
    name: str, command: argparse.ArgumentParser
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield every command that is not just a group of other commands."""
    groups = [a for a in command._actions if isinstance(a, argparse._SubParsersAction)]
    for group in groups:
        helps = {choice.dest: choice.help or "" for choice in group._choices_actions}
        for word, child in group.choices.items():
            child.description = child.description or helps.get(word)
            yield from leaves(f"{name} {word}", child)
    if not groups:
        yield name, command


def _section(name: str, command: argparse.ArgumentParser) -> str:
    about = command.description or ""
    about = about[:1].upper() + about[1:].rstrip(".") + "." if about else ""
    if name == "modelsat serve":
        flags = "Its flags are the [settings](configuration.md), and `--config FILE`."
        return f"## {name}\n\n{about} {flags}\n"
    command.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=WIDTH)
    formatter = command._get_formatter()
    rows = [_row(a, formatter) for a in command._actions if not isinstance(a, argparse._HelpAction)]
    usage = f"```text\n{command.format_usage().strip()}\n```\n"
    return f"## {name}\n\n{about}\n\n{usage}\n{table(['argument', 'default', 'meaning'], rows)}"


def _row(action: argparse.Action, formatter: argparse.HelpFormatter) -> list[str]:
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else "")
    if not action.option_strings:
        names = str(value or action.dest)
    else:
        takes = "" if action.nargs == 0 else f" {value or action.dest.upper()}"
        names = ", ".join(action.option_strings) + takes
    default = action.default
    empty = default is None or default is False or default in (argparse.SUPPRESS, [], (), Path())
    shown = "" if empty else default
    text = formatter._expand_help(action) if action.help else ""
    return [code(names), code(str(shown)), cell(text)]
