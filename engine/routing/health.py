"""Which candidates fail in production, and how long they take, by what callers and gateways report.

A candidate that fails several times in a row is set aside: for a time it is not eligible, unless
every candidate that the policy admits is set aside. After that time it is tried again, and a single
failure sets it aside for twice as long.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from engine.api.candidate import NAME_PREFIX

MAX_PAUSE_S = 600.0
FORGET_S = 300.0  # failures that lie further apart are not in a row
MAX_REMEMBERED = 10_000  # pairs of scope and candidate; the least recent one is forgotten
MAX_ERROR_CHARS = 80
MIN_MEASURED = 5  # calls before their mean latency counts
# A mean latency is forgotten after that time without a call: a limit that excludes a candidate
# would keep it from ever being measured again.
LATENCY_AGE_S = 3600.0
LATENCY_WEIGHT = 0.1  # of the newest call in the moving mean
EVERYBODY = ""  # the scope of reports that count for all callers
# Statuses of the class 4xx that are the upstream's fault: a key, a model or a limit of its own.
UPSTREAM_4XX = frozenset({401, 403, 404, 408, 425, 429})
# A status, but not the time in "timed out after 400 s".
_STATUS = re.compile(r"(?<![\d.])[45]\d\d(?![\d.]|\s?(?:ms|s|sec|seconds|tokens)\b)")
_WORDS = re.compile(r"[\w .-]*")
log = logging.getLogger(__name__)


@dataclass
class _Record:
    """What was reported of one candidate within one scope.

    failures: in a row. failed_at: when the last of them was. until: end of the pause, 0 for none.
    pause_s: length of the next pause. latency_s: moving mean of `measured` calls, the last of which
    was reported at `measured_at`.
    """

    pause_s: float
    failures: int = 0
    failed_at: float = -math.inf
    error: str = ""
    until: float = 0.0
    latency_s: float = 0.0
    measured: int = 0
    measured_at: float = -math.inf


class CandidateHealth:
    """What callers reported of the candidates lately. For one event loop, but for `samples` and
    `set_aside`.

    Reports of a principal count for its own requests alone, so that no caller can set a candidate
    aside for another. Those of scope EVERYBODY count for all.
    """

    def __init__(
        self,
        failures: int = 3,
        pause_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set a candidate aside after `failures` in a row (0: never), at first for `pause_s`."""
        self._limit = failures
        self._pause_s = pause_s
        self._clock = clock
        self._records: OrderedDict[tuple[str, str], _Record] = OrderedDict()
        self._set_aside: dict[str, dict[str, _Record]] = {}  # scope -> candidate -> its record
        self.failures: Counter[str] = Counter()

    def report(
        self,
        candidate: str,
        error: str = "",
        scope: str = EVERYBODY,
        latency_s: float | None = None,
    ) -> None:
        """Take in how one call of a candidate ended.

        Args:
            candidate: its ID.
            error: such as "HTTP 529"; "" if it answered. An error of the request (HTTP 400) says
                nothing about the candidate.
            scope: the principal that reports, or EVERYBODY.
            latency_s: seconds until the last token, None if unknown.
        """
        if error and not is_upstream_failure(error):
            return
        key = (scope, candidate)
        record = self._records.setdefault(key, _Record(self._pause_s))
        self._records.move_to_end(key)
        if len(self._records) > MAX_REMEMBERED:
            self._readmit(*self._records.popitem(last=False)[0])
        if error:
            self._failed(key, record, error)
            return
        now = self._clock()
        if latency_s is not None:
            if now - record.measured_at > LATENCY_AGE_S:
                record.latency_s, record.measured = 0.0, 0
            weight = max(LATENCY_WEIGHT, 1 / (record.measured + 1))
            record.latency_s += weight * (latency_s - record.latency_s)
            record.measured += 1
            record.measured_at = now
        if now < record.until:
            return  # the answer to a request from before the pause
        if record.until:
            log.info("%s%s answers again", NAME_PREFIX, candidate)
        record.failures, record.until, record.pause_s = 0, 0.0, self._pause_s
        self._readmit(*key)

    def _readmit(self, scope: str, candidate: str) -> None:
        found = self._set_aside.get(scope, {})
        found.pop(candidate, None)
        if not found:
            self._set_aside.pop(scope, None)

    def _failed(self, key: tuple[str, str], record: _Record, error: str) -> None:
        (scope, candidate), now = key, self._clock()
        self.failures[candidate] += 1
        if not self._limit or now < record.until:
            return
        if now - max(record.failed_at, record.until) > FORGET_S:
            record.failures, record.until, record.pause_s = 0, 0.0, self._pause_s
        record.failures += 1
        record.failed_at, record.error = now, kind_of(error)
        if record.failures < self._limit and not record.until:
            return
        record.until = now + record.pause_s
        log.warning(
            "%s%s is set aside for %g s%s: %d failures in a row, the last with %s",
            *(NAME_PREFIX, candidate, record.pause_s),
            "" if scope == EVERYBODY else f", for {scope!r} alone",
            *(record.failures, record.error),
        )
        record.pause_s = min(2 * record.pause_s, MAX_PAUSE_S)
        self._set_aside.setdefault(scope, {})[candidate] = record

    def set_aside(self, principal: str) -> Mapping[str, str]:
        """Return candidate ID -> why it is set aside for the requests of `principal`."""
        if not self._set_aside:
            return {}
        now = self._clock()
        return {
            candidate: f"set aside for {record.until - now:.0f} s more: {record.failures} failures"
            f" in a row, the last with {record.error}"
            for scope in (EVERYBODY, principal)
            for candidate, record in self._set_aside.get(scope, {}).copy().items()
            if now < record.until
        }

    def latency_ms(self, candidate: str, principal: str) -> float | None:
        """Return the mean latency of recent calls in milliseconds, None if too few are known."""
        oldest = self._clock() - LATENCY_AGE_S
        for scope in (principal, EVERYBODY):
            record = self._records.get((scope, candidate))
            if record is None or record.measured_at < oldest:
                continue
            if record.measured >= MIN_MEASURED:
                return 1000 * record.latency_s
        return None

    def samples(self) -> dict[tuple[str, ...], float]:
        """Return (candidate,) -> 1 for each that is set aside for some caller. For any thread."""
        now = self._clock()
        return {
            (candidate,): 1.0
            for records in list(self._set_aside.values())
            for candidate, record in records.copy().items()
            if now < record.until
        }


def kind_of(error: str) -> str:
    """Return an error as logs and answers show it: its status, or else its first words.

    What comes after a colon or a quotation mark is left out, because it may be part of a prompt or
    a key.
    """
    if status := _STATUS.search(error):
        return f"HTTP {status[0]}"
    words = _WORDS.match(error)
    return (words[0] if words else "").strip()[:MAX_ERROR_CHARS] or "an error"


def is_upstream_failure(error: str) -> bool:
    """Whether an error is the candidate's fault, not that of the request."""
    status = _STATUS.search(error)
    return status is None or status[0][0] != "4" or int(status[0]) in UPSTREAM_4XX
