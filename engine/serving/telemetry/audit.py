"""A random share of the decisions as JSON lines, for people who look into them later.

Written by a thread behind a bounded queue: a slow or full disk costs lines, never a request. Limits
of the file's size are the operator's: after a rotation (rename) or a SIGHUP it is opened anew.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import time
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from queue import Full, Queue
from threading import Thread
from typing import Any

from engine.api.errors import ModelsatError
from engine.api.policy import Policy
from engine.routing.decision import Decision

WAITING = 256  # lines; with --audit-include-text each may hold a whole instruction
COMPLAINT_S = 60.0
STOP_S = 5.0
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Audited:
    """A decision on its way to the file, with its whole ranking. text: None = not kept."""

    at: datetime
    decision: Decision
    policy: Policy
    trace_id: str
    text: str | None

    def line(self) -> bytes:
        """One JSON object and a line break. Costs in US dollars, null where unknown."""
        d = self.decision
        entry: dict[str, Any] = {
            "time": self.at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "decision_id": d.id,
            "revision": d.revision,
            "kind": d.kind,
            "selected": d.selected.name,
            "probabilities": {r.candidate.name: round(r.probability, 6) for r in d.ranking},
            "costs": {r.candidate.name: r.expected_cost_usd for r in d.ranking},
            "policy": asdict(self.policy),
            "input_tokens": d.prompt.input_tokens,
            "truncated": d.prompt.truncated,
            "ood_score": d.prompt.ood_score,
        }
        if self.trace_id:
            entry["trace_id"] = self.trace_id
        if self.text is not None:
            entry["text"] = self.text
        return json.dumps(entry, ensure_ascii=False, default=str).encode("utf-8", "replace") + b"\n"


class AuditLog:
    """lines: how many were written, dropped and failed. offer() is for one thread.

    Raises ModelsatError where `path` cannot be opened to append.
    """

    def __init__(self, path: Path, share: float, *, with_text: bool) -> None:
        self._path = path
        self._share = share
        self._with_text = with_text
        self._complained = -COMPLAINT_S
        self.lines = Counter(written=0, dropped=0, failed=0)
        try:
            self._file = _open(path)
        except OSError as error:
            raise ModelsatError(
                f"--audit-log: {path} cannot be written ({error.strerror}); give a file in a folder"
                " that is there and writable."
            ) from error
        self._queue: Queue[Audited | bool] = Queue(WAITING)  # True: open anew; False: stop
        self._thread = Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def offer(
        self,
        decision: Decision,
        policy: Policy,
        trace_id: str,
        text: str,
    ) -> None:
        """Keep this decision if it is among the share. Never waits."""
        if random.random() >= self._share:  # noqa: S311 - a sample, not a secret
            return
        kept = text if self._with_text else None
        entry = Audited(datetime.now(UTC), decision, policy, trace_id, kept)
        try:
            self._queue.put_nowait(entry)
        except Full:
            self.lines["dropped"] += 1

    def reopen(self) -> None:
        """Open the file by its name again, after what waits is written."""
        try:
            self._queue.put_nowait(True)
        except Full:
            log.debug("the audit file is looked at before the next line anyway")

    def stop(self) -> None:
        """Write what waits, within STOP_S, and close the file."""
        try:
            self._queue.put(False, timeout=STOP_S)
        except Full:
            log.warning("audit lines are lost: the disk does not take them")
        self._thread.join(STOP_S)

    def _run(self) -> None:
        while (entry := self._queue.get()) is not False:
            try:
                self._follow(anew=entry is True)
                if isinstance(entry, Audited):
                    _append(self._file, entry.line())
                    self.lines["written"] += 1
            except OSError as error:
                self.lines["failed"] += isinstance(entry, Audited)
                self._complain(error)
        if self._file >= 0:
            os.close(self._file)

    def _follow(self, *, anew: bool) -> None:
        """Hold the file that has the name now. Raises OSError; then none is held."""
        if self._file >= 0 and not anew:
            try:
                named, held = self._path.stat(), os.fstat(self._file)
                if (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino):
                    return
            except FileNotFoundError:
                pass  # rotated away
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._file = _open(self._path)

    def _complain(self, error: OSError) -> None:
        now = time.monotonic()
        if now - self._complained < COMPLAINT_S:
            return
        self._complained = now
        log.error(
            "the audit file %s cannot be written (%s); lines are lost until it can",
            self._path,
            error.strerror,
        )


def _open(path: Path) -> int:
    """For the owner alone: it may hold instructions."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _append(file: int, line: bytes) -> None:
    """The whole line or nothing of it. Raises OSError."""
    written = os.write(file, line)
    if written < len(line):
        os.ftruncate(file, os.fstat(file).st_size - written)
        raise OSError(errno.ENOSPC, f"only {written} of {len(line)} bytes were written")
