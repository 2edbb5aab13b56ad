"""Append-only audit of changes to the candidates: who asked for what, and with which result.

Each line is a JSON object that holds the hash of the line before it, so a line that was altered,
removed or inserted shows (verify). A writer of the file can compute a new chain from there on; keep
the last hash elsewhere to detect that. Lines hold no instruction, token or key.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from google.rpc import code_pb2

from engine.api.errors import ModelsatError
from engine.api.request_context import PEER, PRINCIPAL, ROLE
from engine.registry.private_files import OWNER_ONLY
from engine.serving.rpc.status import code_of

START = "0" * 64  # hash before the first line
RECOVERED = "recovered"  # action of the line after one that a crash cut off
TAIL_BYTES = 1 << 20  # in which the last line is
MAX_TARGET_CHARS = 300
_UNUSABLE = (OSError, ValueError, KeyError, TypeError)  # full disk; a file of another program
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChangeRecord:
    """One attempt to change the candidates.

    action: such as "created". target: what of. result: "OK" or the name of the status. revision:
    the newest one afterwards. dry_run: whether nothing was to be changed. principal, role, peer: of
    the caller; see engine.api.request_context.
    """

    action: str
    target: str
    result: str
    revision: int
    dry_run: bool
    principal: str = ""
    role: str = ""
    peer: str = ""


def by_caller(
    action: str, target: str, result: str, revision: int, *, dry_run: bool
) -> ChangeRecord:
    """Return the record of a change by the caller of this task."""
    who = (PRINCIPAL.get(), ROLE.get(), PEER.get())
    return ChangeRecord(action, target[:MAX_TARGET_CHARS], result, revision, dry_run, *who)


@asynccontextmanager
async def audited(
    changes: ChangeLog | None, action: str, target: str, revision: Callable[[], int], dry_run: bool
) -> AsyncIterator[None]:
    """Log a change by the caller of this task and audit it, also if it fails or is a dry run.

    changes: None if changes are not audited. revision: returns the newest one.
    """
    result = code_pb2.OK
    try:
        yield
    except BaseException as error:
        result = code_of(error) if isinstance(error, Exception) else code_pb2.CANCELLED
        raise
    finally:
        name, newest = code_pb2.Code.Name(result), revision()
        record = by_caller(action, target, name, newest, dry_run=dry_run)
        if result == code_pb2.OK and not dry_run:
            who = f"{record.principal!r} from {record.peer}"
            log.info("%s %s, revision %d, by %s", action, record.target, newest, who)
        if changes is not None:
            await asyncio.shield(changes.add(record))


class ChangeLog:
    """An open audit file, for one event loop. Only one server may have it open.

    After the file is renamed (logrotate), the next line begins a new one and continues the chain.
    """

    def __init__(self, path: Path) -> None:
        """Open or create `path` for its owner alone. Raises ModelsatError."""
        self._path = path
        self._thread = ThreadPoolExecutor(1, "changes")
        self.failed = 0  # records that could not be written
        self._number, self._hash, self._file = 0, START, -1
        try:
            self._open()
        except _UNUSABLE as error:
            reason = getattr(error, "strerror", None) or error
            raise ModelsatError(
                f"--changes-log: {path} cannot be used ({reason}); give a file that no other server"
                " writes, in a folder that exists."
            ) from error

    async def add(self, record: ChangeRecord) -> None:
        """Write a record, and return once it is on disk. Logs what cannot be written."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._append, record)

    def close(self) -> None:
        """Finish what is being written, and close the file."""
        self._thread.shutdown()
        os.close(self._file)

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        previous, self._file = self._file, os.open(self._path, flags, OWNER_ONLY)
        try:
            self._continue_chain(self._file)
        except BaseException:
            os.close(self._file)
            self._file = previous
            raise
        if previous >= 0:
            os.close(previous)

    def _continue_chain(self, file: int) -> None:
        """Lock an open file, and read the last line; note one that a crash cut off."""
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.fchmod(file, OWNER_ONLY)
        size = os.fstat(file).st_size
        begin = max(0, size - TAIL_BYTES)
        *lines, torn = os.pread(file, size - begin, begin).split(b"\n")
        if _is_record(torn):  # whole but for its line break
            os.write(file, b"\n")
            lines, torn = [torn], b""
        if lines and lines[-1]:
            last = json.loads(lines[-1])
            self._number, self._hash = int(last["number"]), str(last["hash"])
        elif size and not torn:
            raise ValueError("its last line is empty")
        if torn:
            cut = hashlib.sha256(torn).hexdigest()
            # With its line break in one step: a line that is no record could not be opened again.
            self._write(ChangeRecord(RECOVERED, cut, "OK", 0, dry_run=False), before=b"\n")

    def _append(self, record: ChangeRecord) -> None:
        try:
            try:
                moved = self._path.stat().st_ino != os.fstat(self._file).st_ino
            except FileNotFoundError:
                moved = True
            if moved:
                self._open()
            self._write(record)
        except _UNUSABLE as error:
            self.failed += 1
            log.error("the audit of changes %s is not writable: %s", self._path, error)

    def _write(self, record: ChangeRecord, before: bytes = b"") -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        entry = {"number": self._number + 1, "time": now, **asdict(record), "previous": self._hash}
        entry["hash"] = hash_of(entry)
        line = before + json.dumps(entry).encode() + b"\n"
        size = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line) < len(line):
                raise OSError("the disk is full")
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, size)
            raise
        self._number, self._hash = self._number + 1, str(entry["hash"])


def hash_of(entry: dict[str, Any]) -> str:
    """Return the SHA-256 of a line without its own hash, as canonical JSON."""
    rest = {name: value for name, value in entry.items() if name != "hash"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _is_record(line: bytes) -> bool:
    try:
        entry = json.loads(line)
        return bool(entry["hash"] == hash_of(entry))
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def verify(paths: list[Path]) -> tuple[int, str]:
    """Check the chain through files, oldest first; return (number of lines, last hash).

    The first file may continue one that is not given. Raises ModelsatError that names the first
    line that does not fit.
    """
    known: tuple[int, str] | None = None
    count, torn = 0, b""
    for where, line in _lines(paths):
        try:
            entry = json.loads(line)
            number, previous, found = int(entry["number"]), entry["previous"], entry["hash"]
            fits = hash_of(entry) == found
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            if torn:
                raise _broken(where, "is not a record") from None
            torn = line
            continue
        if torn and (entry["action"], entry["target"]) != (
            RECOVERED,
            hashlib.sha256(torn).hexdigest(),
        ):
            raise _broken(where, "follows a line that is not a record")
        if not fits:
            raise _broken(where, "was altered")
        if known is not None and (number, previous) != (known[0] + 1, known[1]):
            raise _broken(where, f"does not follow number {known[0]}")
        if known is None and number == 1 and previous != START:
            raise _broken(where, "is not a first line")
        known, count, torn = (number, found), count + 1, b""
    if torn:
        raise _broken(str(paths[-1]), "ends within a line; a server that opens it notes that")
    return count, known[1] if known else START


def _lines(paths: list[Path]) -> Iterator[tuple[str, bytes]]:
    for path in paths:
        try:
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    yield f"{path}:{number}", line.removesuffix(b"\n")
        except OSError as error:
            raise _broken(str(path), f"cannot be read ({error.strerror})") from error


def _broken(where: str, problem: str) -> ModelsatError:
    return ModelsatError(f"{where}: {problem}; the audit of changes is not intact.")
