"""Journal of an aptitude run: a JSON line for each reply, written before the next question counts.

The first line identifies the run. A run with another model, other questions or another way of
asking is refused. A last line that a crash left incomplete is dropped.
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

HEADER = "run"
# Journals of 0.1 begin with another word and name two settings differently.
HEADER_0_1 = "sitting"  # prose: ignore
RENAMED_SINCE_0_1 = {"direct": "answer_only", "body": "extra_body"}
PREFIXES = tuple(f'{{"{name}": '.encode() for name in (HEADER, HEADER_0_1))


@dataclass(frozen=True)
class Reply:
    """One reply of the model.

    question: key of the question. text: what the model wrote; empty if a content filter refused.
    counted: True if the endpoint reported the token counts, False if they are estimates.
    cut: True if the reply ended at the token limit. reasoning_tokens: those of answer_tokens that
    were reasoning, None if the endpoint did not say. latency_s: until the last token. error: why
    the endpoint refused this request; there is no reply then.
    """

    question: str
    text: str
    prompt_tokens: int
    answer_tokens: int
    counted: bool
    cut: bool
    reasoning_tokens: int | None = None
    latency_s: float | None = None
    error: str = ""


class Journal:
    """The replies of one run. Use it as a context manager.

    Args:
        path: the file, created if it does not exist.
        fingerprint: the settings that must be equal for replies to belong to one run.

    Attributes:
        replies: question key -> the reply on disk.

    Raises:
        InvalidInputError: the file belongs to another run, is damaged, or is in use.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, Any]) -> None:
        self._path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._refusal(f"cannot be opened ({error.strerror}).") from error
        self.replies: dict[str, Reply] = {}
        try:
            self._lock()
            self._read(fingerprint)
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
        """Append `reply`; it is on disk when this returns."""
        self._append(asdict(reply))
        self.replies[reply.question] = reply

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise self._refusal(
                "is in use by another run; wait for it to end, or give another --out."
            ) from error

    def _read(self, fingerprint: Mapping[str, Any]) -> None:
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.splitlines()
        try:
            if not any(content.startswith(p) or p.startswith(content) for p in PREFIXES):
                raise ValueError("the first line does not identify a run")
            recorded = _recorded_fingerprint(json.loads(lines[0])) if lines else fingerprint
            replies = [Reply(**json.loads(line)) for line in lines[1:]]
        except (ValueError, TypeError, AttributeError) as error:
            raise self._refusal(f"is not an aptitude journal, or is damaged ({error}).") from error
        if differing := [k for k, v in fingerprint.items() if recorded.get(k) != v]:
            listed = "; ".join(
                f"{k} was {recorded.get(k)!r}, is now {fingerprint[k]!r}" for k in differing
            )
            raise self._refusal(
                f"belongs to another run ({listed}); use the same settings, or another"
                " --out, which has a journal of its own."
            )
        os.ftruncate(self._file, len(whole))
        os.lseek(self._file, 0, os.SEEK_END)
        if not lines:
            self._append({HEADER: dict(fingerprint)})
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

    def _refusal(self, reason: str) -> InvalidInputError:
        return InvalidInputError(Violation(str(self._path), reason))


def _recorded_fingerprint(header: Mapping[str, Any]) -> dict[str, Any]:
    """Read the first line of a journal, of this version or of 0.1."""
    if HEADER in header:
        return dict(header[HEADER])
    return {RENAMED_SINCE_0_1.get(k, k): v for k, v in header[HEADER_0_1].items()}
