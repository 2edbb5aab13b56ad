"""Detect that a file changed, for files that are reloaded while the server runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

Fingerprint = tuple[tuple[int, int, int] | None, ...]


def file_fingerprint(paths: Iterable[Path]) -> Fingerprint:
    """Return (mtime in ns, size, inode) of each file, None for one that does not exist. It differs
    whenever a file has changed."""
    fingerprint: list[tuple[int, int, int] | None] = []
    for path in paths:
        try:
            stat = path.stat()
        except OSError:
            fingerprint.append(None)
        else:
            fingerprint.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
    return tuple(fingerprint)
