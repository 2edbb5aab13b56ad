"""A peer in a process of its own, which runs once for each line that it reads."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class MissingError(Exception):
    """Raised with the reason, and what to do about it, if a peer cannot run on this machine."""


class Peer:
    """A running process; each call lets it run once."""

    def __init__(self, process: subprocess.Popen[str], name: str) -> None:
        self._process, self._name = process, name

    def __call__(self) -> float:
        """Return the milliseconds of one run, as the process counts them. Raises MissingError."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self.line())

    def line(self) -> str:
        """Return what it prints next. Raises MissingError with its last words if it ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            assert self._process.stderr is not None
            words = self._process.stderr.read().strip().splitlines() or ["it ended"]
            raise MissingError(f"{self._name}: {words[-1]}")
        return line


@contextmanager
def running(name: str, command: Sequence[str]) -> Iterator[Peer]:
    """Run a program that prints "ready" once it is. Raises MissingError if it ends before."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        peer = Peer(process, name)
        try:
            while peer.line() != "ready":
                pass
            yield peer
        finally:
            process.kill()
