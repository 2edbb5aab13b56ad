"""The command-line page, from argparse and the Makefile."""

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

Made from the commands themselves; `--help` says the same. A command that fails for a reason that
you can mend prints one sentence beginning with `error:` and ends with status 1.

"""
MAKE = """## make

`make` runs from the root of a clone and builds what is missing first.

"""


def page() -> str:
    """A section for each command, then the targets of make."""
    sections = [_section(name, found) for name, found in leaves("modelsat", parser())]
    rows = [[code(f"make {t}"), cell(about)] for t, about in targets()]
    return HEAD + "\n".join(sections) + "\n" + MAKE + table(["target", ""], rows)


def targets() -> list[tuple[str, str]]:
    """Those of make with what they say of themselves."""
    return re.findall(r"^([a-z-]+):.*?## (.*)$", MAKEFILE.read_text("utf-8"), re.MULTILINE)


def leaves(
    name: str, found: argparse.ArgumentParser
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command that is no mere group of others."""
    groups = [a for a in found._actions if isinstance(a, argparse._SubParsersAction)]
    for group in groups:
        helps = {choice.dest: choice.help or "" for choice in group._choices_actions}
        for word, child in group.choices.items():
            child.description = child.description or helps.get(word)
            yield from leaves(f"{name} {word}", child)
    if not groups:
        yield name, found


def _section(name: str, found: argparse.ArgumentParser) -> str:
    about = found.description or ""
    about = about[:1].upper() + about[1:].rstrip(".") + "." if about else ""
    if name == "modelsat serve":
        its = "Its flags are the [settings](settings.md), and `--config FILE`."
        return f"## {name}\n\n{about} {its}\n"
    found.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=WIDTH)
    rows = [_row(a) for a in found._actions if not isinstance(a, argparse._HelpAction)]
    usage = f"```text\n{found.format_usage().strip()}\n```\n"
    return f"## {name}\n\n{about}\n\n{usage}\n{table(['argument', 'default', ''], rows)}"


def _row(action: argparse.Action) -> list[str]:
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else "")
    if not action.option_strings:
        names = str(value or action.dest)
    else:
        takes = "" if action.nargs == 0 else f" {value or action.dest.upper()}"
        names = ", ".join(action.option_strings) + takes
    default = action.default
    nothing = default is None or default is False or default in (argparse.SUPPRESS, [], (), Path())
    shown = "" if nothing else default
    text = (action.help or "").replace("%(default)s", str(default)).replace("%%", "%")
    return [code(names), code(str(shown)), cell(text)]
