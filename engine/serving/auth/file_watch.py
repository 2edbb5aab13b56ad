"""Reload files while the server runs: certificates and tokens."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

from engine.api.errors import InvalidInputError

Fingerprint = tuple[tuple[int, ...] | None, ...]
Value = TypeVar("Value")
RETRY_S = 1.0  # between two attempts at the same files
# A file that is written again within a tick of its file system's clock keeps its times.
SETTLED_NS = 2_000_000_000
log = logging.getLogger(__name__)


def file_fingerprint(paths: Iterable[Path]) -> Fingerprint:
    """Return times, size and inode of each file, None for one that does not exist.

    It differs whenever a file was written, renamed, linked elsewhere, or got other permissions.
    """
    fingerprint: list[tuple[int, ...] | None] = []
    for path in paths:
        try:
            s = path.stat()
        except OSError:
            fingerprint.append(None)
        else:
            fingerprint.append((s.st_mtime_ns, s.st_ctime_ns, s.st_size, s.st_ino, s.st_dev))
    return tuple(fingerprint)


class ReloadedFiles(Generic[Value]):
    """The newest usable content of files. Thread-safe.

    What could not be loaded is tried again every RETRY_S, whether or not the files change, and the
    previous value stays in use until then. Raises InvalidInputError if the first attempt fails.

    Attributes:
        value: the content, as `load` returned it.
        version: grows with every new value.
        last_success: Unix time of the last attempt that succeeded, in seconds.
        failures: number of attempts that failed.
    """

    def __init__(
        self,
        what: str,
        paths: Iterable[Path],
        load: Callable[[], Value],
        describe: Callable[[Value], str],
    ) -> None:
        """Load for the first time.

        what: names the files in the log. load: raises InvalidInputError. describe: says for the log
        what was loaded.
        """
        self._what, self._paths, self._load = what, tuple(paths), load
        self._describe = describe
        self._lock = threading.Lock()
        self.failures = self.version = 0
        self._problem = ""
        self._begin()
        self.value = load()
        self._succeed()

    def refresh(self) -> Value:
        """Return the newest value; costs a stat of each file if they are as they were."""
        with self._lock:
            fingerprint = file_fingerprint(self._paths)
            waits = time.monotonic() - self._tried_at < RETRY_S
            if fingerprint == self._loaded or (fingerprint == self._tried and waits):
                return self.value
            self._begin()
            try:
                value = self._load()
            except InvalidInputError as error:
                self._fail(str(error))
                return self.value
            self._succeed()
            if value != self.value:
                self.value, self.version = value, self.version + 1
                log.info("loaded %s from %s", self._describe(value), self._paths[0])
            return self.value

    def _begin(self) -> None:
        self._tried, self._tried_at = file_fingerprint(self._paths), time.monotonic()

    def _succeed(self) -> None:
        """Remember what was read, unless it changed meanwhile or just before."""
        self.last_success = time.time()
        newest = max((times[1] for times in self._tried if times), default=0)
        settled = time.time_ns() - newest > SETTLED_NS
        same = file_fingerprint(self._paths) == self._tried
        self._loaded: Fingerprint | None = self._tried if settled and same else None
        if self._problem:
            log.info("%s can be loaded again", self._what)
        self._problem = ""

    def _fail(self, problem: str) -> None:
        self.failures += 1
        self._loaded = None
        if problem != self._problem:
            log.error("could not reload %s, keeping what was loaded: %s", self._what, problem)
        self._problem = problem
