"""Read the commands from a page of the documentation, and run them as a reader would.

Fenced blocks of the language `bash` are run from the repository root, all blocks of a page in
order, in one shell. The line before a block may be `<!-- background -->` if it starts something
that keeps running, or `<!-- not run: REASON -->`.
"""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"(`{3,}|~{3,})(\S*)")
_NOT_RUN = re.compile(r"<!-- not run:(.*)-->")
_BACKGROUND = "<!-- background -->"
_PORT = re.compile(r"(?:127\.0\.0\.1:|localhost:|--port[ =])(\d{2,5})\b")
_SERVER = re.compile(r"\bmodelsat serve\b|\bmake serve\b")
_ADDRESS = re.compile(r"--address\b|\bADDRESS=")
DEFAULT_PORT = 50051  # of `modelsat serve` without --address
TAIL = 3000  # characters of output in an error


@dataclass(frozen=True)
class Block:
    """A block of commands.

    line: the line of its fence, from 1. not_run: why it is not run; None if it is. section: the
    heading of the second level above it, "" if there is none.
    """

    line: int
    text: str
    background: bool = False
    not_run: str | None = None
    section: str = ""

    @property
    def ports(self) -> tuple[int, ...]:
        """Ports that are open once a background block is ready."""
        ports = {int(p) for p in _PORT.findall(self.text)}
        if _SERVER.search(self.text) and not _ADDRESS.search(self.text):
            ports.add(DEFAULT_PORT)
        return tuple(sorted(ports))


class BlockFailedError(RuntimeError):
    """A block failed, took too long, or never became ready."""


def blocks(markdown: str) -> list[Block]:
    """Return the `bash` blocks of a page.

    Raises ValueError, with the line, for a comment before a block that is not one of the two.
    """
    result: list[Block] = []
    lines = markdown.splitlines()
    fence, language, start, section = "", "", 0, ""
    for i, line in enumerate(lines):
        stripped = line.strip()
        if not fence and (opened := _FENCE.match(stripped)):
            fence, language, start = opened[1], opened[2], i
        elif fence and stripped == fence:
            if language == "bash":
                mark = lines[start - 1].strip() if start else ""
                result.append(_block(start + 1, lines[start + 1 : i], mark, section))
            fence = ""
        elif not fence and line.startswith("## "):
            section = line.removeprefix("## ")
    return result


def _block(line: int, text: Sequence[str], mark: str, section: str) -> Block:
    reason = _NOT_RUN.fullmatch(mark)
    if reason and not reason[1].strip():
        raise ValueError(f"line {line - 1}: `not run` needs a reason: <!-- not run: REASON -->")
    if mark.startswith("<!--") and not reason and mark != _BACKGROUND:
        raise ValueError(f"line {line - 1}: unknown comment before a block: {mark!r}")
    not_run = reason[1].strip() if reason else None
    return Block(line, "\n".join(text) + "\n", mark == _BACKGROUND, not_run, section)


class Shell:
    """A bash process that runs blocks. Use shell(), which stops everything that it started."""

    def __init__(self, folder: Path, root: Path, environ: Mapping[str, str]) -> None:
        self._folder = folder
        self._status_in, self._status_out = os.pipe()
        self.log = folder / "output.log"
        with self.log.open("wb") as output:
            self._bash = subprocess.Popen(
                ["bash", "--noprofile", "--norc"],
                cwd=root,
                env=dict(environ),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[self._status_out],
                start_new_session=True,
            )
        self._send("set -e -o pipefail")

    def run(self, block: Block, timeout_s: float) -> float:
        """Run a block, or start it and wait until it is ready; return the seconds that it took.

        Raises BlockFailedError with the end of the block's output.
        """
        file = self._folder / f"block-{block.line}.sh"
        file.write_text(block.text, encoding="utf-8")
        start = time.monotonic()
        if block.background:
            log = file.with_suffix(".log")
            self._send(f"{{ . {file}; }} </dev/null >{log} 2>&1 {self._status_out}>&- & ")
            self._send(f"echo $! >&{self._status_out}")
            process = int(self._read_status(block, self.log, 10))
            self._await_ready(block, process, log, start + timeout_s)
        else:
            begin = self.log.stat().st_size
            self._send(f". {file} </dev/null; echo done >&{self._status_out}")
            self._read_status(block, self.log, timeout_s, begin)
        return time.monotonic() - start

    def stop(self) -> None:
        """Send SIGTERM to everything that it started, and SIGKILL after ten seconds."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self._bash.pid, number)
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline and self._alive():
                time.sleep(0.05)
        for end in (self._status_in, self._status_out):
            os.close(end)
        assert self._bash.stdin is not None
        with suppress(BrokenPipeError):
            self._bash.stdin.close()

    def _alive(self) -> bool:
        self._bash.poll()
        try:
            os.killpg(self._bash.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def _send(self, line: str) -> None:
        assert self._bash.stdin is not None
        with suppress(BrokenPipeError):  # bash has ended; _read_status reports it
            self._bash.stdin.write(line.encode() + b"\n")
            self._bash.stdin.flush()

    def _read_status(self, block: Block, log: Path, timeout_s: float, begin: int = 0) -> str:
        """Return the next line on the pipe, which the shell writes after the block."""
        deadline = time.monotonic() + timeout_s
        while not select.select([self._status_in], [], [], 0.05)[0]:
            if self._bash.poll() is not None:
                raise _failed(block, f"failed with status {self._bash.returncode}", log, begin)
            if time.monotonic() > deadline:
                raise _failed(block, f"is not done after {timeout_s:.0f} s", log, begin)
        return os.read(self._status_in, 100).decode().strip()

    def _await_ready(self, block: Block, process: int, log: Path, deadline: float) -> None:
        while not _ready(block, log):
            if not _exists(process):
                raise _failed(block, "ended before it was ready", log)
            if time.monotonic() > deadline:
                raise _failed(block, f"is not ready: ports {block.ports}", log)
            time.sleep(0.05)


@contextmanager
def shell(folder: Path, root: Path, environ: Mapping[str, str]) -> Iterator[Shell]:
    """Start a shell in `root`, with its files and logs in `folder`."""
    running = Shell(folder, root, environ)
    try:
        yield running
    finally:
        running.stop()


def require_free(page: Sequence[Block]) -> None:
    """Raise BlockFailedError if a port that the page's background blocks need is taken."""
    for block in page:
        taken = [p for p in block.ports if _open(p)] if block.background else []
        if taken and block.not_run is None:
            raise BlockFailedError(
                f"line {block.line}: port {taken[0]} of 127.0.0.1 is in use, and the page's own"
                " command needs it; stop the other process."
            )


def _ready(block: Block, log: Path) -> bool:
    """Return whether all ports of the block are open and its server has printed `ready`."""
    lines = log.read_text("utf-8", "replace").splitlines() if log.exists() else []
    printed = any(line.startswith("ready") for line in lines)
    if not block.ports:
        return printed
    return (printed or not _SERVER.search(block.text)) and all(map(_open, block.ports))


def _open(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _failed(block: Block, problem: str, log: Path, begin: int = 0) -> BlockFailedError:
    text = log.read_bytes()[begin:].decode("utf-8", "replace") if log.exists() else ""
    return BlockFailedError(
        f"line {block.line}: this block {problem}:\n{block.text}\n"
        f"Its output ends with:\n{text[-TAIL:]}"
    )
