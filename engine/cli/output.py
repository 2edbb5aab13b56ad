"""What commands print: plain text on the standard output, questions, progress on standard error.

A reader such as `head` closes the pipe once it has enough. Other programs are then ended by
SIGPIPE. Python ignores that signal, because it would end a program for a closed network connection
too, and raises BrokenPipeError for both.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from engine.api.errors import InvalidInputError, Violation

if TYPE_CHECKING:
    from rich.console import Console

FRAME = 3  # characters around a cell of a framed table
MIN_TEXT_WIDTH = 12
SIGPIPE_STATUS = 128 + 13  # what a shell reports of a program that SIGPIPE ended


def stdout_console() -> Console:
    """Return a console that prints text as it is, without markup and highlights."""
    from rich.console import Console

    class StdoutConsole(Console):
        def on_broken_pipe(self) -> None:
            raise  # rich calls this where it has caught BrokenPipeError

    return StdoutConsole(highlight=False, markup=False)


@dataclass(frozen=True)
class Column:
    """A column of a table. text: it is shortened if the table is too wide, and other columns only
    if that does not help; they are numbers, and right-aligned."""

    heading: str
    text: bool = False


def print_table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], console: Console | None = None
) -> None:
    """Print a table, a line for each row, within the width of the terminal or $COLUMNS.

    If it is too wide, its texts are shortened; if that leaves too little of them, it has no frame.
    console: stdout_console() if None.
    """
    from rich.table import Table

    console = console or stdout_console()
    widths = [
        max(map(len, cells)) for cells in zip([c.heading for c in columns], *rows, strict=True)
    ]
    texts = [i for i, column in enumerate(columns) if column.text]
    framed = sum(widths) + FRAME * len(columns) + 1
    table = Table()
    excess = framed - console.width
    if excess > 0 and sum(max(0, widths[i] - MIN_TEXT_WIDTH) for i in texts) < excess:
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
        excess = sum(widths) + len(columns) - console.width
    while excess > 0 and any(widths[i] > 1 for i in texts):
        widths[max(texts, key=widths.__getitem__)] -= 1
        excess -= 1
    for column, width in zip(columns, widths, strict=True):
        justify: Literal["left", "right"] = "left" if column.text else "right"
        table.add_column(
            column.heading, justify=justify, no_wrap=True, overflow="ellipsis", width=width
        )
    for row in rows:
        table.add_row(*row)
    console.print(table)


def print_json(value: Any, indent: int | None = None) -> None:
    """Print a value as JSON; times in ISO 8601."""

    def plain(other: Any) -> str:
        return other.isoformat() if isinstance(other, datetime) else str(other)

    print(json.dumps(value, indent=indent, ensure_ascii=False, default=plain))


def write_text(path: Path | None, text: str, *, force: bool) -> None:
    """Write a whole file or nothing, and say so; print the text if `path` is None.

    Raises:
        InvalidInputError: the file cannot be written, or exists and `force` is False.
    """
    if path is None:
        print(text, end="")
        return
    require_new(path, force=force)
    try:
        replace_text(path, text)
    except OSError as error:
        problem = f"is {path}, which cannot be written ({error.strerror})."
        raise InvalidInputError(Violation("--out", problem)) from error
    print(f"wrote {path}")


def require_new(path: Path, *, force: bool, argument: str = "--out") -> None:
    """Raise InvalidInputError if a file exists and may not be overwritten. argument: names it."""
    if path.exists() and not force:
        raise InvalidInputError(Violation(argument, f"is {path}, which exists; add --force."))


def add_force(command: argparse._ActionsContainer, what: str) -> None:
    """Add --force, which overwrites `what`."""
    text = f"overwrite {what} if it exists"
    command.add_argument("--force", action="store_true", help=text)


def replace_text(path: Path, text: str) -> None:
    """Write the whole file or nothing; raises OSError."""
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def confirm_start(estimate_flag: str) -> None:
    """Ask whether to start what costs money, and raise KeyboardInterrupt if not.

    estimate_flag: of the command, which shows the cost alone. Raises InvalidInputError if there is
    no terminal to ask on.
    """
    if not sys.stdin.isatty():
        problem = f"is needed without a terminal to confirm on; {estimate_flag} only estimates."
        raise InvalidInputError(Violation("--yes", problem))
    if input("Start? [y/N] ").strip().lower() not in {"y", "yes"}:
        raise KeyboardInterrupt


@contextmanager
def progress_bar(
    total: int, done: int = 0, *, resumes: bool = True
) -> Iterator[Callable[[], None]]:
    """Show the progress of a command; yield what moves it on by one.

    resumes: whether the same command goes on where it was stopped.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=total, completed=done)
        try:
            yield lambda: progress.advance(bar)
        except KeyboardInterrupt:
            advice = "run the same command again to resume" if resumes else "nothing was changed"
            progress.console.print(f"stopped; {advice}")
            raise


def reader_is_gone() -> bool:
    """Return True if the standard output has no reader any more."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def discard_output() -> None:
    """Discard what is printed from now on, and what is still buffered."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
