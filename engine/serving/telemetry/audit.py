"""Audit log: a random sample of decisions as JSON lines.

A thread behind a bounded queue writes it, so a slow or full disk costs records but never delays a
request. Rotation is the operator's: after a rename or a SIGHUP the file is reopened.
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
from engine.routing.tradeoff import finite

QUEUE_SIZE = 256  # records; with --audit-include-text each may hold a whole instruction
ERROR_LOG_INTERVAL_S = 60.0
STOP_S = 5.0
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AuditRecord:
    """A decision with its whole ranking. text: of the instruction, None to leave it out."""

    at: datetime
    decision: Decision
    policy: Policy
    trace_id: str
    text: str | None

    def line(self) -> bytes:
        """Return a JSON object and a line break. Costs are in US dollars, null if unknown."""
        d = self.decision
        entry: dict[str, Any] = {
            "time": self.at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "decision_id": d.id,
            "revision": d.revision,
            "revision_token": d.revision_token,
            "kind": d.kind,
            "selected": d.selected.name,
            "probabilities": {r.candidate.name: round(r.probability, 6) for r in d.ranking},
            "base_probabilities": {
                r.candidate.name: round(r.base_probability, 6)
                for r in d.ranking
                if r.base_probability is not None
            },
            "adaptation_id": d.adaptation_id,
            "propensity": d.propensity,
            "costs": {r.candidate.name: r.expected_cost_usd for r in d.ranking},
            "policy": {**asdict(self.policy), "value": finite(self.policy.value)},
            "input_tokens": d.prompt.input_tokens,
            "token_count_method": d.prompt.token_count_method,
            "uncounted": d.prompt.uncounted,
            "truncated": d.prompt.truncated,
            "ood_score": d.prompt.ood_score,
        }
        if self.trace_id:
            entry["trace_id"] = self.trace_id
        if self.text is not None:
            entry["text"] = self.text
        return json.dumps(entry, ensure_ascii=False, default=str).encode("utf-8", "replace") + b"\n"


class AuditLog:
    """records: counts of records written, dropped and failed. offer() is for one thread.

    Raises ModelsatError if `path` cannot be opened for appending.
    """

    def __init__(self, path: Path, share: float, *, with_text: bool) -> None:
        self._path = path
        self._share = share
        self._with_text = with_text
        self._error_logged = -ERROR_LOG_INTERVAL_S
        self.records = Counter(written=0, dropped=0, failed=0)
        try:
            self._file = _open(path)
        except OSError as error:
            raise ModelsatError(
                f"--audit-log: {path} is not writable ({error.strerror}); give a file in a"
                " folder that exists and is writable."
            ) from error
        self._queue: Queue[AuditRecord | bool] = Queue(QUEUE_SIZE)  # True: reopen; False: stop
        self._thread = Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def offer(
        self,
        decision: Decision,
        policy: Policy,
        trace_id: str,
        text: str,
    ) -> None:
        """Write this decision if it is sampled. Never waits."""
        if random.random() >= self._share:  # noqa: S311 - a sample, not a secret
            return
        kept = text if self._with_text else None
        entry = AuditRecord(datetime.now(UTC), decision, policy, trace_id, kept)
        try:
            self._queue.put_nowait(entry)
        except Full:
            self.records["dropped"] += 1

    def reopen(self) -> None:
        """Reopen the file by its name, after what is queued is written."""
        try:
            self._queue.put_nowait(True)
        except Full:
            log.debug("the audit log is checked before the next record anyway")

    def stop(self) -> None:
        """Write what is queued, within STOP_S seconds, and close the file."""
        try:
            self._queue.put(False, timeout=STOP_S)
        except Full:
            log.warning("audit records are lost: writing takes too long")
        self._thread.join(STOP_S)

    def _run(self) -> None:
        while (entry := self._queue.get()) is not False:
            try:
                self._ensure_open(reopen=entry is True)
                if isinstance(entry, AuditRecord):
                    _append(self._file, entry.line())
                    self.records["written"] += 1
            except OSError as error:
                self.records["failed"] += isinstance(entry, AuditRecord)
                self._log_error(error)
        if self._file >= 0:
            os.close(self._file)

    def _ensure_open(self, *, reopen: bool) -> None:
        """Hold the file that has the name now; raises OSError, and then holds none."""
        if self._file >= 0 and not reopen:
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

    def _log_error(self, error: OSError) -> None:
        now = time.monotonic()
        if now - self._error_logged < ERROR_LOG_INTERVAL_S:
            return
        self._error_logged = now
        log.error(
            "audit log %s is not writable (%s); records are lost until it is",
            self._path,
            error.strerror,
        )


def _open(path: Path) -> int:
    """Open for the owner alone, because it may hold instructions."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _append(file: int, line: bytes) -> None:
    """Write the whole line or nothing; raises OSError."""
    written = os.write(file, line)
    if written < len(line):
        os.ftruncate(file, os.fstat(file).st_size - written)
        raise OSError(errno.ENOSPC, f"only {written} of {len(line)} bytes were written")
