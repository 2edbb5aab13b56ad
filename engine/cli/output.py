"""What commands print: plain text on the standard output, questions, progress on standard error.

A reader such as `head` closes the pipe once it has enough. Other programs are then ended by
SIGPIPE. Python ignores that signal, because it would end a program for a closed network connection
too, and raises BrokenPipeError for both.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from engine.api.errors import InvalidInputError, Violation

if TYPE_CHECKING:
    from rich.console import Console

SIGPIPE_STATUS = 128 + 13  # what a shell reports of a program that SIGPIPE ended


def stdout_console() -> Console:
    """Return a console that prints text as it is, without markup and highlights."""
    from rich.console import Console

    class StdoutConsole(Console):
        def on_broken_pipe(self) -> None:
            raise  # rich calls this where it has caught BrokenPipeError

    return StdoutConsole(highlight=False, markup=False)


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
def progress_bar(total: int, done: int = 0) -> Iterator[Callable[[], None]]:
    """Show the progress of a command that can be repeated; yield what moves it on by one."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=total, completed=done)
        try:
            yield lambda: progress.advance(bar)
        except KeyboardInterrupt:
            progress.console.print("stopped; run the same command again to resume")
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
