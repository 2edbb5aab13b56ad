"""The commands in the documentation: read from a page, and run as a reader would run them.

A fenced block of language `bash` is run from the repository root, all blocks of a page in order in
one shell. The line before it may be `<!-- background -->` for one that starts something which
stays, or `<!-- not run: REASON -->`.
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
DEFAULT_PORT = 50051  # of a server whose block names none
TAIL = 3000  # characters of output in an error


@dataclass(frozen=True)
class Block:
    """line: of its fence, from 1. not_run: the reason, None where it is run."""

    line: int
    text: str
    background: bool = False
    not_run: str | None = None

    @property
    def ports(self) -> tuple[int, ...]:
        """What listens once a background block is ready."""
        named = {int(p) for p in _PORT.findall(self.text)}
        if _SERVER.search(self.text) and not _ADDRESS.search(self.text):
            named.add(DEFAULT_PORT)
        return tuple(sorted(named))


class BlockFailedError(RuntimeError):
    """A block ended with another status than 0, took too long, or never became ready."""


def blocks(markdown: str) -> list[Block]:
    """The `bash` blocks of a page. ValueError with the line of a mark that says nothing."""
    found: list[Block] = []
    lines = markdown.splitlines()
    fence, language, start = "", "", 0
    for i, line in enumerate(lines):
        stripped = line.strip()
        if not fence and (opened := _FENCE.match(stripped)):
            fence, language, start = opened[1], opened[2], i
        elif fence and stripped == fence:
            if language == "bash":
                mark = lines[start - 1].strip() if start else ""
                found.append(_block(start + 1, lines[start + 1 : i], mark))
            fence = ""
    return found


def _block(line: int, text: Sequence[str], mark: str) -> Block:
    reason = _NOT_RUN.fullmatch(mark)
    if reason and not reason[1].strip():
        raise ValueError(f"line {line - 1}: `not run` needs a reason: <!-- not run: REASON -->")
    if mark.startswith("<!--") and not reason and mark != _BACKGROUND:
        raise ValueError(f"line {line - 1}: {mark!r} is no mark that a block may have")
    not_run = reason[1].strip() if reason else None
    return Block(line, "\n".join(text) + "\n", mark == _BACKGROUND, not_run)


class Shell:
    """One bash that runs blocks. Use shell(); it stops everything that was started in it."""

    def __init__(self, folder: Path, root: Path, environ: Mapping[str, str]) -> None:
        self._folder = folder
        self._told, self._tell = os.pipe()
        self.log = folder / "output.log"
        with self.log.open("wb") as output:
            self._bash = subprocess.Popen(
                ["bash", "--noprofile", "--norc"],
                cwd=root,
                env=dict(environ),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[self._tell],
                start_new_session=True,
            )
        self._send("set -e -o pipefail")

    def run(self, block: Block, timeout_s: float) -> float:
        """Run it, or start it and wait until it is ready; the seconds that took.

        Raises BlockFailedError with the end of its output.
        """
        file = self._folder / f"block-{block.line}.sh"
        file.write_text(block.text, encoding="utf-8")
        start = time.monotonic()
        if block.background:
            log = file.with_suffix(".log")
            self._send(f"{{ . {file}; }} </dev/null >{log} 2>&1 {self._tell}>&- & ")
            self._send(f"echo $! >&{self._tell}")
            self._await_ready(block, int(self._answer(block, self.log, 10)), log, start + timeout_s)
        else:
            begin = self.log.stat().st_size
            self._send(f". {file} </dev/null; echo done >&{self._tell}")
            self._answer(block, self.log, timeout_s, begin)
        return time.monotonic() - start

    def stop(self) -> None:
        """SIGTERM to all that it started, SIGKILL to what is left after ten seconds."""
        for sent in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self._bash.pid, sent)
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline and self._alive():
                time.sleep(0.05)
        for end in (self._told, self._tell):
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
        with suppress(BrokenPipeError):  # it has ended; _answer says so
            self._bash.stdin.write(line.encode() + b"\n")
            self._bash.stdin.flush()

    def _answer(self, block: Block, log: Path, timeout_s: float, begin: int = 0) -> str:
        """The next line on the pipe: what the block was to say once it is done."""
        deadline = time.monotonic() + timeout_s
        while not select.select([self._told], [], [], 0.05)[0]:
            if self._bash.poll() is not None:
                raise _failed(block, f"failed with status {self._bash.returncode}", log, begin)
            if time.monotonic() > deadline:
                raise _failed(block, f"is not done after {timeout_s:.0f} s", log, begin)
        return os.read(self._told, 100).decode().strip()

    def _await_ready(self, block: Block, process: int, log: Path, deadline: float) -> None:
        while not _ready(block, log):
            if not _exists(process):
                raise _failed(block, "ended before it was ready", log)
            if time.monotonic() > deadline:
                raise _failed(block, f"is not ready: ports {block.ports}", log)
            time.sleep(0.05)


@contextmanager
def shell(folder: Path, root: Path, environ: Mapping[str, str]) -> Iterator[Shell]:
    """A shell in `root`; its files and logs go to `folder`."""
    running = Shell(folder, root, environ)
    try:
        yield running
    finally:
        running.stop()


def require_free(page: Sequence[Block]) -> None:
    """Raise BlockFailedError where a port that the page's background blocks listen on is taken."""
    for block in page:
        taken = [p for p in block.ports if _open(p)] if block.background else []
        if taken and block.not_run is None:
            raise BlockFailedError(
                f"line {block.line}: something listens on port {taken[0]} of 127.0.0.1 already;"
                " stop it, the page's own command needs the port."
            )


def _ready(block: Block, log: Path) -> bool:
    """Every port that the block names is open, and a server has said that it is ready."""
    lines = log.read_text("utf-8", "replace").splitlines() if log.exists() else []
    told = any(line.startswith("ready") for line in lines)
    if not block.ports:
        return told
    return (told or not _SERVER.search(block.text)) and all(map(_open, block.ports))


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


def _failed(block: Block, how: str, log: Path, begin: int = 0) -> BlockFailedError:
    text = log.read_bytes()[begin:].decode("utf-8", "replace") if log.exists() else ""
    return BlockFailedError(
        f"line {block.line}: this block {how}:\n{block.text}\nIts output ends with:\n{text[-TAIL:]}"
    )
