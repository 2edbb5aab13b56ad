"""What has been answered so far, a JSON line each, on disk before the next question is counted.

The first line says whose answers these are and to what; another model, other questions or another
way of asking is refused. A last line that a crash tore is dropped.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from engine.api.errors import InvalidInputError, Violation

ASKED_AS = "sitting"
FIRST = b'{"sitting": '


@dataclass(frozen=True)
class Reply:
    """question: its key. text: what the model wrote, "" where it refused by error. Token counts as
    the endpoint reports them; counted is False where they are estimates. cut: whether the reply
    ended at the token limit."""

    question: str
    text: str
    prompt_tokens: int
    answer_tokens: int
    counted: bool
    cut: bool


class Journal:
    """The replies of one sitting; replies: question key -> what is on disk. Use it as a context
    manager.

    Raises InvalidInputError where the file holds another sitting, is damaged, or is in use.
    """

    def __init__(self, path: Path, sitting: Mapping[str, Any]) -> None:
        self._path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._refusal(f"cannot be opened ({error.strerror}).") from error
        self.replies: dict[str, Reply] = {}
        try:
            self._lock()
            self._read(sitting)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._file)

    def add(self, reply: Reply) -> None:
        """Write `reply`; it is on disk when this returns."""
        self._append(asdict(reply))
        self.replies[reply.question] = reply

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            why = "is written by another run; wait for its end, or name another."
            raise self._refusal(why) from error

    def _read(self, sitting: Mapping[str, Any]) -> None:
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.splitlines()
        try:
            if not (content.startswith(FIRST) or FIRST.startswith(content)):
                raise ValueError("its first line is another one")
            found = json.loads(lines[0])[ASKED_AS] if lines else sitting
            replies = [Reply(**json.loads(line)) for line in lines[1:]]
        except (ValueError, TypeError) as error:
            raise self._refusal(f"is no journal of this command, or damaged ({error}).") from error
        if other := [k for k, v in sitting.items() if found.get(k) != v]:
            named = "; ".join(f"{k} {found.get(k)!r}, now {sitting[k]!r}" for k in other)
            raise self._refusal(
                f"holds answers of another sitting ({named}); run it as before, or name another"
                " journal."
            )
        os.ftruncate(self._file, len(whole))
        os.lseek(self._file, 0, os.SEEK_END)
        if not lines:
            self._append({ASKED_AS: dict(sitting)})
        self.replies = {r.question: r for r in replies}

    def _append(self, value: Mapping[str, Any]) -> None:
        line = json.dumps(value).encode() + b"\n"
        whole = os.lseek(self._file, 0, os.SEEK_CUR)
        try:
            while line:
                line = line[os.write(self._file, line) :]
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, whole)
            os.lseek(self._file, whole, os.SEEK_SET)
            raise self._refusal(f"cannot be written ({error.strerror}).") from error

    def _refusal(self, why: str) -> InvalidInputError:
        return InvalidInputError(Violation(str(self._path), why))
